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
fn tables_of_the_corpus_give_their_pictures_again_from_their_places() {
    replay("source", checks::source);
}

#[test]
fn records_of_the_corpus_are_records_or_nothing() {
    replay("records", checks::records);
}

#[test]
fn llava_files_of_the_corpus_are_conversations_or_errors() {
    replay("llava", checks::llava);
}

#[test]
fn pictures_of_the_corpus_are_pictures_or_errors() {
    replay("image", checks::image);
}
