//! Pictures against Pillow and Hugging Face's processor.

use std::collections::BTreeMap;

use aspo_data::image::{
    DecodeOptions, Filter, Fit, ImageLoader, ImageProcessor, MAX_DECODED_BYTES, RgbImage, decode,
    decode_with, resize,
};
use aspo_data::{ImageFault, ImageSource};
use image::{DynamicImage, ImageFormat};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{encode, oracle, png};

fn floats(view: &safetensors::tensor::TensorView<'_>) -> Vec<f32> {
    view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// `Image.open(..).convert("RGB")` and no more.
const PLAIN: DecodeOptions = DecodeOptions { exif_orientation: false, white_background: false };

#[test]
fn oracle_crop_and_pad_equal_pillow_within_one_step() {
    let Some(folder) = oracle("images") else { return };
    let file = std::fs::read(folder.join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&file).unwrap();
    assert!(!expected.names().is_empty(), "no case in {}", folder.display());
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
        let wanted = floats(&expected.tensor(name).unwrap());
        let area = wanted.len() / 3;
        // In 8-bit steps of each channel: the largest difference, and the mean.
        let distance = |options| {
            let image = decode_with(&bytes, options).unwrap_or_else(|fault| panic!("{picture}: {fault}"));
            let values = processor.preprocess(&image).unwrap();
            assert_eq!(values.len(), wanted.len(), "{name}");
            let errors = values
                .iter()
                .zip(&wanted)
                .enumerate()
                .map(|(index, (a, b))| (a - b).abs() * processor.std[index / area] * 255.0);
            errors.fold((0.0_f32, 0.0), |(max, mean), error| {
                (max.max(error), mean + error / wanted.len() as f32)
            })
        };
        // Golden values of a transparent picture either drop alpha, as transformers 4 does, or lay it on white, as 5
        // does; which of the two is the default is held elsewhere.
        let white = distance(DecodeOptions::default());
        let plain = distance(PLAIN);
        worst.insert(name.to_owned(), if plain.0 < white.0 { plain } else { white });
    }
    println!("{worst:#?}");
    for (name, (max, mean)) in worst {
        // The resize is exact; WebP decoders differ by a step where they round colour, which the resize may pass on.
        let lossy = name.contains(".webp") || name.contains("mislabelled");
        let allowed = if lossy { (1.5, 0.1) } else { (1e-3, 1e-4) };
        assert!(max <= allowed.0 && mean <= allowed.1, "{name}: largest {max} steps, mean {mean}");
    }
}

/// Noise that `pillow.json` was made from: the same in Python and here.
fn noise(size: &Value) -> RgbImage {
    let side = |index: usize| u32::try_from(size[index].as_u64().unwrap()).unwrap();
    let (width, height) = (side(0), side(1));
    let mut state = width * 65_536 + height;
    let mut draw = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    RgbImage { width, height, pixels: (0..3 * width * height).map(|_| draw()).collect() }
}

fn pillow(kind: &str) -> Vec<Value> {
    let text = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/pillow.json")).unwrap();
    let cases: Value = serde_json::from_slice(&text).unwrap();
    cases[kind].as_array().unwrap().clone()
}

/// `pillow.json`: hashes of what Pillow 13 made, of tall, wide, tiny and usual pictures, up and down, by each filter.
#[test]
fn resizing_equals_pillow_to_the_bit() {
    let cases = pillow("resize");
    assert_eq!(cases.len(), 90);
    for case in cases {
        let filter = Filter::from_number(case["resample"].as_u64().unwrap()).unwrap();
        let to = |index: usize| case["to"][index].as_u64().unwrap() as u32;
        let resized = resize(&noise(&case["size"]), to(0), to(1), filter).unwrap();
        assert_eq!(
            format!("{:x}", Sha256::digest(&resized.pixels)),
            case["sha256"].as_str().unwrap(),
            "{case}"
        );
    }
}

/// `pillow.json`: hashes of the f32 that transformers' processors make with Pillow (pad, resize, crop, rescale, normalise).
#[test]
fn processors_equal_transformers_on_pillow_to_the_bit() {
    let cases = pillow("processed");
    assert_eq!(cases.len(), 246);
    for case in cases {
        let number = |key: &str| case[key].as_u64().unwrap();
        let processor = ImageProcessor {
            shortest_edge: number("shortest_edge") as u32,
            resample: Filter::from_number(number("resample")).unwrap(),
            fit: match case["fit"].as_str().unwrap() {
                "crop" => Fit::Crop,
                "pad" => Fit::Pad,
                _ => Fit::Squash,
            },
            ..ImageProcessor::clip(number("side") as u32)
        };
        let values = processor.preprocess(&noise(&case["size"])).unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(format!("{:x}", Sha256::digest(bytes)), case["sha256"].as_str().unwrap(), "{case}");
    }
}

#[test]
fn what_cannot_be_resized_is_an_error_and_no_panic() {
    let image = |width, height, bytes| RgbImage { width, height, pixels: vec![0; bytes] };
    let processor = ImageProcessor::clip(4);
    for bad in
        [image(0, 0, 0), image(3, 0, 0), image(2, 2, 11), image(2, 2, 13), image(u32::MAX, u32::MAX, 3)]
    {
        assert!(processor.preprocess(&bad).unwrap_err().to_string().contains("image"));
        assert!(resize(&bad, 2, 2, Filter::Box).is_err());
    }
    let sound = image(2, 2, 12);
    for bad in [
        ImageProcessor { size: 0, ..processor.clone() },
        ImageProcessor { shortest_edge: 3, ..processor.clone() },
        ImageProcessor { shortest_edge: 3, ..processor.clone() }.with_fit(Fit::Pad),
        ImageProcessor { std: [1.0, 0.0, 1.0], ..processor.clone() },
        ImageProcessor { mean: [f32::NAN; 3], ..processor.clone() },
    ] {
        assert!(bad.preprocess(&sound).is_err(), "{bad:?}");
    }
    assert!(
        resize(&sound, 0, 1, Filter::Box).is_err() && resize(&sound, 60_000, 60_000, Filter::Box).is_err()
    );
}

#[test]
fn oracle_broken_pictures_are_refused_by_name() {
    let Some(folder) = oracle("images/broken") else { return };
    let mut cases = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let fault = decode(&std::fs::read(&path).unwrap()).expect_err(&path.display().to_string());
        println!("{}: {fault}", path.display());
        cases += 1;
    }
    assert!(cases > 0, "no case in {}", folder.display());
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
    // A clear pixel is white, or the colour under it where that is asked for; a half clear one is half way.
    let mut clear = base.to_rgba8();
    clear.pixels_mut().for_each(|pixel| pixel[3] = 0);
    assert_eq!(at(DynamicImage::ImageRgba8(clear.clone())), [255; 3]);
    let plain =
        decode_with(&encode(DynamicImage::ImageRgba8(clear.clone()), ImageFormat::Png), PLAIN).unwrap();
    assert_eq!(plain.pixels, base.to_rgb8().into_raw());
    clear.pixels_mut().for_each(|pixel| pixel[3] = 51);
    assert_eq!(at(DynamicImage::ImageRgba8(clear)), [208, 208, 209]);
    let grey = base.to_luma8().get_pixel(7, 5)[0];
    assert_eq!(at(DynamicImage::ImageLuma8(base.to_luma8())), [grey; 3]);
    assert_eq!(at(DynamicImage::ImageLumaA8(base.to_luma_alpha8())), [grey; 3]);
    // Sixteen bits keep the upper eight; plain grey is clipped (see `decode`).
    let wide = image::ImageBuffer::from_pixel(20, 10, image::Rgb([0x12FF_u16, 0x8000, 0x00FF]));
    assert_eq!(at(DynamicImage::ImageRgb16(wide)), [0x12, 0x80, 0]);
    let wide = image::ImageBuffer::from_pixel(20, 10, image::LumaA([0x12FF_u16, 0xFF00]));
    assert_eq!(at(DynamicImage::ImageLumaA16(wide)), [0x12; 3]);
    let wide =
        image::ImageBuffer::from_fn(20, 10, |x, _| image::Luma([if x == 7 { 200_u16 } else { 40_000 }]));
    assert_eq!(at(DynamicImage::ImageLuma16(wide)), [200; 3]);
}

#[test]
fn a_picture_cut_anywhere_is_refused() {
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    for format in [Png, Jpeg, WebP, Gif, Bmp, Tiff] {
        let bytes = encode(DynamicImage::ImageRgb8(picture(40, 30)), format);
        let whole = decode(&bytes).unwrap();
        for cut in 0..bytes.len() - 1 {
            // What ends a PNG or a GIF may lack: nothing of the picture is missing then.
            match decode(&bytes[..cut]) {
                Err(_) => {}
                Ok(image) => {
                    let end = bytes.len() - cut;
                    assert!(end <= 16 && matches!(format, Png | Gif), "{format:?}, {end} bytes cut off");
                    assert!(image == whole, "{format:?}, {end} bytes cut off");
                }
            }
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
            let values = processor.preprocess(&image).unwrap();
            assert_eq!(values.len(), 3 * (processor.size as usize).pow(2));
            // A picture of one colour stays so wherever it is not padded.
            let wanted = (77.0 / 255.0 - processor.mean[0]) / processor.std[0];
            if fit != Fit::Pad {
                assert!(values[..28 * 28].iter().all(|value| (value - wanted).abs() < 1e-6));
            }
        }
    }
}

/// A checkpoint folder with these files, and what is made of it for a model of `size` pixels.
fn of_checkpoint(files: &[(&str, Value)], size: u32) -> Result<(ImageProcessor, Option<String>), String> {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content.to_string()).unwrap();
    }
    ImageProcessor::of_checkpoint(folder.path(), size).map_err(|error| error.to_string())
}

/// `base` with some keys set otherwise; null takes a key out.
fn with(base: &Value, changes: Value) -> Value {
    let mut result = base.clone();
    for (key, value) in changes.as_object().unwrap() {
        if value.is_null() {
            result.as_object_mut().unwrap().remove(key)
        } else {
            result.as_object_mut().unwrap().insert(key.clone(), value.clone())
        };
    }
    result
}

/// llava-1.5-7b-hf's file.
fn llava_settings() -> Value {
    json!({"crop_size": {"height": 336, "width": 336}, "do_center_crop": true, "do_convert_rgb": true, "do_normalize": true,
        "do_rescale": true, "do_resize": true, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor", "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "LlavaProcessor", "resample": 3, "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 336}})
}

#[test]
fn processors_are_read_from_hugging_face_files_of_both_kinds() {
    let llava = llava_settings();
    let blip = json!({"image_processor_type": "BlipImageProcessor", "size": {"height": 224, "width": 224}, "image_mean": 0.5});
    // openai/clip-vit-large-patch14-336's.
    let old = json!({"crop_size": 336, "do_center_crop": true, "do_normalize": true, "do_resize": true,
        "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 336});
    let padded = json!({"image_processor_type": "LlavaImageProcessorFast", "do_pad": true, "size": {"shortest_edge": 360},
        "crop_size": {"height": 336, "width": 336}, "data_format": "channels_first", "device": null, "pad_size": null});
    let clip = ImageProcessor::clip(336);
    for (settings, wanted) in [
        (llava.clone(), clip.clone()),
        (old, clip.clone()),
        (with(&llava, json!({"resample": 2})), ImageProcessor { resample: Filter::Bilinear, ..clip.clone() }),
        // A size with both sides is a squash whatever the class, as `resize` of transformers has it.
        (with(&llava, json!({"size": {"height": 336, "width": 336}})), clip.clone().with_fit(Fit::Squash)),
        (blip, ImageProcessor { mean: [0.5; 3], ..ImageProcessor::clip(224) }.with_fit(Fit::Squash)),
        // What CLIPImageProcessor takes where the file is silent.
        (json!({"image_processor_type": "CLIPImageProcessor"}), ImageProcessor::clip(224)),
        (padded, ImageProcessor { shortest_edge: 360, ..clip }.with_fit(Fit::Pad)),
    ] {
        let flat = of_checkpoint(&[("preprocessor_config.json", settings.clone())], wanted.size).unwrap();
        assert_eq!(flat, (wanted.clone(), None), "{settings}");
        // As transformers 5 writes it; what 4 wrote beside it does not count, as there.
        let nested =
            json!({"image_processor": settings, "processor_class": "LlavaProcessor", "patch_size": 14});
        let other = json!({"size": 3, "resample": 0});
        let files = [("processor_config.json", nested), ("preprocessor_config.json", other)];
        assert_eq!(of_checkpoint(&files, wanted.size).unwrap(), (wanted, None), "{settings}");
    }
    // A processor_config.json of transformers 4 has no image processor in it.
    let files = [
        ("processor_config.json", json!({"patch_size": 14})),
        ("preprocessor_config.json", llava_settings()),
    ];
    assert_eq!(of_checkpoint(&files, 336).unwrap(), (ImageProcessor::clip(336), None));
}

#[test]
fn a_processor_that_is_not_implemented_is_refused_by_name() {
    let llava = llava_settings();
    for (changes, name) in [
        (json!({"image_processor_type": "LlavaNextImageProcessor"}), "LlavaNextImageProcessor"),
        (json!({"image_processor_type": "MllamaImageProcessor"}), "MllamaImageProcessor"),
        (json!({"image_grid_pinpoints": [[336, 672]]}), "image_grid_pinpoints"),
        (json!({"size": {"shortest_edge": 336, "longest_edge": 1344}}), "size.longest_edge"),
        (json!({"size": {"min_pixels": 3136, "max_pixels": 12845056}}), "size.max_pixels"),
        (json!({"size": {"height": 336, "width": 672}}), "size"),
        (json!({"size": "large"}), "size"),
        (json!({"do_image_splitting": true}), "do_image_splitting"),
        (json!({"crop_pct": 0.9}), "crop_pct"),
        (json!({"resample": 0}), "resample"),
        (json!({"resample": "bicubic"}), "resample"),
        (json!({"do_normalize": false}), "do_normalize"),
        (json!({"do_rescale": false}), "do_rescale"),
        (json!({"do_resize": false}), "do_resize"),
        (json!({"do_center_crop": false}), "do_center_crop"),
        (json!({"rescale_factor": 1.0}), "rescale_factor"),
        (json!({"crop_size": 400}), "shortest_edge"),
        (json!({"do_pad": true}), "do_pad"),
        (json!({"image_std": [1, 1]}), "image_std"),
        (json!({"image_std": [1, 0, 1]}), "image_std"),
        // The model takes 336.
        (json!({"crop_size": 224}), "224x224"),
    ] {
        let settings = with(&llava, changes);
        let error = of_checkpoint(&[("preprocessor_config.json", settings.clone())], 336).unwrap_err();
        assert!(error.contains(name) && error.contains("preprocessor_config.json"), "{name}: {error}");
        let nested = json!({"image_processor": settings});
        let error = of_checkpoint(&[("processor_config.json", nested)], 336).unwrap_err();
        assert!(error.contains(name) && error.contains("processor_config.json"), "{name}: {error}");
    }
}

#[test]
fn a_folder_without_processor_is_told_what_is_assumed() {
    let (processor, warning) = of_checkpoint(&[("config.json", json!({"model_type": "llava"}))], 56).unwrap();
    assert_eq!(processor, ImageProcessor::clip(56));
    let warning = warning.unwrap();
    assert!(
        warning.contains("preprocessor_config.json") && warning.contains("CLIP") && warning.contains("56"),
        "{warning}"
    );
    let (processor, warning) =
        of_checkpoint(&[("config.json", json!({"model_type": "instructblip"}))], 56).unwrap();
    assert_eq!(processor, ImageProcessor::clip(56).with_fit(Fit::Squash));
    assert!(warning.unwrap().contains("BLIP"));
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

/// `tests/fixtures/kinds`: pictures of 37x29 and what Pillow 13 made of each: `.rgb` by `Image.open(..).convert("RGB")`, and
/// `.hf`, where it differs, turned by `exif_transpose` and laid on white by transformers 5.
#[test]
fn every_kind_of_picture_decodes_as_in_pillow_and_transformers() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kinds");
    let (mut kinds, mut otherwise) = (0, 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.ends_with(".rgb") || name.ends_with(".hf") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let beside = |end: &str| std::fs::read(path.with_file_name(format!("{name}.{end}")));
        let plain = beside("rgb").unwrap();
        let by_default = beside("hf").inspect(|_| otherwise += 1).unwrap_or_else(|_| plain.clone());
        for (options, wanted) in [(PLAIN, plain), (DecodeOptions::default(), by_default)] {
            let image = decode_with(&bytes, options).unwrap_or_else(|fault| panic!("{name}: {fault}"));
            image.check().unwrap();
            let turned = name == "turned.tif" || name == "rotated.jpg" && options.exif_orientation;
            assert_eq!((image.width, image.height), if turned { (29, 37) } else { (37, 29) }, "{name}");
            assert_eq!(image.pixels.len(), wanted.len(), "{name}");
            let worst = image.pixels.iter().zip(&wanted).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            // Lossy WebP and JPEG inside TIFF leave the rounding of colours to the decoder. All else is exact.
            let allowed = match name.as_str() {
                "lossy.webp" | "animated.webp" => 2,
                "jpeg.tif" => 4,
                _ => 0,
            };
            assert!(worst <= allowed, "{name} {options:?}: {worst}");
        }
        kinds += 1;
    }
    assert_eq!((kinds, otherwise), (41, 10));
}

/// `tests/fixtures/turned`: a picture of 5x3 with each of the eight orientations, and what `exif_transpose` made of it.
#[test]
fn orientation_tags_turn_the_picture_as_pillow_does() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/turned");
    let mut found = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.ends_with(".rgb") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let image = decode(&bytes).unwrap_or_else(|fault| panic!("{name}: {fault}"));
        let sideways = name.as_bytes()[0] >= b'5';
        assert_eq!((image.width, image.height), if sideways { (3, 5) } else { (5, 3) }, "{name}");
        assert_eq!(
            image.pixels,
            std::fs::read(path.with_file_name(format!("{name}.rgb"))).unwrap(),
            "{name}"
        );
        let plain = decode_with(&bytes, PLAIN).unwrap();
        let tiff = name.ends_with("tif");
        assert_eq!((plain.width, plain.height), if tiff { (3, 5) } else { (5, 3) }, "{name}");
        found += 1;
    }
    assert_eq!(found, 11);
}

#[test]
fn what_is_no_picture_is_named_by_what_it_is() {
    for (bytes, name) in [
        (&b"\0\0\0\x20ftypavif\0\0\0\0"[..], "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "video"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"<?xml version=\"1.0\"?><svg>", "SVG"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\x01\0\x01\0\x10\x10", "Ico"),
        (b"{\"error\": 404}", "JSON"),
        (b"not a picture", "not a picture"),
    ] {
        let error = decode(bytes).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("GIF, BMP and TIFF"), "{name}: {error}");
    }
}
