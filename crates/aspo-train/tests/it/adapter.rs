//! What an adapter may be in a run: on the head, of ranks of its own.

use aspo_models::lora::{LoraConfig, Names, attach, load_adapter};
use aspo_models::{EachLinear, Llava, LlavaConfig, LoadOptions, ModelConfig, Pretrained};
use aspo_train::{Plan, TrainConfig};
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn_flex::Flex;

use crate::support::{World, apart, fixtures, on_backends, whole_run};

on_backends!(an_adapted_head_trains_alike_packed_apart_and_recomputed,);

fn names(names: &[&str]) -> Option<Names> {
    Some(Names::List(names.iter().map(|name| (*name).to_owned()).collect()))
}

/// Head and values of the language model.
fn head(lora: &LoraConfig) -> LoraConfig {
    LoraConfig {
        target_modules: names(&["lm_head", "v_proj"]),
        exclude_modules: Some(Names::Pattern(".*vision_tower.*".into())),
        ..lora.clone()
    }
}

/// The losses of a run.
fn losses<B: Backend>(config: &TrainConfig) -> Vec<f64> {
    let mut losses = Vec::new();
    whole_run::<B>(config, false, |step| losses.push(step.values.values["loss"]), |_| ()).unwrap();
    losses
}

fn an_adapted_head_trains_alike_packed_apart_and_recomputed<B: Backend>() {
    let world = World::new();
    let base = TrainConfig {
        loss_type: vec!["sigmoid".into()],
        alpha: TrainConfig::default().alpha,
        max_steps: 6,
        // Adam's quotient makes a step of a gradient that is rounding alone; beside this epsilon it stays rounding.
        adam_epsilon: 1e-3,
        learning_rate: 1e-2,
        lora: head(&world.config.lora),
        ..world.config.clone()
    };
    let run = |out: &str, packed, recompute| TrainConfig {
        output_dir: world.folder.join(out),
        pair_packing: packed,
        gradient_checkpointing: recompute,
        ..base.clone()
    };
    let packed = losses::<B>(&run("packed", true, false));
    assert_eq!(packed.len(), 6);
    // At the start the policy is its reference, head included.
    assert!((packed[0] - std::f64::consts::LN_2).abs() < 1e-6, "{packed:?}");
    for (out, pack, recompute) in [("apart", false, false), ("recomputed", true, true)] {
        // The same products in another order, carried through six steps.
        let found = apart(&losses::<B>(&run(out, pack, recompute)), &packed);
        assert!(found < 1e-4, "{out}: {found:.1e} apart");
    }
    // Without the head the training is another, and what was trained on it is in the file.
    let lora = LoraConfig { target_modules: names(&["v_proj"]), ..base.lora.clone() };
    let without = losses::<B>(&TrainConfig { lora, ..run("without", true, false) });
    assert!(
        apart(&without[..1], &packed[..1]) < 1e-6 && apart(&without, &packed) > 1e-3,
        "{without:?} {packed:?}"
    );
    let model = fixtures().join("models/llava");
    let (model, _) =
        Llava::<B>::from_pretrained(model, &LoadOptions::default(), &Default::default()).unwrap();
    let (model, _) = load_adapter(model, world.folder.join("packed/adapter")).unwrap();
    let b = model.lm_head.unwrap().lora.expect("an adapter on the head").lora_b.val();
    assert!(b.into_data().iter::<f64>().any(|value| value.abs() > 1e-4), "the head's adapter was trained");
}

#[test]
fn the_plan_counts_the_ranks_that_patterns_give() {
    let world = World::new();
    let mut lora = head(&world.config.lora);
    lora.rank_pattern = [("lm_head".to_owned(), 3), ("layers.1.self_attn.v_proj".to_owned(), 9)].into();
    let config = TrainConfig { lora: lora.clone(), ..world.config.clone() };
    let shape = LlavaConfig::load(&config.model).unwrap();
    let device = Default::default();
    let pairs = world.data().pairs;
    let plan = |config: &TrainConfig| {
        Plan::new::<Autodiff<Flex>, Llava<Autodiff<Flex>>>(config, &shape, &pairs, &device)
    };
    let mut adapted = attach(shape.init::<Flex>(&device), &lora, 0).unwrap();
    let mut trainable = 0;
    adapted.each_linear("", &mut |_, linear| {
        let Some(lora) = &linear.lora else { return };
        trainable += lora.lora_a.lazy_shape().num_elements() + lora.lora_b.lazy_shape().num_elements();
    });
    assert_eq!(plan(&config).unwrap().trainable, trainable);
    let typo = LoraConfig { target_modules: names(&["gate_proj", "up_porj"]), ..world.config.lora.clone() };
    let error = plan(&TrainConfig { lora: typo, ..config.clone() }).unwrap_err().to_string();
    assert!(error.contains("up_porj") && error.contains("up_proj"), "{error}");
    let tower = LoraConfig { target_modules: names(&["q_proj"]), ..world.config.lora.clone() };
    let error = plan(&TrainConfig { lora: tower, ..config }).unwrap_err().to_string();
    assert!(error.contains("vision tower"), "{error}");
}
