//! AdamW with every constant given: Burn's, or a step of the same for all factors at once where there are kernels for that.

use aspo_kernels::adamw::{self as kernels, Slot};
use burn::backend::Autodiff;
use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::record::AdaptorRecord;
use burn::optim::{AdamW, AdamWConfig, AdamWState, AdaptiveMomentumState, GradientsParams, Optimizer};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};

use crate::config::TrainConfig;
use crate::policy::Policy;

/// The moments of each factor, as Burn keeps them.
pub(crate) type Moments<B, M> =
    <OptimizerAdaptor<AdamW, M, Autodiff<B>> as Optimizer<M, Autodiff<B>>>::Record;

/// AdamW with the constants of the config, which are transformers' where it gives none.
pub fn adamw(config: &TrainConfig) -> AdamWConfig {
    let kernels::AdamW { beta_1, beta_2, epsilon, weight_decay, .. } = constants(config);
    AdamWConfig::new()
        .with_beta_1(beta_1)
        .with_beta_2(beta_2)
        .with_epsilon(epsilon)
        .with_weight_decay(weight_decay)
}

/// The same at a rate of 0.
fn constants(config: &TrainConfig) -> kernels::AdamW {
    kernels::AdamW {
        rate: 0.0,
        beta_1: config.adam_beta1 as f32,
        beta_2: config.adam_beta2 as f32,
        epsilon: config.adam_epsilon as f32,
        weight_decay: config.weight_decay as f32,
    }
}

/// [`adamw`] with its moments.
pub(crate) struct Adam<B: Backend, M: Policy<B>> {
    burns: AdamWConfig,
    constants: kernels::AdamW,
    pub moments: Moments<B, M>,
}

impl<B: Backend, M: Policy<B>> Adam<B, M> {
    pub fn new(config: &TrainConfig, moments: Moments<B, M>) -> Self {
        Self { burns: adamw(config), constants: constants(config), moments }
    }

    /// One step. Burn's own is a dozen launches a factor, and seven adapted layers of 32 blocks have 448 factors: where there are
    /// kernels, all are updated together.
    pub fn step(&mut self, rate: f64, policy: M, gradients: GradientsParams) -> M {
        if kernels::all_at_once::<B>() && all_f32::<B, M>(&policy, &gradients) {
            let mut read = Read::<B, M> { gradients: &gradients, moments: &mut self.moments, slots: vec![] };
            policy.visit(&mut read);
            let mut slots = read.slots;
            kernels::adamw(&mut slots, &kernels::AdamW { rate, ..self.constants });
            let (slots, moments) = (slots.into_iter(), &mut self.moments);
            return policy.map(&mut Write::<B, M> { gradients, moments, slots });
        }
        let mut burns = self.burns.init().load_record(std::mem::take(&mut self.moments));
        let policy = burns.step(rate, policy, gradients);
        self.moments = burns.to_record();
        policy
    }
}

/// Whether all that has a gradient is f32, as factors are unless a caller has made them otherwise.
fn all_f32<B: Backend, M: Policy<B>>(policy: &M, gradients: &GradientsParams) -> bool {
    struct All<'a>(&'a GradientsParams, bool);
    impl<B: Backend> ModuleVisitor<Autodiff<B>> for All<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
            if let Some(gradient) = self.0.get::<B, D>(param.id) {
                self.1 &= [param.val().dtype(), gradient.dtype()] == [DType::F32; 2];
            }
        }
    }
    let mut all = All(gradients, true);
    policy.visit(&mut all);
    all.1
}

/// Takes the moments of all factors that have a gradient out of the record.
struct Read<'a, B: Backend, M: Policy<B>> {
    gradients: &'a GradientsParams,
    moments: &'a mut Moments<B, M>,
    slots: Vec<Slot<B>>,
}

impl<B: Backend, M: Policy<B>> ModuleVisitor<Autodiff<B>> for Read<'_, B, M> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
        let Some(gradient) = self.gradients.get::<B, D>(param.id) else { return };
        let value = param.val().inner();
        let known = self.moments.remove(&param.id).map(AdaptorRecord::into_state::<D>);
        let (moments, time) = match known.map(|state: AdamWState<B, D>| state.momentum) {
            Some(known) => ([known.moment_1, known.moment_2], known.time),
            None => ([value.zeros_like(), value.zeros_like()], 0),
        };
        self.slots.push(Slot {
            value: flat(value),
            gradient: flat(gradient),
            moments: moments.map(flat),
            time: time + 1,
        });
    }
}

/// Puts new values and moments where they belong.
struct Write<'a, B: Backend, M: Policy<B>> {
    gradients: GradientsParams,
    moments: &'a mut Moments<B, M>,
    slots: std::vec::IntoIter<Slot<B>>,
}

impl<B: Backend, M: Policy<B>> ModuleMapper<Autodiff<B>> for Write<'_, B, M> {
    fn map_float<const D: usize>(
        &mut self,
        param: Param<Tensor<Autodiff<B>, D>>,
    ) -> Param<Tensor<Autodiff<B>, D>> {
        let (id, tensor, mapper) = param.consume();
        if self.gradients.get::<B, D>(id).is_none() {
            return Param::from_mapped_value(id, tensor, mapper);
        }
        let Slot { value, moments, time, .. } = self.slots.next().expect("a slot for each gradient");
        let shape = tensor.dims();
        let [moment_1, moment_2] = moments.map(|moment| moment.reshape(shape));
        let momentum = AdaptiveMomentumState { time, moment_1, moment_2, max_moment_2: None };
        self.moments.insert(id, AdaptorRecord::from_state(AdamWState { momentum }));
        let value = Tensor::from_inner(value.reshape(shape));
        let value = if tensor.is_require_grad() { value.require_grad() } else { value };
        Param::from_mapped_value(id, value, mapper)
    }
}

/// All values in their order.
pub(crate) fn flat<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Tensor<B, 1> {
    let count = tensor.shape().num_elements();
    tensor.reshape([count])
}
