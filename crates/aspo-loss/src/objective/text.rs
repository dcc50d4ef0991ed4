//! An objective as one line of text, read as it is written:
//! `0.8 sigmoid + 0.2 simpo(simpo_gamma=1.4) + sft; beta=0.2, ld_alpha=0.5`.

use core::fmt;
use core::str::FromStr;

use burn::config::Config;

use super::{FDivergence, LossType, Objective};
use crate::error::{Error, Result};
use crate::names::{assignments, number, serde_as_text};

serde_as_text!(Objective);

/// `save` and `load` of Burn's configurations; in a struct of settings it is one field, a line of text.
impl Config for Objective {}

impl fmt::Display for Objective {
    /// Losses with weights other than 1 in front, then, after a semicolon, the shared options that are not their defaults.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (loss, weight)) in self.terms.iter().enumerate() {
            let plus = if i > 0 { " + " } else { "" };
            if *weight == 1.0 { write!(f, "{plus}{loss}")? } else { write!(f, "{plus}{weight} {loss}")? }
        }
        let default = Self::default();
        let mut options = vec![];
        if self.beta != default.beta {
            options.push(format!("beta={}", self.beta));
        }
        if self.f_divergence != default.f_divergence {
            options.push(format!("f_divergence_type={}", self.f_divergence.name()));
        }
        if let FDivergence::AlphaDivergence { coef } = self.f_divergence {
            options.push(format!("f_alpha_divergence_coef={coef}"));
        }
        if let Some(alpha) = self.ld_alpha {
            options.push(format!("ld_alpha={alpha}"));
        }
        if self.use_weighting {
            options.push("use_weighting=true".into());
        }
        if options.is_empty() { Ok(()) } else { write!(f, "; {}", options.join(", ")) }
    }
}

impl FromStr for Objective {
    type Err = Error;

    /// What [`Display`](fmt::Display) writes; names in any case, `dpo` is `sigmoid`. `"dpo + 0.2 sft"` will do.
    fn from_str(text: &str) -> Result<Self> {
        let (losses, options) = text.split_once(';').unwrap_or((text, ""));
        let term = |term: &str| -> Result<(LossType, f64)> {
            let term = term.trim();
            match term.split_once(char::is_whitespace).map(|(weight, loss)| (weight.parse::<f64>(), loss)) {
                Some((Ok(weight), loss)) => Ok((loss.parse()?, weight)),
                _ => Ok((term.parse()?, 1.0)),
            }
        };
        let terms = losses.split('+').map(term).collect::<Result<_>>()?;
        let mut objective = Self { terms, ..Self::default() };
        let mut coef = None;
        for (name, value) in assignments(options)? {
            match name {
                "beta" => objective.beta = number("beta", value)?,
                "f_divergence_type" => objective.f_divergence = value.parse()?,
                "f_alpha_divergence_coef" => coef = Some(number("f_alpha_divergence_coef", value)?),
                "ld_alpha" => objective.ld_alpha = Some(number("ld_alpha", value)?),
                "use_weighting" => {
                    objective.use_weighting = value
                        .parse()
                        .map_err(|_| Error::option("use_weighting", value, "give true or false"))?;
                }
                _ => {
                    let known = "beta, f_divergence_type, f_alpha_divergence_coef, ld_alpha, use_weighting";
                    let what = "option of an objective";
                    return Err(Error::Unknown { what, found: name.into(), known: known.into() });
                }
            }
        }
        if let Some(coef) = coef {
            objective.f_divergence = objective.f_divergence.with_coef(coef)?;
        }
        objective.validate()?;
        Ok(objective)
    }
}
