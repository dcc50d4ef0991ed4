//! Visual Genome's files: sizes, addresses and described regions of the images.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::path::PathBuf;

use serde::Deserialize;

use super::{NAME, Shr, all_there};
use crate::error::Result;
use crate::file;

#[derive(Deserialize)]
pub(super) struct ImageData {
    image_id: u64,
    width: f64,
    height: f64,
    pub(super) url: String,
}

#[derive(Deserialize)]
struct Regions {
    regions: Vec<Region>,
}

#[derive(Deserialize)]
pub(super) struct Region {
    image_id: u64,
    x: f64,
    y: f64,
    width: f64,
    height: f64,
    phrase: Option<String>,
}

impl Shr {
    /// Size and address of each image, and the file they are from.
    pub(super) fn image_data(&self, ids: &[u64]) -> Result<(PathBuf, HashMap<u64, ImageData>)> {
        let names = ["image_data.json", "VG/image_data.json", "../VG/image_data.json"];
        let path = file::find_or(NAME, &self.folder, &names)?;
        let rows: Vec<ImageData> = file::document(&path)?;
        let wanted: HashSet<u64> = ids.iter().copied().collect();
        let found: HashMap<u64, ImageData> = rows
            .into_iter()
            .filter(|row| wanted.contains(&row.image_id))
            .map(|row| (row.image_id, row))
            .collect();
        all_there(&path, ids, |id| found.contains_key(&id))?;
        Ok((path, found))
    }

    /// Described regions of each image.
    pub(super) fn regions(&self, ids: &[u64]) -> Result<HashMap<u64, Vec<Region>>> {
        let names =
            ["region_descriptions.json", "VG/region_descriptions.json", "../VG/region_descriptions.json"];
        let path = file::find_or(NAME, &self.folder, &names)?;
        let wanted: HashSet<u64> = ids.iter().copied().collect();
        let rows: Vec<Regions> = file::document(&path)?;
        let found: HashMap<u64, Vec<Region>> = rows
            .into_iter()
            .filter_map(|row| Some((row.regions.first()?.image_id, row.regions)))
            .filter(|(id, _)| wanted.contains(id))
            .collect();
        all_there(&path, ids, |id| found.contains_key(&id))?;
        Ok(found)
    }
}

/// `[x1, y1, x2, y2]: phrase` for each region, in shares of the image's size to two digits.
pub(super) fn describe(regions: &[Region], image: &ImageData) -> String {
    let mut text = String::new();
    for r in regions {
        let Some(phrase) = r.phrase.as_deref().filter(|phrase| !phrase.is_empty()) else { continue };
        let corners = [
            r.x / image.width,
            r.y / image.height,
            (r.x + r.width) / image.width,
            (r.y + r.height) / image.height,
        ];
        let corners = corners.map(|c| format!("{:?}", format!("{c:.2}").parse::<f64>().unwrap_or(c)));
        let _ = writeln!(text, "[{}]: {phrase}", corners.join(", "));
    }
    text
}
