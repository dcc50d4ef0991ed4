//! Pictures of the steps to come, read, decoded and preprocessed while the present step is computed.

use std::collections::{HashMap, HashSet};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::Scope;

use aspo_data::order::Order;
use aspo_data::{ImageLoader, ImageSource, PairSet, Pixels};

use crate::features::picture_key;
use crate::team::own_parts;

/// Steps that wait to be taken, beside the one under way in the thread.
const AHEAD: usize = 1;

/// The keys of pictures whose features are kept: their pixels are no longer wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeptKeys(Arc<RwLock<HashSet<String>>>);

impl KeptKeys {
    pub fn add(&self, key: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned());
    }

    fn has(&self, key: &str) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(key)
    }
}

/// Preprocessed pictures, each as it is alone in its conversation or one of several.
pub(crate) type Ready = HashMap<(ImageSource, bool), Pixels>;

/// The pairs of a step, in the order of the run, and what could be made ready of their pictures.
pub(crate) struct Next {
    pub pairs: Vec<usize>,
    pub ready: Ready,
}

/// The steps of an order, one after another without end, for whoever takes them; the thread ends when nobody does.
pub(crate) fn steps<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    mut order: Order,
    pairs: &'env PairSet,
    loader: Arc<ImageLoader>,
    kept: KeptKeys,
    (rank, size): (usize, usize),
    batch: usize,
) -> Receiver<Next> {
    let (give, take) = sync_channel(AHEAD);
    scope.spawn(move || {
        loop {
            let numbers = order.next_batch();
            let own = own_parts(&numbers, |pair| pairs.length(pair), batch, rank, size).concat();
            let ready = ready(&own, pairs, &loader, &kept);
            if give.send(Next { pairs: numbers, ready }).is_err() {
                break;
            }
        }
    });
    take
}

/// What cannot be had is left out: whoever needs it will tell of it.
fn ready(numbers: &[usize], pairs: &PairSet, loader: &ImageLoader, kept: &KeptKeys) -> Ready {
    let mut wanted: HashSet<(ImageSource, bool)> = HashSet::new();
    for pair in numbers.iter().filter_map(|&number| pairs.get(number).ok()) {
        let alone = pair.images.len() == 1;
        let new = pair.images.into_iter().filter(|image| !kept.has(&picture_key(loader, image, alone)));
        wanted.extend(new.map(|image| (image, alone)));
    }
    let wanted: Vec<(ImageSource, bool)> = wanted.into_iter().collect();
    let sources: Vec<(&ImageSource, bool)> = wanted.iter().map(|(image, alone)| (image, *alone)).collect();
    let pixels = loader.pixels_of_all(&sources);
    wanted.into_iter().zip(pixels).filter_map(|(source, pixels)| Some((source, pixels.ok()?))).collect()
}
