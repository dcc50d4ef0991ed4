//! A folder for made-up files, and where the real ones are.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// A folder that is gone after the test.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.at(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn lines(&self, name: &str, rows: &[Value]) -> PathBuf {
        self.put(name, &rows.iter().map(|row| format!("{row}\n")).collect::<String>())
    }

    pub fn json(&self, name: &str, value: &Value) -> PathBuf {
        self.put(name, &value.to_string())
    }
}

/// Real benchmark files: `ASPO_BENCH_DATA`, else beside the workspace. Tests that need them are ignored unless asked for.
pub fn bench_data(benchmark: &str) -> PathBuf {
    let root = match std::env::var_os("ASPO_BENCH_DATA") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/eval"),
    };
    let path = root.join(benchmark);
    assert!(path.is_dir(), "no {}; set ASPO_BENCH_DATA to the folder of benchmark files", path.display());
    path
}

/// To four decimals, as the published figures are given.
pub fn digits(value: f64, decimals: usize) -> String {
    format!("{value:.decimals$}")
}
