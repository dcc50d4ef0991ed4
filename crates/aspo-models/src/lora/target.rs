//! Which layers an adapter config means (`peft.tuners.tuners_utils.check_target_module_exists`).

use regex::Regex;

use super::LoraConfig;
use super::config::{Indices, Names};
use crate::error::{Error, Result};

/// A config's rules, compiled.
pub(crate) struct Targets<'a> {
    config: &'a LoraConfig,
    include: Rule<'a>,
    exclude: Option<Rule<'a>>,
    /// Patterns whose first group is the index of a layer.
    index: Vec<Regex>,
    layers: Option<Vec<usize>>,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

enum Rule<'a> {
    /// Every linear layer but the output head.
    AllLinear,
    Whole(Regex),
    Suffix(&'a [String]),
}

impl<'a> Targets<'a> {
    pub(crate) fn new(config: &'a LoraConfig) -> Result<Self> {
        let Some(include) = &config.target_modules else {
            return Err(Error::Adapter("target_modules is missing: name the layers to adapt".into()));
        };
        let include = match include {
            Names::Pattern(p) if p.eq_ignore_ascii_case("all-linear") => Rule::AllLinear,
            other => Rule::of(other)?,
        };
        let layers = config.layers_to_transform.as_ref().map(|layers| match layers {
            Indices::One(layer) => vec![*layer],
            Indices::Many(layers) => layers.clone(),
        });
        let patterns = match &config.layers_pattern {
            None => Vec::new(),
            Some(Names::Pattern(one)) => vec![one.as_str()],
            Some(Names::List(list)) => list.iter().map(String::as_str).collect(),
        };
        let index = if patterns.is_empty() {
            vec![compile(r".*\.[^.]*\.(\d+)\.".into())?]
        } else {
            patterns.into_iter().map(|p| compile(format!(r".*\.{p}\.(\d+)\."))).collect::<Result<_>>()?
        };
        let keyed = |key: &String| compile(format!(r"^(?:.*\.)?(?:{key})$"));
        Ok(Self {
            config,
            include,
            exclude: config.exclude_modules.as_ref().map(Rule::of).transpose()?,
            index,
            layers,
            ranks: config.rank_pattern.iter().map(|(k, &v)| Ok((keyed(k)?, v))).collect::<Result<_>>()?,
            alphas: config.alpha_pattern.iter().map(|(k, &v)| Ok((keyed(k)?, v))).collect::<Result<_>>()?,
        })
    }

    /// Whether the layer at `path` is adapted.
    pub(crate) fn hit(&self, path: &str) -> bool {
        if self.exclude.as_ref().is_some_and(|rule| rule.hit(path)) || !self.include.hit(path) {
            return false;
        }
        let Some(layers) = &self.layers else { return true };
        let index = self.index.iter().find_map(|regex| regex.captures(path)?.get(1)?.as_str().parse().ok());
        index.is_some_and(|index: usize| layers.contains(&index))
    }

    /// Rank and scale at `path`.
    pub(crate) fn rank_and_scale(&self, path: &str) -> (usize, f64) {
        let rank = self.ranks.iter().find(|(key, _)| key.is_match(path)).map_or(self.config.r, |(_, r)| *r);
        let alpha = self
            .alphas
            .iter()
            .find(|(key, _)| key.is_match(path))
            .map_or(self.config.lora_alpha, |(_, a)| *a);
        let below = if self.config.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        (rank, alpha / below)
    }
}

impl<'a> Rule<'a> {
    fn of(names: &'a Names) -> Result<Self> {
        Ok(match names {
            Names::Pattern(pattern) => Self::Whole(compile(format!("^(?:{pattern})$"))?),
            Names::List(names) => Self::Suffix(names),
        })
    }

    fn hit(&self, path: &str) -> bool {
        match self {
            Self::AllLinear => path.rsplit('.').next() != Some("lm_head"),
            Self::Whole(regex) => regex.is_match(path),
            Self::Suffix(names) => names.iter().any(|name| {
                path.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }),
        }
    }
}

fn compile(pattern: String) -> Result<Regex> {
    Regex::new(&pattern)
        .map_err(|e| Error::Adapter(format!("`{pattern}` is not a regular expression we read: {e}")))
}
