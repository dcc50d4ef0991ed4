//! Pictures as an image processor leaves them, and what a vision tower saw in them.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, s};

use crate::error::{Error, Result};

/// Sizes of a picture. They decide how many tokens it takes and, in some models, where these stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PictureShape {
    /// Height and width of a tile in pixels.
    pub tile: [usize; 2],
    /// Rows and columns of tiles that the picture is cut into; `[0, 0]` where it is one tile, not cut.
    pub grid: [usize; 2],
    /// Height and width of the picture in pixels as it was, before it was resized.
    pub size: [usize; 2],
}

impl PictureShape {
    /// A picture that is one tile of this height and width.
    pub fn whole(size: [usize; 2]) -> Self {
        Self { tile: size, grid: [0, 0], size }
    }

    /// Tiles of its pixels: those of the cut and one of the whole, or that alone.
    pub fn tiles(&self) -> usize {
        self.grid[0] * self.grid[1] + 1
    }
}

/// One picture, preprocessed.
#[derive(Debug, Clone)]
pub struct Picture<B: Backend> {
    /// `[tiles, 3, height, width]`, normalised, in the order of the model's processor.
    pub pixels: Tensor<B, 4>,
    /// Its sizes.
    pub shape: PictureShape,
}

impl<B: Backend> Picture<B> {
    /// Pictures that are one tile each, from `[pictures, 3, height, width]`.
    pub fn each(pixels: Tensor<B, 4>) -> Vec<Self> {
        let [pictures, _, height, width] = pixels.dims();
        let shape = PictureShape::whole([height, width]);
        (0..pictures).map(|at| Self { pixels: pixels.clone().slice(s![at..at + 1]), shape }).collect()
    }

    /// The tiles of all pictures, `[tiles, 3, height, width]`, for towers whose tiles have one size.
    ///
    /// # Errors
    /// No picture, or one whose pixels are not the tiles of this size that its shape tells.
    pub fn tiles(pictures: &[Self], tile: [usize; 2]) -> Result<Tensor<B, 4>> {
        let [height, width] = tile;
        for (at, Picture { pixels, shape }) in pictures.iter().enumerate() {
            let expected = [shape.tiles(), 3, height, width];
            if pixels.dims() != expected || shape.tile != tile {
                let found = pixels.dims();
                let reason = format!(
                    "picture {at} has shape {found:?} and tiles of {:?}, expected {expected:?}",
                    shape.tile
                );
                return Err(Error::input("pixels", reason));
            }
        }
        if pictures.is_empty() {
            return Err(Error::input("pixels", "there is no picture"));
        }
        Ok(aspo_kernels::cat(pictures.iter().map(|picture| picture.pixels.clone()).collect(), 0))
    }

    /// [`tiles`](Self::tiles) for models that see each picture whole, in a square of `size`.
    ///
    /// # Errors
    /// As [`tiles`](Self::tiles), and a picture that is cut.
    pub fn squares(pictures: &[Self], size: usize) -> Result<Tensor<B, 4>> {
        if let Some(at) = pictures.iter().position(|picture| picture.shape.grid != [0, 0]) {
            let [rows, columns] = pictures[at].shape.grid;
            let reason =
                format!("picture {at} is cut into {rows} × {columns} tiles; this model sees it whole");
            return Err(Error::input("pixels", reason));
        }
        Self::tiles(pictures, [size, size])
    }
}

/// What a vision tower gives for one picture, before the projector: it is frozen in training, so this is computed once.
#[derive(Debug, Clone)]
pub struct ImageFeatures<B: Backend> {
    /// `[rows, width]`; as many rows as the model's tower gives, which need not be as many as the picture takes tokens.
    pub values: Tensor<B, 2>,
    /// Sizes of the picture.
    pub shape: PictureShape,
}

impl<B: Backend> ImageFeatures<B> {
    /// `[tiles, rows, width]`, taken apart: to each picture the rows of its tiles.
    pub fn each(values: Tensor<B, 3>, pictures: &[Picture<B>]) -> Vec<Self> {
        let [_, rows, width] = values.dims();
        let mut next = 0;
        let part = |Picture { shape, .. }: &Picture<B>| {
            let tiles = next..next + shape.tiles();
            next = tiles.end;
            let values = values.clone().slice(s![tiles]).reshape([shape.tiles() * rows, width]);
            Self { values, shape: *shape }
        };
        pictures.iter().map(part).collect()
    }

    /// Those of the plain backend, as constants of a graph.
    pub fn from_inner(features: ImageFeatures<B::InnerBackend>) -> Self
    where
        B: AutodiffBackend,
    {
        Self { values: Tensor::from_inner(features.values), shape: features.shape }
    }

    /// All pictures' rows, `[pictures · rows, width]`; `None` without pictures.
    ///
    /// # Errors
    /// Features that are not `[rows, width]`, where each picture must have as many.
    pub fn stacked(all: &[Self], rows: usize, width: usize) -> Result<Option<Tensor<B, 2>>> {
        Self::ragged(all, |_| rows, width)
    }

    /// All pictures' rows, one after the other, `[rows, width]`; `None` without pictures.
    ///
    /// # Errors
    /// Features that are not `[rows, width]` with as many rows as a picture of its shape has.
    pub fn ragged(
        all: &[Self],
        rows: impl Fn(&PictureShape) -> usize,
        width: usize,
    ) -> Result<Option<Tensor<B, 2>>> {
        for (at, features) in all.iter().enumerate() {
            let (found, expected) = (features.values.dims(), [rows(&features.shape), width]);
            if found != expected {
                let reason = format!("those of picture {at} have shape {found:?}, expected {expected:?}");
                return Err(Error::input("image_features", reason));
            }
        }
        let values: Vec<_> = all.iter().map(|features| features.values.clone()).collect();
        Ok((!values.is_empty()).then(|| aspo_kernels::cat(values, 0)))
    }
}
