//! Metrics by TRL's names, as sums that add up exactly over micro-batches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Means by name, kept as sums and counts so that micro-batches of any size [`merge`](Self::merge) exactly.
///
/// | name | mean over | what |
/// |---|---|---|
/// | `loss` | pairs, and tokens for likelihoods | the loss |
/// | `nll_loss` | chosen tokens | the likelihood of `sft` and `orpo`, without its weight |
/// | `rewards/chosen`, `rewards/rejected`, `rewards/margins` | pairs | TRL's implicit rewards, `β log[π(y)/π_ref(y)]` whatever the loss (`simpo`, `orpo`: `β log π(y)/\|y\|`), and their difference |
/// | `rewards/accuracies` | pairs | whether the chosen reward is greater (a tie is not) |
/// | `aspo/rewards/…` | pairs | the same four of the rewards as `aspo` and `ddpo` weigh them |
/// | `logps/chosen`, `logps/rejected` | pairs | log-probability of the response (`simpo`, `orpo`: its mean over tokens) |
/// | `log_odds_chosen`, `log_odds_ratio` | pairs | `orpo`: the log odds ratio and its `log σ` |
/// | `aspo/weight_mean` | chosen sentences | `w_i` |
/// | `aspo/weight_entropy` | pairs | entropy of `w_i / Σ w`, nats |
/// | `aspo/scale` | pairs | ρ |
/// | `aspo/sentences` | pairs | sentences of the chosen response |
/// | `entropy` | tokens | entropy of the token's distribution, nats; with token statistics |
/// | `mean_token_accuracy` | chosen tokens | whether the token is the likeliest; with token statistics |
/// | `logits/chosen`, `logits/rejected` | tokens | mean logit; with token statistics |
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    /// Sum and count. A value is the sum of its means, of which most have but one.
    sums: BTreeMap<(&'static str, Mean), (f64, f64)>,
}

/// What a mean is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Mean {
    /// The values given.
    Values,
    /// Tokens, of which a likelihood has its own number.
    Tokens,
}

/// Sums and counts by name, to be merged elsewhere; as bits, since JSON knows no infinity.
impl Serialize for Metrics {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(
            self.sums
                .iter()
                .map(|(&(name, over), &(sum, count))| (name, over, sum.to_bits(), count.to_bits())),
        )
    }
}

impl<'de> Deserialize<'de> for Metrics {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut metrics = Self::default();
        for (name, over, sum, count) in Vec::<(String, Mean, u64, u64)>::deserialize(deserializer)? {
            metrics.add_mean(kept(name), over, f64::from_bits(sum), f64::from_bits(count));
        }
        Ok(metrics)
    }
}

/// Names of metrics are few, and there for as long as the program.
fn kept(name: String) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.get(name.as_str()) {
        return known;
    }
    let name: &'static str = Box::leak(name.into_boxed_str());
    names.insert(name);
    name
}

impl Metrics {
    /// Adds values under a name.
    pub fn add(&mut self, name: &'static str, values: impl IntoIterator<Item = f64>) {
        let (sum, count) = values.into_iter().fold((0.0, 0.0), |(sum, n), value| (sum + value, n + 1.0));
        self.add_mean(name, Mean::Values, sum, count);
    }

    pub(crate) fn add_mean(&mut self, name: &'static str, over: Mean, sum: f64, count: f64) {
        let entry = self.sums.entry((name, over)).or_default();
        entry.0 += sum;
        entry.1 += count;
    }

    /// Adds another micro-batch's sums.
    pub fn merge(&mut self, other: &Self) {
        for (&(name, over), &(sum, count)) in &other.sums {
            self.add_mean(name, over, sum, count);
        }
    }

    /// The value under a name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.iter().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// How many values, or tokens, the mean under a name is taken over.
    #[cfg(feature = "train")]
    pub(crate) fn count(&self, name: &str) -> f64 {
        let counts = self.sums.iter().filter(|((found, _), _)| *found == name).map(|(_, (_, count))| *count);
        counts.fold(0.0, f64::max)
    }

    /// Names and values, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, f64)> + '_ {
        let mut values: Vec<(&'static str, f64)> = Vec::with_capacity(self.sums.len());
        for (&(name, _), &(sum, count)) in self.sums.iter().filter(|(_, (_, count))| *count > 0.0) {
            match values.last_mut() {
                Some((last, value)) if *last == name => *value += sum / count,
                _ => values.push((name, sum / count)),
            }
        }
        values.into_iter()
    }
}
