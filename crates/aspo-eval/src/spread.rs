//! Several runs of a judge: their mean and spread.

/// The mean of some numbers; `None` of none.
pub fn mean(numbers: &[f64]) -> Option<f64> {
    (!numbers.is_empty()).then(|| numbers.iter().sum::<f64>() / numbers.len() as f64)
}

/// The spread over runs: the standard deviation with divisor n, as MM-Vet's evaluator gives it; 0 of one run, `None` of
/// none.
pub fn spread(numbers: &[f64]) -> Option<f64> {
    let center = mean(numbers)?;
    let squares: Vec<f64> = numbers.iter().map(|x| (x - center).powi(2)).collect();
    mean(&squares).map(f64::sqrt)
}
