//! Which layers an adapter config means (`peft.tuners.tuners_utils.check_target_module_exists`).

use fancy_regex::{Regex, RegexBuilder};

use super::LoraConfig;
use super::config::{Indices, Names};
use crate::error::{Error, Result};

/// Bytes that all patterns of a config may take once compiled, so that none of them fills the memory.
const PATTERN_BYTES: usize = 64 << 20;
/// Bytes that one of them may take; an ordinary one takes a few thousand.
const ONE_PATTERN_BYTES: usize = 8 << 20;

/// A config's rules, compiled.
pub(crate) struct Targets<'a> {
    config: &'a LoraConfig,
    include: Rule<'a>,
    exclude: Option<Rule<'a>>,
    /// Patterns whose group `index` is the index of a layer.
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
        let patterns = match &config.layers_pattern {
            None => Vec::new(),
            Some(Names::Pattern(one)) => vec![one.as_str()],
            Some(Names::List(list)) => list.iter().map(String::as_str).collect(),
        };
        let count = config.rank_pattern.len() + config.alpha_pattern.len() + patterns.len() + 3;
        let compile = |pattern: String| compile(&pattern, (PATTERN_BYTES / count).min(ONE_PATTERN_BYTES));
        let rule = |names: &'a Names| match names {
            Names::Pattern(pattern) => compile(format!("^(?:{pattern})$")).map(Rule::Whole),
            Names::List(names) => Ok(Rule::Suffix(names)),
        };
        let include = match include {
            Names::Pattern(p) if p.eq_ignore_ascii_case("all-linear") => Rule::AllLinear,
            other => rule(other)?,
        };
        let layers = config.layers_to_transform.as_ref().map(|layers| match layers {
            Indices::One(layer) => vec![*layer],
            Indices::Many(layers) => layers.clone(),
        });
        // PEFT reads an empty list as none at all.
        let layers = layers.filter(|layers| !layers.is_empty());
        let index = if patterns.is_empty() {
            vec![compile(r"^.*?\.[^.]*\.(?P<index>\d+)\.".into())?]
        } else {
            let first = |p| compile(format!(r"^(?:.*?\.)?{p}\.(?P<index>\d+)\."));
            patterns.into_iter().map(first).collect::<Result<_>>()?
        };
        let keyed = |key: &String| compile(format!(r"^(?:.*\.)?(?:{key})$"));
        Ok(Self {
            config,
            include,
            exclude: config.exclude_modules.as_ref().map(rule).transpose()?,
            index,
            layers,
            ranks: config.rank_pattern.iter().map(|(k, &v)| Ok((keyed(k)?, v))).collect::<Result<_>>()?,
            alphas: config.alpha_pattern.iter().map(|(k, &v)| Ok((keyed(k)?, v))).collect::<Result<_>>()?,
        })
    }

    /// Whether the layer at `path` is adapted.
    pub(crate) fn hit(&self, path: &str) -> Result<bool> {
        if let Some(rule) = &self.exclude
            && rule.hit(path)?
        {
            return Ok(false);
        }
        if !self.include.hit(path)? {
            return Ok(false);
        }
        let Some(layers) = &self.layers else { return Ok(true) };
        // A layer that is named in full is meant whatever its index.
        if let Rule::Suffix(names) = &self.include
            && names.iter().any(|name| name == path)
        {
            return Ok(true);
        }
        for pattern in &self.index {
            let found = pattern.captures(path).map_err(|e| unreadable(pattern.as_str(), &e))?;
            if let Some(index) = found.and_then(|found| found.name("index")?.as_str().parse::<usize>().ok()) {
                return Ok(layers.contains(&index));
            }
        }
        Ok(false)
    }

    /// Rank and scale at `path`.
    pub(crate) fn rank_and_scale(&self, path: &str) -> Result<(usize, f64)> {
        let rank = first(&self.ranks, path)?.unwrap_or(self.config.r);
        let alpha = first(&self.alphas, path)?.unwrap_or(self.config.lora_alpha);
        let below = if self.config.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        Ok((rank, alpha / below))
    }
}

impl Rule<'_> {
    fn hit(&self, path: &str) -> Result<bool> {
        Ok(match self {
            Self::AllLinear => path.rsplit('.').next() != Some("lm_head"),
            Self::Whole(pattern) => is_match(pattern, path)?,
            Self::Suffix(names) => names.iter().any(|name| {
                path.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }),
        })
    }
}

/// The value of the first pattern that matches.
fn first<T: Copy>(patterns: &[(Regex, T)], path: &str) -> Result<Option<T>> {
    for (pattern, value) in patterns {
        if is_match(pattern, path)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

fn is_match(pattern: &Regex, path: &str) -> Result<bool> {
    pattern.is_match(path).map_err(|e| unreadable(pattern.as_str(), &e))
}

fn compile(pattern: &str, bytes: usize) -> Result<Regex> {
    RegexBuilder::new(pattern)
        .delegate_size_limit(bytes)
        .delegate_dfa_size_limit(bytes)
        .build()
        .map_err(|e| unreadable(pattern, &e))
}

fn unreadable(pattern: &str, why: &fancy_regex::Error) -> Error {
    let shown: String = pattern.chars().take(200).collect();
    Error::Adapter(format!("`{shown}` is not a regular expression we read: {why}"))
}
