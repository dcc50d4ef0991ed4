//! Pairs by number, out of memory or a file.

use aspo_data::records::{Records, key_of};
use aspo_data::set::{PairHash, push_pair, to_bytes};
use aspo_data::{EncodedPair, Encoder, Error, Pair, PairSet, Template};

use crate::support::tiny_tokenizer;

fn pairs(count: usize) -> Vec<EncodedPair> {
    let encoder = Encoder::new(tiny_tokenizer(), Template::LlavaHf, 4);
    let pair = |index: usize| {
        let chosen = "The dog runs. ".repeat(1 + index % 5);
        let pair =
            Pair::new(index.to_string(), "q", chosen, "No.").with_image(&*format!("{}.png", index / 3));
        let mut encoded = encoder.encode(&pair).unwrap();
        encoded.origin = Some(("pairs.json".into(), index));
        encoded
    };
    (0..count).map(pair).collect()
}

fn on_disk(folder: &std::path::Path, pairs: &[EncodedPair]) -> PairSet {
    let key = key_of(&pairs.len().to_string());
    let records = Records::open_or(&folder.join(&key), &key, |writer| {
        let mut hash = PairHash::default();
        for pair in pairs {
            hash.add(pair);
            push_pair(writer, pair)?;
        }
        Ok::<_, Error>(to_bytes(&hash.note("account".into())))
    });
    let (set, account) = PairSet::from_records(records.unwrap()).unwrap();
    assert_eq!(account, "account");
    set
}

#[test]
fn a_set_on_disk_is_the_set_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let pairs = pairs(30);
    let (file, memory) = (on_disk(folder.path(), &pairs), PairSet::from(pairs.clone()));
    let both = [file.clone(), memory.clone()];
    for set in &both {
        assert_eq!(set.iter().collect::<Result<Vec<_>, _>>().unwrap(), pairs);
        let lengths: Vec<usize> = (0..set.len()).map(|pair| set.length(pair)).collect();
        assert_eq!(lengths, pairs.iter().map(EncodedPair::length).collect::<Vec<_>>());
        assert!(set.get(30).is_err());
    }
    assert_eq!((file.hash(), file.summary()), (memory.hash(), memory.summary()));
    assert_eq!(file.summary().longest, pairs.iter().map(EncodedPair::length).max().unwrap());
    // Chosen out of several, they stay what they are.
    let joined = PairSet::concat(vec![file.select(&[3, 3, 29]), memory.clone(), file]);
    let number = |at: usize| joined.get(at).unwrap().id;
    assert_eq!((joined.len(), number(0), number(1), number(2)), (63, "3".into(), "3".into(), "29".into()));
    assert_eq!((number(3), number(62)), ("0".into(), "29".into()));
    assert_eq!(joined.select(&[62, 2]).get(1).unwrap().id, "29");
    assert_ne!(joined.hash(), memory.hash());
}

#[test]
fn pairs_about_one_picture_have_one_share_and_shares_are_spread_evenly() {
    let set = PairSet::from(pairs(900));
    let shares: Vec<f64> = (0..900).map(|pair| set.share(pair)).collect();
    assert!(shares.chunks(3).all(|one| one[0] == one[1] && one[1] == one[2]));
    // 300 pictures: half of them within four standard deviations.
    let low = shares.iter().filter(|share| **share < 0.5).count() / 3;
    assert!((115..=185).contains(&low), "{low}");
}
