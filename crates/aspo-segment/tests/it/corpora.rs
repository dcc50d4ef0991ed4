//! The committed corpora of the fuzz targets, put through the same checks.

use std::path::Path;

#[path = "../../../../fuzz/src/segment.rs"]
mod checks;

fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "nothing in {}", folder.display());
    for file in files {
        // Shown where the check fails.
        println!("{}", file.display());
        check(&std::fs::read(&file).unwrap());
    }
}

#[test]
fn splits_of_the_corpus_keep_their_promises() {
    replay("split", checks::split);
}

#[test]
fn alignments_of_the_corpus_are_errors_or_ordered_ids() {
    replay("align", checks::alignment);
}
