//! Processors, chat templates and prompts of the newer checkpoints against Hugging Face's results: pixels to the bit, sizes, tokens,
//! texts and ids.

use std::path::{Path, PathBuf};

use aspo_data::{ChatTemplate, Encoder, Fit, ImageLoader, ImageProcessor, Pair, Template, Tokenizer, Turn};
use aspo_models::{Architecture, OnArchitecture, Pretrained, on_architecture};
use aspo_train::Sight;
use burn_flex::Flex;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;

const FAMILIES: [&str; 5] = ["idefics3", "smolvlm", "qwen2_vl", "qwen2_5_vl", "llava_onevision"];

/// A folder of the oracle; unset, or where it has none, the copy that lies with the crate whose it is.
fn oracle(folder: &str, of: &str) -> PathBuf {
    let given = std::env::var_os("ASPO_ORACLE").map(|root| PathBuf::from(root).join(folder));
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(of).join("tests/fixtures").join(folder);
    given.filter(|given| given.is_dir()).unwrap_or(own)
}

/// The checkpoints that are there, each as transformers 5 has it and as 4 had it.
fn checkpoints() -> Vec<(PathBuf, Option<tempfile::TempDir>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(oracle("models", "aspo-models")).unwrap() {
        // By what it is, not by what it is called.
        let folder = entry.unwrap().path();
        let of_family = |kind: String| FAMILIES.contains(&kind.as_str());
        if !aspo_models::config::model_type(&folder).is_ok_and(of_family) {
            continue;
        }
        found.push((folder.clone(), None));
        let old = tempfile::tempdir().unwrap();
        for source in [folder.clone(), folder.join("hub4")] {
            for entry in std::fs::read_dir(source).into_iter().flatten() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap();
                if path.is_file() && name != "chat_template.jinja" {
                    // A copy can be written over, whatever the source's permissions.
                    std::fs::write(old.path().join(name), std::fs::read(&path).unwrap()).unwrap();
                }
            }
        }
        found.push((old.path().to_owned(), Some(old)));
    }
    assert!(found.len() >= 2 * FAMILIES.len() || std::env::var_os("ASPO_ORACLE").is_some(), "a case of each");
    found
}

fn sight(folder: &Path) -> Sight {
    struct Ask<'a>(&'a Path);
    impl OnArchitecture for Ask<'_> {
        type Output = Sight;

        fn run<A: Architecture>(self, config: A) -> Sight {
            let model = A::Model::<Flex>::from_config(&config, &Default::default());
            let size = u32::try_from(config.image_size()).unwrap();
            let (processor, warning) = ImageProcessor::of_checkpoint(self.0, size).unwrap();
            assert_eq!(warning, None);
            Sight::with(&model, processor)
        }
    }
    on_architecture(folder, Ask(folder)).unwrap()
}

fn ints(file: &SafeTensors, name: &str) -> Vec<i64> {
    let view = file.tensor(name).unwrap();
    view.data().chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn floats(view: &TensorView) -> Vec<f32> {
    view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// `[3, height, width]` as Qwen2-VL's flattened patches: blocks of 2 × 2 patches, of each patch channels and the frame twice.
fn patches(values: &[f32], [height, width]: [usize; 2], patch: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(2 * values.len());
    let (rows, columns) = (height / patch / 2, width / patch / 2);
    let blocks = (0..rows).flat_map(|row| (0..columns).map(move |column| [row, column]));
    let of_block = |[row, column]: [usize; 2]| {
        [[0, 0], [0, 1], [1, 0], [1, 1]].map(|[down, right]| [2 * row + down, 2 * column + right])
    };
    for [row, column] in blocks.flat_map(of_block) {
        for channel in 0..3 {
            for _frame in 0..2 {
                for y in 0..patch {
                    let start = (channel * height + row * patch + y) * width + column * patch;
                    out.extend_from_slice(&values[start..start + patch]);
                }
            }
        }
    }
    out
}

#[test]
fn oracle_pixels_and_tokens_of_pictures_are_hugging_faces_to_the_bit() {
    for (folder, _kept) in checkpoints() {
        let sight = sight(&folder);
        let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
        let expected = SafeTensors::deserialize(&bytes).unwrap();
        let images = oracle("images", "aspo-data");
        let loader = |processor| ImageLoader::new(&images, processor).unwrap();
        let mut seen = 0;
        for name in expected.names() {
            let Some(name) = name.strip_prefix("image.").and_then(|name| name.strip_suffix(".tokens")) else {
                continue;
            };
            let wanted = |kind: &str| expected.tensor(&format!("image.{name}.{kind}pixel_values"));
            let check = |processor: ImageProcessor, alone: bool, kind: &str| {
                let pixels = loader(processor.clone()).pixels(&name.into(), alone).unwrap();
                let shape = loader(processor.clone()).shape(&name.into(), alone).unwrap();
                assert_eq!(shape, pixels.shape, "the head of the file says what comes out");
                let found = match processor.fit {
                    Fit::Dynamic { .. } => {
                        let patch = processor.size as usize / 2;
                        patches(&pixels.values, shape.tile.map(|side| side as usize), patch)
                    }
                    _ => pixels.values,
                };
                let same = floats(&wanted(kind).unwrap())
                    .iter()
                    .map(|value| value.to_bits())
                    .eq(found.iter().map(|value| value.to_bits()));
                assert!(same, "{}: {kind}{name}", folder.display());
                shape
            };
            let shape = check(sight.processor.clone(), true, "");
            let tokens = ints(&expected, &format!("image.{name}.tokens"))[0];
            assert_eq!(sight.tokens(&shape) as i64, tokens, "{}: {name}", folder.display());
            if wanted("several.").is_ok() {
                check(sight.processor.clone(), false, "several.");
            }
            if let (Fit::Tiles { longest_edge, .. }, true) = (sight.processor.fit, wanted("nosplit.").is_ok())
            {
                let whole = sight.processor.clone().with_fit(Fit::Tiles { longest_edge, split: false });
                check(whole, true, "nosplit.");
            }
            seen += 1;
        }
        assert!(seen > 0, "{}", folder.display());
    }
}

#[test]
fn oracle_sizes_and_tokens_follow_from_width_and_height_alone() {
    for (folder, _kept) in checkpoints() {
        let sight = sight(&folder);
        let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
        let expected = SafeTensors::deserialize(&bytes).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let note: Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["note"]).unwrap();
        for table in ["sizes", "sizes_real"] {
            let number = |key: &str| note[table][key].as_u64().map(|number| number as u32);
            let mut processor = sight.processor.clone();
            let own = table == "sizes";
            match (&mut processor.fit, own) {
                (_, true) => {}
                (Fit::Tiles { longest_edge, .. }, _) => {
                    *longest_edge = number("longest_edge").unwrap();
                    processor.size = number("tile").unwrap();
                }
                (Fit::Dynamic { pixels }, _) => {
                    *pixels = [number("min_pixels").unwrap(), number("max_pixels").unwrap()];
                    processor.size = number("factor").unwrap();
                }
                _ => {
                    processor.pinpoints = serde_json::from_value(note[table]["pinpoints"].clone()).unwrap();
                    processor.size = number("tile").unwrap();
                }
            }
            let column = |name: &str| ints(&expected, &format!("{table}.{name}"));
            for (row, hw) in column("hw").chunks(2).enumerate() {
                let size = [hw[0] as u32, hw[1] as u32];
                let told = format!("{}: {table}: {size:?}", folder.display());
                let found = processor.shape(size, true);
                let at = |name: &str| column(name)[row];
                match processor.fit {
                    Fit::Tiles { .. } => {
                        let grid = found.unwrap().grid.map(i64::from);
                        assert_eq!(grid, [at("rows"), at("cols")], "{told}");
                    }
                    Fit::Dynamic { .. } if at("tokens") < 0 => assert!(found.is_err(), "{told}"),
                    Fit::Dynamic { .. } => {
                        let tile = found.unwrap().tile.map(i64::from);
                        assert_eq!(tile, [at("resized_h"), at("resized_w")], "{told}");
                    }
                    _ => {
                        let best = found.unwrap().grid.map(|tiles| i64::from(tiles * processor.size));
                        assert_eq!(best, [at("best_h"), at("best_w")], "{told}");
                    }
                }
                if let (true, Ok(shape)) = (own, processor.shape(size, true)) {
                    assert_eq!(sight.tokens(&shape) as i64, at("tokens"), "{told}");
                }
            }
        }
    }
}

/// A conversation of the oracle, its pictures where its parts have them.
fn pair(conversation: &Value) -> Pair {
    let text = |message: &Value| match &message["content"] {
        Value::Array(parts) => {
            let part = |part: &Value| part["text"].as_str().map_or("<image>".to_owned(), str::to_owned);
            parts.iter().map(part).collect::<String>()
        }
        text => text.as_str().unwrap().to_owned(),
    };
    let mut pair = Pair::new("1", "", "A.", "B.");
    let mut messages = conversation["messages"].as_array().unwrap().iter().peekable();
    while let Some(message) = messages.next() {
        match message["role"].as_str().unwrap() {
            "system" => pair.system = Some(text(message)),
            "user" => match messages.next() {
                None => pair.prompt = text(message),
                Some(answer) => pair.history.push(Turn { user: text(message), assistant: text(answer) }),
            },
            other => panic!("a message by {other}"),
        }
    }
    let images = conversation["images"].as_array().unwrap();
    images.iter().fold(pair, |pair, name| pair.with_image(name.as_str().unwrap()))
}

#[test]
fn oracle_prompts_and_their_ids_are_hugging_faces() {
    for (folder, _kept) in checkpoints() {
        let sight = sight(&folder);
        let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
        let expected = SafeTensors::deserialize(&bytes).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let note: Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["note"]).unwrap();
        let path = folder.join("tokenizer.json");
        let tokenizer = Tokenizer::for_checkpoint(&path, &folder, sight.image_token).unwrap();
        let chat = ChatTemplate::of_checkpoint(&folder).unwrap().expect("a chat template");
        let mut encoder = Encoder::new(tokenizer, Template::Chat, 0);
        encoder.images = sight.image_tokens(&oracle("images", "aspo-data")).unwrap();
        encoder.chat = Some(chat.clone());
        let (ids, mask) = (ints(&expected, "input_ids"), ints(&expected, "attention_mask"));
        let length = expected.tensor("input_ids").unwrap().shape()[1];
        for (row, conversation) in note["conversations"].as_array().unwrap().iter().enumerate() {
            let pair = pair(conversation);
            let told = format!("{}: conversation {row}", folder.display());
            let rendered = chat.render(&pair, encoder.tokenizer.names()).unwrap();
            assert_eq!(rendered.prompt, conversation["prompt"].as_str().unwrap(), "{told}");
            let places = row * length..(row + 1) * length;
            let real = ids[places.clone()].iter().zip(&mask[places]).filter(|(_, real)| **real == 1);
            let wanted: Vec<u32> = real.map(|(id, _)| *id as u32).collect();
            assert_eq!(encoder.encode_prompt(&pair).unwrap(), wanted, "{told}");
            // The same before an answer, which the template closes.
            let encoded = encoder.encode(&pair).unwrap();
            assert_eq!(encoded.prompt_ids, wanted, "{told}");
            let image = sight.image_token;
            let of_images: usize = encoded
                .image_spans
                .iter()
                .map(|span| wanted[span.clone()].iter().filter(|id| **id == image).count())
                .sum();
            assert_eq!(of_images, wanted.iter().filter(|id| **id == image).count(), "{told}");
            let said = encoder.tokenizer.decode(&encoded.chosen.ids, false).unwrap();
            assert!(said.trim_start().starts_with("A.") && said.contains(['<']), "{told}: {said:?}");
        }
    }
}

#[test]
fn an_image_token_without_a_shape_is_told_and_no_text_is_lost() {
    let folder = oracle("models", "aspo-models").join("qwen2_5_vl");
    if !folder.is_dir() {
        return;
    }
    let sight = sight(&folder);
    let tokenizer =
        Tokenizer::for_checkpoint(&folder.join("tokenizer.json"), &folder, sight.image_token).unwrap();
    let mut encoder = Encoder::new(tokenizer, Template::Chat, 0);
    encoder.images = sight.image_tokens(Path::new(".")).unwrap();
    encoder.chat = ChatTemplate::of_checkpoint(&folder).unwrap();
    let pair = Pair::new("1", "One <image> and another <image> of it.", "A.", "B.");
    let pair = pair.with_image("a.png").with_image("b.png");
    let shape = sight.processor.shape([32, 48], false).unwrap();
    assert!(encoder.encode_prompt_of(&pair, &[shape; 2]).is_ok());
    for few in [0, 1, 3] {
        let told = encoder.encode_prompt_of(&pair, &vec![shape; few]).unwrap_err().to_string();
        assert!(told.contains(&format!("2 <image> tags for {few} images")), "{told}");
    }
}
