//! The committed corpora of the fuzz targets, put through the same checks.

use std::path::Path;

#[path = "../../../../fuzz/src/models.rs"]
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
