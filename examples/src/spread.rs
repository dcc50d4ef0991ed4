//! Means over seeds and what they are worth.

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
        write!(f, "{:.1} ± {:.1}", self.mean, self.deviation)
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

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:+.1} [{:+.1}, {:+.1}]", self.mean, self.low, self.high)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paired_interval_is_that_of_students_t() {
        // Differences 1, 2, 3: mean 2, deviation 1, half width 4.303/√3.
        let found = paired(&[2.0, 4.0, 6.0], &[1.0, 2.0, 3.0]);
        assert_eq!(found.to_string(), "+2.0 [-0.5, +4.5]");
        assert_eq!(Spread::of(&[1.0, 2.0, 3.0]).to_string(), "2.0 ± 1.0");
    }
}
