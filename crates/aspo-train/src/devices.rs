//! Several devices in one process: a thread each, their gradients summed by Burn's collective (`burn-collective`).
//!
//! Every device holds the whole policy and its own moments, as in torch's DDP. A step's micro-batches go round the devices;
//! when all have computed theirs, the sums are reduced, and each device clips and applies the same numbers. A device never
//! enters the reduction before all are known to reach it: one that fails makes the others drop theirs. Nor does the run begin
//! before all have joined.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use aspo_loss::{Metrics, Totals};
use burn::backend::Autodiff;
use burn::module::{ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorPrimitive};
use burn_collective::{
    AllReduceStrategy, CollectiveConfig, CollectiveError, PeerId, ReduceOperation, all_reduce,
    finish_collective, register, reset_collective,
};

use crate::error::{Error, Result};
use crate::optimize::{Share, StepGradients};
use crate::policy::Policy;
use crate::replica::Replica;

/// A process has one collective a backend: a second run with several devices waits here until the first has ended. The
/// guard must outlive the threads of its run.
pub(crate) fn only_run() -> MutexGuard<'static, ()> {
    static COLLECTIVE: Mutex<()> = Mutex::new(());
    COLLECTIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long devices may take to come together; they are threads of one process.
const JOIN_LIMIT: Duration = Duration::from_secs(60);

/// A place in the collective, given up when dropped.
struct Peer<B: Backend> {
    id: PeerId,
    backend: std::marker::PhantomData<B>,
}

impl<B: Backend> Peer<B> {
    /// A place for each device, in their order, or none: a device that cannot join leaves no other waiting for it.
    fn join_all(devices: &[B::Device], limit: Duration) -> Result<Vec<Self>> {
        // Of its own for each run: what an earlier one left behind gives up its own place only.
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let first = NEXT.fetch_add(devices.len(), Ordering::Relaxed);
        // A tree: its sums are in the order of the devices. (Of several threads on one CPU, the order is any.)
        let config = CollectiveConfig::default()
            .with_num_devices(devices.len())
            .with_local_all_reduce_strategy(AllReduceStrategy::Tree(2));
        let (joined, places) = channel();
        for (rank, device) in devices.iter().cloned().enumerate() {
            let (joined, config, id) = (joined.clone(), config.clone(), PeerId::from(first + rank));
            // Not of the run's own threads, which the run waits for: one that waits for a device that never comes is left.
            std::thread::spawn(move || {
                let place = register::<B>(id, device, config).map_err(|error| failed(&error));
                let _ = joined.send((rank, place.map(|()| Self { id, backend: std::marker::PhantomData })));
            });
        }
        let mut peers: Vec<Option<Self>> = devices.iter().map(|_| None).collect();
        let end = Instant::now() + limit;
        for _ in devices {
            let left = end.saturating_duration_since(Instant::now());
            let late = |_| Error::option("devices", "not all came together", "train on one");
            let (rank, place) = places.recv_timeout(left).map_err(late)?;
            peers[rank] = Some(place?);
        }
        Ok(peers.into_iter().flatten().collect())
    }

    /// Sums the gradients that any device has (`held`, in the order of the module) over all devices.
    fn reduce<M: Policy<B>>(&self, policy: &M, gradients: &mut GradientsParams, held: &[bool]) -> Result<()> {
        let mut sum = Sum { peer: self.id, gradients, held, at: 0, outcome: Ok(()) };
        policy.visit(&mut sum);
        sum.outcome.map_err(|error| failed(&error))
    }
}

impl<B: Backend> Drop for Peer<B> {
    fn drop(&mut self) {
        let _ = finish_collective::<B>(self.id);
    }
}

fn failed(error: &CollectiveError) -> Error {
    let remedy = "look at the devices, or train on one";
    Error::option("devices", format!("the gradients could not be summed over them ({error:?})"), remedy)
}

struct Sum<'a> {
    peer: PeerId,
    gradients: &'a mut GradientsParams,
    held: &'a [bool],
    at: usize,
    outcome: Result<(), CollectiveError>,
}

impl<B: Backend> ModuleVisitor<Autodiff<B>> for Sum<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
        let held = self.held[self.at];
        self.at += 1;
        if !held || self.outcome.is_err() {
            return;
        }
        let own = self.gradients.remove::<B, D>(param.id);
        // A device without a part in this step adds nothing.
        let own = own.unwrap_or_else(|| Tensor::zeros(param.shape(), &param.val().device()));
        match all_reduce::<B>(self.peer, own.into_primitive().tensor(), ReduceOperation::Sum) {
            Ok(sum) => {
                let sum = Tensor::<B, D>::from_primitive(TensorPrimitive::Float(sum));
                self.gradients.register::<B, D>(param.id, sum);
            }
            Err(error) => self.outcome = Err(error),
        }
    }
}

/// Which parameters have a gradient, in the order of the module.
fn held<B: Backend, M: Policy<B>>(policy: &M, gradients: &GradientsParams) -> Vec<bool> {
    struct Held<'a>(&'a GradientsParams, Vec<bool>);
    impl<B: Backend> ModuleVisitor<Autodiff<B>> for Held<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
            self.1.push(self.0.get::<B, D>(param.id).is_some());
        }
    }
    let mut found = Held(gradients, Vec::new());
    policy.visit(&mut found);
    found.1
}

enum Order {
    Share { parts: Vec<Vec<usize>>, totals: Totals, step: usize, checkpoint: String },
    Reduce(Vec<bool>),
    Apply(f64),
    Drop,
}

/// What a device has to say of its share.
struct Told {
    metrics: Metrics,
    tokens: usize,
    ids: Vec<String>,
    held: Vec<bool>,
}

/// One of the other devices.
struct Hand {
    orders: Sender<Order>,
    shares: Receiver<Result<Told>>,
    sums: Receiver<Result<()>>,
}

/// All devices but the first, whose thread is the caller's.
pub(crate) struct Others<B: Backend> {
    hands: Vec<Hand>,
    peer: Peer<B>,
}

impl<B: Backend> Others<B> {
    /// Starts a thread for each of `replicas`; to be called with [`only_run`].
    ///
    /// # Errors
    /// A collective that refuses.
    pub fn start<'scope, 'run: 'scope, M: Policy<B> + 'scope>(
        scope: &'scope Scope<'scope, '_>,
        replicas: Vec<Replica<'run, B, M>>,
        first: &B::Device,
    ) -> Result<Self> {
        // What a run that ended in a panic has left.
        reset_collective::<B>();
        let own = replicas.iter().map(|replica| replica.device().clone());
        let devices: Vec<B::Device> = std::iter::once(first.clone()).chain(own).collect();
        let mut peers = Peer::<B>::join_all(&devices, JOIN_LIMIT)?.into_iter();
        let peer = peers.next().ok_or_else(gone)?;
        let hands = replicas.into_iter().zip(peers).map(|(replica, peer)| {
            let (orders, received) = channel();
            let (share, shares) = channel();
            let (sum, sums) = channel();
            scope.spawn(move || work(replica, &peer, &received, &share, &sum));
            Hand { orders, shares, sums }
        });
        Ok(Self { hands: hands.collect(), peer })
    }

    /// As [`Team::gradients`](crate::team::Team::gradients).
    pub fn gradients<M: Policy<B>>(
        &self,
        first: &mut Replica<B, M>,
        parts: &[&[usize]],
        totals: Totals,
        step: usize,
        checkpoint: &str,
    ) -> Result<StepGradients> {
        let devices = self.hands.len() + 1;
        let of = |rank: usize| parts.iter().skip(rank).step_by(devices).copied();
        for (hand, rank) in self.hands.iter().zip(1..) {
            let (parts, checkpoint) = (of(rank).map(<[usize]>::to_vec).collect(), checkpoint.to_owned());
            tell(hand, Order::Share { parts, totals, step, checkpoint });
        }
        let own = first.share(&of(0).collect::<Vec<_>>(), totals, step, checkpoint);
        // All are heard before anything is decided.
        let told: Vec<Result<Told>> = self.hands.iter().map(|hand| hear(&hand.shares)).collect();
        let done = all(own, told).and_then(|(mut share, told)| {
            let mut any = held::<B, M>(&first.policy, &share.gradients);
            for told in told {
                any.iter_mut().zip(told.held).for_each(|(any, held)| *any |= held);
                share.metrics.merge(&told.metrics);
                share.tokens += told.tokens;
                share.ids.extend(told.ids);
            }
            self.hands.iter().for_each(|hand| tell(hand, Order::Reduce(any.clone())));
            let own = self.peer.reduce(&first.policy, &mut share.gradients, &any);
            let sums: Vec<Result<()>> = self.hands.iter().map(|hand| hear(&hand.sums)).collect();
            own.and(sums.into_iter().collect::<Result<()>>())?;
            share.clipped::<B, M>(&first.policy, first.config, step, checkpoint)
        });
        if done.is_err() {
            self.hands.iter().for_each(|hand| tell(hand, Order::Drop));
        }
        done
    }

    /// The step on all these devices, by the gradients they hold.
    pub fn apply(&self, rate: f64) {
        self.hands.iter().for_each(|hand| tell(hand, Order::Apply(rate)));
    }
}

/// The shares of all devices, or what went wrong: a loss that is not finite last, since it may be skipped and must not hide
/// anything else.
fn all(own: Result<Share>, others: Vec<Result<Told>>) -> Result<(Share, Vec<Told>)> {
    let (told, mut faults): (Vec<_>, Vec<_>) = others.into_iter().partition(Result::is_ok);
    let own = own.map_err(|fault| faults.push(Err(fault))).ok();
    let faults = faults.into_iter().filter_map(Result::err);
    match (own, faults.min_by_key(|fault| matches!(fault, Error::NotFinite { .. }))) {
        (Some(own), None) => Ok((own, told.into_iter().flatten().collect())),
        (_, fault) => Err(fault.unwrap_or_else(gone)),
    }
}

/// A thread that is gone has panicked: its panic is told where the threads are joined.
fn tell(hand: &Hand, order: Order) {
    let _ = hand.orders.send(order);
}

fn hear<T>(answers: &Receiver<Result<T>>) -> Result<T> {
    answers.recv().map_err(|_| gone())?
}

fn gone() -> Error {
    Error::option("devices", "the thread of one has ended", "look at the message above")
}

/// The life of a device: it ends with the orders.
fn work<B: Backend, M: Policy<B>>(
    mut replica: Replica<B, M>,
    peer: &Peer<B>,
    orders: &Receiver<Order>,
    shares: &Sender<Result<Told>>,
    sums: &Sender<Result<()>>,
) {
    let mut gradients = GradientsParams::new();
    while let Ok(order) = orders.recv() {
        match order {
            Order::Share { parts, totals, step, checkpoint } => {
                let parts: Vec<&[usize]> = parts.iter().map(Vec::as_slice).collect();
                let share = replica.share(&parts, totals, step, &checkpoint).map(|share| {
                    let Share { gradients: own, metrics, tokens, ids } = share;
                    let held = held::<B, M>(&replica.policy, &own);
                    gradients = own;
                    Told { metrics, tokens, ids, held }
                });
                let _ = shares.send(share);
            }
            Order::Reduce(held) => {
                let _ = sums.send(peer.reduce(&replica.policy, &mut gradients, &held));
            }
            Order::Apply(rate) => {
                let mut own = std::mem::take(&mut gradients);
                let limit = Some(replica.config.max_grad_norm).filter(|limit| *limit > 0.0);
                crate::clip_grad_norm::<Autodiff<B>, M>(&replica.policy, &mut own, limit);
                replica = replica.apply(rate, own);
            }
            Order::Drop => gradients = GradientsParams::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_never_comes_keeps_no_other_waiting() {
        type Flex = burn_flex::Flex;
        let _only = only_run();
        reset_collective::<Flex>();
        let two = || [Default::default(), Default::default()];
        // A stranger takes the first of two places, so that the second device of the run waits for one more.
        let config = CollectiveConfig::default()
            .with_num_devices(2)
            .with_local_all_reduce_strategy(AllReduceStrategy::Tree(2));
        std::thread::spawn(move || register::<Flex>(PeerId::from(usize::MAX), Default::default(), config));
        std::thread::sleep(Duration::from_millis(100));
        let joined = Peer::<Flex>::join_all(&two(), Duration::from_millis(300));
        assert!(joined.err().unwrap().to_string().contains("not all came together"));
        // And the next run is not disturbed by it.
        reset_collective::<Flex>();
        assert_eq!(Peer::<Flex>::join_all(&two(), JOIN_LIMIT).unwrap().len(), 2);
    }

    #[test]
    fn a_loss_that_is_not_finite_hides_no_other_fault() {
        let not_finite = || Error::NotFinite {
            step: 1,
            what: "loss",
            found: f64::NAN,
            pairs: Vec::new(),
            checkpoint: String::new(),
        };
        let told = |own, other| all(Err(own), vec![Err(other)]).err().map(|fault| fault.to_string());
        let gone_text = Some(gone().to_string());
        assert_eq!(told(not_finite(), gone()), gone_text);
        assert_eq!(told(gone(), not_finite()), gone_text);
        assert_eq!(told(not_finite(), not_finite()), Some(not_finite().to_string()));
    }
}
