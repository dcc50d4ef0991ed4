//! The rows of a JSON list, of a file with one JSON object a line, or of an object of rows by image (HA-DPO's), one at a
//! time, in bounded memory.

use std::io::{BufRead, ErrorKind};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::MAX_ROW_BYTES;
use crate::error::{Error, FileFault, Result, RowFault};

/// Iterates over `(row number, object)`. A faulty row is an error and the next row follows; after an error of the file
/// itself ([`FileFault::Broken`], or it cannot be read) the iterator ends.
#[derive(Debug)]
pub(crate) struct JsonRows<R> {
    path: PathBuf,
    reader: R,
    row: usize,
    container: Container,
    /// Beginning of the file, while no row was given.
    start: Option<String>,
    done: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Container {
    Lines,
    List,
    /// `{"image id": {…}, …}`.
    Object,
}

/// What is read of a row.
enum Found {
    /// Its bytes, the image id that they stand under, and whether the row's end was seen.
    Row { bytes: Vec<u8>, id: Option<Vec<u8>>, ended: bool },
    /// A fault of this row alone.
    Fault(RowFault),
    /// A fault behind which nothing can be read.
    Broken(RowFault),
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
            _ => {}
        }
        let mut lines = 0;
        let first = skip_lines(&mut reader, &mut lines).map_err(|source| Error::io(path, source))?;
        let start = peek(&mut reader).map_err(|source| Error::io(path, source))?;
        let begins: String = String::from_utf8_lossy(&start[..start.len().min(60)]).into_owned();
        let container = match first {
            None => return fail(FileFault::Empty),
            Some(b'[') => Container::List,
            Some(b'{') if holds_answers_by_image(start) => Container::Object,
            Some(b'{') => Container::Lines,
            Some(_) => return fail(FileFault::Container { found: begins.chars().take(20).collect() }),
        };
        // Rows of a list are counted by themselves, those of lines as an editor counts, blank ones too.
        let row = if container == Container::Lines { lines } else { 0 };
        if container != Container::Lines {
            reader.consume(1);
        }
        Ok(Self { path: path.to_owned(), reader, row, container, start: Some(begins), done: false })
    }

    /// The next line that is not blank.
    fn next_line(&mut self) -> std::io::Result<Option<Found>> {
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
            // Line numbers are what an editor shows, so blank lines count.
            self.row += 1;
            if too_long {
                return Ok(Some(Found::Fault(RowFault::TooLong { limit: MAX_ROW_BYTES })));
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some(Found::Row { bytes: line, id: None, ended }));
            }
        }
    }

    /// The next element of the list, or entry of the object; `None` at its end.
    fn next_element(&mut self) -> std::io::Result<Option<Found>> {
        let broken = |why: &str| Ok(Some(Found::Broken(RowFault::Json(why.to_owned()))));
        let close = if self.container == Container::List { b']' } else { b'}' };
        let mut first = skip_space(&mut self.reader)?;
        self.row += 1;
        if self.row > 1 {
            match first {
                Some(b',') => {
                    self.reader.consume(1);
                    first = skip_space(&mut self.reader)?;
                }
                Some(byte) if byte == close => {}
                None => {}
                Some(_) => return broken("a comma is missing before this row"),
            }
        }
        match first {
            Some(byte) if byte == close => {
                self.reader.consume(1);
                self.done = true;
                return match skip_space(&mut self.reader)? {
                    None => Ok(None),
                    Some(_) => broken("there is more after the end of the list"),
                };
            }
            None => return Ok(Some(Found::Broken(RowFault::Cut))),
            Some(_) => {}
        }
        let mut id = None;
        if self.container == Container::Object {
            match self.value()? {
                Ok(bytes) => id = Some(bytes),
                Err(_) => return broken("the image id of this entry cannot be read"),
            }
            match skip_space(&mut self.reader)? {
                Some(b':') => self.reader.consume(1),
                None => return Ok(Some(Found::Broken(RowFault::Cut))),
                Some(_) => return broken("a colon is missing behind the image id"),
            }
            skip_space(&mut self.reader)?;
        }
        Ok(Some(match self.value()? {
            Ok(bytes) => Found::Row { bytes, id, ended: true },
            Err(RowFault::Cut) => Found::Broken(RowFault::Cut),
            Err(fault) => Found::Fault(fault),
        }))
    }

    /// The bytes of the value that starts here.
    fn value(&mut self) -> std::io::Result<Result<Vec<u8>, RowFault>> {
        let mut scan = Scan::default();
        let mut bytes = Vec::new();
        let mut too_long = false;
        loop {
            let buffer = match self.reader.fill_buf() {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other?,
            };
            if buffer.is_empty() {
                return Ok(Err(RowFault::Cut));
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
                return Ok(if too_long { Err(fault) } else { Ok(bytes) });
            }
        }
    }

    /// Whether the file is one object over several lines, or one too long for a row, rather than rows of which the first
    /// is faulty: no row follows.
    fn is_one_object(&mut self, fault: &RowFault, ended: bool) -> std::io::Result<bool> {
        match fault {
            RowFault::TooLong { .. } => Ok(skip_space(&mut self.reader)?.is_none()),
            RowFault::Json(_) if ended => Ok(!matches!(skip_space(&mut self.reader)?, None | Some(b'{'))),
            _ => Ok(false),
        }
    }

    fn read(&mut self) -> Result<Option<(usize, Value)>> {
        let path = self.path.clone();
        let io = |source| Error::io(&path, source);
        let found = match self.container {
            Container::Lines => self.next_line(),
            Container::List | Container::Object => self.next_element(),
        };
        let Some(found) = found.map_err(io)? else { return Ok(None) };
        let start = self.start.take();
        let (fault, ended) = match found {
            Found::Row { bytes, id, ended } => match parse(&bytes, ended) {
                Ok(value) => return Ok(Some((self.row, with_id(value, id)))),
                // Nobody knows what a file that was cut short held behind this row.
                Err(RowFault::Cut) => return Err(self.broken(RowFault::Cut)),
                Err(fault) => (fault, ended),
            },
            Found::Fault(fault) => (fault, true),
            Found::Broken(fault) => return Err(self.broken(fault)),
        };
        if let Some(start) = start
            && self.container == Container::Lines
            && self.is_one_object(&fault, ended).map_err(io)?
        {
            self.done = true;
            return Err(Error::file(&self.path, FileFault::Object { start }));
        }
        Err(Error::row(&self.path, self.row, fault))
    }

    fn broken(&mut self, fault: RowFault) -> Error {
        self.done = true;
        Error::file(&self.path, FileFault::Broken { row: self.row, lost: None, fault })
    }
}

impl<R: BufRead> Iterator for JsonRows<R> {
    type Item = Result<(usize, Value)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let row = self.read().transpose();
        self.done |= matches!(row, None | Some(Err(Error::Io { .. })));
        row
    }
}

/// The image id that an entry stands under becomes one of its keys.
fn with_id(mut value: Value, id: Option<Vec<u8>>) -> Value {
    if let (Some(id), Value::Object(keys)) = (id, &mut value)
        && let Ok(Value::String(id)) = serde_json::from_slice(&id)
    {
        keys.insert("image_id".to_owned(), Value::String(id));
    }
    value
}

/// Whether a file starts as HA-DPO's descriptions do: `{"image id": {"chosen": [`.
fn holds_answers_by_image(start: &[u8]) -> bool {
    let after = |bytes: &[u8], byte: u8| bytes.trim_ascii_start().strip_prefix(&[byte]).map(<[u8]>::to_vec);
    let key = |bytes: &[u8]| -> Option<(Vec<u8>, Vec<u8>)> {
        let text = after(bytes, b'"')?;
        let end = text.iter().position(|byte| *byte == b'"')?;
        Some((text[..end].to_vec(), after(&text[end + 1..], b':')?))
    };
    let entry = || {
        let (id, value) = key(&after(&start[..start.len().min(4096)], b'{')?)?;
        let (name, value) = key(&after(&value, b'{')?)?;
        after(&value, b'[')?;
        Some(!matches!(&id[..], b"chosen" | b"rejected") && matches!(&name[..], b"chosen" | b"rejected"))
    };
    entry().unwrap_or(false)
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
