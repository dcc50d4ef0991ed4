//! Records that survive whoever makes them.

use std::path::Path;

use aspo_data::records::{RecordWriter, Records, key_of};
use aspo_data::{Error, Result};

fn made(path: &Path, key: &str, count: usize) -> Records {
    Records::open_or(path, key, |writer| {
        for index in writer.len()..count {
            writer.push(index as u64, format!("record {index}").repeat(index).as_bytes())?;
        }
        Ok::<_, Error>(b"note".to_vec())
    })
    .unwrap()
}

fn read(records: &Records) -> Vec<Vec<u8>> {
    (0..records.len()).map(|index| records.get(index).unwrap()).collect()
}

#[test]
fn what_was_written_is_read_in_any_order_by_whoever_has_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/er/some.records");
    let key = key_of("pairs");
    let first = made(&path, &key, 20);
    assert_eq!((first.len(), first.note(), first.tags()[7]), (20, &b"note"[..], 7));
    assert_eq!(first.get(3).unwrap(), b"record 3record 3record 3");
    assert!(first.get(0).unwrap().is_empty() && first.get(20).is_err());
    // Opened again, nothing is made.
    let again = Records::open_or(&path, &key, |_| -> Result<Vec<u8>> { panic!("they are there") }).unwrap();
    assert_eq!(read(&again), read(&first));
    assert!(Records::open(&path, &key_of("others")).unwrap().is_none());
    let names: Vec<_> =
        std::fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["some.records"], "nothing is left beside them");
}

/// Whatever byte the power went out at, whole records stay and the rest is made again.
#[test]
fn a_file_cut_at_any_byte_is_finished_as_if_it_had_never_been() {
    let folder = tempfile::tempdir().unwrap();
    let (path, key) = (folder.path().join("some.records"), key_of("pairs"));
    let whole = read(&made(&path, &key, 6));
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    for cut in 0..=bytes.len() {
        std::fs::write(folder.path().join("some.records.part"), &bytes[..cut]).unwrap();
        let kept = RecordWriter::begin(&path, &key).unwrap().len();
        assert!(kept <= 6 && (cut < bytes.len() || kept == 6), "{kept} records of {cut} bytes");
        assert_eq!(read(&made(&path, &key, 6)), whole, "cut at {cut}");
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_damaged_record_is_told_and_a_damaged_table_makes_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let (path, key) = (folder.path().join("some.records"), key_of("pairs"));
    let whole = read(&made(&path, &key, 6));
    let bytes = std::fs::read(&path).unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x20;
        std::fs::write(&path, damaged).unwrap();
        let Some(records) = Records::open(&path, &key).unwrap() else { continue };
        for (index, wanted) in whole.iter().enumerate() {
            match records.get(index) {
                Ok(found) => assert_eq!(found, *wanted, "byte {at}"),
                Err(Error::Stored { why, .. }) => assert!(why.contains("delete the file"), "{why}"),
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
fn those_who_want_the_same_records_wait_for_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let (path, key) = (folder.path().join("some.records"), key_of("pairs"));
    let makers = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let records = Records::open_or(&path, &key, |writer| {
                    makers.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    for index in 0..100 {
                        writer.push(index, &[index as u8; 100])?;
                    }
                    writer.sync()?;
                    Ok::<_, Error>(Vec::new())
                });
                assert_eq!(read(&records.unwrap()).len(), 100);
            });
        }
    });
    assert_eq!(makers.into_inner(), 1);
}
