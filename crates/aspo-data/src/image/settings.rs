//! Image processors as Hugging Face's checkpoints write them down.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::process::{Fit, ImageProcessor};
use super::resample::Filter;
use crate::error::{Error, Result};

/// Keys that change no pixel here.
const WITHOUT_EFFECT: [&str; 11] = [
    "_name_or_path",
    "_valid_processor_keys",
    "data_format",
    "device",
    "disable_grouping",
    "image_seq_length",
    "input_data_format",
    "model_input_names",
    "processor_class",
    "return_tensors",
    "transformers_version",
];

/// `preprocessor_config.json`, as transformers 4 wrote it, or the `image_processor` of transformers 5.
#[derive(Deserialize)]
struct Settings {
    image_processor_type: Option<String>,
    feature_extractor_type: Option<String>,
    do_resize: Option<bool>,
    do_rescale: Option<bool>,
    do_normalize: Option<bool>,
    do_center_crop: Option<bool>,
    do_pad: Option<bool>,
    do_convert_rgb: Option<bool>,
    default_to_square: Option<bool>,
    size: Option<Size>,
    crop_size: Option<Size>,
    resample: Option<u64>,
    rescale_factor: Option<f64>,
    image_mean: Option<Channels>,
    image_std: Option<Channels>,
    do_image_splitting: Option<bool>,
    max_image_size: Option<Size>,
    image_grid_pinpoints: Option<Vec<[u32; 2]>>,
    min_pixels: Option<u32>,
    max_pixels: Option<u32>,
    patch_size: Option<u32>,
    merge_size: Option<u32>,
    temporal_patch_size: Option<u32>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    Side(u32),
    Sides([u32; 2]),
    Named(BTreeMap<String, Option<u32>>),
}

/// A length, as a processor names it.
#[derive(Clone, Copy, PartialEq)]
enum Length {
    Square(u32),
    Shortest(u32),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Channels {
    One(f32),
    Three([f32; 3]),
}

impl Channels {
    fn values(&self) -> [f32; 3] {
        match self {
            Self::One(value) => [*value; 3],
            Self::Three(values) => *values,
        }
    }
}

/// The processors that are implemented; what a key that is not there means differs.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Clip,
    Llava,
    Blip,
    Idefics3,
    QwenVl,
    LlavaOnevision,
    /// The file names none: what decides pixels must be said.
    Unnamed,
}

impl ImageProcessor {
    /// The processor of a checkpoint folder, from the `image_processor` of its `processor_config.json` (transformers 5),
    /// else from its `preprocessor_config.json` (transformers 4). `size` is the side of the pictures that the model
    /// takes.
    ///
    /// A folder that has neither is given CLIP's processing, or BLIP's if `config.json` names a BLIP; the second value
    /// then is a warning that says so.
    ///
    /// # Errors
    /// [`Error::Stored`] names the file and the setting that is not honoured here: a processor of another kind, a step switched
    /// off, a key that is not known, pictures (or tiles) of another size than `size`.
    pub fn of_checkpoint(folder: &Path, size: u32) -> Result<(Self, Option<String>)> {
        let nested = folder.join("processor_config.json");
        let flat = folder.join("preprocessor_config.json");
        let found = match read(&nested)?.and_then(|mut file| file.remove("image_processor")) {
            Some(settings) => Some((nested, settings)),
            None => read(&flat)?.map(|settings| (flat, Value::Object(settings))),
        };
        let Some((path, settings)) = found else {
            let blip = read(&folder.join("config.json"))?.is_some_and(|config| {
                config["model_type"].as_str().is_some_and(|kind| kind.contains("blip"))
            });
            let (processor, what) = match blip {
                true => (Self::clip(size).with_fit(Fit::Squash), "BLIP's processing (both sides"),
                false => (Self::clip(size), "CLIP's processing (centre crop, shortest edge"),
            };
            let warning = format!(
                "{}: neither preprocessor_config.json nor an image processor in processor_config.json; assumed is {what} \
                 to {size} pixels, bicubic, CLIP's mean and deviation)",
                folder.display()
            );
            return Ok((processor, Some(warning)));
        };
        let refuse = |why: String| Error::Stored { path: path.clone(), why };
        let processor = parse(settings).map_err(refuse)?;
        if processor.size != size {
            let made = processor.size;
            return Err(refuse(format!(
                "it makes pictures of {made}x{made} pixels, the model takes {size}x{size}: use the file that belongs to \
                 the checkpoint"
            )));
        }
        Ok((processor, None))
    }

    /// Reads one file: `preprocessor_config.json`, or a `processor_config.json` with `image_processor` in it.
    ///
    /// # Errors
    /// As [`ImageProcessor::of_checkpoint`], and [`Error::Io`].
    pub fn from_file(path: &Path) -> Result<Self> {
        let Some(mut file) = read(path)? else {
            return Err(Error::io(path, std::io::ErrorKind::NotFound.into()));
        };
        let settings = file.remove("image_processor").unwrap_or(Value::Object(file));
        parse(settings).map_err(|why| Error::Stored { path: path.to_owned(), why })
    }
}

/// The object of a file, if the file is there.
fn read(path: &Path) -> Result<Option<Map<String, Value>>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::io(path, source)),
    };
    let why = |error| Error::Stored { path: path.to_owned(), why: format!("not a JSON object: {error}") };
    serde_json::from_slice(&text).map(Some).map_err(why)
}

fn parse(settings: Value) -> Result<ImageProcessor, String> {
    let settings = match serde_json::from_value::<Settings>(settings.clone()) {
        Ok(settings) => settings,
        Err(error) => return Err(culprit(&settings).unwrap_or_else(|| error.to_string())),
    };
    settings.processor()
}

/// The key that makes the settings unreadable.
fn culprit(settings: &Value) -> Option<String> {
    settings.as_object()?.iter().find_map(|(key, value)| {
        let alone = Value::Object([(key.clone(), value.clone())].into_iter().collect());
        serde_json::from_value::<Settings>(alone).err().map(|_| format!("`{key}` is {value}: not understood"))
    })
}

impl Settings {
    fn kind(&self) -> Result<Kind, String> {
        let Some(name) = self.image_processor_type.as_ref().or(self.feature_extractor_type.as_ref()) else {
            return Ok(Kind::Unnamed);
        };
        let bare = ["Fast", "Pil"].iter().fold(name.as_str(), |name, end| name.trim_end_matches(end));
        match bare.trim_end_matches("ImageProcessor").trim_end_matches("FeatureExtractor") {
            "CLIP" => Ok(Kind::Clip),
            "Llava" => Ok(Kind::Llava),
            "Blip" => Ok(Kind::Blip),
            "Idefics3" | "SmolVLM" => Ok(Kind::Idefics3),
            "Qwen2VL" | "Qwen2_5_VL" => Ok(Kind::QwenVl),
            "LlavaOnevision" => Ok(Kind::LlavaOnevision),
            _ => Err(format!(
                "`image_processor_type` is {name:?}, which is not implemented; implemented are those of CLIP, Llava, Blip, \
                 Idefics3, SmolVLM, Qwen2VL and LlavaOnevision"
            )),
        }
    }

    fn processor(&self) -> Result<ImageProcessor, String> {
        let kind = self.kind()?;
        for (key, value) in &self.others {
            let off = matches!(value, Value::Null | Value::Bool(false));
            if !off && !WITHOUT_EFFECT.contains(&key.as_str()) {
                return Err(format!(
                    "`{key}` is not implemented, and may change the pixels: use a checkpoint whose pictures become one \
                     square by crop, pad or squash, or take the key out if it has no effect"
                ));
            }
        }
        for (name, value) in [
            ("do_resize", self.do_resize),
            ("do_rescale", self.do_rescale),
            ("do_normalize", self.do_normalize),
            ("do_convert_rgb", self.do_convert_rgb),
        ] {
            if value == Some(false) {
                return Err(format!("`{name}` is false: only true is implemented"));
            }
        }
        if self.rescale_factor.is_some_and(|factor| (factor - 1.0 / 255.0).abs() > 1e-9) {
            return Err("`rescale_factor`: only 1/255 is implemented".to_owned());
        }
        let resample = self.resample.unwrap_or(if kind == Kind::Idefics3 { 1 } else { 3 });
        let resample = Filter::from_number(resample).ok_or_else(|| {
            format!("`resample` is {resample}: implemented are 1 to 5, of Pillow's numbers")
        })?;

        self.no_others(kind)?;
        let mut processor = match kind {
            Kind::Idefics3 => self.tiles()?,
            Kind::QwenVl => self.dynamic()?,
            Kind::LlavaOnevision => self.any_resolution()?,
            Kind::Clip | Kind::Llava | Kind::Blip | Kind::Unnamed => self.square(kind)?,
        };
        processor.resample = resample;
        if let Some(mean) = &self.image_mean {
            processor.mean = mean.values();
        }
        if let Some(std) = &self.image_std {
            processor.std = std.values();
        }
        processor.check().map_err(|error| error.to_string())?;
        Ok(processor)
    }

    /// Refuses keys that another kind of processor has.
    fn no_others(&self, kind: Kind) -> Result<(), String> {
        let keys = [
            ("do_image_splitting", self.do_image_splitting.is_some(), Kind::Idefics3),
            ("max_image_size", self.max_image_size.is_some(), Kind::Idefics3),
            ("image_grid_pinpoints", self.image_grid_pinpoints.is_some(), Kind::LlavaOnevision),
            ("min_pixels", self.min_pixels.is_some(), Kind::QwenVl),
            ("max_pixels", self.max_pixels.is_some(), Kind::QwenVl),
            ("patch_size", self.patch_size.is_some(), Kind::QwenVl),
            ("merge_size", self.merge_size.is_some(), Kind::QwenVl),
            ("temporal_patch_size", self.temporal_patch_size.is_some(), Kind::QwenVl),
        ];
        match keys.into_iter().find(|(_, given, of)| *given && *of != kind) {
            None => Ok(()),
            Some((key, ..)) => Err(format!(
                "`{key}` is not implemented for this processor, and may change the pixels: use a checkpoint whose pictures \
                 become one square by crop, pad or squash, or take the key out if it has no effect"
            )),
        }
    }

    /// Idefics3 and SmolVLM.
    fn tiles(&self) -> Result<ImageProcessor, String> {
        let edge = |key: &str, size: &Option<Size>, default: u32| match size {
            None => Ok(default),
            Some(Size::Named(parts)) if parts.keys().eq(["longest_edge"]) => {
                parts["longest_edge"].ok_or_else(|| format!("`{key}.longest_edge` is null: give pixels"))
            }
            Some(_) => Err(format!("`{key}`: give `longest_edge`")),
        };
        let side = edge("max_image_size", &self.max_image_size, 364)?;
        let longest_edge = edge("size", &self.size, 4 * 364)?;
        let fit = Fit::Tiles { longest_edge, split: self.do_image_splitting.unwrap_or(true) };
        Ok(ImageProcessor { mean: [0.5; 3], std: [0.5; 3], ..ImageProcessor::clip(side).with_fit(fit) })
    }

    /// Qwen2-VL: areas as `min_pixels` and `max_pixels`, or as edges of `size`.
    fn dynamic(&self) -> Result<ImageProcessor, String> {
        let (mut least, mut most) = (56 * 56, 28 * 28 * 1280);
        match &self.size {
            None => {}
            Some(Size::Named(parts)) => {
                for (name, value) in parts.iter().filter_map(|(name, value)| Some((name, (*value)?))) {
                    match name.as_str() {
                        "shortest_edge" | "min_pixels" => least = value,
                        "longest_edge" | "max_pixels" => most = value,
                        other => return Err(format!("`size.{other}` is not implemented for this processor")),
                    }
                }
            }
            Some(_) => {
                return Err("`size`: give `shortest_edge` and `longest_edge`, areas in pixels".to_owned());
            }
        }
        let pixels = [self.min_pixels.unwrap_or(least), self.max_pixels.unwrap_or(most)];
        if let Some(frames) = self.temporal_patch_size.filter(|frames| *frames != 2) {
            return Err(format!("`temporal_patch_size` is {frames}: only 2 is implemented"));
        }
        let side = self.patch_size.unwrap_or(14).saturating_mul(self.merge_size.unwrap_or(2));
        Ok(ImageProcessor::clip(side).with_fit(Fit::Dynamic { pixels }))
    }

    /// LLaVA-OneVision.
    fn any_resolution(&self) -> Result<ImageProcessor, String> {
        let side = match &self.size {
            None => 384,
            Some(size) => match size.length("size", true)? {
                Length::Square(side) => side,
                Length::Shortest(_) => return Err("`size`: give equal `height` and `width`".to_owned()),
            },
        };
        let Some(pinpoints) = self.image_grid_pinpoints.clone() else {
            return Err(
                "`image_grid_pinpoints` is missing: use the file that belongs to the checkpoint".to_owned()
            );
        };
        Ok(ImageProcessor { pinpoints, ..ImageProcessor::clip(side).with_fit(Fit::AnyRes) })
    }

    /// One square: CLIP, LLaVA, BLIP.
    fn square(&self, kind: Kind) -> Result<ImageProcessor, String> {
        // What the classes take where the file is silent.
        let size = match (&self.size, kind) {
            (Some(size), _) => size.length("size", self.default_to_square.unwrap_or(kind == Kind::Blip))?,
            (None, Kind::Clip | Kind::Llava) => Length::Shortest(224),
            (None, Kind::Blip) => Length::Square(384),
            (None, _) => {
                return Err(
                    "`size` is missing: give `shortest_edge`, or equal `height` and `width`".to_owned()
                );
            }
        };
        let by_default = match kind {
            Kind::Clip | Kind::Llava => true,
            Kind::Unnamed => self.crop_size.is_some(),
            _ => false,
        };
        let crop = match (self.do_center_crop.unwrap_or(by_default), &self.crop_size) {
            (false, _) => None,
            (true, Some(crop)) => match crop.length("crop_size", true)? {
                Length::Square(side) => Some(side),
                Length::Shortest(_) => {
                    return Err("`crop_size`: give one side, or equal `height` and `width`".to_owned());
                }
            },
            (true, None) => Some(224),
        };
        let pad = self.do_pad.unwrap_or(false);
        if pad && !matches!(kind, Kind::Llava | Kind::Unnamed) {
            return Err("`do_pad`: only LlavaImageProcessor pads to a square".to_owned());
        }
        let (fit, shortest_edge, side) = match (size, pad, crop) {
            (Length::Square(side), true, crop) => (Fit::Pad, side, crop.unwrap_or(side)),
            (Length::Shortest(edge), true, crop) => (Fit::Pad, edge, crop.unwrap_or(edge)),
            (Length::Shortest(edge), false, Some(crop)) => (Fit::Crop, edge, crop),
            (Length::Square(side), false, crop) if crop.is_none_or(|crop| crop == side) => {
                (Fit::Squash, side, side)
            }
            (Length::Square(_), false, _) => {
                return Err(
                    "`crop_size` differs from `size`, which is a square already: not implemented".to_owned()
                );
            }
            (Length::Shortest(_), false, None) => {
                return Err("`do_center_crop` is false: pictures must become square, by crop, pad or squash"
                    .to_owned());
            }
        };
        Ok(ImageProcessor { shortest_edge, ..ImageProcessor::clip(side) }.with_fit(fit))
    }
}

impl Size {
    /// One number is the side of a square or the shortest edge, by the class.
    fn length(&self, key: &str, square: bool) -> Result<Length, String> {
        let sides = |height: u32, width: u32| {
            if height != width {
                return Err(format!("`{key}` is {height}x{width}: only squares are implemented"));
            }
            Ok(Length::Square(height))
        };
        match self {
            Self::Side(side) if square => Ok(Length::Square(*side)),
            Self::Side(side) => Ok(Length::Shortest(*side)),
            Self::Sides([height, width]) => sides(*height, *width),
            Self::Named(parts) => {
                let mut given = parts.iter().filter_map(|(name, value)| Some((name.as_str(), (*value)?)));
                if let Some((name, _)) =
                    given.clone().find(|(name, _)| !["shortest_edge", "height", "width"].contains(name))
                {
                    return Err(format!(
                        "`{key}.{name}` is not implemented: give `shortest_edge`, or equal `height` and `width`"
                    ));
                }
                match (given.next(), given.next(), given.next()) {
                    (Some(("shortest_edge", edge)), None, None) => Ok(Length::Shortest(edge)),
                    (Some(("height", height)), Some(("width", width)), None) => sides(height, width),
                    _ => Err(format!("`{key}`: give `shortest_edge`, or equal `height` and `width`")),
                }
            }
        }
    }
}
