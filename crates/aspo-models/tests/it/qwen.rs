//! Qwen2-VL and Qwen2.5-VL against Hugging Face's results.

use std::path::Path;

use aspo_models::{LoadOptions, Picture, PictureShape, Pretrained, QwenVl};
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::conversations::{check_conversations, check_pair, close, pictures};
use crate::support::{Expected, Laid, cases, generations, on_backends};

on_backends!(
    oracle_qwen_sees_pictures_of_any_size_as_hugging_face_does,
    oracle_qwen_goes_on_with_conversations_as_hugging_face_does,
    oracle_qwen_learns_from_a_pair_as_peft_does,
);

/// The pixels of a picture that the oracle shows alone.
fn of_image<B: Backend>(model: &QwenVl<B>, expected: &Expected, name: &str) -> Tensor<B, 4> {
    let [values, grid] = ["pixel_values", "grid_thw"].map(|what| format!("image.{name}.{what}"));
    pixels(model, expected, [&values, &grid])
}

/// A picture of any size is one piece.
fn picture<B: Backend>(pixels: Tensor<B, 4>) -> Picture<B> {
    let [_, _, height, width] = pixels.dims();
    Picture { pixels, shape: PictureShape::whole([height, width]) }
}

fn open<B: Backend>(case: &Path) -> QwenVl<B> {
    let (model, report) =
        QwenVl::from_pretrained(case, &LoadOptions::default(), &Default::default()).unwrap();
    assert!(report.missing.is_empty() && report.unused.is_empty());
    model
}

fn qwens() -> Vec<Laid> {
    ["qwen2_vl", "qwen2_5_vl"].into_iter().flat_map(cases).flat_map(|case| generations(&case)).collect()
}

/// `[1, 3, height, width]` of the flattened patches that Hugging Face's processor gives.
fn pixels<B: Backend>(model: &QwenVl<B>, expected: &Expected, [pixels, grid]: [&str; 2]) -> Tensor<B, 4> {
    let (patches, _) = expected.floats(pixels);
    let grid = expected.ints(grid).0;
    let c = &model.config().vision_config;
    let (patch, merge) = (c.patch_size, c.spatial_merge_size);
    let [rows, columns] = [grid[1] as usize, grid[2] as usize];
    let (height, width) = (rows * patch, columns * patch);
    let mut out = vec![0f32; 3 * height * width];
    let values = 3 * 2 * patch * patch;
    for (index, values) in patches.chunks(values).enumerate() {
        let (square, inside) = (index / (merge * merge), index % (merge * merge));
        let row = square / (columns / merge) * merge + inside / merge;
        let column = square % (columns / merge) * merge + inside % merge;
        for channel in 0..3 {
            for y in 0..patch {
                for x in 0..patch {
                    let value = values[(channel * 2 * patch + y) * patch + x];
                    out[(channel * height + row * patch + y) * width + column * patch + x] = value as f32;
                }
            }
        }
    }
    Tensor::from_data(TensorData::new(out, [1, 3, height, width]), &Default::default())
}

fn oracle_qwen_sees_pictures_of_any_size_as_hugging_face_does<B: Backend>() {
    for case in qwens() {
        let model = open::<B>(&case.path);
        let expected = Expected::open(case.path.join("expected.safetensors"));
        let names = pictures(&expected);
        assert!(!names.is_empty());
        for name in names {
            let pixels = of_image(&model, &expected, &name);
            let tower = &model.model.visual;
            let of = |what: &str| format!("image.{name}.{what}");
            close(tower.hidden(pixels.clone()).unwrap(), &expected, &of("vision_hidden"), None);
            close(tower.forward(pixels).unwrap(), &expected, &of("features"), None);
        }
    }
}

fn oracle_qwen_goes_on_with_conversations_as_hugging_face_does<B: Backend>() {
    for case in qwens() {
        let model = open::<B>(&case.path);
        let expected = Expected::open(case.path.join("expected.safetensors"));
        check_conversations(&case.path, &model, |name, _| picture(of_image(&model, &expected, name)));
    }
}

fn oracle_qwen_learns_from_a_pair_as_peft_does<B: Backend>() {
    for case in qwens().into_iter().filter(|case| case.path.join("expected_train.safetensors").exists()) {
        let model = open::<Autodiff<B>>(&case.path);
        let expected = Expected::open(case.path.join("expected_train.safetensors"));
        let pixels = pixels(&open::<B>(&case.path), &expected, ["pixel_values", "image_grid_thw"]);
        check_pair::<B, _>(&case.path, model, picture(pixels));
    }
}
