//! How often the host waits for a device in a step, on a backend that counts.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use aspo_data::EncodedPair;
use aspo_models::lora::{attach, without_adapters};
use aspo_models::{Llava, LoadOptions, Pretrained};
use aspo_train::{MicroBatch, Reference, ReferenceRow, TrainConfig, VisionFeatures, accumulate, totals};
use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Shape, TensorData};
use burn_backend::{DTypeUsageSet, ExecutionError};
use burn_ir::{BackendIr, OperationIr, TensorId, TensorIr};
use burn_ndarray::{NdArray, NdArrayDevice};
use burn_router::{
    BackendRouter, MultiBackendBridge, RouterTensor, Runner, RunnerChannel, RunnerClient, TensorHandle,
};
use burn_std::future::DynFut;

use crate::support::World;

/// Every operation goes through a list, as it goes to a device; what the host asks back is counted.
type Counted = BackendRouter<Channel>;

static READS: AtomicUsize = AtomicUsize::new(0);
static OPERATIONS: AtomicUsize = AtomicUsize::new(0);
/// One test at a time counts.
static ALONE: Mutex<()> = Mutex::new(());

#[derive(Clone)]
struct Channel;

#[derive(Clone)]
struct Client(Runner<NdArray>);

struct Bridge;

impl MultiBackendBridge for Bridge {
    type TensorHandle = <NdArray as BackendIr>::Handle;
    type Device = NdArrayDevice;

    fn change_backend_float(tensor: Self::TensorHandle, _: Shape, _: &NdArrayDevice) -> Self::TensorHandle {
        tensor
    }

    fn change_backend_int(tensor: Self::TensorHandle, _: Shape, _: &NdArrayDevice) -> Self::TensorHandle {
        tensor
    }

    fn change_backend_bool(tensor: Self::TensorHandle, _: Shape, _: &NdArrayDevice) -> Self::TensorHandle {
        tensor
    }
}

impl RunnerChannel for Channel {
    type Device = NdArrayDevice;
    type Bridge = Bridge;
    type Client = Client;
    type FloatElem = f32;
    type IntElem = i64;
    type BoolElem = bool;

    fn name(_: &NdArrayDevice) -> String {
        "counted".into()
    }

    fn init_client(device: &NdArrayDevice) -> Client {
        Client(Runner::new(*device))
    }

    fn get_tensor_handle(tensor: &TensorIr, client: &Client) -> TensorHandle<Bridge> {
        client.0.get_tensor_handle(tensor)
    }

    fn register_tensor(
        client: &Client,
        handle: TensorHandle<Bridge>,
        shape: Shape,
        dtype: DType,
    ) -> RouterTensor<Client> {
        client.0.register_tensor(handle, shape, dtype, client.clone())
    }
}

impl RunnerClient for Client {
    type Device = NdArrayDevice;

    fn register_op(&self, op: OperationIr) {
        if !matches!(op, OperationIr::Drop(_)) {
            OPERATIONS.fetch_add(1, SeqCst);
        }
        self.0.register_op(op);
    }

    fn read_tensor_async(&self, tensor: TensorIr) -> DynFut<Result<TensorData, ExecutionError>> {
        READS.fetch_add(1, SeqCst);
        self.0.read_tensor_async(tensor)
    }

    fn sync(&self) -> Result<(), ExecutionError> {
        self.0.sync()
    }

    fn create_empty_handle(&self) -> TensorId {
        self.0.create_empty_handle()
    }

    fn register_tensor_data(&self, data: TensorData) -> RouterTensor<Self> {
        let TensorIr { id, shape, dtype, .. } = self.0.register_tensor_data_desc(data);
        RouterTensor::new(id, shape, dtype, self.clone())
    }

    fn device(&self) -> NdArrayDevice {
        self.0.device()
    }

    fn seed(&self, seed: u64) {
        self.0.seed(seed);
    }

    fn dtype_usage(&self, dtype: DType) -> DTypeUsageSet {
        self.0.dtype_usage(dtype)
    }
}

/// Reads and operations of some work.
fn counted<T>(work: impl FnOnce() -> T) -> (T, usize, usize) {
    let before = (READS.load(SeqCst), OPERATIONS.load(SeqCst));
    let done = work();
    (done, READS.load(SeqCst) - before.0, OPERATIONS.load(SeqCst) - before.1)
}

/// A model with an adapter, and pairs whose sentences have scores as a CLIP might give them.
fn policy<B: Backend>(world: &World) -> (Llava<Autodiff<B>>, Vec<EncodedPair>, VisionFeatures) {
    let device = Default::default();
    let options = LoadOptions::default();
    let base = Llava::<Autodiff<B>>::from_pretrained(&world.config.model, &options, &device).unwrap().0;
    let policy = attach(base.no_grad(), &world.config.lora_config(), 0).unwrap();
    let data = world.data();
    let mut pairs = data.pairs.get_all(0..4).unwrap();
    for pair in &mut pairs {
        for answer in [&mut pair.chosen, &mut pair.rejected] {
            answer.similarity =
                (0..answer.sentence_count()).map(|sentence| 0.2 + 0.03 * (sentence * 7 % 5) as f32).collect();
        }
    }
    (policy, pairs, world.features())
}

#[test]
fn nothing_is_read_before_the_backward_and_once_a_step_after_it() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let world = World::new();
    let (policy, pairs, mut features) = policy::<Counted>(&world);
    let rows: Vec<&EncodedPair> = pairs.iter().collect();
    let (plain, device) = (policy.valid(), Default::default());
    let reference = without_adapters(&plain);
    let losses: [&[&str]; 6] =
        [&["aspo"], &["sigmoid"], &["simpo"], &["orpo"], &["aspo", "sft", "bco_pair"], &["wpo"]];
    for names in losses {
        for (scaling, weigh) in [("total_weight", "chosen"), ("reward_ratio", "both")] {
            let aspo = names.contains(&"aspo");
            if !aspo && weigh == "both" {
                continue;
            }
            let mut config = TrainConfig {
                clip: Some("not read".into()),
                loss_type: names.iter().map(|name| (*name).to_owned()).collect(),
                ..TrainConfig::default()
            };
            if names == ["wpo"] {
                (config.loss_type, config.use_weighting) = (vec!["sigmoid".into()], true);
            }
            if aspo {
                (config.reward_scaling, config.weigh) = (scaling.into(), weigh.into());
            }
            let objective = config.objective().unwrap();
            let all = totals(&pairs);
            let mut batch = |rows: &[&EncodedPair]| {
                MicroBatch::<Counted>::new(rows, true, 0, &mut features, &plain, &device).unwrap()
            };
            let chunk = Default::default();
            let (_, reads, _) = counted(|| {
                let batch = batch(&rows);
                let live = batch.reference_log_probs(&reference, &chunk).unwrap();
                batch.step(&policy, &objective, Some(&Reference::Live(live)), all, false, &chunk).unwrap()
            });
            assert_eq!(reads, 0, "{names:?}: a forward and a backward wait for nothing");
            for part in [4, 1] {
                let batches = rows.chunks(part).map(|rows| {
                    let batch = batch(rows);
                    let live = batch.reference_log_probs(&reference, &chunk)?;
                    Ok((batch, Some(Reference::Live(live))))
                });
                let (done, reads, operations) =
                    counted(|| accumulate(&policy, batches, all, &config, &objective, 1, "none").unwrap());
                assert_eq!(reads, 1, "{names:?}: one read a step, of {} micro-batches", 4 / part);
                println!(
                    "{names:?} {scaling} {weigh}: {operations} operations in {} micro-batches",
                    4 / part
                );
                assert!(done.norm.is_finite());
            }
        }
    }
}

/// The counting backend computes what ndarray does, and weights made on a device are those that are told of the host's.
#[test]
fn a_step_through_the_list_is_the_step_without() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    fn step<B: Backend>() -> (f64, f64) {
        let world = World::new();
        let (policy, pairs, mut features) = policy::<B>(&world);
        let rows: Vec<&EncodedPair> = pairs.iter().collect();
        let (plain, device) = (policy.valid(), Default::default());
        let batch = MicroBatch::<B>::new(&rows, true, 0, &mut features, &plain, &device).unwrap();
        // Another model than the policy: the weights have something to weigh.
        let known = pairs.iter().map(|pair| ReferenceRow {
            chosen: vec![-3.0; pair.chosen.ids.len()],
            rejected: vec![-2.5; pair.rejected.ids.len()],
            corrupted: Vec::new(),
        });
        let known = Some(Reference::Rows(known.collect()));
        let config = TrainConfig { clip: Some("not read".into()), ..TrainConfig::default() };
        let objective = config.objective().unwrap();
        let batches = std::iter::once(Ok((batch, known)));
        let done = accumulate(&policy, batches, totals(&pairs), &config, &objective, 1, "none").unwrap();
        (done.metrics.get("loss").unwrap(), done.norm)
    }
    let (counted, plain) = (step::<Counted>(), step::<NdArray>());
    // The same operations on the same numbers.
    assert!(
        (counted.0 - plain.0).abs() < 1e-6 && (counted.1 - plain.1).abs() < 1e-5,
        "{counted:?} {plain:?}"
    );
}
