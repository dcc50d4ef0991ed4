//! From the features of a cut picture to its image tokens: tiles laid side by side, what was padding cut away, the rest made
//! smaller where it is too much, rows ended by `image_newline`.

use std::ops::Range;

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

use crate::nn::cast;
use crate::picture::PictureShape;

/// Smaller pictures than this share above the limit are left as they are.
const SLACK: f64 = 1.1;

/// What is kept of a picture that was cut into tiles, in patches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    /// Patches along an edge of a tile.
    edge: usize,
    /// Columns of tiles.
    columns_of_tiles: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    /// Rows and columns in the end.
    size: [usize; 2],
}

impl Kept {
    /// Of a picture of this shape in tiles of `edge · edge` patches, of which about `most` tiles' worth may stay.
    pub(super) fn new(shape: &PictureShape, edge: usize, most: usize) -> Self {
        let [high, wide] = shape.grid.map(|tiles| tiles * edge);
        let [height, width] = shape.size.map(|pixels| pixels as f64);
        let (mut rows, mut columns) = (0..high, 0..wide);
        if width / height > wide as f64 / high as f64 {
            rows = middle(high, height * (wide as f64 / width));
        } else {
            columns = middle(wide, width * (high as f64 / height));
        }
        let mut size = [rows.len(), columns.len()];
        let ratio = ((size[0] * size[1]) as f64 / (most * edge * edge) as f64).sqrt();
        if ratio > SLACK {
            size = size.map(|patches| floor_divide(patches as f64, ratio));
        }
        Self { edge, columns_of_tiles: shape.grid[1], rows, columns, size }
    }

    /// Rows and columns of image tokens, `image_newline` not counted.
    pub(super) fn size(&self) -> [usize; 2] {
        self.size
    }

    /// The image tokens of the tiles, `[rows · (columns + 1), width]`, from their patches `[tiles · edge², width]`; `None` where
    /// no row is left.
    pub(super) fn tokens<B: Backend>(
        &self,
        patches: Tensor<B, 2>,
        newline: Tensor<B, 1>,
    ) -> Option<Tensor<B, 2>> {
        let [rows, columns] = self.size;
        let width = patches.dims()[1];
        if rows == 0 {
            return None;
        }
        let ends = newline.reshape([1, 1, width]).expand([rows, 1, width]);
        if columns == 0 {
            return Some(ends.reshape([rows, width]));
        }
        let edge = self.edge;
        let place = |row: usize, column: usize| {
            let tile = row / edge * self.columns_of_tiles + column / edge;
            ((tile * edge + row % edge) * edge + column % edge) as i64
        };
        let places =
            self.rows.clone().flat_map(|row| self.columns.clone().map(move |column| place(row, column)));
        let places = indices(places.collect(), &patches.device());
        let kept = patches.select(0, places).reshape([self.rows.len(), self.columns.len(), width]);
        let kept = stretch(stretch(kept, 0, rows), 1, columns);
        Some(aspo_kernels::cat(vec![kept, ends], 1).reshape([rows * (columns + 1), width]))
    }
}

/// `all` without what lies above and below the middle `part`, as much on either side: an odd rest stays.
fn middle(all: usize, part: f64) -> Range<usize> {
    // Python's `int(round(part, 7))`: the decimal rounding, then the whole part.
    let part = format!("{part:.7}").parse::<f64>().map_or(0, |part| part as usize);
    let margin = all.saturating_sub(part) / 2;
    margin..all - margin
}

/// Python's `a // b` of positive floats, which takes the remainder away before it divides.
fn floor_divide(a: f64, b: f64) -> usize {
    ((a - a % b) / b).round() as usize
}

/// Axis `axis` brought to `to` values by linear interpolation (`align_corners` false, no antialiasing).
fn stretch<B: Backend>(x: Tensor<B, 3>, axis: usize, to: usize) -> Tensor<B, 3> {
    let from = x.dims()[axis];
    if from == to {
        return x;
    }
    let (mut before, mut after, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for at in 0..to {
        let place = ((at as f64 + 0.5) * (from as f64 / to as f64) - 0.5).max(0.0);
        let first = (place as usize).min(from - 1);
        before.push(first as i64);
        after.push((first + 1).min(from - 1) as i64);
        shares.push((place - first as f64) as f32);
    }
    let device = x.device();
    let mut shape = [1; 3];
    shape[axis] = to;
    let share = cast(Tensor::<B, 3>::from_data(TensorData::new(shares, shape), &device), x.dtype());
    let [before, after] = [before, after].map(|places| x.clone().select(axis, indices(places, &device)));
    before * (share.clone().neg() + 1.0) + after * share
}

fn indices<B: Backend>(places: Vec<i64>, device: &B::Device) -> Tensor<B, 1, Int> {
    let count = places.len();
    Tensor::from_data(TensorData::new(places, [count]), device)
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;

    use super::*;

    fn shape(grid: [usize; 2], size: [usize; 2]) -> PictureShape {
        PictureShape { tile: [24, 24], grid, size }
    }

    #[test]
    fn padding_is_cut_away_on_both_sides_and_an_odd_rest_stays() {
        // A picture twice as wide as high in 2 × 2 tiles of 3 × 3 patches: 3 of 6 rows, one more for the odd rest.
        let kept = Kept::new(&shape([2, 2], [10, 20]), 3, 9);
        assert_eq!((kept.rows, kept.columns, kept.size), (1..5, 0..6, [4, 6]));
        let nothing = Kept::new(&shape([1, 2], [1, 1000]), 4, 9);
        assert_eq!(nothing.size, [0, 8], "a line of a picture leaves no row");
    }

    #[test]
    fn patches_of_all_tiles_stand_row_by_row_with_a_newline_after_each() {
        let patches: Vec<f32> = (0..8).map(|value| value as f32).collect();
        let patches = Tensor::<Flex, 2>::from_data(TensorData::new(patches, [8, 1]), &Default::default());
        let newline = Tensor::from_data([-1.0], &Default::default());
        let found = Kept::new(&shape([1, 2], [10, 20]), 2, 9).tokens(patches, newline).unwrap();
        let expected = [0.0, 1.0, 4.0, 5.0, -1.0, 2.0, 3.0, 6.0, 7.0, -1.0];
        assert_eq!(found.to_data().to_vec::<f32>().unwrap(), expected);
    }

    #[test]
    fn four_values_brought_to_two_are_means_of_neighbours() {
        let row = Tensor::<Flex, 3>::from_data([[[1.0], [3.0], [5.0], [9.0]]], &Default::default());
        assert_eq!(stretch(row, 1, 2).to_data().to_vec::<f32>().unwrap(), [2.0, 7.0]);
    }
}
