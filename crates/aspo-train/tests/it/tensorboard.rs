//! Event files hold what `metrics.jsonl` holds.

use std::collections::BTreeMap;

use aspo_train::{EventFile, MetricFile, TrainConfig};
use burn_flex::Flex;

use crate::support::{World, listing, whole_run};

/// The fields of a protobuf message: number, and a varint or bytes.
fn fields(mut data: &[u8]) -> Vec<(u64, u64, Vec<u8>)> {
    fn varint(data: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = data[0];
            *data = &data[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }
    let mut found = Vec::new();
    while !data.is_empty() {
        let key = varint(&mut data);
        let (number, bytes) = match key & 7 {
            0 => (varint(&mut data), 0),
            1 => (0, 8),
            2 => (0, varint(&mut data) as usize),
            5 => (0, 4),
            other => panic!("wire type {other}"),
        };
        found.push((key >> 3, number, data[..bytes].to_vec()));
        data = &data[bytes..];
    }
    found
}

/// The messages of a file of TFRecords.
fn events(mut data: &[u8]) -> Vec<Vec<(u64, u64, Vec<u8>)>> {
    let mut found = Vec::new();
    while !data.is_empty() {
        let length = u64::from_le_bytes(data[..8].try_into().unwrap()) as usize;
        found.push(fields(&data[12..12 + length]));
        data = &data[16 + length..];
    }
    found
}

fn scalars(event: &[(u64, u64, Vec<u8>)]) -> Option<(u64, BTreeMap<String, f32>)> {
    let step = event.iter().find(|field| field.0 == 2)?.1;
    let summary = &event.iter().find(|field| field.0 == 5)?.2;
    let value = |(_, _, value): (u64, u64, Vec<u8>)| {
        let parts = fields(&value);
        let name = String::from_utf8(parts[0].2.clone()).unwrap();
        (name, f32::from_le_bytes(parts[1].2.as_slice().try_into().unwrap()))
    };
    Some((step, fields(summary).into_iter().map(value).collect()))
}

#[test]
fn event_files_hold_the_lines_of_metrics() {
    let world = World::new();
    let config = TrainConfig { logging_steps: 2, ..world.config.clone() };
    whole_run::<Flex>(&config, false, |_| (), |_| ()).unwrap();
    let name = listing(&config.output_dir)
        .into_iter()
        .find(|name| name.starts_with("events.out.tfevents."))
        .unwrap();
    let bytes = std::fs::read(config.output_dir.join(name)).unwrap();
    let events = events(&bytes);
    assert_eq!(events[0].iter().find(|field| field.0 == 3).unwrap().2, b"brain.Event:2");
    let found: Vec<_> = events.iter().filter_map(|event| scalars(event)).collect();
    let lines = MetricFile::read(&config.output_dir).unwrap();
    assert_eq!(lines.len(), 3);
    assert_eq!(found.len(), lines.len());
    for ((step, values), line) in found.iter().zip(&lines) {
        assert_eq!((*step, values.len()), (line.step as u64, line.values.len()));
        // The last digit of a number may not come back from its text, and may decide how it is rounded to an f32.
        let same = |name: &str, value: f64| (value - f64::from(values[name])).abs() <= 1e-6 * value.abs();
        line.values.iter().for_each(|(name, value)| assert!(same(name, *value), "{name}: {value}"));
    }
}

#[test]
fn a_resumed_run_voids_the_steps_that_it_does_again() {
    let folder = tempfile::tempdir().unwrap();
    EventFile::create(folder.path(), 7).unwrap();
    let name = listing(folder.path()).remove(0);
    let events = events(&std::fs::read(folder.path().join(name)).unwrap());
    let start = &events[1];
    assert_eq!(start.iter().find(|field| field.0 == 2).unwrap().1, 8);
    assert_eq!(fields(&start.iter().find(|field| field.0 == 7).unwrap().2)[0].1, 1);
}

#[test]
fn checksums_are_those_of_tensorflow() {
    let folder = tempfile::tempdir().unwrap();
    EventFile::create(folder.path(), 0).unwrap();
    let name = listing(folder.path()).remove(0);
    let bytes = std::fs::read(folder.path().join(name)).unwrap();
    // The first record is 24 bytes long in every event file, so that all of TensorFlow's begin with these bytes.
    assert_eq!(bytes[..12], [24, 0, 0, 0, 0, 0, 0, 0, 163, 127, 75, 34]);
}
