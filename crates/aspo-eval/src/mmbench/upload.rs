//! The table (xlsx) that MMBench's server takes for a split without labels.

use std::path::Path;

use super::{MmBench, Split, is_empty};
use crate::answer::Answers;
use crate::error::{Error, Result};
use crate::file;

/// What LLaVA's `convert_mmbench_for_submission.py` leaves out of the table, and where it puts the predictions.
const NOT_UPLOADED: [&str; 6] = ["hint", "category", "source", "image", "comment", "l2-category"];
const PREDICTION_AT: usize = 6;

impl Split {
    pub(super) fn write_upload(&self, answers: &Answers, bench: &MmBench, path: &Path) -> Result<()> {
        let texts = self.matched(answers, bench)?;
        let failed =
            |e: rust_xlsxwriter::XlsxError| Error::Io { path: path.into(), source: std::io::Error::other(e) };
        let mut book = rust_xlsxwriter::Workbook::new();
        let sheet = book.add_worksheet();
        let kept: Vec<usize> = (0..self.columns.len())
            .filter(|&at| !NOT_UPLOADED.contains(&self.columns[at].as_str()))
            .collect();
        // A column of the table, or the predictions.
        let mut places: Vec<Option<usize>> = kept.into_iter().map(Some).collect();
        places.insert(PREDICTION_AT.min(places.len()), None);
        for (x, place) in (0u16..).zip(&places) {
            let title = place.map_or("prediction", |at| self.columns[at].as_str());
            sheet.write_string(0, x, title).map_err(failed)?;
            for ((y, row), text) in (1u32..).zip(&self.rows).zip(&texts) {
                let cell = place.map_or(*text, |at| row.cells[at].as_str());
                if place.is_some_and(|at| self.columns[at] == "index") {
                    sheet.write_number(y, x, row.index as f64).map_err(failed)?;
                } else if !(place.is_some() && is_empty(cell)) {
                    sheet.write_string(y, x, cell).map_err(failed)?;
                }
            }
        }
        file::write(path, &book.save_to_buffer().map_err(failed)?)
    }
}
