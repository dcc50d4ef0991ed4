//! A step for all parameters at once against plain loops, on backends that have one.

use aspo_kernels::adamw::{AdamW, Slot, adamw, all_at_once, scaled, squares};
use burn::tensor::backend::Backend;

use crate::support::{noise, tensor};

const STEP: AdamW = AdamW { rate: 1e-2, beta_1: 0.9, beta_2: 0.98, epsilon: 1e-6, weight_decay: 0.1 };

fn slot<B: Backend>(n: usize, seed: u64, time: usize) -> Slot<B> {
    let values = |seed: u64| tensor::<B, 1>(&noise(n, seed), [n]);
    let moments = [values(seed + 2), values(seed + 3).square()];
    Slot { value: values(seed), gradient: values(seed + 1), moments, time }
}

#[test]
fn backends_without_kernels_say_so_and_change_nothing() {
    fn check<B: Backend>() {
        assert!(!all_at_once::<B>());
        let mut slots = [slot::<B>(5, 1, 1)];
        assert!(!adamw(&mut slots, &STEP));
        assert_eq!(slots[0].moments[0].to_data(), slot::<B>(5, 1, 1).moments[0].to_data());
        assert!(squares(&[slots[0].value.clone()]).is_none());
        assert!(scaled(&[slots[0].value.clone()], 0.5).is_none());
    }
    check::<burn_flex::Flex>();
    check::<burn_ndarray::NdArray>();
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu {
    use burn::tensor::Tensor;

    use super::*;
    use crate::support::{Gpu, close, values};

    /// More parameters than a launch takes, one of them empty, each at a step of its own.
    const SIZES: [usize; 15] = [1, 5, 256, 0, 257, 1000, 3, 40_000, 2, 7, 64, 33, 1, 9, 12];

    fn slots() -> Vec<Slot<Gpu>> {
        let all = SIZES.iter().enumerate();
        all.filter(|(_, n)| **n > 0).map(|(i, n)| slot(*n, 10 * i as u64, 1 + i % 3)).collect()
    }

    #[test]
    fn a_step_of_adamw_is_that_of_plain_loops() {
        assert!(all_at_once::<Gpu>());
        let before = slots();
        let mut after = slots();
        assert!(adamw(&mut after, &STEP));
        for (before, after) in before.into_iter().zip(after) {
            let [mut first, mut second] = before.moments.map(values);
            let mut value = values(before.value);
            let corrections = [STEP.beta_1, STEP.beta_2].map(|b| 1.0 - f64::from(b).powi(before.time as i32));
            let [b1, b2, eps, decay] =
                [STEP.beta_1, STEP.beta_2, STEP.epsilon, STEP.weight_decay].map(f64::from);
            for (i, g) in values(before.gradient).into_iter().enumerate() {
                first[i] = b1 * first[i] + (1.0 - b1) * g;
                second[i] = b2 * second[i] + (1.0 - b2) * g * g;
                let by = first[i] / corrections[0] / ((second[i] / corrections[1]).sqrt() + eps);
                value[i] = (1.0 - STEP.rate * decay) * value[i] - STEP.rate * by;
            }
            let [m, v] = after.moments;
            // A handful of roundings; 1 - β₂ᵗ loses six bits in f32.
            close("first moment", &values(m), &first, 1e-6);
            close("second moment", &values(v), &second, 1e-6);
            close("value", &values(after.value), &value, 3e-6);
        }
    }

    #[test]
    fn many_tensors_have_the_squares_and_multiples_of_plain_loops() {
        let many: Vec<Tensor<Gpu, 1>> =
            (0..70).map(|i| tensor(&noise(SIZES[i % 15].max(1), i as u64), [SIZES[i % 15].max(1)])).collect();
        let expected: f64 = many.iter().flat_map(|t| values(t.clone())).map(|x| x * x).sum();
        // Rounded sums of some thousand terms of one sign, in a tree.
        close("squares", &values(squares(&many).unwrap()), &[expected], 1e-5);
        assert_eq!(squares(&many).unwrap().to_data(), squares(&many).unwrap().to_data(), "in one order");
        for (tensor, multiple) in many.iter().zip(scaled(&many, 0.25).unwrap()) {
            assert_eq!(values(multiple), values(tensor.clone().mul_scalar(0.25)));
        }
        assert!(squares::<Gpu>(&[]).is_none());
    }
}
