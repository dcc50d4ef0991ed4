//! The order of pairs.

use aspo_data::Order;
use proptest::prelude::*;

fn epoch(order: &mut Order) -> Vec<Vec<usize>> {
    (0..order.batches_per_epoch()).map(|_| order.next_batch()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, rng_seed: proptest::test_runner::RngSeed::Fixed(3), ..Default::default() })]

    #[test]
    fn every_epoch_visits_every_pair_once_in_its_own_order(
        lengths in prop::collection::vec(1_usize..500, 1..80), batch in 1_usize..9, bucket in 1_usize..9, seed: u64,
    ) {
        let mut order = Order::new(&lengths, batch, bucket, seed).unwrap();
        let mut again = Order::new(&lengths, batch, bucket, seed).unwrap();
        for _ in 0..3 {
            let batches = epoch(&mut order);
            prop_assert_eq!(&batches, &epoch(&mut again), "the seed decides");
            prop_assert!(batches.iter().all(|found| found.len() <= batch));
            prop_assert_eq!(batches.iter().filter(|found| found.len() < batch).count() <= 1, true);
            let mut all = batches.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_cursor_goes_on_exactly_where_it_was_taken(
        count in 1_usize..40, batch in 1_usize..6, taken in 0_usize..60, seed: u64,
    ) {
        let lengths: Vec<usize> = (0..count).collect();
        let mut order = Order::new(&lengths, batch, 4, seed).unwrap();
        (0..taken).for_each(|_| { order.next_batch(); });
        let stored = serde_json::to_string(&order.cursor()).unwrap();
        let mut resumed = Order::new(&lengths, batch, 4, seed).unwrap();
        resumed.seek(&serde_json::from_str(&stored).unwrap()).unwrap();
        for _ in 0..30 {
            prop_assert_eq!(order.epoch(), resumed.epoch());
            prop_assert_eq!(order.next_batch(), resumed.next_batch());
        }
    }
}

#[test]
fn buckets_save_padding() {
    let lengths: Vec<usize> = (0..1000).map(|index| 100 + index * 7919 % 900).collect();
    let padded = |bucket| {
        let mut order = Order::new(&lengths, 8, bucket, 1).unwrap();
        let rows = |batch: Vec<usize>| batch.len() * batch.iter().map(|index| lengths[*index]).max().unwrap();
        epoch(&mut order).into_iter().map(rows).sum::<usize>() - lengths.iter().sum::<usize>()
    };
    assert!(padded(32) * 5 < padded(1), "{} {}", padded(32), padded(1));
}

#[test]
fn epochs_and_seeds_differ_and_a_foreign_cursor_is_refused() {
    let lengths = vec![1; 50];
    let mut order = Order::new(&lengths, 4, 1, 1).unwrap();
    let cursor = order.cursor();
    let (first, second) = (epoch(&mut order), epoch(&mut order));
    assert_ne!(first, second);
    assert_ne!(first, epoch(&mut Order::new(&lengths, 4, 1, 2).unwrap()));
    for mut other in [
        Order::new(&lengths, 4, 1, 2).unwrap(),
        Order::new(&lengths[1..], 4, 1, 1).unwrap(),
        Order::new(&lengths, 5, 1, 1).unwrap(),
    ] {
        assert!(other.seek(&cursor).unwrap_err().to_string().contains("same data"));
    }
    assert!(Order::new(&[], 4, 1, 1).is_err() && Order::new(&lengths, 0, 1, 1).is_err());
}

/// A resumed run goes on in the order it began with, whatever version of whichever library was compiled in.
#[test]
fn orders_of_old_runs_stay() {
    let mut order = Order::new(&[1; 12], 3, 1, 42).unwrap();
    assert_eq!(epoch(&mut order), [[11, 9, 1], [7, 10, 4], [6, 2, 5], [0, 8, 3]]);
    // Long enough that a draw gives one place only, where numbers of choices fill half of 32 bits.
    let mut order = Order::new(&vec![1; 70_000], 1, 1, 7).unwrap();
    let first = epoch(&mut order).concat();
    let hash = first.iter().fold(0_u64, |hash, index| hash.wrapping_mul(31).wrapping_add(*index as u64));
    assert_eq!(hash, 9_986_185_336_981_359_112);
}
