//! SmolVLM, Idefics3 and LLaVA-OneVision against Hugging Face's results.

use std::path::Path;

use aspo_models::{
    LlavaOnevision, LlavaOnevisionConfig, LoadOptions, ModelConfig, ModelInput, Picture, PictureShape,
    Pretrained, SmolVlm, SmolVlmConfig, VisionLanguageModel,
};
use burn::backend::Autodiff;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Distribution, Tensor, s};
use burn_flex::Flex;
use serde_json::{Value, json};

use crate::conversations::{check_conversations, check_pair, close, pictures};
use crate::support::{Expected, Laid, cases, fixtures, generations, on_backends, values};

on_backends!(
    oracle_smolvlm_sees_tiles_as_hugging_face_does,
    oracle_smolvlm_goes_on_with_conversations_as_hugging_face_does,
    oracle_smolvlm_learns_from_a_pair_as_peft_does,
    oracle_onevision_sees_tiles_as_hugging_face_does,
    oracle_onevision_goes_on_with_conversations_as_hugging_face_does,
    oracle_onevision_learns_from_a_pair_as_peft_does,
);

fn open<B: Backend, M: Pretrained<B>>(case: &Path) -> M {
    let (model, report) = M::from_pretrained(case, &LoadOptions::default(), &Default::default()).unwrap();
    assert!(report.missing.is_empty() && report.unused.is_empty());
    model
}

fn laid(kinds: &[&str]) -> Vec<Laid> {
    kinds.iter().flat_map(|kind| cases(kind)).flat_map(|case| generations(&case)).collect()
}

fn pair_of(case: &Laid) -> Option<Expected> {
    let file = case.path.join("expected_train.safetensors");
    file.exists().then(|| Expected::open(file))
}

/// The image tokens that a model puts in the places of one picture.
fn image_tokens<B: Backend, M: VisionLanguageModel<B>>(model: &M, picture: Picture<B>) -> Tensor<B, 2> {
    let count = model.tokens(&picture.shape);
    let features = model.vision_features(&[picture]).unwrap();
    let ids = vec![model.image_token(); count];
    let input = ModelInput::from_rows(&[ids], 0, &Default::default()).with_images(features);
    model.embed(&input).unwrap().squeeze_dim(0)
}

/// A picture from its pixels `[tiles, 3, S, S]`, cut into this grid.
fn picture<B: Backend>(pixels: Tensor<B, 4>, grid: [usize; 2], size: [usize; 2]) -> Picture<B> {
    let [_, _, height, width] = pixels.dims();
    Picture { pixels, shape: PictureShape { tile: [height, width], grid, size } }
}

fn smolvlm_picture<B: Backend>(expected: &Expected, name: &str) -> Picture<B> {
    let grid = expected.ints(&format!("image.{name}.rows_cols")).0;
    let pixels = expected.float_tensor(&format!("image.{name}.pixel_values"));
    picture(pixels, [grid[0] as usize, grid[1] as usize], [1, 1])
}

/// Height, width, and what stands beside them in rows of one table of sizes.
fn table<const N: usize>(expected: &Expected, kind: &str, names: [&str; N]) -> Vec<([usize; 2], [usize; N])> {
    let columns = names.map(|name| expected.ints(&format!("{kind}.{name}")).0);
    let sizes = expected.ints(&format!("{kind}.hw")).0;
    let row = |at: usize| columns.each_ref().map(|column| column[at] as usize);
    sizes.chunks(2).enumerate().map(|(at, hw)| ([hw[0] as usize, hw[1] as usize], row(at))).collect()
}

fn oracle_smolvlm_sees_tiles_as_hugging_face_does<B: Backend>() {
    for case in laid(&["idefics3", "smolvlm"]) {
        let model = open::<B, SmolVlm<B>>(&case.path);
        let expected = Expected::open(case.path.join("expected.safetensors"));
        let names = pictures(&expected);
        assert!(!names.is_empty());
        for name in names {
            let of = |what: &str| format!("image.{name}.{what}");
            let cut = smolvlm_picture::<B>(&expected, &name);
            assert_eq!(model.tokens(&cut.shape) as i64, expected.ints(&of("tokens")).0[0]);
            close(
                model.model.vision_model.forward(cut.pixels.clone()),
                &expected,
                &of("vision_hidden"),
                None,
            );
            close(image_tokens(&model, cut), &expected, &of("features"), None);
            let whole = Picture::each(expected.float_tensor(&of("nosplit.pixel_values"))).remove(0);
            close(image_tokens(&model, whole), &expected, &of("nosplit.features"), None);
        }
        for ([height, width], [rows, columns, tokens]) in
            table(&expected, "sizes", ["rows", "cols", "tokens"])
        {
            let tile = [model.image_size(); 2];
            let shape = PictureShape { tile, grid: [rows, columns], size: [height, width] };
            assert_eq!(model.tokens(&shape), tokens, "{height} × {width}");
        }
    }
}

fn oracle_smolvlm_goes_on_with_conversations_as_hugging_face_does<B: Backend>() {
    for case in laid(&["idefics3", "smolvlm"]) {
        let model = open::<B, SmolVlm<B>>(&case.path);
        let expected = Expected::open(case.path.join("expected.safetensors"));
        check_conversations(&case.path, &model, |name, _| smolvlm_picture(&expected, name));
    }
}

fn oracle_smolvlm_learns_from_a_pair_as_peft_does<B: Backend>() {
    for case in laid(&["idefics3", "smolvlm"]) {
        let Some(pair) = pair_of(&case) else { continue };
        let model = open::<Autodiff<B>, SmolVlm<Autodiff<B>>>(&case.path);
        let pixels: Tensor<B, 5> = pair.float_tensor("pixel_values");
        let pixels: Tensor<B, 4> = pixels.squeeze_dim(0);
        // Which grid makes no difference to the model: tiles are tiles.
        let tiles = pixels.dims()[0];
        let grid = if tiles == 1 { [0, 0] } else { [1, tiles - 1] };
        check_pair::<B, _>(&case.path, model, picture(pixels, grid, [1, 1]));
    }
}

/// The grid of pinpoints that Hugging Face's processor cuts a picture into: most of the picture kept, least wasted.
fn best_grid(config: &LlavaOnevisionConfig, [height, width]: [usize; 2]) -> [usize; 2] {
    let pinpoints: Vec<[usize; 2]> =
        serde_json::from_value(config.extra["image_grid_pinpoints"].clone()).unwrap();
    let worth = |[high, wide]: [usize; 2]| {
        let scale = (wide as f64 / width as f64).min(high as f64 / height as f64);
        let kept = (width as f64 * scale) as usize * ((height as f64 * scale) as usize);
        let kept = kept.min(width * height);
        (kept, std::cmp::Reverse(high * wide - kept))
    };
    // The first of equals.
    let best = pinpoints.into_iter().rev().max_by_key(|&pinpoint| worth(pinpoint)).unwrap();
    best.map(|edge| edge / config.image_size())
}

fn onevision_picture<B: Backend>(
    model: &LlavaOnevision<B>,
    expected: &Expected,
    name: &str,
    several: bool,
) -> Picture<B> {
    let size = expected.ints(&format!("image.{name}.image_size")).0;
    let size = [size[0] as usize, size[1] as usize];
    let (grid, kind) = if several { ([0, 0], "several.") } else { (best_grid(model.config(), size), "") };
    picture(expected.float_tensor(&format!("image.{name}.{kind}pixel_values")), grid, size)
}

fn oracle_onevision_sees_tiles_as_hugging_face_does<B: Backend>() {
    for case in laid(&["llava_onevision"]) {
        let model = open::<B, LlavaOnevision<B>>(&case.path);
        let config = model.config();
        let expected = Expected::open(case.path.join("expected.safetensors"));
        let names = pictures(&expected);
        assert!(!names.is_empty());
        for name in names {
            let of = |what: &str| format!("image.{name}.{what}");
            let alone = onevision_picture::<B>(&model, &expected, &name, false);
            assert_eq!(model.tokens(&alone.shape) as i64, expected.ints(&of("tokens")).0[0]);
            let tower = &model.model.vision_tower;
            let seen = tower.hidden_state(alone.pixels.clone(), config.vision_feature_layer).unwrap();
            close(seen, &expected, &of("vision_hidden"), None);
            close(image_tokens(&model, alone), &expected, &of("features"), None);
            let one_of_several = onevision_picture::<B>(&model, &expected, &name, true);
            close(image_tokens(&model, one_of_several), &expected, &of("several.features"), None);
        }
        // The published models' settings too: rows cut away, rows made fewer.
        let note: Value = serde_json::from_str(&expected.metadata("note")).unwrap();
        for kind in ["sizes", "sizes_real"] {
            let mut real = config.clone();
            let tile = note[kind]["tile"].as_u64().unwrap() as usize;
            let edge = (note[kind]["tokens_per_tile"].as_f64().unwrap()).sqrt() as usize;
            (real.vision_config.image_size, real.vision_config.patch_size) = (tile, tile / edge);
            real.vision_aspect_ratio = format!("anyres_max_{}", note[kind]["max"]);
            for (size, [high, wide, tokens]) in table(&expected, kind, ["best_h", "best_w", "tokens"]) {
                let shape = PictureShape { tile: [tile; 2], grid: [high / tile, wide / tile], size };
                assert_eq!(real.tokens(&shape), tokens, "{kind}: {size:?}");
            }
        }
    }
}

fn oracle_onevision_goes_on_with_conversations_as_hugging_face_does<B: Backend>() {
    for case in laid(&["llava_onevision"]) {
        let model = open::<B, LlavaOnevision<B>>(&case.path);
        let expected = Expected::open(case.path.join("expected.safetensors"));
        check_conversations(&case.path, &model, |name, several| {
            onevision_picture(&model, &expected, name, several)
        });
    }
}

/// Where a case has a pair; the committed one has none.
fn oracle_onevision_learns_from_a_pair_as_peft_does<B: Backend>() {
    for case in laid(&["llava_onevision"]) {
        let Some(pair) = pair_of(&case) else { continue };
        let model = open::<Autodiff<B>, LlavaOnevision<Autodiff<B>>>(&case.path);
        let note: Value = serde_json::from_str(&pair.metadata("note")).unwrap();
        let plain = open::<B, LlavaOnevision<B>>(&case.path);
        let expected = Expected::open(case.path.join("expected.safetensors"));
        let shown = onevision_picture(&plain, &expected, note["image"].as_str().unwrap(), false);
        check_pair::<B, _>(&case.path, model, shown);
    }
}

/// Counts parameters without making them.
#[derive(Default)]
struct Count {
    tensors: usize,
    values: usize,
}

impl<B: Backend> ModuleVisitor<B> for Count {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.tensors += 1;
        self.values += param.lazy_shape().num_elements();
    }
}

#[test]
fn the_published_256m_has_its_471_tensors_and_64_tokens_a_tile() {
    let config = SmolVlmConfig::smolvlm_256m();
    let mut count = Count::default();
    config.init::<Flex>(&Default::default()).visit(&mut count);
    assert_eq!(count.tensors, 471);
    // Tower: 86.5 million; connector 7.1; decoder 134.5 with its table of 28.4; head 28.4.
    assert!((256_000_000..257_000_000).contains(&count.values), "{}", count.values);
    assert_eq!((config.tokens_per_tile(), config.end_tokens()), (64, vec![49_279]));
}

#[test]
fn ends_of_an_answer_are_those_of_generation_config_and_survive_saving() {
    let config = SmolVlmConfig::load(fixtures("models/smolvlm")).unwrap();
    assert_eq!((config.end_tokens(), config.text_config.eos()), (vec![344], vec![2]));
    let folder = tempfile::tempdir().unwrap();
    config.save(folder.path()).unwrap();
    assert_eq!(SmolVlmConfig::load(folder.path()).unwrap(), config);
    let config = LlavaOnevisionConfig::load(fixtures("models/llava_onevision")).unwrap();
    assert_eq!(config.end_tokens(), [302, 300]);
    let broken = json!({ "eos_token_id": "</s>" }).to_string();
    std::fs::write(folder.path().join("generation_config.json"), broken).unwrap();
    let error = SmolVlmConfig::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("generation_config.json"), "{error}");
}

#[test]
fn heads_are_tied_by_the_top_level_and_in_onevision_by_text_config_too() {
    let tied = |name: &str, top: bool, text: bool| {
        json!({
            "model_type": name, "tie_word_embeddings": top, "text_config": { "tie_word_embeddings": text },
            "vision_config": { "image_size": 32, "patch_size": 16, "hidden_size": 64 },
        })
    };
    for (top, text) in [(false, false), (false, true), (true, false), (true, true)] {
        let smol = SmolVlmConfig::from_json(tied("idefics3", top, text)).unwrap();
        assert_eq!(smol.text_config.tie_word_embeddings, top);
        let mut json = tied("llava_onevision", top, text);
        json["vision_config"]["num_attention_heads"] = json!(4);
        let one = LlavaOnevisionConfig::from_json(json).unwrap();
        assert_eq!([one.tie_word_embeddings, one.text_config.tie_word_embeddings], [top || text; 2]);
    }
}

#[test]
fn what_the_models_cannot_honour_is_refused_by_name() {
    let smol = |json: Value| SmolVlmConfig::from_json(json).unwrap_err().to_string();
    let error = smol(json!({ "model_type": "idefics3", "vision_config": { "image_size": 96 } }));
    assert!(error.contains("scale_factor"), "3 patches an edge, 2 a square: {error}");
    let error = smol(json!({ "model_type": "smolvlm", "text_config": { "model_type": "mistral" } }));
    assert!(error.contains("mistral"), "{error}");
    let tower = json!({ "model_type": "smolvlm", "vision_config": { "model_type": "clip_vision_model" } });
    assert!(smol(tower).contains("clip_vision_model"));
    let one = |field: &str, value: Value| {
        let mut json = json!({ "model_type": "llava_onevision" });
        json[field] = value;
        let error = LlavaOnevisionConfig::from_json(json).unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    };
    one("vision_aspect_ratio", json!("pad"));
    one("vision_feature_select_strategy", json!("default"));
    one("vision_feature_layer", json!(27));
    let defaults = LlavaOnevisionConfig::default();
    assert_eq!((defaults.vision_config.edge(), defaults.vision_config.num_hidden_layers), (27, 26));
}

#[test]
fn pixels_beyond_the_last_whole_patch_are_not_looked_at() {
    // As in 384 pixels cut into patches of 14.
    let config = json!({
        "model_type": "smolvlm", "scale_factor": 3,
        "vision_config": {
            "image_size": 28, "patch_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2,
            "num_hidden_layers": 1,
        },
        "text_config": {
            "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1,
            "vocab_size": 16,
        },
        "image_token_id": 9,
    });
    let device = Default::default();
    let model = SmolVlmConfig::from_json(config).unwrap().init_seeded::<Flex>(0, &device);
    let pixels = Tensor::<Flex, 4>::random([1, 3, 28, 28], Distribution::Normal(0.0, 1.0), &device);
    let seen = |pixels: Tensor<Flex, 4>| values(image_tokens(&model, Picture::each(pixels).remove(0)));
    let before = seen(pixels.clone());
    let edge = pixels.clone().slice_fill(s![.., .., 27.., ..], 5.0).slice_fill(s![.., .., .., 27..], 5.0);
    assert_eq!(before, seen(edge));
    assert_ne!(before, seen(pixels.slice_fill(s![.., .., 26.., ..], 5.0)));
}

#[test]
fn tiles_that_do_not_fit_the_shape_are_refused() {
    let model = open::<Flex, SmolVlm<Flex>>(&fixtures("models/idefics3"));
    let two = picture(Tensor::zeros([2, 3, 24, 24], &Default::default()), [1, 2], [1, 1]);
    let error = model.vision_features(&[two]).unwrap_err().to_string();
    assert!(error.contains("[2, 3, 24, 24]") && error.contains("[3, 3, 24, 24]"), "{error}");
}
