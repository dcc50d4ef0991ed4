//! How much memory a piece of work holds at most, counted in the allocator, thread by thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use aspo_models::lora::{LoraConfig, Names, attach};
use aspo_models::{LanguageModel, LlamaConfig, ModelConfig, ModelInput};
use burn::backend::Autodiff;
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};

/// Counts what the current thread holds and has held at most.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that is ending has no counters any more.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call is handed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(ptr, layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Most bytes held at once while `f` ran, beyond what was held before.
pub fn peak<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.with(Cell::get);
    PEAK.with(|peak| peak.set(before));
    let out = f();
    (out, (PEAK.with(Cell::get) - before).max(0) as usize)
}

#[test]
fn a_thousand_training_steps_hold_no_more_than_ten() {
    type B = Autodiff<burn_flex::Flex>;
    // One thread does all of it, so that its counter sees all.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let [few, many] = pool.install(|| {
        let config = LlamaConfig::from_json(serde_json::json!({
            "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        }))
        .unwrap();
        let device = Default::default();
        let model = config.init_seeded::<B>(0, &device);
        let adapters = LoraConfig::new(2, 4.0, Names::Pattern("all-linear".into()));
        let mut model = Some(attach(model, &adapters, 0).unwrap());
        let mut optimizer = AdamWConfig::new().init();
        let input = ModelInput::from_rows(&[vec![1, 5, 9, 2], vec![3, 4, 4]], 0, &device);
        let mut steps = |count: usize| {
            for _ in 0..count {
                let own = model.take().unwrap();
                let loss = own.hidden_at(&input, &[1, 2, 5]).unwrap().square().sum();
                let grads = GradientsParams::from_grads(loss.backward(), &own);
                model = Some(optimizer.step(1e-3, own, grads));
            }
            HELD.with(Cell::get)
        };
        [steps(10), steps(990)]
    });
    // A leak of a hundred bytes a step would be 99,000.
    assert!(many - few < 50_000, "{few} bytes held after ten steps, {many} after a thousand");
}
