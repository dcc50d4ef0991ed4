//! What ASPO made of each sentence.

/// What ASPO made of each sentence: constants of the step, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Weighting {
    /// The chosen side.
    pub chosen: SideWeighting,
    /// The rejected side, under [`Weigh::Both`](crate::Weigh::Both).
    pub rejected: Option<SideWeighting>,
}

/// One side of a [`Weighting`]; every inner vector has one value per sentence.
#[derive(Debug, Clone, PartialEq)]
pub struct SideWeighting {
    /// `w_i`.
    pub weights: Vec<Vec<f64>>,
    /// `PPL_i` of the policy.
    pub perplexity: Vec<Vec<f64>>,
    /// `log π(s_i)`.
    pub log_probs: Vec<Vec<f64>>,
    /// `d_i = log[π(s_i)/π_ref(s_i)]`.
    pub log_ratios: Vec<Vec<f64>>,
    /// ρ of each row.
    pub scale: Vec<f64>,
}

impl SideWeighting {
    /// `ρ (1+w_i)` of each sentence of a row.
    pub(super) fn factors(&self, row: usize) -> impl Iterator<Item = f64> + '_ {
        self.weights[row].iter().map(move |w| self.scale[row] * (1.0 + w))
    }

    /// `ρ Σ_i (1+w_i) d_i` of each row.
    pub(super) fn weighed_ratios(&self) -> Vec<f64> {
        let rows = self.log_ratios.iter().enumerate();
        rows.map(|(row, d)| self.factors(row).zip(d).map(|(factor, d)| factor * d).sum()).collect()
    }
}
