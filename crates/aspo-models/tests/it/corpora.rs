//! The committed corpora of the fuzz targets, put through the same checks.

#[path = "../../../../fuzz/src/models.rs"]
mod checks;
#[path = "../../../../fuzz/src/replay.rs"]
mod replay;

use replay::replay;

#[test]
fn configs_of_the_corpus_are_configs_or_errors() {
    replay("config", checks::config);
}

#[test]
fn safetensors_of_the_corpus_are_tensors_or_errors() {
    replay("safetensors", checks::safetensors);
}

#[test]
fn indices_of_the_corpus_are_tensors_or_errors() {
    replay("index", checks::index);
}

#[test]
fn adapters_of_the_corpus_are_adapters_or_errors() {
    replay("adapter", checks::adapter);
}
