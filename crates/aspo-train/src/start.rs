//! Where a run begins: with a fresh adapter, or at a checkpoint.

use std::path::{Path, PathBuf};

use aspo_models::lora::{attach, load_adapter, with_products_in_bf16};
use aspo_models::{Adapter, stable_ids};
use burn::tensor::backend::Backend;

use crate::checkpoint::TrainerState;
use crate::config::{LoraDtype, TrainConfig};
use crate::error::Result;
use crate::output::Output;
use crate::policy::{Policy, targets};
use crate::read::Data;

/// The policy as its first step finds it.
pub(crate) struct Start<M> {
    pub model: M,
    pub adapter: Adapter,
    pub state: TrainerState,
    /// That of which the optimiser's moments are to be read.
    pub checkpoint: Option<PathBuf>,
}

impl<M> Start<M> {
    /// # Errors
    /// Pairs or pictures other than the checkpoint's, target modules that match no layer or the vision tower.
    pub fn new<B: Backend>(config: &TrainConfig, base: M, data: &Data, output: &Output) -> Result<Self>
    where
        M: Policy<B>,
    {
        let (checkpoint, state) = output.begin(config, data)?;
        let base = base.no_grad();
        let (model, adapter) = match &checkpoint {
            Some(path) => resumed::<B, M>(config, base, path)?,
            None => {
                let lora = config.lora_config();
                let mut base = base;
                targets(&mut base, &lora)?;
                (attach(base, &lora, config.seed)?, Adapter::from(lora))
            }
        };
        let model = with_products_in_bf16(model, config.lora_dtype == LoraDtype::Bf16);
        Ok(Self { model: stable_ids(model), adapter, state, checkpoint })
    }
}

fn resumed<B: Backend, M: Policy<B>>(config: &TrainConfig, base: M, path: &Path) -> Result<(M, Adapter)> {
    let (model, mut adapter) = load_adapter(base, path)?;
    // The base may have moved since.
    adapter.config.extra.extend(config.lora_config().extra);
    Ok((model, adapter))
}
