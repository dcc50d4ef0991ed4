//! The rows of a JSON list or of a file with one JSON object a line, one at a time, in bounded memory.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::MAX_ROW_BYTES;
use crate::error::{Error, FileFault, Result, RowFault};

/// Iterates over `(row number, object)`. A faulty row is an error and the next row follows; after an error of the file
/// itself (it ends early, it cannot be read) the iterator ends.
#[derive(Debug)]
pub(crate) struct JsonRows<R> {
    path: PathBuf,
    reader: R,
    row: usize,
    list: bool,
    done: bool,
}

/// The bytes of a row or why there are none, and whether a line end followed.
type Line = (Result<Vec<u8>, RowFault>, bool);

impl JsonRows<BufReader<File>> {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| Error::io(path, source))?;
        Self::new(path, BufReader::with_capacity(1 << 16, file))
    }
}

impl<R: BufRead> JsonRows<R> {
    pub(crate) fn new(path: &Path, mut reader: R) -> Result<Self> {
        let fail = |fault| Err(Error::file(path, fault));
        let start = peek(&mut reader).map_err(|source| Error::io(path, source))?;
        match start {
            [0xEF, 0xBB, 0xBF, ..] => reader.consume(3),
            [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] | [_, 0, ..] | [0, _, ..] => {
                return fail(FileFault::Encoding { found: "UTF-16 or another wide encoding" });
            }
            [0x1F, 0x8B, ..] => {
                return fail(FileFault::Unsupported("the file is gzip: unpack it first".to_owned()));
            }
            _ => {}
        }
        let mut lines = 0;
        let first = skip_lines(&mut reader, &mut lines).map_err(|source| Error::io(path, source))?;
        let list = match first {
            None => return fail(FileFault::Empty),
            Some(b'[') => {
                reader.consume(1);
                true
            }
            Some(b'{') => false,
            Some(_) => {
                let start = reader.fill_buf().map_err(|source| Error::io(path, source))?;
                let found = String::from_utf8_lossy(&start[..start.len().min(20)]).into_owned();
                return fail(FileFault::Container { found });
            }
        };
        // Rows of a list are counted by themselves, those of lines as an editor counts, blank ones too.
        let row = if list { 0 } else { lines };
        Ok(Self { path: path.to_owned(), reader, row, list, done: false })
    }

    fn fault(&self, fault: RowFault) -> Error {
        Error::row(&self.path, self.row, fault)
    }

    /// The bytes of the next line that is not blank, and whether a line end followed.
    fn next_line(&mut self) -> std::io::Result<Option<Line>> {
        loop {
            let mut line = Vec::new();
            let (mut any, mut ended, mut too_long) = (false, false, false);
            while !ended {
                let buffer = match self.reader.fill_buf() {
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    other => other?,
                };
                if buffer.is_empty() {
                    break;
                }
                any = true;
                let end = buffer.iter().position(|byte| *byte == b'\n');
                let used = end.unwrap_or(buffer.len());
                if line.len() + used > MAX_ROW_BYTES {
                    too_long = true;
                    line = Vec::new();
                } else if !too_long {
                    line.extend_from_slice(&buffer[..used]);
                }
                ended = end.is_some();
                self.reader.consume(used + usize::from(ended));
            }
            if !any {
                return Ok(None);
            }
            if too_long {
                return Ok(Some((Err(RowFault::TooLong { limit: MAX_ROW_BYTES }), ended)));
            }
            // Line numbers are what an editor shows, so blank lines count.
            self.row += 1;
            if !line.trim_ascii().is_empty() {
                self.row -= 1;
                return Ok(Some((Ok(line), ended)));
            }
        }
    }

    /// The bytes of the next element of the list; `None` at its end.
    fn next_element(&mut self) -> std::io::Result<Option<Result<Vec<u8>, RowFault>>> {
        let mut first = skip_space(&mut self.reader)?;
        if self.row > 0 {
            match first {
                Some(b',') => {
                    self.reader.consume(1);
                    first = skip_space(&mut self.reader)?;
                }
                Some(b']') | None => {}
                Some(_) => {
                    self.done = true;
                    return Ok(Some(Err(RowFault::Json("a comma is missing before this row".to_owned()))));
                }
            }
        }
        match first {
            Some(b']') => {
                self.reader.consume(1);
                self.done = true;
                let more = skip_space(&mut self.reader)?;
                return Ok(
                    more.map(|_| Err(RowFault::Json("there is more after the end of the list".to_owned())))
                );
            }
            None => {
                self.done = true;
                return Ok(Some(Err(RowFault::Cut)));
            }
            Some(_) => {}
        }
        let mut scan = Scan::default();
        let mut bytes = Vec::new();
        let mut too_long = false;
        loop {
            let buffer = match self.reader.fill_buf() {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other?,
            };
            if buffer.is_empty() {
                self.done = true;
                return Ok(Some(Err(RowFault::Cut)));
            }
            let end = scan.run(buffer);
            let used = end.unwrap_or(buffer.len());
            if bytes.len() + used > MAX_ROW_BYTES {
                too_long = true;
                bytes = Vec::new();
            } else if !too_long {
                bytes.extend_from_slice(&buffer[..used]);
            }
            self.reader.consume(used);
            if end.is_some() {
                let fault = RowFault::TooLong { limit: MAX_ROW_BYTES };
                return Ok(Some(if too_long { Err(fault) } else { Ok(bytes) }));
            }
        }
    }
}

impl<R: BufRead> Iterator for JsonRows<R> {
    type Item = Result<(usize, Value)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = if self.list {
            self.next_element().map(|element| element.map(|element| (element, true)))
        } else {
            self.next_line()
        };
        let (bytes, ended) = match next {
            Ok(None) => {
                self.done = true;
                return None;
            }
            Ok(Some(found)) => found,
            Err(source) => {
                self.done = true;
                return Some(Err(Error::io(&self.path, source)));
            }
        };
        self.row += 1;
        let parsed = bytes.and_then(|bytes| parse(&bytes, ended));
        Some(parsed.map(|value| (self.row, value)).map_err(|fault| self.fault(fault)))
    }
}

fn parse(bytes: &[u8], ended: bool) -> Result<Value, RowFault> {
    let text = std::str::from_utf8(bytes).map_err(|error| RowFault::NotUtf8 { at: error.valid_up_to() });
    // A character cut in the middle at the end of the file is a cut row, not a wrong encoding.
    let text = match text {
        Err(RowFault::NotUtf8 { at }) if !ended && at + 4 > bytes.len() => return Err(RowFault::Cut),
        other => other?,
    };
    serde_json::from_str(text).map_err(|error| match error.classify() {
        serde_json::error::Category::Eof if !ended => RowFault::Cut,
        _ => RowFault::Json(error.to_string()),
    })
}

/// Finds where a JSON value ends without parsing it: brackets outside strings are counted.
#[derive(Debug, Default)]
struct Scan {
    depth: usize,
    in_string: bool,
    escaped: bool,
    started: bool,
}

impl Scan {
    /// Goes on through `buffer`; the index after the value's last byte, if it lies here.
    fn run(&mut self, buffer: &[u8]) -> Option<usize> {
        for (at, byte) in buffer.iter().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => {
                        self.in_string = false;
                        if self.depth == 0 {
                            return Some(at + 1);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth > 0 => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                b',' | b']' | b'}' | b' ' | b'\n' | b'\r' | b'\t' if self.depth == 0 && self.started => {
                    return Some(at);
                }
                _ => {}
            }
            self.started = true;
        }
        None
    }
}

/// The first bytes without consuming them (fewer than two only at the end of the file).
fn peek<R: BufRead>(reader: &mut R) -> std::io::Result<&[u8]> {
    loop {
        match reader.fill_buf() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => break,
        }
    }
    reader.fill_buf()
}

/// Skips white space; the byte after it, not consumed.
fn skip_space<R: BufRead>(reader: &mut R) -> std::io::Result<Option<u8>> {
    skip_lines(reader, &mut 0)
}

/// [`skip_space`], with the line ends met added to `lines`.
fn skip_lines<R: BufRead>(reader: &mut R, lines: &mut usize) -> std::io::Result<Option<u8>> {
    loop {
        let buffer = match reader.fill_buf() {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            other => other?,
        };
        if buffer.is_empty() {
            return Ok(None);
        }
        let space = buffer.iter().position(|byte| !byte.is_ascii_whitespace());
        let skipped = &buffer[..space.unwrap_or(buffer.len())];
        *lines += skipped.iter().filter(|byte| **byte == b'\n').count();
        match space {
            Some(at) => {
                let byte = buffer[at];
                reader.consume(at);
                return Ok(Some(byte));
            }
            None => {
                let used = buffer.len();
                reader.consume(used);
            }
        }
    }
}
