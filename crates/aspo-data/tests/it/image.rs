//! Pictures against Pillow and Hugging Face's processor.

use std::collections::BTreeMap;

use aspo_data::image::{Fit, ImageProcessor, decode};
use safetensors::SafeTensors;

use crate::support::oracle;

fn floats(view: &safetensors::tensor::TensorView<'_>) -> Vec<f32> {
    view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[test]
fn oracle_crop_and_pad_equal_pillow_within_one_step() {
    let Some(folder) = oracle("images") else { return };
    let file = std::fs::read(folder.join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&file).unwrap();
    let mut worst = BTreeMap::new();
    for name in expected.names() {
        let (picture, kind) = name.rsplit_once('.').unwrap();
        let digits = kind.find(|c: char| c.is_ascii_digit()).unwrap();
        let fit = match &kind[..digits] {
            "crop" => Fit::Crop,
            "pad" => Fit::Pad,
            other => panic!("unknown kind {other}"),
        };
        let processor = ImageProcessor::clip(kind[digits..].parse().unwrap()).with_fit(fit);
        let bytes = std::fs::read(folder.join(picture)).unwrap();
        let image = decode(&bytes).unwrap_or_else(|fault| panic!("{picture}: {fault}"));
        let values = processor.preprocess(&image);
        let wanted = floats(&expected.tensor(name).unwrap());
        assert_eq!(values.len(), wanted.len(), "{name}");
        // In 8-bit steps of each channel.
        let area = wanted.len() / 3;
        let errors: Vec<f32> = values
            .iter()
            .zip(&wanted)
            .enumerate()
            .map(|(index, (a, b))| (a - b).abs() * processor.std[index / area] * 255.0)
            .collect();
        let max = errors.iter().copied().fold(0.0, f32::max);
        let mean = errors.iter().sum::<f32>() / errors.len() as f32;
        worst.insert(name.to_owned(), (max, mean));
    }
    println!("{worst:#?}");
    for (name, (max, mean)) in worst {
        // Decoders may differ by a step where they round; the oracle allows one and a half and a tenth of it on average.
        assert!(max <= 1.5 && mean <= 0.15, "{name}: largest {max} steps, mean {mean}");
    }
}

#[test]
fn oracle_broken_pictures_are_refused_by_name() {
    let Some(folder) = oracle("images/broken") else { return };
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let fault = decode(&std::fs::read(&path).unwrap()).expect_err(&path.display().to_string());
        println!("{}: {fault}", path.display());
    }
}
