//! Pictures against Pillow and Hugging Face's processor.

use std::collections::BTreeMap;

use aspo_data::image::{Fit, ImageLoader, ImageProcessor, MAX_DECODED_BYTES, RgbImage, decode};
use aspo_data::{ImageFault, ImageSource};
use image::{DynamicImage, ImageFormat};
use safetensors::SafeTensors;

use crate::support::{encode, oracle, png};

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

fn picture(width: u32, height: u32) -> image::RgbImage {
    image::RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(x * 3) as u8, (y * 4) as u8, ((x + y) * 2) as u8])
    })
}

#[test]
fn every_kind_of_png_becomes_rgb_as_pillow_makes_it() {
    let base = DynamicImage::ImageRgb8(picture(20, 10));
    let at = |image: DynamicImage| {
        let decoded = decode(&encode(image, ImageFormat::Png)).unwrap();
        assert_eq!((decoded.width, decoded.height), (20, 10));
        let start = 3 * (5 * 20 + 7);
        [decoded.pixels[start], decoded.pixels[start + 1], decoded.pixels[start + 2]]
    };
    assert_eq!(at(base.clone()), [21, 20, 24]);
    // Alpha is dropped, not blended: the colour under a clear pixel stays.
    let mut clear = base.to_rgba8();
    clear.pixels_mut().for_each(|pixel| pixel[3] = 0);
    assert_eq!(at(DynamicImage::ImageRgba8(clear)), [21, 20, 24]);
    let grey = base.to_luma8().get_pixel(7, 5)[0];
    assert_eq!(at(DynamicImage::ImageLuma8(base.to_luma8())), [grey; 3]);
    assert_eq!(at(DynamicImage::ImageLumaA8(base.to_luma_alpha8())), [grey; 3]);
    // Sixteen bits keep the upper eight; plain grey is clipped (see `decode`).
    let wide = image::ImageBuffer::from_pixel(20, 10, image::Rgb([0x12FF_u16, 0x8000, 0x00FF]));
    assert_eq!(at(DynamicImage::ImageRgb16(wide)), [0x12, 0x80, 0]);
    let wide = image::ImageBuffer::from_pixel(20, 10, image::LumaA([0x12FF_u16, 1]));
    assert_eq!(at(DynamicImage::ImageLumaA16(wide)), [0x12; 3]);
    let wide =
        image::ImageBuffer::from_fn(20, 10, |x, _| image::Luma([if x == 7 { 200_u16 } else { 40_000 }]));
    assert_eq!(at(DynamicImage::ImageLuma16(wide)), [200; 3]);
}

#[test]
fn a_picture_cut_anywhere_is_refused() {
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
        let whole = encode(DynamicImage::ImageRgb8(picture(40, 30)), format);
        assert!(decode(&whole).is_ok());
        for cut in 0..whole.len() - 1 {
            // A PNG may lack some of its last, empty chunk: nothing of the picture is missing then.
            if format == ImageFormat::Png && cut >= whole.len() - 16 {
                continue;
            }
            assert!(decode(&whole[..cut]).is_err(), "{format:?} of {} bytes cut to {cut}", whole.len());
        }
    }
}

#[test]
fn sizes_over_the_limit_are_told_before_anything_is_decoded() {
    let mut png = encode(DynamicImage::ImageRgb8(picture(2, 2)), ImageFormat::Png);
    for (width, height) in [(60_000_u32, 60_000_u32), (70_000, 1), (0x7FFF_FFFF, 0x7FFF_FFFF)] {
        png[16..20].copy_from_slice(&width.to_be_bytes());
        png[20..24].copy_from_slice(&height.to_be_bytes());
        let mut crc = 0xFFFF_FFFF_u32;
        for byte in &png[12..29] {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
            }
        }
        png[29..33].copy_from_slice(&(!crc).to_be_bytes());
        match decode(&png).unwrap_err() {
            ImageFault::TooLarge { width: found, limit, .. } => {
                assert_eq!((found, limit), (width, MAX_DECODED_BYTES))
            }
            // Sizes beyond what the format's own reader takes are refused by it.
            ImageFault::Decode(_) => assert_eq!(width, 0x7FFF_FFFF),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn extreme_shapes_are_resized_without_extreme_memory() {
    for (width, height) in [(30_000, 1), (1, 30_000), (1, 1), (2, 5)] {
        let image = RgbImage { width, height, pixels: vec![77; (width * height * 3) as usize] };
        for fit in [Fit::Crop, Fit::Pad, Fit::Squash] {
            let processor = ImageProcessor::clip(28).with_fit(fit);
            let values = processor.preprocess(&image);
            assert_eq!(values.len(), processor.len());
            // A picture of one colour stays so wherever it is not padded.
            let wanted = (77.0 / 255.0 - processor.mean[0]) / processor.std[0];
            if fit != Fit::Pad {
                assert!(values[..28 * 28].iter().all(|value| (value - wanted).abs() < 1e-6));
            }
        }
    }
}

#[test]
fn processors_are_read_from_hugging_face_files_and_unknown_steps_refused() {
    let read = |text: &str| ImageProcessor::from_json(&serde_json::from_str(text).unwrap());
    let clip = r#"{"crop_size": {"height": 336, "width": 336}, "do_center_crop": true, "do_resize": true, "resample": 3,
        "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 336},
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}"#;
    assert_eq!(read(clip).unwrap(), ImageProcessor::clip(336));
    assert_eq!(
        read(r#"{"crop_size": 224, "size": 224, "do_center_crop": true}"#).unwrap(),
        ImageProcessor::clip(224)
    );
    let blip =
        r#"{"size": {"height": 224, "width": 224}, "do_center_crop": false, "image_mean": [0.5, 0.5, 0.5]}"#;
    let blip = read(blip).unwrap();
    assert_eq!((blip.fit, blip.size, blip.mean), (Fit::Squash, 224, [0.5; 3]));
    assert_eq!(
        read(&clip.replace("\"do_resize\"", "\"do_pad\": true, \"do_resize\"")).unwrap().fit,
        Fit::Pad
    );
    for (text, name) in [
        (r#"{"size": 224, "resample": 2}"#, "resample"),
        (r#"{"size": {"height": 2, "width": 3}}"#, "size"),
        (r#"{"size": 224, "do_normalize": false}"#, "do_normalize"),
        (r#"{"size": {"shortest_edge": 224}, "crop_size": 336, "do_center_crop": true}"#, "shortest_edge"),
        (r#"{"size": 224, "image_std": [1, 1]}"#, "image_std"),
        (r#"{"size": 224, "image_std": [1, 0, 1]}"#, "image_std"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn many_images_load_in_order_each_decoded_once_with_errors_in_place() {
    let folder = tempfile::tempdir().unwrap();
    for shade in 0..10_u8 {
        std::fs::write(folder.path().join(format!("{shade}.png")), png(9, 5, [shade * 20; 3])).unwrap();
    }
    std::fs::write(folder.path().join("bad.jpg"), "no picture").unwrap();
    let loader = ImageLoader::new(folder.path(), ImageProcessor::clip(4)).unwrap();
    let names = ["3.png", "bad.jpg", "3.png", "0.png", "../x.png", "9.png", "bad.jpg", "none.png"];
    let sources: Vec<ImageSource> = names.iter().map(|name| ImageSource::from(*name)).collect();
    let loaded = loader.load_all(&sources);
    assert_eq!(loaded.len(), sources.len());
    for (source, values) in sources.iter().zip(&loaded) {
        match (loader.load(source), values) {
            (Ok(alone), Ok(values)) => assert_eq!(&alone, values),
            (Err(alone), Err(error)) => assert_eq!(alone.to_string(), error.to_string()),
            (alone, together) => panic!("{alone:?} {together:?}"),
        }
    }
    assert!(loaded[1].as_ref().unwrap_err().to_string().contains("bad.jpg"));
    let inside: ImageSource = png(9, 5, [60; 3]).into();
    assert_eq!(&loader.load(&inside).unwrap(), loaded[0].as_ref().unwrap());
    assert_eq!(loader.content_hash(&inside).unwrap(), loader.content_hash(&"3.png".into()).unwrap());
}

/// `tests/fixtures/kinds`: pictures of 37x29 and what `Image.open(..).convert("RGB").tobytes()` of Pillow 13 made of each.
#[test]
fn every_kind_of_picture_decodes_as_in_pillow() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kinds");
    let mut kinds = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.ends_with(".rgb") {
            continue;
        }
        let image = decode(&std::fs::read(&path).unwrap()).unwrap_or_else(|fault| panic!("{name}: {fault}"));
        assert_eq!((image.width, image.height), (37, 29), "{name}");
        let wanted = std::fs::read(path.with_file_name(format!("{name}.rgb"))).unwrap();
        let worst = image.pixels.iter().zip(&wanted).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        // Lossy WebP leaves the rounding of colours to the decoder: a step or two. All else is exact.
        assert!(
            worst <= if name == "lossy.webp" || name == "animated.webp" { 2 } else { 0 },
            "{name}: {worst}"
        );
        kinds += 1;
    }
    assert_eq!(kinds, 14);
}
