//! Who computes a step: one device, or several that share its micro-batches.

use burn::optim::GradientsParams;
use burn::tensor::backend::Backend;

use crate::error::Result;
use crate::optimize::StepGradients;
use crate::policy::Policy;
use crate::replica::Replica;

/// The devices beside the first one.
#[derive(Default)]
pub(crate) struct Team<B: Backend> {
    #[cfg(feature = "collective")]
    pub others: Option<crate::devices::Others<B>>,
    #[cfg(not(feature = "collective"))]
    backend: std::marker::PhantomData<B>,
}

impl<B: Backend> Team<B> {
    /// Gradients of the mean loss over `pairs`, clipped, not yet applied: the same on all devices.
    ///
    /// # Errors
    /// As [`accumulate`](crate::accumulate). No device has moved then.
    pub fn gradients<M: Policy<B>>(
        &self,
        first: &mut Replica<B, M>,
        pairs: &[usize],
        step: usize,
        checkpoint: &str,
    ) -> Result<StepGradients> {
        // Rows of like length stand together, so that little is padded.
        let mut pairs = pairs.to_vec();
        pairs.sort_by_key(|&pair| first.length(pair));
        let parts: Vec<&[usize]> = pairs.chunks(first.config.per_device_train_batch_size).collect();
        let totals = first.totals(&pairs)?;
        #[cfg(feature = "collective")]
        if let Some(others) = &self.others {
            return others.gradients(first, &parts, totals, step, checkpoint);
        }
        let share = first.share(&parts, totals, step, checkpoint)?;
        share.clipped::<B, M>(&first.policy, first.config, step, checkpoint)
    }

    /// The optimiser's step on all devices.
    pub fn apply<'a, M: Policy<B>>(
        &self,
        first: Replica<'a, B, M>,
        rate: f64,
        gradients: GradientsParams,
    ) -> Replica<'a, B, M> {
        #[cfg(feature = "collective")]
        self.others.iter().for_each(|others| others.apply(rate));
        first.apply(rate, gradients)
    }
}
