//! How far the weights of an answer's sentences agree with what is true.

use aspo_loss::weight::sentence_weights;

use aspo_eval::interval::{Interval, share_change};

/// A sentence whose truth is known.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// CLIP's cosine with the picture.
    pub similarity: f64,
    /// Under the model.
    pub perplexity: f64,
    /// Whether it is true.
    pub truth: bool,
}

/// The share of pairs of a true and a false sentence *of the same answer* in which the true one has the larger weight `w_i`,
/// ties counted half: the area under the ROC curve within answers, ½ for weights that know nothing. With its 95% interval
/// over answers; `None` where no answer has both a true and a false sentence.
pub fn agreement(answers: &[Vec<Known>], alpha: f64) -> Option<Interval> {
    let counts: Vec<[usize; 2]> = answers.iter().map(|answer| compared(answer, alpha)).collect();
    let any = counts.iter().any(|[pairs, _]| *pairs > 0);
    any.then(|| share_change(&vec![[1, 0]; counts.len()], &counts))
}

/// Twice the pairs of a true and a false sentence, and twice those ranked rightly, a tie being once.
fn compared(answer: &[Known], alpha: f64) -> [usize; 2] {
    let column = |of: fn(&Known) -> f64| answer.iter().map(of).collect::<Vec<f64>>();
    let similarity = column(|known| known.similarity);
    let weights = sentence_weights(Some(&similarity), &column(|known| known.perplexity), alpha);
    let weighed = || weights.iter().zip(answer);
    let mut counts = [0, 0];
    for (right, _) in weighed().filter(|(_, known)| known.truth) {
        for (wrong, _) in weighed().filter(|(_, known)| !known.truth) {
            counts[0] += 2;
            counts[1] += usize::from(right > wrong) + usize::from(right >= wrong);
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_one_answer_are_compared_and_ties_count_half() {
        let known = |similarity, perplexity, truth| Known { similarity, perplexity, truth };
        // By similarity the true sentence beats one of two false ones, by perplexity it ties with one and loses to the other.
        let mixed = vec![known(0.2, 2.0, true), known(0.1, 2.0, false), known(0.3, 1.0, false)];
        // An answer without a false sentence says nothing.
        let right = vec![known(0.9, 1.0, true), known(0.1, 9.0, true)];
        let at = |alpha| agreement(&[mixed.clone(), right.clone()], alpha).unwrap().mean;
        assert_eq!([at(1.0), at(0.0)], [0.5, 0.25]);
        assert!(agreement(std::slice::from_ref(&right), 0.5).is_none());
    }
}
