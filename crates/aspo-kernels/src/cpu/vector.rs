//! Vector code without intrinsics: plain loops, compiled once for each instruction set and chosen at run time.
//!
//! [`vectorize!`] runs its body for AVX-512, for AVX2 with FMA, or for what the crate was compiled for (SSE2, NEON).
//! Whatever the body calls must be `#[inline(always)]`, or it is compiled for the base set. Write `for` loops: a closure
//! given to an iterator's method is a function of its own.
//!
//! `unsafe` here, for two reasons: a function compiled for an instruction set may run only where there is one, which
//! [`Set::found`] has asked the processor; and [`product`] reads and writes tiles by pointer, since a bounds check in its
//! innermost loop costs as much as the arithmetic.

/// `a b + c`, by the way that the instruction set at hand has for it.
pub trait Fma: Copy {
    fn madd(self, a: f32, b: f32, c: f32) -> f32;
}

/// Multiplies and adds in one instruction.
#[derive(Clone, Copy)]
pub struct Fused;

/// What the crate was compiled for. Without such an instruction `mul_add` is a call into the C library.
#[derive(Clone, Copy)]
pub struct Base;

impl Fma for Fused {
    #[inline(always)]
    fn madd(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

impl Fma for Base {
    #[inline(always)]
    fn madd(self, a: f32, b: f32, c: f32) -> f32 {
        if cfg!(any(target_feature = "fma", target_arch = "aarch64")) { a.mul_add(b, c) } else { a * b + c }
    }
}

/// Instruction sets that have a body of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Base,
}

impl Set {
    /// The best of this machine; with `--cfg aspo_portable` the base set, to test it.
    pub fn found() -> Self {
        #[cfg(test)]
        if let Some(set) = chosen::get() {
            return set;
        }
        #[cfg(all(target_arch = "x86_64", not(aspo_portable)))]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("fma") && has!("avx2") {
                let wide = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
                return if wide { Self::Avx512 } else { Self::Avx2 };
            }
        }
        Self::Base
    }
}

/// Threads that take a certain set, for tests that hold the sets to each other.
#[cfg(test)]
pub mod chosen {
    use std::cell::Cell;

    use super::Set;

    thread_local! {
        static SET: Cell<Option<Set>> = const { Cell::new(None) };
    }

    pub fn get() -> Option<Set> {
        SET.get()
    }

    /// Sets that this machine has, the base set first.
    pub fn all() -> Vec<Set> {
        let mut all = vec![Set::Base];
        #[cfg(target_arch = "x86_64")]
        match Set::found() {
            Set::Avx512 => all.extend([Set::Avx2, Set::Avx512]),
            Set::Avx2 => all.push(Set::Avx2),
            Set::Base => {}
        }
        all
    }

    /// On `threads` threads of its own.
    pub fn with<R: Send>(set: Set, threads: usize, f: impl FnOnce() -> R + Send) -> R {
        assert!(all().contains(&set));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.start_handler(move |_| SET.set(Some(set))).build().unwrap().install(f)
    }
}

/// Run `|fma| body` for the best instruction set; `fma` is a [`Fma`]. The module's page says what the body may be.
macro_rules! vectorize {
    (|$fma:ident| $body:expr) => {{
        use $crate::cpu::vector;
        match vector::Set::found() {
            #[cfg(target_arch = "x86_64")]
            vector::Set::Avx512 => vector::avx512(
                #[inline(always)]
                || {
                    let $fma = vector::Fused;
                    $body
                },
            ),
            #[cfg(target_arch = "x86_64")]
            vector::Set::Avx2 => vector::avx2(
                #[inline(always)]
                || {
                    let $fma = vector::Fused;
                    $body
                },
            ),
            vector::Set::Base => {
                let $fma = vector::Base;
                $body
            }
        }
    }};
}
pub(crate) use vectorize;

#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn avx512<R>(f: impl FnOnce() -> R) -> R {
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    fn inner<R>(f: impl FnOnce() -> R) -> R {
        f()
    }
    assert!(Set::found() == Set::Avx512);
    // SAFETY: the processor has what `inner` is compiled for.
    unsafe { inner(f) }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn avx2<R>(f: impl FnOnce() -> R) -> R {
    #[target_feature(enable = "avx2,fma")]
    fn inner<R>(f: impl FnOnce() -> R) -> R {
        f()
    }
    assert!(Set::found() != Set::Base);
    // SAFETY: as above.
    unsafe { inner(f) }
}

/// `e^x`, within 2 ULP for normal results (Cephes' polynomial); exactly 0 below -87.3, that of 88 above it, NaN of NaN.
#[inline(always)]
pub fn exp<M: Fma>(m: M, x: f32) -> f32 {
    // Adding 1.5 · 2^23 rounds to an integer, which then stands in the lowest bits.
    const MAGIC: f32 = 12_582_912.0;
    let clamped = if x > 88.0 { 88.0 } else { x };
    let clamped = if clamped < -87.3 { -87.3 } else { clamped };
    let shifted = m.madd(clamped, core::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    // ln 2 in two parts.
    let r = m.madd(n, -0.693_359_4, clamped);
    let r = m.madd(n, 2.121_944_4e-4, r);
    let p = 1.987_569_1e-4;
    let p = m.madd(p, r, 1.398_199_9e-3);
    let p = m.madd(p, r, 8.333_452e-3);
    let p = m.madd(p, r, 4.166_579_6e-2);
    let p = m.madd(p, r, 1.666_666_5e-1);
    let p = m.madd(p, r, 5e-1);
    let y = m.madd(p, r * r, r) + 1.0;
    let y = f32::from_bits(y.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x < -87.3 { 0.0 } else { y }
}

/// The error function, within 4e-7 (Eigen's rational approximation).
#[inline(always)]
pub fn erf<M: Fma>(m: M, x: f32) -> f32 {
    let x = if x > 4.0 { 4.0 } else { x };
    let x = if x < -4.0 { -4.0 } else { x };
    let s = x * x;
    let p = -2.726_142_3e-10;
    let p = m.madd(p, s, 2.770_681_5e-8);
    let p = m.madd(p, s, -2.101_024e-6);
    let p = m.madd(p, s, -5.692_506_4e-5);
    let p = m.madd(p, s, -7.349_906_4e-4);
    let p = m.madd(p, s, -2.954_6e-3);
    let p = m.madd(p, s, -1.609_603_3e-2);
    let q = -1.456_607_2e-5;
    let q = m.madd(q, s, -2.133_740_6e-4);
    let q = m.madd(q, s, -1.682_827e-3);
    let q = m.madd(q, s, -7.373_329_3e-3);
    let q = m.madd(q, s, -1.426_473_9e-2);
    x * p / q
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid<M: Fma>(m: M, x: f32) -> f32 {
    1.0 / (1.0 + exp(m, -x))
}

/// Sums are kept in this many places at once, so that they are vectors and do not wait for each other.
const LANES: usize = 32;

/// `Σ a b`.
#[inline(always)]
pub fn dot<M: Fma>(m: M, a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let mut rest = 0.0;
    for (x, y) in a_chunks.remainder().iter().zip(b_chunks.remainder()) {
        rest = m.madd(*x, *y, rest);
    }
    for (x, y) in a_chunks.zip(b_chunks) {
        for i in 0..LANES {
            sums[i] = m.madd(x[i], y[i], sums[i]);
        }
    }
    total(sums) + rest
}

/// `Σ a`.
#[inline(always)]
pub fn sum(a: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let chunks = a.chunks_exact(LANES);
    let mut rest = 0.0;
    for x in chunks.remainder() {
        rest += x;
    }
    for x in chunks {
        for i in 0..LANES {
            sums[i] += x[i];
        }
    }
    total(sums) + rest
}

#[inline(always)]
fn total(sums: [f32; LANES]) -> f32 {
    let mut all = 0.0;
    for x in sums {
        all += x;
    }
    all
}

/// The largest value; `-inf` of none.
#[inline(always)]
pub fn max(a: &[f32]) -> f32 {
    let mut best = [f32::NEG_INFINITY; LANES];
    let chunks = a.chunks_exact(LANES);
    let mut out = f32::NEG_INFINITY;
    for &x in chunks.remainder() {
        out = if x > out { x } else { out };
    }
    for x in chunks {
        for i in 0..LANES {
            best[i] = if x[i] > best[i] { x[i] } else { best[i] };
        }
    }
    for x in best {
        out = if x > out { x } else { out };
    }
    out
}

/// `a = exp(scale a - shift)` in place; the sum. In two loops: exponentials beside a running sum do not fit the registers.
#[inline(always)]
pub fn exp_sum<M: Fma>(m: M, a: &mut [f32], scale: f32, shift: f32) -> f32 {
    for x in a.iter_mut() {
        *x = exp(m, *x * scale - shift);
    }
    sum(a)
}

/// Columns of a tile of [`product`].
pub const TILE: usize = 16;

/// Rows of a tile: with two vectors of eight each, what 16 registers hold beside the operands.
const TILE_ROWS: usize = 6;

/// A strided operand of [`product`]: where it begins in `data`, and how far its rows and columns are apart.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    pub data: &'a [f32],
    pub at: usize,
    pub rows: usize,
    pub columns: usize,
}

/// `c[m, n] (+)= a[m, k] b[k, n]` for products too small to be worth packing. `c` begins at `c_at` with rows `c_rows`
/// apart; rows of `b` and `c` are contiguous. `n` is rounded up to whole tiles: what stands behind a row of `c` is
/// overwritten with something.
///
/// # Panics
/// If a tile would reach beyond `b` or `c`, or `a` is too small.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // a matrix product's usual ones
pub fn product<M: Fma>(
    f: M,
    [m, n, k]: [usize; 3],
    a: Part,
    b: Part,
    c: &mut [f32],
    c_at: usize,
    c_rows: usize,
    keep: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    let wide = n.next_multiple_of(TILE);
    assert!(c_at + (m - 1) * c_rows + wide <= c.len(), "a tile behind the result");
    if k > 0 {
        assert!(a.at + (m - 1) * a.rows + (k - 1) * a.columns < a.data.len(), "a row behind the left factor");
        assert!(b.at + (k - 1) * b.rows + wide <= b.data.len(), "a tile behind the right factor");
    }
    // SAFETY: the furthest places that the tiles touch are within the slices.
    unsafe {
        let (a_at, b_at, c_at) =
            (a.data.as_ptr().add(a.at), b.data.as_ptr().add(b.at), c.as_mut_ptr().add(c_at));
        for j in (0..n).step_by(TILE) {
            let (b_at, c_at) = (b_at.add(j), c_at.add(j));
            let mut i = 0;
            while i < m {
                let (a_at, c_at) = (a_at.add(i * a.rows), c_at.add(i * c_rows));
                match m - i {
                    1 => tile::<1, M>(f, k, a_at, a.rows, a.columns, b_at, b.rows, c_at, c_rows, keep),
                    2 => tile::<2, M>(f, k, a_at, a.rows, a.columns, b_at, b.rows, c_at, c_rows, keep),
                    3 => tile::<3, M>(f, k, a_at, a.rows, a.columns, b_at, b.rows, c_at, c_rows, keep),
                    4 => tile::<4, M>(f, k, a_at, a.rows, a.columns, b_at, b.rows, c_at, c_rows, keep),
                    5 => tile::<5, M>(f, k, a_at, a.rows, a.columns, b_at, b.rows, c_at, c_rows, keep),
                    _ => {
                        tile::<TILE_ROWS, M>(f, k, a_at, a.rows, a.columns, b_at, b.rows, c_at, c_rows, keep)
                    }
                }
                i += TILE_ROWS;
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
#[allow(clippy::needless_range_loop)] // by index, or the sums do not stay in registers
unsafe fn tile<const ROWS: usize, M: Fma>(
    f: M,
    k: usize,
    a: *const f32,
    a_rows: usize,
    a_columns: usize,
    b: *const f32,
    b_rows: usize,
    c: *mut f32,
    c_rows: usize,
    keep: bool,
) {
    let mut sums = [[0f32; TILE]; ROWS];
    // SAFETY: the caller has checked the last row and column.
    unsafe {
        if keep {
            for i in 0..ROWS {
                sums[i] = *c.add(i * c_rows).cast::<[f32; TILE]>();
            }
        }
        for p in 0..k {
            let row = *b.add(p * b_rows).cast::<[f32; TILE]>();
            for i in 0..ROWS {
                let x = *a.add(i * a_rows + p * a_columns);
                for j in 0..TILE {
                    sums[i][j] = f.madd(x, row[j], sums[i][j]);
                }
            }
        }
        for i in 0..ROWS {
            *c.add(i * c_rows).cast::<[f32; TILE]>() = sums[i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn far(found: f32, expected: f64) -> f64 {
        (f64::from(found) - expected).abs() / expected.abs().max(f64::from(f32::MIN_POSITIVE))
    }

    #[test]
    fn exponentials_are_right_to_three_ulp_on_both_paths() {
        for i in -870..=880 {
            let x = i as f32 * 0.1;
            let want = f64::from(x).exp();
            assert!(far(exp(Fused, x), want) < 3.6e-7, "{x}");
            // The product and the sum are rounded one by one.
            assert!(far(exp(Base, x), want) < 3.6e-7, "{x}");
            let found = vectorize!(|m| exp(m, x));
            assert!(far(found, want) < 3.6e-7, "{x}");
        }
        assert_eq!(exp(Fused, f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(Fused, -88.0), 0.0);
        assert_eq!(exp(Fused, 0.0), 1.0);
        assert!(exp(Fused, f32::NAN).is_nan() && exp(Base, f32::NAN).is_nan());
    }

    #[test]
    fn error_function_is_right_to_4e_7() {
        // Its integral by Simpson's rule, in f64.
        let want = |x: f64| {
            let n = 4000;
            let h = x / f64::from(n);
            let f = |t: f64| (-t * t).exp();
            let inner: f64 = (1..n).map(|i| f(f64::from(i) * h) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
            (f(0.0) + f(x) + inner) * h / 3.0 * 2.0 / std::f64::consts::PI.sqrt()
        };
        for i in -600..=600 {
            let x = i as f32 * 0.01;
            assert!((f64::from(erf(Fused, x)) - want(f64::from(x))).abs() < 4e-7, "{x}");
            assert!((f64::from(erf(Base, x)) - want(f64::from(x))).abs() < 4e-7, "{x}");
        }
        assert!(erf(Fused, f32::NAN).is_nan());
    }

    #[test]
    fn reductions_are_right_for_every_length() {
        for n in 0..100 {
            let a: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin()).collect();
            let b: Vec<f32> = (0..n).map(|i| (i as f32 * 1.3).cos()).collect();
            let want: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(a * b)).sum();
            for found in [dot(Fused, &a, &b), dot(Base, &a, &b), vectorize!(|m| dot(m, &a, &b))] {
                assert!((f64::from(found) - want).abs() < 1e-5, "{n}");
            }
            assert!((f64::from(sum(&a)) - a.iter().map(|x| f64::from(*x)).sum::<f64>()).abs() < 1e-5);
            assert_eq!(max(&a), a.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }

    #[test]
    fn products_by_tiles_are_right_for_every_shape() {
        let data = |n: usize, s: f32| (0..n).map(|i| (i as f32 * s).sin()).collect::<Vec<f32>>();
        for m in 1..14 {
            for n in [1usize, 5, 16, 17, 40] {
                for k in [0, 1, 3, 8] {
                    for (keep, turned) in [(false, false), (true, true)] {
                        let wide = n.next_multiple_of(TILE);
                        let (a, b) = (data(m * k, 0.3), data(k * wide, 0.7));
                        let start = data(m * (wide + 3), 0.9);
                        let (rows, columns) = if turned { (1, m) } else { (k, 1) };
                        let (a_part, b_part) = (
                            Part { data: &a, at: 0, rows, columns },
                            Part { data: &b, at: 0, rows: wide, columns: 1 },
                        );
                        for path in 0..3 {
                            let mut c = start.clone();
                            match path {
                                0 => product(Fused, [m, n, k], a_part, b_part, &mut c, 0, wide + 3, keep),
                                1 => product(Base, [m, n, k], a_part, b_part, &mut c, 0, wide + 3, keep),
                                _ => vectorize!(|f| product(
                                    f,
                                    [m, n, k],
                                    a_part,
                                    b_part,
                                    &mut c,
                                    0,
                                    wide + 3,
                                    keep
                                )),
                            }
                            for i in 0..m {
                                for j in 0..n {
                                    let from = if keep { f64::from(start[i * (wide + 3) + j]) } else { 0.0 };
                                    let want: f64 = (0..k)
                                        .map(|p| {
                                            f64::from(a[i * rows + p * columns]) * f64::from(b[p * wide + j])
                                        })
                                        .sum();
                                    let found = f64::from(c[i * (wide + 3) + j]);
                                    assert!((found - from - want).abs() < 1e-5, "{m} {n} {k} at {i} {j}");
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "a tile behind the result")]
    fn products_that_do_not_fit_are_refused() {
        let part = |data| Part { data, at: 0, rows: 16, columns: 1 };
        product(Base, [2, 1, 1], part(&[0.0; 32]), part(&[0.0; 32]), &mut [0.0; 24], 0, 16, false);
    }
}
