//! The committed corpora of the fuzz targets, put through the same checks.

#[path = "../../../../fuzz/src/data.rs"]
mod checks;
#[path = "../../../../fuzz/src/replay.rs"]
mod replay;

use replay::replay;

#[test]
fn trl_files_of_the_corpus_are_pairs_or_errors() {
    replay("trl", checks::trl);
}

#[test]
fn seva_files_of_the_corpus_are_pairs_or_errors() {
    replay("seva", checks::seva);
}

#[test]
fn rlaif_files_of_the_corpus_are_pairs_or_errors() {
    replay("rlaif", checks::rlaif);
}

#[test]
fn llama_factory_files_of_the_corpus_are_pairs_or_errors() {
    replay("llama_factory", checks::llama_factory);
}

#[test]
fn files_of_the_corpus_in_other_formats_are_pairs_or_errors() {
    replay("others", checks::others);
}

#[test]
fn llava_files_of_the_corpus_are_conversations_or_errors() {
    replay("llava", checks::llava);
}

#[test]
fn pictures_of_the_corpus_are_pictures_or_errors() {
    replay("image", checks::image);
}
