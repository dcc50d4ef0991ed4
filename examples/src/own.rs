//! What a model of one's own can do: be trained with ASPO from a folder, be asked, and have its adapter loaded again.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aspo_cli::Failure;
use aspo_data::{ImageLoader, Template};
use aspo_models::lora::{LoraConfig, Names, load_adapter};
use aspo_models::nn::{Init, initialize};
use aspo_models::{
    GenerateConfig, LoadOptions, ModelInput, Pretrained, SaveOptions, VisionLanguageModel, generate,
};
use aspo_train::{Data, Output, Plan, Policy, Sight, StepReport, TrainConfig, Trainer, picture, read};
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;

/// Makes a checkpoint of random weights, trains an adapter on the pairs of the scenes world for sixty steps, and asks the model
/// about the first picture: as it left training, and again with base and adapter read from their folders.
///
/// Everything is written to the folder that the first argument names, or to a temporary one.
///
/// # Errors
/// Whatever the model or the run refuse; an answer that is another after loading.
pub fn train_and_ask<B: Backend, M: Policy<B>>(
    shape: &<M as Pretrained<Autodiff<B>>>::Config,
) -> Result<(), Failure> {
    let scratch = tempfile::tempdir()?;
    let out = std::env::args().nth(1).map_or(scratch.path().to_owned(), PathBuf::from);
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets");
    let device = B::Device::default();

    // A folder as any other checkpoint's: config and weights, tokenizer, and how pictures are prepared.
    let model = out.join("model");
    let start = |path: &str, _: &[usize]| match path {
        path if path.ends_with("bias") => Init::Constant(0.0),
        path if path.contains("norm") => Init::Constant(1.0),
        _ => Init::Normal(0.02),
    };
    let base = initialize(M::from_config(shape, &device), 0, start);
    base.save_pretrained(&model, &SaveOptions::default())?;
    for file in ["tokenizer.json", "preprocessor_config.json"] {
        std::fs::copy(assets.join("llava").join(file), model.join(file))?;
    }

    let config = TrainConfig {
        model: model.clone(),
        data: assets.join("pairs.json").into(),
        images: assets.join("scenes"),
        output_dir: out.join("run"),
        template: Template::LlavaHf,
        max_length: 512,
        // Sentences are weighed by perplexity alone, which takes no CLIP.
        alpha: 0.0,
        // The model begins with random weights: a likelihood beside the preference teaches it to speak.
        loss_type: vec!["aspo".into(), "sft".into()],
        learning_rate: 1e-2,
        max_steps: 60,
        gradient_checkpointing: true,
        lora: LoraConfig::new(8, 16.0, Names::Pattern("all-linear".into())),
        ..TrainConfig::default()
    };
    let (base, _) = M::from_pretrained(&model, &LoadOptions::default(), &device)?;
    let mut data = read(&config, &Sight::of(&config, &base)?)?;
    data.decode_pictures(&config, |_, _| ())?;
    println!("{}\n", Plan::new::<Autodiff<B>, M>(&config, shape, &data.pairs, &device)?);
    let output = Output::open(&config, false)?;
    let data = Arc::new(data);
    let watch = |step: &StepReport| {
        if step.step % 10 == 1 || step.step == step.total {
            println!("step {:2}  loss {:.2}", step.step, step.values.values["loss"]);
        }
        ControlFlow::Continue(())
    };
    let trainer = Trainer::<B, M>::new(config.clone(), base, data.clone(), output, device.clone());
    let done = trainer.with_callback(watch).train()?;

    let told = ask(&done.model.valid(), &config, &data, &device)?;
    println!("\n{}\n{told}", data.pairs.get(0)?.id);
    let (base, _) = M::from_pretrained(&model, &LoadOptions::default(), &device)?;
    let (loaded, _) = load_adapter(base, &done.adapter)?;
    if ask(&loaded.valid(), &config, &data, &device)? != told {
        return Err("the loaded adapter answers otherwise".into());
    }
    println!("the same with the adapter of {}", done.adapter.display());
    Ok(())
}

/// The greedy answer to the prompt of the first pair, beside its picture.
fn ask<B: Backend, M: VisionLanguageModel<B>>(
    model: &M,
    config: &TrainConfig,
    data: &Data,
    device: &B::Device,
) -> Result<String, Failure> {
    let pair = &data.pairs.get(0)?;
    let loader = ImageLoader::new(&config.images, config.processor(&config.model, model.image_size())?)?;
    let features = model.vision_features(&[picture(&loader.pixels(&pair.images[0], true)?, device)])?;
    let prompt =
        ModelInput::from_rows(std::slice::from_ref(&pair.prompt_ids), 0, device).with_images(features);
    let length = GenerateConfig { max_new_tokens: 24, ..GenerateConfig::default() };
    let ids = generate(model, &prompt, &length, |_, _| ())?.swap_remove(0);
    Ok(data.encoder.tokenizer.decode(&ids, true)?)
}
