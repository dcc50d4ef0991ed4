//! Paths stay under their root; writes are whole or absent.

use aspo_data::Error;
use aspo_data::files::{resolve, write_atomic};

#[test]
fn paths_out_of_the_folder_are_refused_and_links_followed() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("images");
    std::fs::create_dir_all(root.join("sub")).unwrap();
    std::fs::write(root.join("sub/a.jpg"), "x").unwrap();
    std::fs::write(folder.path().join("secret.jpg"), "x").unwrap();
    assert!(resolve(&root, "sub/a.jpg").is_ok() && resolve(&root, "./sub/a.jpg").is_ok());
    for bad in [
        "../secret.jpg",
        "sub/../../secret.jpg",
        "/etc/passwd",
        "",
        " ",
        "a\0b",
        "..\\x",
        "file:///etc/passwd",
    ] {
        assert!(matches!(resolve(&root, bad), Err(Error::ImagePath { .. })), "{bad:?}");
    }
    let inside = root.join("sub/a.jpg").display().to_string();
    assert!(resolve(&root, &inside).is_ok(), "an absolute path may lead into the folder");
    let outside = folder.path().join("secret.jpg").display().to_string();
    assert!(matches!(resolve(&root, &outside), Err(Error::ImagePath { .. })));
    assert!(matches!(resolve(&root, "sub/none.jpg"), Err(Error::Io { .. })));
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(folder.path().join("secret.jpg"), root.join("out.jpg")).unwrap();
        std::os::unix::fs::symlink(folder.path(), root.join("up")).unwrap();
        std::os::unix::fs::symlink(root.join("sub/a.jpg"), root.join("in.jpg")).unwrap();
        for bad in ["out.jpg", "up/secret.jpg"] {
            assert!(matches!(resolve(&root, bad), Err(Error::ImagePath { .. })), "{bad}");
        }
        assert!(resolve(&root, "in.jpg").is_ok(), "a link that stays inside is fine");
    }
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/file");
    let write = |text: &'static str, fail: bool| {
        write_atomic(&path, |out| {
            out.write_all(text.as_bytes()).unwrap();
            if fail { resolve(&path, "").map(|_| ()) } else { Ok(()) }
        })
    };
    write("one", false).unwrap();
    assert!(write("two", true).is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "one");
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    write("three", false).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "three");
}

#[cfg(unix)]
#[test]
fn a_file_keeps_its_permissions_and_a_new_one_has_those_of_any_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let write = |path: &std::path::Path| {
        write_atomic(path, |out| {
            out.write_all(b"x").unwrap();
            Ok(())
        })
        .unwrap();
    };
    let (path, plain) = (folder.path().join("file"), folder.path().join("plain"));
    std::fs::write(&plain, "x").unwrap();
    write(&path);
    assert_eq!(mode(&path), mode(&plain));
    for kept in [0o600, 0o640, 0o664] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(kept)).unwrap();
        write(&path);
        assert_eq!(mode(&path), kept);
    }
}
