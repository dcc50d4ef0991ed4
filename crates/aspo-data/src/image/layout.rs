//! How a picture is laid out for a tower: the size it is resized to, the tiles that it is cut into. All of it follows from width
//! and height, which are in the head of its file.
//!
//! Sources: transformers' `image_processing_idefics3.py`, `image_processing_qwen2_vl.py` (`smart_resize`),
//! `image_processing_llava_onevision.py`, `image_processing_utils.py` (`select_best_resolution`). Sizes are computed in f64 and cut
//! to integers where these cut them.

use serde::{Deserialize, Serialize};

/// Sizes of a preprocessed picture: they decide how many tokens it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageShape {
    /// Height and width of a tile in pixels.
    pub tile: [u32; 2],
    /// Rows and columns of tiles that the picture is cut into; `[0, 0]` where it is one tile, not cut.
    pub grid: [u32; 2],
    /// Height and width of the picture in pixels, as it was.
    pub size: [u32; 2],
}

impl ImageShape {
    /// Tiles: those of the cut and one of the whole, or that alone.
    pub fn tiles(&self) -> usize {
        self.grid[0] as usize * self.grid[1] as usize + 1
    }

    /// Values of its pixels.
    pub fn values(&self) -> usize {
        3 * self.tiles() * self.tile[0] as usize * self.tile[1] as usize
    }
}

/// Longest edge of a picture before it is cut, whatever the settings say.
const MOST: u32 = 4096;
/// Sides longer than so many times the other are refused.
const MOST_RATIO: f64 = 200.0;

/// Height and width that Idefics3 brings a picture to, first: the longest edge to `longest_edge`, the other to an even length.
pub(super) fn first_size([height, width]: [u32; 2], longest_edge: u32) -> [u32; 2] {
    let ratio = f64::from(width) / f64::from(height);
    let even = |length: f64| {
        let length = length as u32;
        length + length % 2
    };
    let (h, w) = if width >= height {
        (even(f64::from(longest_edge) / ratio), longest_edge)
    } else {
        (longest_edge, even(f64::from(longest_edge) * ratio))
    };
    let (h, w) = (h.max(1), w.max(1));
    let ratio = f64::from(w) / f64::from(h);
    let (h, w) = match (h, w) {
        (h, w) if w >= h && w > MOST => ((f64::from(MOST) / ratio) as u32, MOST),
        (h, w) if h > w && h > MOST => (MOST, (f64::from(MOST) * ratio) as u32),
        whole => whole,
    };
    [h.max(1), w.max(1)]
}

/// Height and width of a picture of whole tiles, second.
pub(super) fn second_size([height, width]: [u32; 2], tile: u32) -> [u32; 2] {
    let ratio = f64::from(width) / f64::from(height);
    let up = |length: u32| length.max(1).div_ceil(tile) * tile;
    if width >= height {
        let width = up(width);
        [up((f64::from(width) / ratio) as u32), width]
    } else {
        let height = up(height);
        [height, up((f64::from(height) * ratio) as u32)]
    }
}

/// Height and width of a picture in multiples of `factor`, its area within `[least, most]` where that can be.
pub(super) fn dynamic_size(
    [height, width]: [u32; 2],
    factor: u32,
    [least, most]: [u32; 2],
) -> Option<[u32; 2]> {
    let [h, w, f] = [height, width, factor].map(f64::from);
    if h.max(w) / h.min(w) > MOST_RATIO {
        return None;
    }
    let near = |length: f64| (length / f).round_ties_even() * f;
    let (mut high, mut wide) = (near(h), near(w));
    if high * wide > f64::from(most) {
        let beta = (h * w / f64::from(most)).sqrt();
        let down = |length: f64| f.max((length / beta / f).floor() * f);
        (high, wide) = (down(h), down(w));
    } else if high * wide < f64::from(least) {
        let beta = (f64::from(least) / (h * w)).sqrt();
        let up = |length: f64| (length * beta / f).ceil() * f;
        (high, wide) = (up(h), up(w));
    }
    Some([high as u32, wide as u32])
}

/// The pinpoint (height, width) that keeps most of a picture's pixels, and wastes least beside.
pub(super) fn best_pinpoint([height, width]: [u32; 2], pinpoints: &[[u32; 2]]) -> Option<[u32; 2]> {
    let (h, w) = (f64::from(height), f64::from(width));
    let kept = |&[high, wide]: &[u32; 2]| {
        let scale = (f64::from(wide) / w).min(f64::from(high) / h);
        let kept = u64::from((w * scale) as u32) * u64::from((h * scale) as u32);
        let kept = kept.min(u64::from(width) * u64::from(height));
        (kept, u64::from(high) * u64::from(wide) - kept)
    };
    let mut best: Option<([u32; 2], (u64, u64))> = None;
    for point in pinpoints {
        let found = kept(point);
        // The first of equals counts.
        if best.is_none_or(|(_, (most, waste))| found.0 > most || (found.0 == most && found.1 < waste)) {
            best = Some((*point, found));
        }
    }
    best.map(|(point, _)| point)
}

/// Height and width of a picture that is to lie within `[high, wide]`, one side filling it.
pub(super) fn within([height, width]: [u32; 2], [high, wide]: [u32; 2]) -> [u32; 2] {
    let scale = |to: u32, from: u32| f64::from(to) / f64::from(from);
    let (by_width, by_height) = (scale(wide, width), scale(high, height));
    if by_width < by_height {
        [((f64::from(height) * by_width).ceil() as u32).min(high), wide]
    } else {
        [high, ((f64::from(width) * by_height).ceil() as u32).min(wide)]
    }
}
