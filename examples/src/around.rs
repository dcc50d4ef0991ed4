//! What `llava_aspo` has around a training: base and trained model measured on scenes that neither has seen.

use std::path::PathBuf;

use aspo_cli::train::Around;
use aspo_cli::{Failure, say};
use aspo_data::files::write_atomic;
use aspo_models::VisionLanguageModel;
use aspo_scenes::{Split, write};
use aspo_train::{Data, Report, TrainConfig};
use burn::tensor::backend::Backend;

use crate::account::{counts, pictures, print_table, table};
use crate::measure::{HeldOut, Measured, measure};

/// File of the figures, in the output folder.
const FILE: &str = "evaluation.json";

/// Scenes that are held out.
pub struct Scenes {
    /// How many; none are measured at 0.
    pub count: usize,
    /// Whether somebody asked for them: scenes that nobody asked for are no reason to begin again.
    pub asked: bool,
    /// Seed of the world.
    pub seed: u64,
    /// Which of its splits.
    pub split: Split,
    /// Batches answered at a time.
    pub at_a_time: usize,
    /// What the base model did.
    pub before: Option<Measured>,
}

impl Scenes {
    fn measure<B: Backend, M: VisionLanguageModel<B>>(
        &self,
        model: &M,
        data: &Data,
        config: &TrainConfig,
        device: &B::Device,
    ) -> Result<Measured, Failure> {
        let (world, split) = (world(config), self.split);
        let held_out = HeldOut { world: &world, split, scenes: self.count, at_a_time: self.at_a_time };
        measure(model, &data.encoder, held_out, device)
    }
}

fn world(config: &TrainConfig) -> PathBuf {
    config.output_dir.join("world")
}

impl Around for Scenes {
    fn is_wanting(&self, config: &TrainConfig) -> bool {
        self.asked && self.count > 0 && !config.output_dir.join(FILE).exists()
    }

    fn files(&self) -> &'static [&'static str] {
        &[FILE]
    }

    fn before<B: Backend, M: VisionLanguageModel<B>>(
        &mut self,
        base: &M,
        data: &Data,
        config: &TrainConfig,
        device: &B::Device,
    ) -> Result<(), Failure> {
        if self.count > 0 {
            write(&world(config), self.seed, self.split, self.count)?;
            say!("measuring the base model on {} scenes it never saw …", self.count);
            self.before = Some(self.measure(base, data, config, device)?);
        }
        Ok(())
    }

    fn after<B: Backend, M: VisionLanguageModel<B>>(
        &mut self,
        [base, trained]: [&M; 2],
        data: &Data,
        config: &TrainConfig,
        device: &B::Device,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let Some(before) = self.before.take() else { return Ok(()) };
        say!("measuring the trained model …");
        let after = self.measure(trained, data, config, device)?;
        let table = table(&before, &after);
        print_table(&table);
        report.counts =
            counts(&after, format!("{} scenes of {:?}, seed {}", self.count, self.split, self.seed));
        report.tables.push((format!("{} scenes that no model has seen", self.count), table));
        let step = config.total_steps(data.pairs.len());
        let json = serde_json::json!({ "step": step, "base": before, "trained": after }).to_string();
        let path = config.output_dir.join(FILE);
        write_atomic(&path, |file| {
            file.write_all(json.as_bytes())
                .map_err(|source| aspo_data::Error::Io { path: path.clone(), source })
        })?;
        let models = [("base", base, &before), ("trained", trained, &after)];
        let drawn = pictures(config, &data.encoder, models, &world(config), self.split, device)?;
        report.pictures.push(("Descriptions of held-out scenes, their sentences by weight".into(), drawn));
        Ok(())
    }
}
