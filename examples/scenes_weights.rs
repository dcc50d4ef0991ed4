//! Whether ASPO's weights find what is true: on the scenes world every sentence can be judged.
//!
//! `cargo run --release --example scenes_weights -- --adapter out/scenes_study/aspo-1/adapter` weighs both answers of the committed pairs,
//! prints how far similarity, perplexity and their mixtures agree with the truth, and draws it.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use aspo_cli::backend::{Device, OnBackend, exit_on_error};
use aspo_cli::{Failure, say};
use aspo_data::{EncodedPair, ImageLoader, ImageSource};
use aspo_examples::rank::{Known, agreement};
use aspo_models::{Llava, LlavaConfig, ModelConfig, Pretrained, VisionLanguageModel, lora};
use aspo_scenes::{Scene, Split, Verdict, judge, load};
use aspo_train::{Data, Sight, TrainConfig, VisionFeatures, processor, read, score, weigh};
use burn::tensor::backend::Backend;
use clap::Parser;

#[derive(Parser)]
#[command(about = "How far ASPO's weights agree with the truth of each sentence")]
struct Args {
    /// A TOML file with options by TRL's names [default: the scenes world]
    #[arg(long)]
    config: Option<PathBuf>,
    /// Folder of the adapter of a trained model, whose perplexities are looked at beside the base's
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Where the figure is drawn
    #[arg(long, default_value = "out/weights.svg")]
    figure: PathBuf,
    /// Backend, among those compiled in
    #[arg(long)]
    device: Option<Device>,
}

fn main() {
    let args = Args::parse();
    exit_on_error(args.device.unwrap_or_default().run(Job(args)));
}

/// Shares of similarity that are tried, in tenths.
const TENTHS: std::ops::RangeInclusive<usize> = 0..=10;

struct Job(Args);

impl OnBackend for Job {
    type Output = Result<(), Failure>;

    fn run<B: Backend>(self, device: B::Device) -> Self::Output {
        let args = self.0;
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let path = args.config.unwrap_or_else(|| here.join("configs/scenes.toml"));
        let config = TrainConfig::from_toml(&path)?;
        let shape = LlavaConfig::load(&config.model)?;
        let mut data = read(&config, &Sight::of(&config, &shape.init::<B>(&device))?)?;
        // Both answers are looked at.
        score::<B>(&config, &mut data, true, &device)?;
        let scenes = load(&config.images, Split::Pairs)?;
        let scenes: HashMap<String, Scene> =
            scenes.into_iter().map(|line| (line.image, line.scene)).collect();
        let chosen = data.pairs.iter().collect::<Result<Vec<EncodedPair>, _>>()?;
        let turned = |pair: &EncodedPair| EncodedPair { chosen: pair.rejected.clone(), ..pair.clone() };
        let rejected = chosen.iter().map(turned).collect();
        let sides: [(&str, Vec<EncodedPair>); 2] = [("chosen", chosen), ("rejected", rejected)];

        let (base, _) = Llava::<B>::from_pretrained(&config.model, &config.load_options(), &device)?;
        let mut models = vec![("base", base.clone())];
        if let Some(adapter) = &args.adapter {
            models.push(("trained", lora::load_adapter(base, adapter)?.0));
        }
        let mut lines: Vec<(String, Vec<f64>)> = Vec::new();
        say!(
            "| answers, model | sentences, false | α = 0 (perplexity) | {} | α = 1 (similarity) |",
            TENTHS
                .filter(is_shown)
                .map(|tenths| format!("{:.1}", tenths as f64 / 10.0))
                .collect::<Vec<_>>()
                .join(" | ")
        );
        for (side, pairs) in &sides {
            for (name, model) in &models {
                let answers = known::<B, _>(&config, &data, model, pairs, &scenes, &device)?;
                let all = answers.iter().flatten();
                let (sentences, wrong) = (all.clone().count(), all.filter(|known| !known.truth).count());
                let found: Vec<_> = TENTHS
                    .map(|tenths| agreement(&answers, tenths as f64 / 10.0))
                    .collect::<Option<_>>()
                    .ok_or("no answer has both a true and a false sentence: there is nothing to compare")?;
                let cells: Vec<String> = TENTHS
                    .map(|tenths| (tenths, found[tenths].scaled(100.0)))
                    .filter(|(tenths, _)| matches!(tenths, 0 | 10) || is_shown(tenths))
                    .map(|(_, of)| format!("{:.1} [{:.1}, {:.1}]", of.mean, of.low, of.high))
                    .collect();
                say!(
                    "| {side}, {name} | {sentences}, {:.1}% | {} |",
                    100.0 * wrong as f64 / sentences as f64,
                    cells.join(" | ")
                );
                lines.push((format!("{side}, {name}"), found.iter().map(|of| 100.0 * of.mean).collect()));
            }
        }
        if let Some(parent) = args.figure.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&args.figure, drawn(&lines))
            .map_err(|error| format!("{}: {error}", args.figure.display()))?;
        say!("figure: {}", args.figure.display());
        Ok(())
    }
}

/// Mixtures that have a column in the table.
fn is_shown(tenths: &usize) -> bool {
    matches!(tenths, 2 | 5 | 8)
}

/// The chosen answers' sentences that can be judged.
fn known<B: Backend, M: VisionLanguageModel<B>>(
    config: &TrainConfig,
    data: &Data,
    model: &M,
    pairs: &[EncodedPair],
    scenes: &HashMap<String, Scene>,
    device: &B::Device,
) -> Result<Vec<Vec<Known>>, Failure> {
    let images = ImageLoader::new(&config.images, processor(&config.model, model.image_size())?)?;
    let mut features = VisionFeatures::new(images);
    let pad = data.encoder.tokenizer.pad();
    let mut answers = Vec::with_capacity(pairs.len());
    for pairs in pairs.chunks(32) {
        let rows: Vec<&EncodedPair> = pairs.iter().collect();
        for (pair, sentences) in pairs.iter().zip(weigh(model, &rows, &mut features, 1.0, pad, device)?) {
            let image = match &pair.images[..] {
                [ImageSource::Path(path)] => path.replace('\\', "/"),
                _ => return Err(format!("pair {:?} has no picture by name", pair.id).into()),
            };
            let scene = scenes.get(&image).ok_or_else(|| format!("{image}: not among the drawn scenes"))?;
            let known = sentences.into_iter().filter_map(|sentence| {
                let verdicts = judge(scene, &sentence.text).sentences;
                let truth = match verdicts[..] {
                    [(_, Verdict::True)] => true,
                    [(_, Verdict::False)] => false,
                    _ => return None,
                };
                let similarity = f64::from(sentence.similarity?);
                Some(Known { similarity, perplexity: sentence.perplexity, truth })
            });
            answers.push(known.collect());
        }
    }
    Ok(answers)
}

/// Agreement by α, a line each.
fn drawn(lines: &[(String, Vec<f64>)]) -> String {
    const COLOURS: [&str; 4] = ["#1f6fb4", "#7fb2dd", "#c0392b", "#e59a90"];
    let values = || lines.iter().flat_map(|(_, values)| values.iter().copied());
    let low = (values().fold(50.0, f64::min) / 5.0).floor() * 5.0;
    let high = (values().fold(55.0, f64::max) / 5.0).ceil() * 5.0;
    let (x, y) = (
        |tenths: usize| 50.0 + 37.0 * tenths as f64,
        |value: f64| 220.0 - 200.0 * (value - low) / (high - low),
    );
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"580\" height=\"262\" font-family=\"system-ui,sans-serif\" font-size=\"11\" \
         fill=\"#444\"><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>",
    );
    let mut value = low;
    while value <= high {
        let at = y(value);
        let colour = if value == 50.0 { "#999" } else { "#eee" };
        let _ = write!(
            svg,
            "<line x1=\"50\" x2=\"420\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"{colour}\"/><text x=\"44\" y=\"{:.1}\" text-anchor=\"end\">{value:.0}%</text>",
            at + 4.0
        );
        value += 5.0;
    }
    for tenths in [0, 2, 4, 6, 8, 10] {
        let _ = write!(
            svg,
            "<text x=\"{:.0}\" y=\"236\" text-anchor=\"middle\">{:.1}</text>",
            x(tenths),
            tenths as f64 / 10.0
        );
    }
    svg += "<text x=\"50\" y=\"254\">α: perplexity alone</text><text x=\"420\" y=\"254\" text-anchor=\"end\">similarity alone</text>";
    for (index, ((name, values), colour)) in lines.iter().zip(COLOURS).enumerate() {
        let points: Vec<String> = values
            .iter()
            .enumerate()
            .map(|(tenths, value)| format!("{:.1},{:.1}", x(tenths), y(*value)))
            .collect();
        let _ = write!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/><text x=\"436\" y=\"{}\" fill=\"{colour}\">{name}</text>",
            points.join(" "),
            40 + 18 * index
        );
    }
    svg + "</svg>\n"
}
