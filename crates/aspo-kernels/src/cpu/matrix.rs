//! Matrices as strided views, so that a transposed or interleaved operand is a stride and not a copy; products by the
//! gemm crate.
//!
//! `unsafe` here, for three reasons: columns of one matrix are dealt to several threads, which slices cannot say; gemm
//! takes pointers; and results are not zeroed before they are written. A view checks its bounds when it is made.

use core::marker::PhantomData;

use gemm::Parallelism;

/// A matrix to read.
#[derive(Debug, Clone, Copy)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Mat<'a> {
    /// `[rows, columns]`, row by row.
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        assert!(rows * columns <= data.len(), "a view beyond its buffer");
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// Columns there are.
    pub fn width(self) -> usize {
        self.columns
    }

    /// The values of rows that stand one behind the other, if there are no more than this many.
    pub fn few_rows(self, most: usize) -> Option<&'a [f32]> {
        let plain = self.rows <= most && self.column_stride == 1 && self.row_stride == self.columns;
        plain.then(|| &self.data[..self.rows * self.columns])
    }

    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    pub fn columns(self, from: usize, count: usize) -> Self {
        assert!(from + count <= self.columns, "columns beyond the matrix");
        let data =
            if count == 0 { &[] } else { &self.data[(from * self.column_stride).min(self.data.len())..] };
        Self { data, columns: count, ..self }
    }
}

/// A matrix to write, rows contiguous.
#[derive(Debug)]
pub struct MatMut<'a> {
    data: *mut f32,
    rows: usize,
    columns: usize,
    row_stride: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is a `&mut [f32]` with gaps.
unsafe impl Send for MatMut<'_> {}

impl<'a> MatMut<'a> {
    /// `[rows, columns]`, row by row.
    pub fn new(data: &'a mut [f32], rows: usize, columns: usize) -> Self {
        assert!(rows * columns <= data.len(), "a view beyond its buffer");
        Self { data: data.as_mut_ptr(), rows, columns, row_stride: columns, owner: PhantomData }
    }

    /// The first `count` columns, and the others.
    pub fn split_columns(self, count: usize) -> (Self, Self) {
        assert!(count <= self.columns, "columns beyond the matrix");
        // SAFETY: within the buffer, or at its end where no column is left.
        let right = if self.rows == 0 { self.data } else { unsafe { self.data.add(count) } };
        (Self { columns: count, ..self }, Self { data: right, columns: self.columns - count, ..self })
    }

    /// All columns, dealt in this order to views of these widths.
    pub fn deal(self, widths: impl IntoIterator<Item = usize>) -> Vec<Self> {
        let mut rest = Some(self);
        let mut out = Vec::new();
        for width in widths {
            let (left, right) = rest.take().expect("put back each time").split_columns(width);
            out.push(left);
            rest = Some(right);
        }
        out
    }

    /// The same for a while.
    pub fn reborrow(&mut self) -> MatMut<'_> {
        MatMut { owner: PhantomData, ..*self }
    }

    /// Columns there are.
    pub fn width(&self) -> usize {
        self.columns
    }

    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "a row beyond the matrix");
        // SAFETY: within the buffer; views over one buffer share no column.
        unsafe { core::slice::from_raw_parts_mut(self.data.add(row * self.row_stride), self.columns) }
    }
}

/// Whether a product may use all threads. Its values are the same either way: only tiles of the result are dealt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    All,
    This,
}

/// `to = scale a b`, added to what is there with `keep`.
pub fn product(to: MatMut, keep: bool, scale: f32, a: Mat, b: Mat, threads: Threads) {
    assert!(to.rows == a.rows && to.columns == b.columns && a.columns == b.rows, "shapes of a product");
    let parallelism = match threads {
        Threads::All => Parallelism::Rayon(0),
        Threads::This => Parallelism::None,
    };
    let stride = |n: usize| isize::try_from(n).expect("strides of a buffer");
    // SAFETY: the views are within their buffers, and nobody else writes where `to` does.
    unsafe {
        gemm::gemm(
            to.rows,
            to.columns,
            a.columns,
            to.data,
            1,
            stride(to.row_stride),
            keep,
            a.data.as_ptr(),
            stride(a.column_stride),
            stride(a.row_stride),
            b.data.as_ptr(),
            stride(b.column_stride),
            stride(b.row_stride),
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// A buffer of `n` values, all of which `write` must set: they are not zeroed before.
pub fn written(n: usize, write: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let mut out = Vec::with_capacity(n);
    // SAFETY: the memory is there, and every pattern of bits is an f32.
    #[allow(clippy::uninit_vec)]
    unsafe {
        out.set_len(n);
    }
    write(&mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_views_are_those_of_the_matrices() {
        let data = |n: usize, s: f32| (0..n).map(|i| (i as f32 * s).sin()).collect::<Vec<f32>>();
        for [m, n, k] in [[3, 4, 5], [1, 7, 2], [70, 33, 40], [5, 5, 0], [0, 3, 2], [130, 129, 600]] {
            let (x, w) = (data(m * (k + 2), 0.31), data((n + 1) * k, 0.17));
            let want = |i: usize, j: usize| -> f64 {
                (0..k).map(|p| f64::from(x[i * (k + 2) + 1 + p]) * f64::from(w[j * k + p])).sum()
            };
            for keep in [false, true] {
                let mut y = vec![7.0; m * (n + 3)];
                let mut views = MatMut::new(&mut y, m, n + 3).deal([1, n, 2]).into_iter();
                let to = views.nth(1).unwrap();
                let a = Mat::new(&x, m, k + 2).columns(1, k);
                product(to, keep, 0.5, a, Mat::new(&w, n, k).transposed(), Threads::All);
                for i in 0..m {
                    assert_eq!(
                        (y[i * (n + 3)], y[i * (n + 3) + n + 1]),
                        (7.0, 7.0),
                        "neighbours are untouched"
                    );
                    for j in 0..n {
                        let found = f64::from(y[i * (n + 3) + 1 + j]) - if keep { 7.0 } else { 0.0 };
                        assert!((found - 0.5 * want(i, j)).abs() < 2e-5, "{m} {n} {k}: {found}");
                    }
                }
            }
        }
    }

    #[test]
    fn products_are_the_same_to_the_bit_with_any_number_of_threads() {
        let data = |n: usize, s: f32| (0..n).map(|i| (i as f32 * s).sin()).collect::<Vec<f32>>();
        for [m, n, k] in
            [[300, 512, 700], [37, 1000, 1500], [1472, 48, 512], [16, 512, 1472], [512, 16, 1472]]
        {
            let (a, b) = (data(m * k, 0.31), data(n * k, 0.17));
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let how = if threads == 0 { Threads::This } else { Threads::All };
                let write = |y: &mut [f32]| {
                    let (a, b) = (Mat::new(&a, k, m).transposed(), Mat::new(&b, n, k).transposed());
                    product(MatMut::new(y, m, n), false, 1.0, a, b, how);
                };
                pool.install(|| written(m * n, write))
            };
            let one = run(1);
            assert!(one == run(2) && one == run(3) && one == run(7), "{m} {n} {k}");
        }
    }

    #[test]
    #[should_panic(expected = "a view beyond its buffer")]
    fn views_stay_within_their_buffer() {
        let _ = Mat::new(&[0.0; 5], 2, 3);
    }
}
