//! A look at a parquet file's list of columns before the library reads it.
//!
//! The library (parquet 60.1, `schema/types.rs`) follows the nesting of columns by recursion and reserves room for as many
//! children as a column claims: a small file could end the process. What is looked at is the list `schema` of `FileMetaData` in Thrift's compact protocol
//! (parquet-format, `parquet.thrift`); whatever else is wrong with the file is left to the library to tell.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

/// Deepest nesting of columns; those of preference data have six.
const MAX_DEPTH: usize = 64;
/// Longest footer that is looked through.
const MAX_FOOTER_BYTES: u64 = 64 << 20;

/// Refuses columns nested too deeply, or more children than there are columns.
pub(super) fn check(file: &mut File) -> std::io::Result<Result<(), String>> {
    let size = file.seek(SeekFrom::End(0))?;
    if size < 12 {
        return Ok(Ok(()));
    }
    let mut tail = [0; 8];
    file.seek(SeekFrom::End(-8))?;
    file.read_exact(&mut tail)?;
    let length = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    if &tail[4..] != b"PAR1" || length + 8 > size {
        return Ok(Ok(()));
    }
    if length > MAX_FOOTER_BYTES {
        return Ok(Err(format!("its footer has {length} bytes, the limit is {MAX_FOOTER_BYTES}")));
    }
    let mut footer = vec![0; length as usize];
    file.seek(SeekFrom::Start(size - 8 - length))?;
    file.read_exact(&mut footer)?;
    file.rewind()?;
    Ok(check_columns(&footer).unwrap_or(Ok(())))
}

/// `None` where the footer cannot be followed.
fn check_columns(footer: &[u8]) -> Option<Result<(), String>> {
    let mut reader = Compact { bytes: footer };
    let mut field = 0;
    loop {
        let kind = reader.field(&mut field)?;
        if field == 2 && kind == LIST {
            break;
        }
        reader.skip(kind, 0)?;
    }
    let (count, _) = reader.list()?;
    // Children still to come of every column around the present one.
    let mut open: Vec<u64> = Vec::new();
    for _ in 0..count {
        let children = reader.children()?;
        if children > count {
            return Some(Err(format!("a column claims {children} parts, the file has {count} columns")));
        }
        if children > 0 {
            open.push(children);
        } else {
            while let Some(left) = open.last_mut() {
                *left -= 1;
                if *left > 0 {
                    break;
                }
                open.pop();
            }
        }
        if open.len() > MAX_DEPTH {
            return Some(Err(format!("its columns are nested more than {MAX_DEPTH} deep")));
        }
    }
    Some(Ok(()))
}

const STRUCT: u8 = 12;
const LIST: u8 = 9;

/// Thrift's compact protocol.
struct Compact<'a> {
    bytes: &'a [u8],
}

impl Compact<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(*first)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// The type of the next field, whose number is left in `field`; 0 at the end of the struct.
    fn field(&mut self, field: &mut i64) -> Option<u8> {
        let head = self.byte()?;
        match head >> 4 {
            0 if head != 0 => {
                let number = self.varint()?;
                *field = (number >> 1) as i64 ^ -((number & 1) as i64);
            }
            step => *field += i64::from(step),
        }
        Some(head & 0x0F)
    }

    /// Length and element type.
    fn list(&mut self) -> Option<(u64, u8)> {
        let head = self.byte()?;
        let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        Some((count, head & 0x0F))
    }

    /// `num_children` (field 5) of a `SchemaElement`; 0 where it is left out.
    fn children(&mut self) -> Option<u64> {
        let (mut field, mut children) = (0, 0);
        loop {
            match self.field(&mut field)? {
                0 => return Some(children),
                5 if field == 5 => {
                    let number = self.varint()?;
                    // Zigzag; a negative number is refused as too large.
                    children = if number & 1 == 0 { number >> 1 } else { u64::MAX };
                }
                kind => self.skip(kind, 0)?,
            }
        }
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        if depth > MAX_DEPTH {
            return None;
        }
        match kind {
            1 | 2 => {}
            3 => _ = self.byte()?,
            4..=6 => _ = self.varint()?,
            7 => self.bytes = self.bytes.get(8..)?,
            8 => {
                let length = usize::try_from(self.varint()?).ok()?;
                self.bytes = self.bytes.get(length..)?;
            }
            LIST | 10 => {
                let (count, kind) = self.list()?;
                for _ in 0..count {
                    match kind {
                        // A flag in a list takes a byte, unlike one in a field.
                        1 | 2 => _ = self.byte()?,
                        _ => self.skip(kind, depth + 1)?,
                    }
                }
            }
            STRUCT => {
                let mut field = 0;
                loop {
                    match self.field(&mut field)? {
                        0 => break,
                        kind => self.skip(kind, depth + 1)?,
                    }
                }
            }
            _ => return None,
        }
        Some(())
    }
}
