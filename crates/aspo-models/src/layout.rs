//! Prefixes by which names in files differ from paths in modules.

use std::collections::BTreeMap;

/// A prefix of module paths and the prefixes that files have had in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// In the module.
    pub module: &'static str,
    /// In files, from the oldest age to the newest; the first, the hub's, is written unless another was read.
    pub files: &'static [&'static str],
}

/// Which of the prefixes a file uses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// Module prefix to file prefix.
    chosen: BTreeMap<String, String>,
}

impl Layout {
    /// The names of the module tree itself, as PEFT uses them in adapters.
    pub fn tree() -> Self {
        Self::default()
    }

    /// The hub's names: the first alternative everywhere.
    pub fn hub(prefixes: &[Prefix]) -> Self {
        let first = |p: &Prefix| p.files.first().map(|f| (p.module.to_owned(), (*f).to_owned()));
        Self { chosen: prefixes.iter().filter_map(first).collect() }
    }

    /// Today's names: the last alternative everywhere.
    pub(crate) fn newest(prefixes: &[Prefix]) -> Self {
        let last = |p: &Prefix| p.files.last().map(|f| (p.module.to_owned(), (*f).to_owned()));
        Self { chosen: prefixes.iter().filter_map(last).collect() }
    }

    /// These names, and for prefixes that were not met those of the same age.
    pub(crate) fn completed(&self, prefixes: &[Prefix]) -> Self {
        let old = prefixes.iter().any(|p| {
            p.files.first() != p.files.last()
                && p.files.first().is_some_and(|f| self.chosen.get(p.module).is_some_and(|c| c == f))
        });
        let mut names = if old { Self::hub(prefixes) } else { Self::newest(prefixes) };
        names.chosen.extend(self.chosen.clone());
        names
    }

    /// The module path of a file's name, remembering the prefix it had.
    pub(crate) fn read(&mut self, name: &str, prefixes: &[Prefix]) -> String {
        let longest = prefixes
            .iter()
            .flat_map(|p| p.files.iter().map(move |f| (p.module, *f)))
            .filter(|(_, file)| name.starts_with(file))
            .max_by_key(|(_, file)| file.len());
        match longest {
            Some((module, file)) => {
                self.chosen.entry(module.to_owned()).or_insert_with(|| file.to_owned());
                format!("{module}{}", &name[file.len()..])
            }
            None => name.to_owned(),
        }
    }

    /// The file's name of a module path.
    pub fn write(&self, path: &str) -> String {
        let longest = self
            .chosen
            .iter()
            .filter(|(module, _)| path.starts_with(module.as_str()))
            .max_by_key(|(module, _)| module.len());
        match longest {
            Some((module, file)) => format!("{file}{}", &path[module.len()..]),
            None => path.to_owned(),
        }
    }
}
