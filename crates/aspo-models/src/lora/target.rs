//! Which layers an adapter config means (`peft.tuners.tuners_utils.check_target_module_exists`).

use std::collections::BTreeSet;

use fancy_regex::{Regex, RegexBuilder};

use super::config::{Indices, LoraConfig, Names};
use crate::checkpoint::{Layout, Prefix};
use crate::error::{Error, Result};

/// Bytes that all patterns of a config may take once compiled, so that none of them fills the memory.
const PATTERN_BYTES: usize = 64 << 20;
/// Bytes that one of them may take; an ordinary one takes a few thousand.
const ONE_PATTERN_BYTES: usize = 8 << 20;

/// What a config means in a model.
pub(crate) struct Selection {
    /// The adapted layers in the model's order.
    pub layers: Vec<Adapted>,
    /// What of the config matches nothing, by option.
    pub unmatched: Vec<String>,
}

/// A layer that gets an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapted {
    /// In the module.
    pub path: String,
    /// Rows of `A`.
    pub rank: usize,
    /// Of the product `B A`.
    pub scale: f64,
}

impl Selection {
    /// What `config` means in a model whose linear layers are at `paths`.
    ///
    /// Its names are those of the module tree, or, all of them, those of an older or a newer age of the library: the
    /// first of these by which each of them names something.
    ///
    /// # Errors
    /// An expression that is none, and names, expressions or indices that match nothing.
    pub(crate) fn of_own(config: &LoraConfig, paths: &[String], prefixes: &[Prefix]) -> Result<Self> {
        let targets = Targets::new(config)?;
        let mut first = None;
        for names in [Layout::tree(), Layout::hub(prefixes), Layout::newest(prefixes)] {
            let found = targets.select(paths, &names)?;
            if found.unmatched.is_empty() && !found.layers.is_empty() {
                return Ok(found);
            }
            first.get_or_insert(found);
        }
        let ends: BTreeSet<&str> = paths.iter().filter_map(|path| path.rsplit('.').next()).collect();
        let ends = ends.into_iter().collect::<Vec<_>>().join(", ");
        let unmatched = first.map(|found| found.unmatched).unwrap_or_default();
        let what = match unmatched.is_empty() {
            true => format!("target_modules {} name no linear layer that is not excluded", config.targets()),
            false => format!("nothing in the model matches {}", unmatched.join(", ")),
        };
        Err(Error::Adapter(format!("{what}: correct it, or leave it out; its linear layers end in {ends}")))
    }

    pub(crate) fn of(config: &LoraConfig, paths: &[String], names: &Layout) -> Result<Self> {
        Targets::new(config)?.select(paths, names)
    }
}

/// A config's rules, compiled.
struct Targets<'a> {
    config: &'a LoraConfig,
    include: Rule<'a>,
    exclude: Option<Rule<'a>>,
    /// Patterns whose group `index` is the index of a layer.
    index: Vec<Regex>,
    layers: Option<Vec<usize>>,
    ranks: Vec<(&'a str, Regex, usize)>,
    alphas: Vec<(&'a str, Regex, f64)>,
}

enum Rule<'a> {
    /// Every linear layer but the output head.
    AllLinear,
    Whole(&'a str, Regex),
    Suffix(&'a [String]),
}

impl<'a> Targets<'a> {
    fn new(config: &'a LoraConfig) -> Result<Self> {
        let Some(include) = &config.target_modules else {
            return Err(Error::Adapter("target_modules is missing: name the layers to adapt".into()));
        };
        let patterns = match &config.layers_pattern {
            None => Vec::new(),
            Some(Names::Pattern(one)) => vec![one.as_str()],
            Some(Names::List(list)) => list.iter().map(String::as_str).collect(),
        };
        let count = config.rank_pattern.0.len() + config.alpha_pattern.0.len() + patterns.len() + 3;
        let compile = |pattern: String| compile(&pattern, (PATTERN_BYTES / count).min(ONE_PATTERN_BYTES));
        let rule = |names: &'a Names| match names {
            Names::Pattern(pattern) => {
                compile(format!("^(?:{pattern})$")).map(|regex| Rule::Whole(pattern, regex))
            }
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
        // PEFT reads an empty list as none at all, and an empty name or list of names too.
        let layers = layers.filter(|layers| !layers.is_empty());
        let exclude = config.exclude_modules.as_ref().filter(|names| match names {
            Names::Pattern(pattern) => !pattern.is_empty(),
            Names::List(names) => !names.is_empty(),
        });
        let index = if patterns.iter().all(|pattern| pattern.is_empty()) {
            vec![compile(r"^.*?\.[^.]*\.(?P<index>\d+)\.".into())?]
        } else {
            let first = |p| compile(format!(r"^(?:.*?\.)?{p}\.(?P<index>\d+)\."));
            patterns.into_iter().map(first).collect::<Result<_>>()?
        };
        let keyed = |key: &str| compile(format!(r"^(?:.*\.)?(?:{key})$"));
        let ranks = config.rank_pattern.0.iter();
        let alphas = config.alpha_pattern.0.iter();
        Ok(Self {
            config,
            include,
            exclude: exclude.map(rule).transpose()?,
            index,
            layers,
            ranks: ranks.map(|(k, v)| Ok((k.as_str(), keyed(k)?, *v))).collect::<Result<_>>()?,
            alphas: alphas.map(|(k, v)| Ok((k.as_str(), keyed(k)?, *v))).collect::<Result<_>>()?,
        })
    }

    /// What is meant among the layers at `paths` of the module, by what they are called in `names`.
    fn select(&self, paths: &[String], names: &Layout) -> Result<Selection> {
        let called: Vec<String> = paths.iter().map(|path| names.write(path)).collect();
        let mut layers = Vec::new();
        let mut chosen = Vec::new();
        let mut indices = BTreeSet::new();
        for (path, name) in paths.iter().zip(&called) {
            if !self.hit(name, &mut indices)? {
                continue;
            }
            let rank = first(&self.ranks, name)?.unwrap_or(self.config.r);
            let alpha = first(&self.alphas, name)?.unwrap_or(self.config.lora_alpha);
            let below = if self.config.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
            layers.push(Adapted { path: path.clone(), rank, scale: alpha / below });
            chosen.push(name.as_str());
        }
        let mut unmatched = self.include.unmatched("target_modules", &called)?;
        if let Some(exclude) = &self.exclude {
            unmatched.extend(exclude.unmatched("exclude_modules", &called)?);
        }
        let missing = self.layers.iter().flatten().filter(|layer| !indices.contains(*layer));
        unmatched.extend(missing.map(|layer| format!("layers_to_transform {layer}")));
        let ranks = self.ranks.iter().map(|(key, regex, _)| ("rank_pattern", key, regex));
        let alphas = self.alphas.iter().map(|(key, regex, _)| ("alpha_pattern", key, regex));
        for (option, key, regex) in ranks.chain(alphas) {
            if !any(&chosen, |name| is_match(regex, name))? {
                unmatched.push(format!("{option} `{key}`"));
            }
        }
        Ok(Selection { layers, unmatched })
    }

    /// Whether the layer of this name is adapted; the index by which it was chosen goes into `indices`.
    fn hit(&self, name: &str, indices: &mut BTreeSet<usize>) -> Result<bool> {
        if let Some(rule) = &self.exclude
            && rule.hit(name)?
        {
            return Ok(false);
        }
        if !self.include.hit(name)? {
            return Ok(false);
        }
        let Some(layers) = &self.layers else { return Ok(true) };
        // A layer that is named in full is meant whatever its index.
        if let Rule::Suffix(names) = &self.include
            && names.iter().any(|full| full == name)
        {
            return Ok(true);
        }
        for pattern in &self.index {
            let found = pattern.captures(name).map_err(|e| unreadable(pattern.as_str(), &e))?;
            if let Some(index) = found.and_then(|found| found.name("index")?.as_str().parse::<usize>().ok()) {
                indices.insert(index);
                return Ok(layers.contains(&index));
            }
        }
        Ok(false)
    }
}

impl Rule<'_> {
    fn hit(&self, name: &str) -> Result<bool> {
        match self {
            Self::AllLinear => Ok(!is_head(name)),
            Self::Whole(_, pattern) => is_match(pattern, name),
            Self::Suffix(ends) => Ok(ends.iter().any(|end| ends_with(name, end))),
        }
    }

    /// What of the rule matches none of the layers.
    fn unmatched(&self, option: &str, layers: &[String]) -> Result<Vec<String>> {
        match self {
            Self::AllLinear => Ok(Vec::new()),
            Self::Whole(written, pattern) => {
                let found = any(layers, |name| is_match(pattern, name))?;
                Ok(if found { Vec::new() } else { vec![format!("{option} `{written}`")] })
            }
            Self::Suffix(ends) => {
                let missing = ends.iter().filter(|end| !layers.iter().any(|name| ends_with(name, end)));
                Ok(missing.map(|end| format!("{option} `{end}`")).collect())
            }
        }
    }
}

/// Whether a path is, or ends with, a name of whole parts.
pub(crate) fn ends_with(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether a layer is the output head.
pub(crate) fn is_head(path: &str) -> bool {
    ends_with(path, "lm_head")
}

/// The value of the first pattern that matches.
fn first<T: Copy>(patterns: &[(&str, Regex, T)], name: &str) -> Result<Option<T>> {
    for (_, pattern, value) in patterns {
        if is_match(pattern, name)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

fn any<T>(items: &[T], mut f: impl FnMut(&T) -> Result<bool>) -> Result<bool> {
    for item in items {
        if f(item)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_match(pattern: &Regex, name: &str) -> Result<bool> {
    pattern.is_match(name).map_err(|e| unreadable(pattern.as_str(), &e))
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
