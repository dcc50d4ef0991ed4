//! Means over seeds, changes over scenes, and what they are worth.

use std::fmt;

/// Mean and sample standard deviation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Sample standard deviation; no number for one value.
    pub deviation: f64,
}

impl Spread {
    /// Of some values.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Self { mean, deviation: (squares / (n - 1.0)).sqrt() }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.deviation.is_nan() {
            true => write!(f, "{:.1}", self.mean),
            false => write!(f, "{:.1} ± {:.1}", self.mean, self.deviation),
        }
    }
}

/// A mean with its 95% interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Mean.
    pub mean: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// In another unit.
    pub fn scaled(self, by: f64) -> Self {
        Self { mean: by * self.mean, low: by * self.low, high: by * self.high }
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.low.is_nan() {
            true => write!(f, "{:+.1}", self.mean),
            false => write!(f, "{:+.1} [{:+.1}, {:+.1}]", self.mean, self.low, self.high),
        }
    }
}

/// Quantiles 0.975 of Student's t for 1, 2, … degrees of freedom.
const STUDENT: [f64; 19] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093,
];

/// The mean of `a - b` seed by seed, with the interval of Student's t (for more than 20 values, of the normal law).
pub fn paired(a: &[f64], b: &[f64]) -> Interval {
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let spread = Spread::of(&differences);
    let n = differences.len();
    let quantile = n.checked_sub(2).map_or(f64::NAN, |at| STUDENT.get(at).copied().unwrap_or(1.96));
    let half = quantile * spread.deviation / (n as f64).sqrt();
    Interval { mean: spread.mean, low: spread.mean - half, high: spread.mean + half }
}

/// The change of `Σ part / Σ whole` from one model to another on the same scenes (`[whole, part]` each), with its 95%
/// interval: the normal law, and the variance of a ratio over scenes, paired (Cochran, *Sampling Techniques*, 6.4).
pub fn share_change(before: &[[usize; 2]], after: &[[usize; 2]]) -> Interval {
    let influences = |counts: &[[usize; 2]]| {
        let sum = |at: usize| counts.iter().map(|count| count[at] as f64).sum::<f64>();
        let whole = sum(0).max(1.0);
        let share = sum(1) / whole;
        let of = |&[all, part]: &[usize; 2]| (part as f64 - share * all as f64) / whole;
        (share, counts.iter().map(of).collect::<Vec<f64>>())
    };
    let ((old, a), (new, b)) = (influences(before), influences(after));
    let n = a.len() as f64;
    let squares: f64 = a.iter().zip(&b).map(|(a, b)| (b - a).powi(2)).sum();
    let half = 1.96 * (squares * n / (n - 1.0)).sqrt();
    Interval { mean: new - old, low: new - old - half, high: new - old + half }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paired_interval_is_that_of_students_t() {
        // Differences 1, 2, 3: mean 2, deviation 1, half width 4.303/√3.
        let found = paired(&[2.0, 4.0, 6.0], &[1.0, 2.0, 3.0]);
        assert_eq!(found.to_string(), "+2.0 [-0.5, +4.5]");
        assert_eq!(Spread::of(&[1.0, 2.0, 3.0]).to_string(), "2.0 ± 1.0");
        // One value leaves open how far others are.
        assert_eq!(paired(&[2.0], &[1.0]).to_string(), "+1.0");
        assert_eq!(Spread::of(&[1.0]).to_string(), "1.0");
    }

    #[test]
    fn change_of_a_share_has_the_interval_of_its_difference_over_scenes() {
        // One question a scene, so that shares are means and the interval is the paired one: the differences are 1, 0, 0, 1,
        // their mean 1/2, their deviation 1/√3, the half width 1.96/√12.
        let found = share_change(&[[1, 0], [1, 1], [1, 0], [1, 0]], &[[1, 1], [1, 1], [1, 0], [1, 1]]);
        assert!((found.mean - 0.5).abs() < 1e-12);
        assert!((found.high - found.mean - 1.96 / 12_f64.sqrt()).abs() < 1e-12);
        // Scenes weigh by their size, and equal answers leave nothing open.
        let same = share_change(&[[3, 1], [1, 1]], &[[3, 1], [1, 1]]);
        assert_eq!([same.mean, same.low, same.high], [0.0; 3]);
        assert_eq!(share_change(&[[3, 0], [1, 0]], &[[3, 3], [1, 0]]).mean, 0.75);
    }
}
