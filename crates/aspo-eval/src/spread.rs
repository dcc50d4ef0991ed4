//! Several runs of a judge: their mean and spread.

/// The mean of some numbers; 0 of none.
pub fn mean(numbers: &[f64]) -> f64 {
    if numbers.is_empty() { 0.0 } else { numbers.iter().sum::<f64>() / numbers.len() as f64 }
}

/// The spread over runs: the standard deviation with divisor n, as MM-Vet's evaluator gives it; 0 of one run.
pub fn spread(numbers: &[f64]) -> f64 {
    let mean = mean(numbers);
    let squares: Vec<f64> = numbers.iter().map(|x| (x - mean).powi(2)).collect();
    self::mean(&squares).sqrt()
}
