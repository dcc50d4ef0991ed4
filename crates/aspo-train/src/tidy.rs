//! Paths as a person would write them, for configs and reports.

use std::path::{Component, Path, PathBuf};

/// A path without `.` and `x/..` where that leads to the same place, relative to the working folder if it lies there.
pub(crate) fn tidy(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if matches!(clean.components().next_back(), Some(Component::Normal(_))) => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    let here = std::env::current_dir().ok();
    let short = here.and_then(|here| clean.strip_prefix(here).ok().map(Path::to_owned));
    let clean = short.filter(|short| !short.as_os_str().is_empty()).unwrap_or(clean);
    // A link before `..` leads elsewhere.
    match (path.canonicalize(), clean.canonicalize()) {
        (Ok(old), Ok(new)) if old == new => clean,
        _ => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tidy_path_leads_to_the_same_place() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("configs")).unwrap();
        std::fs::create_dir_all(folder.path().join("assets/deep")).unwrap();
        let path = folder.path().join("configs/.././assets");
        assert_eq!(tidy(&path), folder.path().join("assets"));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(folder.path().join("assets/deep"), folder.path().join("link"))
                .unwrap();
            let over = folder.path().join("link/../deep");
            assert_eq!(tidy(&over), over, "behind a link, `..` is another folder");
        }
        let gone = folder.path().join("configs/../gone");
        assert_eq!(tidy(&gone), gone);
    }
}
