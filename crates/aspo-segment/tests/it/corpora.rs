//! The committed corpora of the fuzz targets, put through the same checks.

#[path = "../../../../fuzz/src/segment.rs"]
mod checks;
#[path = "../../../../fuzz/src/replay.rs"]
mod replay;

use replay::replay;

#[test]
fn splits_of_the_corpus_keep_their_promises() {
    replay("split", checks::split);
}

#[test]
fn alignments_of_the_corpus_are_errors_or_ordered_ids() {
    replay("align", checks::alignment);
}
