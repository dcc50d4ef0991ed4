//! Prefixes by which names in files differ from paths in modules.

use std::collections::BTreeMap;

/// A prefix of module paths and the prefixes that files have had in its place, today's hub first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// In the module.
    pub module: &'static str,
    /// In files; the first is written unless another was read.
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
