//! mDPO's corrupted pictures: a small random piece of a picture, enlarged to its size.

use sha2::{Digest, Sha256};

/// Share of the picture's area, least and most (mDPO's code: `RandomResizedCrop(size, scale=(0.01, 0.2))`).
const AREA: [f64; 2] = [0.01, 0.2];
/// Width over height, least and most (torchvision's default).
const RATIO: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0];

/// Which piece of which picture: for one run's seed, each pair has a piece of its own, the same for policy and reference and
/// in every epoch (C; the authors draw anew each time, and unlike for policy and reference).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Piece([u8; 32]);

impl Piece {
    /// The piece that a pair gets in a run.
    pub fn new(seed: u64, pair: &str, picture: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(seed.to_le_bytes());
        hash.update((pair.len() as u64).to_le_bytes());
        hash.update(pair);
        hash.update(picture);
        Self(hash.finalize().into())
    }

    /// A name for caches.
    pub fn name(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The piece of preprocessed pixels `[3, size, size]`, enlarged to `[3, size, size]` by bilinear interpolation.
    pub fn of(&self, pixels: &[f32], size: usize) -> Vec<f32> {
        let [top, left, height, width] = self.place(size);
        let (rows, columns) = (samples(top, height, size), samples(left, width, size));
        let mut out = Vec::with_capacity(pixels.len());
        for plane in pixels.chunks_exact(size * size) {
            for &(low, high, down) in &rows {
                for &(first, second, right) in &columns {
                    let at = |row: usize, column: usize| f64::from(plane[row * size + column]);
                    let across = |row| at(row, first) * (1.0 - right) + at(row, second) * right;
                    out.push((across(low) * (1.0 - down) + across(high) * down) as f32);
                }
            }
        }
        out
    }

    /// Top, left, height and width of the piece, as `RandomResizedCrop` draws them.
    fn place(&self, size: usize) -> [usize; 4] {
        let mut draws = 0_u64;
        // Uniform in [0, 1), from the hash: no generator's streams to depend on.
        let mut uniform = || {
            let mut hash = Sha256::new();
            hash.update(self.0);
            hash.update(draws.to_le_bytes());
            draws += 1;
            let bytes: [u8; 32] = hash.finalize().into();
            let word = u64::from_le_bytes([
                bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7],
            ]);
            (word >> 11) as f64 / (1_u64 << 53) as f64
        };
        let whole = size as f64;
        for _ in 0..10 {
            let area = whole * whole * (AREA[0] + (AREA[1] - AREA[0]) * uniform());
            let ratio = (RATIO[0].ln() + (RATIO[1] / RATIO[0]).ln() * uniform()).exp();
            let (width, height) =
                ((area * ratio).sqrt().round() as usize, (area / ratio).sqrt().round() as usize);
            if (1..=size).contains(&width) && (1..=size).contains(&height) {
                let start = |room: usize, share: f64| ((room + 1) as f64 * share) as usize;
                return [start(size - height, uniform()), start(size - width, uniform()), height, width];
            }
        }
        // Only a picture of a few pixels has no such piece.
        [0, 0, size, size]
    }
}

/// For each of `size` positions over `length` source pixels from `start`: the two pixels beside it and the share of the second.
fn samples(start: usize, length: usize, size: usize) -> Vec<(usize, usize, f64)> {
    let scale = length as f64 / size as f64;
    let sample = |index: usize| {
        let at = ((index as f64 + 0.5) * scale - 0.5).clamp(0.0, (length - 1) as f64);
        let low = at as usize;
        (start + low, start + (low + 1).min(length - 1), at - low as f64)
    };
    (0..size).map(sample).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_small_of_moderate_ratio_and_drawn_anew_for_each_pair() {
        let size = 336;
        let mut seen = std::collections::HashSet::new();
        for pair in 0..500 {
            let place = Piece::new(7, &pair.to_string(), "a.png").place(size);
            let [top, left, height, width] = place;
            assert!(top + height <= size && left + width <= size, "{place:?}");
            let area = (height * width) as f64 / (size * size) as f64;
            // Sides are rounded to pixels: 34 by 34 is the least.
            assert!((0.0095..0.205).contains(&area), "{place:?}");
            let ratio = width as f64 / height as f64;
            assert!((0.72..1.39).contains(&ratio), "{place:?}");
            seen.insert(place);
        }
        assert!(seen.len() > 450, "{} of 500 differ", seen.len());
        assert_eq!(Piece::new(7, "1", "a.png"), Piece::new(7, "1", "a.png"));
        for other in [Piece::new(8, "1", "a.png"), Piece::new(7, "2", "a.png"), Piece::new(7, "1", "b.png")] {
            assert_ne!(other, Piece::new(7, "1", "a.png"));
        }
    }

    /// A plane that rises evenly stays one: between the centres of the piece's first and last pixel.
    #[test]
    fn a_piece_is_enlarged_bilinearly() {
        let size = 24;
        let pixels: Vec<f32> =
            (0..3 * size * size).map(|i| (i % size) as f32 + 100.0 * (i / size % size) as f32).collect();
        let piece = Piece::new(1, "pair", "picture");
        let [top, left, height, width] = piece.place(size);
        let out = piece.of(&pixels, size);
        assert_eq!(out.len(), pixels.len());
        for row in 0..size {
            for column in 0..size {
                let source = |index: usize, length: usize| {
                    ((index as f64 + 0.5) * length as f64 / size as f64 - 0.5).clamp(0.0, (length - 1) as f64)
                };
                let expected =
                    left as f64 + source(column, width) + 100.0 * (top as f64 + source(row, height));
                let found = f64::from(out[row * size + column]);
                assert!((found - expected).abs() < 1e-3, "{row}, {column}: {found}, not {expected}");
            }
        }
    }
}
