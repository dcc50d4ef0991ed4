//! Metrics as TensorBoard reads them: an event file beside `metrics.jsonl`.
//!
//! A file is a row of TFRecords (length, its checksum, data, its checksum), each an `Event` in protobuf's wire format.
//! Sources: `tensorflow/core/util/event.proto`, `summary.proto`, `lib/io/record_writer.cc`.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::callback::Callback;
use crate::error::{Error, Result};
use crate::metric::MetricLine;

/// The event file of this process. Each process of a run writes one; those of a run are read in the order of their names.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Begins a file of a run that goes on from `step`: a mark tells readers to forget what an interrupted process may
    /// have written of later steps.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn create(folder: &Path, step: usize) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!("events.out.tfevents.{:010}.{:09}.aspo", now.as_secs(), now.subsec_nanos());
        let path = folder.join(name);
        let file = File::create(&path).map_err(|source| Error::io(&path, source))?;
        let mut events = Self { path, file };
        // Event.file_version = 3.
        events.write(&[wall_time(), bytes(3, b"brain.Event:2")].concat())?;
        // Event.session_log = 7, SessionLog.status = 1: START is 1. From this step on the past is void, also that of a
        // process that was killed before its first checkpoint.
        let start = bytes(7, &integer(1, 1));
        events.write(&[wall_time(), integer(2, step as u64 + 1), start].concat())?;
        Ok(events)
    }

    /// One TFRecord.
    fn write(&mut self, event: &[u8]) -> Result<()> {
        let length = (event.len() as u64).to_le_bytes();
        let record = [length.as_slice(), &masked(&length), event, &masked(event)].concat();
        self.file.write_all(&record).map_err(|source| Error::io(&self.path, source))
    }
}

impl Callback for EventFile {
    /// Appends the values of a line as scalars.
    fn on_log(&mut self, line: &MetricLine) -> Result<()> {
        // Summary.value = 1, Value.tag = 1, Value.simple_value = 2 (a float); Event.summary = 5.
        let value = |(name, value): (&String, &f64)| {
            let simple = [vec![(2 << 3) | 5], (*value as f32).to_le_bytes().to_vec()].concat();
            bytes(1, &[bytes(1, name.as_bytes()), simple].concat())
        };
        let summary: Vec<u8> = line.values.iter().flat_map(value).collect();
        self.write(&[wall_time(), integer(2, line.step as u64), bytes(5, &summary)].concat())
    }
}

/// Event.wall_time = 1, a double: seconds since 1970.
fn wall_time() -> Vec<u8> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    [vec![(1 << 3) | 1], seconds.to_le_bytes().to_vec()].concat()
}

/// A field of wire type 0.
fn integer(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

/// A field of wire type 2: text or a message.
fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
    [varint((field << 3) | 2), varint(value.len() as u64), value.to_vec()].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// CRC-32C, rotated and shifted as TFRecords have it.
fn masked(data: &[u8]) -> [u8; 4] {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
    let crc = !data.iter().fold(u32::MAX, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step));
    crc.rotate_right(15).wrapping_add(0xA282_EAD8).to_le_bytes()
}
