//! Reference log-probabilities that are kept: a file of records, keyed by everything they depend on, made resumably.

use aspo_data::EncodedPair;
use aspo_data::image::PIXEL_RULES;
use aspo_data::records::{RecordWriter, Records, key_of};
use aspo_data::set::{from_bytes, to_bytes};

use crate::config::TrainConfig;
use crate::content::folder_hash;
use crate::error::{Error, Result};
use crate::read::Data;
use crate::step::ReferenceRow;

/// The reference's log-probabilities of all pairs, a record each.
#[derive(Debug)]
pub(crate) struct ReferenceRows(Records);

impl ReferenceRows {
    /// Those that the run's folder of what is kept has of this reference, pairs and pictures.
    ///
    /// # Errors
    /// A folder that cannot be read, data whose pictures nobody has looked at.
    pub fn open(config: &TrainConfig, data: &Data) -> Result<Option<Self>> {
        let (path, key) = place(config, data)?;
        Ok(Records::open(&path, &key)?.map(Self))
    }

    /// The same, made where they are not there: `make` adds those of the pairs from a number on, [`add`]ing each.
    ///
    /// # Errors
    /// As [`open`](Self::open); what `make` refuses; a full disk.
    pub fn open_or(
        config: &TrainConfig,
        data: &Data,
        make: impl FnOnce(&mut RecordWriter) -> Result<()>,
    ) -> Result<Self> {
        let (path, key) = place(config, data)?;
        Records::open_or(&path, &key, |writer| make(writer).map(|()| Vec::new())).map(Self)
    }

    /// The values of pair `index`.
    ///
    /// # Errors
    /// A file that is damaged.
    pub fn row(&self, index: usize) -> Result<ReferenceRow> {
        Ok(from_bytes(&self.0, &self.0.get(index)?)?)
    }
}

/// Adds the rows of the next pairs.
///
/// # Errors
/// A full disk.
pub(crate) fn add(writer: &mut RecordWriter, rows: &[ReferenceRow]) -> Result<()> {
    rows.iter().try_for_each(|row| writer.push(0, &to_bytes(row)))?;
    Ok(writer.sync()?)
}

/// The row that the pair's own file brought.
pub(crate) fn given(pair: &EncodedPair) -> ReferenceRow {
    let EncodedPair { chosen, rejected, .. } = pair;
    ReferenceRow {
        chosen: chosen.reference.clone(),
        rejected: rejected.reference.clone(),
        corrupted: Vec::new(),
    }
}

/// Most that rows of the same model differ by from token to token, on average: products in bf16 differ by some hundredths,
/// another model's by some tenths.
const SAME_MODEL: f32 = 0.2;

/// Compares what the files of the first pairs bring with what the reference says of them.
///
/// # Errors
/// Log-probabilities of another model, prompt or picture.
pub(crate) fn check_given(pairs: &[EncodedPair], live: &[ReferenceRow]) -> Result<()> {
    for (pair, live) in pairs.iter().zip(live) {
        let given = given(pair);
        let all = given.chosen.iter().chain(&given.rejected).zip(live.chosen.iter().chain(&live.rejected));
        let apart: Vec<f32> = all.map(|(given, live)| (given - live).abs()).collect();
        let mean = apart.iter().sum::<f32>() / apart.len().max(1) as f32;
        // A value that is no number is not close either.
        if mean.is_nan() || mean > SAME_MODEL {
            let at = pair
                .origin
                .as_ref()
                .map_or_else(String::new, |(file, row)| format!("{}: row {row}: ", file.display()));
            let found = format!(
                "{at}`logps` of pair {:?} differ from the reference's by {mean:.2} a token on average",
                pair.id
            );
            let remedy = "they are of another model, prompt or picture: read the data without `logps`";
            return Err(Error::option("data", found, remedy));
        }
    }
    Ok(())
}

fn place(config: &TrainConfig, data: &Data) -> Result<(std::path::PathBuf, String)> {
    let folder = config.ref_model.as_ref().unwrap_or(&config.model).as_path();
    let Some([pictures, _]) = &data.pictures else {
        let remedy = "call `Data::decode_pictures` first";
        return Err(Error::option("data", "pictures that nobody has looked at", remedy));
    };
    let key = key_of(&format!(
        "reference 1 {} {} {pictures} {PIXEL_RULES} orientation {} bf16 {}",
        folder_hash(folder)?,
        data.pairs.hash(),
        config.exif_orientation,
        config.bf16
    ));
    let kept_in = config.cache_dir.as_ref().unwrap_or(&config.output_dir);
    Ok((kept_in.join(format!("reference-{key:.16}.records")), key))
}
