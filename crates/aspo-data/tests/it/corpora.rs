//! The committed corpora of the fuzz targets, put through the same checks.

use std::path::Path;

#[path = "../../../../fuzz/src/data.rs"]
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
fn llava_files_of_the_corpus_are_conversations_or_errors() {
    replay("llava", checks::llava);
}

#[test]
fn pictures_of_the_corpus_are_pictures_or_errors() {
    replay("image", checks::image);
}
