//! Several models in one table of the paper's shape.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::benchmark::Headline;
use crate::error::{Error, Result};
use crate::file;

/// The paper's columns. All but the last count in its average; of the last, lower is better.
pub const COLUMNS: [&str; 10] =
    ["MM-Vet", "MMB-dev", "MMB-test", "MMB-CN", "LLaVA-W", "SEED-I", "GQA", "SQA-I", "POPE", "SHR"];

/// One model's headline figures, in percent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The model.
    pub model: String,
    /// By [column](COLUMNS).
    pub scores: BTreeMap<String, f64>,
    /// Replies of the judge that could not be read, by [column](COLUMNS); shown in brackets beside the figure.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unreadable: BTreeMap<String, usize>,
}

impl Row {
    fn has(&self, column: &str) -> bool {
        self.scores.contains_key(column) || self.unreadable.contains_key(column)
    }

    /// The paper's average: over the nine benchmarks without SHR; `None` unless all nine are there.
    pub fn average(&self) -> Option<f64> {
        let nine: Option<Vec<f64>> = COLUMNS[..9].iter().map(|c| self.scores.get(*c).copied()).collect();
        nine.map(|scores| scores.iter().sum::<f64>() / 9.0)
    }
}

/// Models by benchmarks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// The models, in the order in which they came.
    pub rows: Vec<Row>,
}

impl Table {
    /// Reads a table that [`write`](Self::write) wrote.
    ///
    /// # Errors
    /// A file that is malformed, has a column that is none of the paper's, or a model twice.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let table: Self = file::document(path)?;
        for (at, row) in table.rows.iter().enumerate() {
            let (path, place) = (path.to_path_buf(), at + 1);
            if let Some(name) =
                row.scores.keys().chain(row.unreadable.keys()).find(|name| !COLUMNS.contains(&name.as_str()))
            {
                let (found, known) = (format!("{name:?}"), COLUMNS.join(", "));
                return Err(Error::UnknownCategory { path, row: place, found, known });
            }
            if table.rows[..at].iter().any(|other| other.model == row.model) {
                return Err(Error::DuplicateId { path, row: place, id: row.model.clone() });
            }
        }
        Ok(table)
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        file::write(path, &serde_json::to_vec_pretty(self).expect("a table is plain data"))
    }

    /// Sets a model's figure; the model gets a row if it has none. A headline without a figure takes the old one away.
    pub fn set(&mut self, model: &str, headline: Headline) {
        let at = match self.rows.iter().position(|row| row.model == model) {
            Some(at) => at,
            None => {
                self.rows.push(Row { model: model.to_owned(), ..Row::default() });
                self.rows.len() - 1
            }
        };
        let (row, column) = (&mut self.rows[at], headline.column);
        row.scores.remove(column);
        row.unreadable.remove(column);
        row.scores.extend(headline.percent.map(|percent| (column.to_owned(), percent)));
        row.unreadable.extend((headline.unreadable > 0).then(|| (column.to_owned(), headline.unreadable)));
    }

    /// The table with aligned columns. Benchmarks that no model has are left out; one decimal, as in the paper.
    pub fn text(&self) -> String {
        let cells = self.cells();
        let width = |x: usize| cells.iter().map(|row| row[x].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..cells[0].len()).map(width).collect();
        let mut text = String::new();
        for row in &cells {
            let _ = write!(text, "{:<width$}", row[0], width = widths[0]);
            for (cell, width) in row.iter().zip(&widths).skip(1) {
                let _ = write!(text, "  {cell:>width$}");
            }
            text.push('\n');
        }
        text
    }

    /// The same in Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for (at, row) in self.cells().iter().enumerate() {
            let escaped: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
            let _ = writeln!(text, "| {} |", escaped.join(" | "));
            if at == 0 {
                let _ = writeln!(text, "|---|{}", "---:|".repeat(row.len() - 1));
            }
        }
        text
    }

    fn cells(&self) -> Vec<Vec<String>> {
        let columns: Vec<&str> =
            COLUMNS.into_iter().filter(|c| self.rows.iter().any(|row| row.has(c))).collect();
        let averages = self.rows.iter().any(|row| row.average().is_some());
        let number = |percent: Option<f64>| percent.map_or_else(|| "–".to_owned(), |p| format!("{p:.1}"));
        let mut title = vec!["model".to_owned()];
        title.extend(columns.iter().map(|c| if *c == "SHR" { "SHR ↓".to_owned() } else { (*c).to_owned() }));
        title.extend(averages.then(|| "avg".to_owned()));
        let rows = self.rows.iter().map(|row| {
            let mut cells = vec![row.model.replace(['\n', '\r'], " ")];
            cells.extend(columns.iter().map(|c| {
                let figure = number(row.scores.get(*c).copied());
                match row.unreadable.get(*c) {
                    Some(count) => format!("{figure} [{count} unreadable]"),
                    None => figure,
                }
            }));
            cells.extend(averages.then(|| number(row.average())));
            cells
        });
        std::iter::once(title).chain(rows).collect()
    }
}
