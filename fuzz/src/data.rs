//! The readers of pairs and instructions, and the decoder of pictures.

use std::path::Path;

use aspo_data::image::{Fit, ImageProcessor, decode, decoded_bytes};
use aspo_data::read::read_conversations;
use aspo_data::records::{RecordWriter, Records, key_of};
use aspo_data::write::{
    write_conversations, write_llama_factory, write_rlaif_parquet, write_seva, write_trl_jsonl,
};
use aspo_data::{
    Error, Format, ImageLoader, ImageSource, Pair, Pairing, Result, Source, read_pairs, read_pairs_as,
    read_source,
};

/// TRL, as JSON lines, a JSON list or parquet.
pub fn trl(bytes: &[u8]) {
    pairs(bytes, Format::Trl, |path, pair| write_trl_jsonl(path, [pair]));
}

/// SeVa's list.
pub fn seva(bytes: &[u8]) {
    pairs(bytes, Format::Seva, |path, pair| write_seva(path, [pair]));
}

/// RLAIF-V and RLHF-V.
pub fn rlaif(bytes: &[u8]) {
    pairs(bytes, Format::RlaifV, |path, pair| write_rlaif_parquet(path, [pair]));
}

/// LLaMA-Factory's ranking data.
pub fn llama_factory(bytes: &[u8]) {
    pairs(bytes, Format::LlamaFactory, |path, pair| write_llama_factory(path, [pair]));
}

/// Reads a file to its end, of the given format and of the one recognised; a pair that was read is written and read as
/// the same.
fn pairs(bytes: &[u8], format: Format, write: impl Fn(&Path, &Pair) -> Result<()>) {
    let folder = scratch();
    let path = folder.path().join("pairs");
    std::fs::write(&path, bytes).expect("a scratch file");
    if let Ok(pairs) = read_pairs(&path) {
        ends(pairs, bytes);
    }
    let Ok(read) = read_pairs_as(&path, format) else { return };
    for pair in ends(read, bytes).into_iter().take(2) {
        // Writers that set tags have their readers trim the text, and an empty system message is none to some.
        if pair.questions().any(|text| text.trim() != text)
            || pair.system.as_deref() == Some("")
            || write(&path, &pair).is_err()
        {
            continue;
        }
        let again =
            read_pairs_as(&path, format).and_then(|mut pairs| pairs.next().expect("one row was written"));
        let again = again.expect("what was written is read");
        // SeVa keeps no ids.
        let pair = Pair { id: if format == Format::Seva { "1".to_owned() } else { pair.id.clone() }, ..pair };
        assert_eq!(again, pair);
    }
}

/// The formats that are read alone: ms-swift's, OpenAI's, HA-DPO's, answers with ratings.
pub fn others(bytes: &[u8]) {
    let folder = scratch();
    let path = folder.path().join("pairs");
    std::fs::write(&path, bytes).expect("a scratch file");
    for format in [Format::MsSwift, Format::OpenAi, Format::HaDpo, Format::Ratings] {
        if let Ok(read) = read_pairs_as(&path, format) {
            ends(read, bytes);
        }
    }
    if let Ok(read) = read_pairs(&path) {
        ends(read, bytes);
    }
}

/// A table whose columns have other names; the pictures of its rows are read again from their places.
pub fn source(bytes: &[u8]) {
    let folder = scratch();
    let path = folder.path().join("pairs");
    std::fs::write(&path, bytes).expect("a scratch file");
    let columns =
        [("chosen", "rejected"), ("rejected", "chosen")].map(|(ours, theirs)| (ours.into(), theirs.into()));
    for columns in [Default::default(), columns.into()] {
        let source = Source { columns, pairing: Pairing::All, ..path.as_path().into() };
        let Ok(pairs) = read_source(&source) else { continue };
        let loader = ImageLoader::new(folder.path(), ImageProcessor::clip(8)).expect("a processor");
        for image in ends(pairs, bytes).into_iter().flat_map(|pair| pair.images) {
            let ImageSource::Bytes(read) = &image else { continue };
            let Some(place) = read.place() else { continue };
            let again = loader.bytes(&ImageSource::Place(place)).map(|again| again.into_owned());
            assert_eq!(again.expect("a picture that was read is there"), **read);
        }
    }
}

/// A file of records, whole or left half-made: records or nothing, never others than were written.
pub fn records(bytes: &[u8]) {
    let folder = scratch();
    let (path, key) = (folder.path().join("some"), key_of("fuzz"));
    let whole = |records: &Records| (0..records.len()).filter_map(|index| records.get(index).ok()).count();
    // As the corpus cannot know the key, the input is what stands behind it.
    let head = [b"aspo records 1\n", key.as_bytes(), b"\n"].concat();
    std::fs::write(&path, [&head, bytes].concat()).expect("a scratch file");
    if let Ok(Some(records)) = Records::open(&path, &key) {
        assert!(whole(&records) <= bytes.len());
    }
    std::fs::remove_file(&path).expect("a scratch file");
    std::fs::write(folder.path().join("some.part"), [&head, bytes].concat()).expect("a scratch file");
    let mut writer = RecordWriter::begin(&path, &key).expect("a scratch file");
    let kept = writer.len();
    writer.push(7, b"one more").expect("a scratch file");
    let records = writer.finish(b"note").expect("a scratch file");
    assert_eq!((whole(&records), records.note()), (kept + 1, &b"note"[..]));
    assert_eq!(records.get(kept).expect("the last"), b"one more");
}

/// LLaVA's instructions.
pub fn llava(bytes: &[u8]) {
    let folder = scratch();
    let path = folder.path().join("conversations");
    std::fs::write(&path, bytes).expect("a scratch file");
    let Ok(read) = read_conversations(&path) else { return };
    for conversation in ends(read, bytes).into_iter().take(2) {
        assert!(!conversation.turns.is_empty());
        if conversation.turns.iter().any(|turn| turn.user.trim() != turn.user)
            || write_conversations(&path, [&conversation]).is_err()
        {
            continue;
        }
        let again = read_conversations(&path).and_then(|mut rows| rows.next().expect("one row was written"));
        assert_eq!(again.expect("what was written is read"), conversation);
    }
}

/// A picture or an error; what the header promises is what comes out, and it can be resized.
pub fn image(bytes: &[u8]) {
    let promised = decoded_bytes(bytes);
    // Larger pictures only take longer.
    if promised.as_ref().is_ok_and(|&bytes| bytes > 4 << 20) {
        return;
    }
    let Ok(image) = decode(bytes) else { return };
    assert_eq!(image.pixels.len(), 3 * image.width as usize * image.height as usize);
    assert!(promised.is_ok(), "decoded, though its header is refused: {promised:?}");
    for fit in [Fit::Crop, Fit::Pad, Fit::Squash] {
        let values = ImageProcessor::clip(8).with_fit(fit).preprocess(&image).expect("a decoded picture");
        assert!(values.len() == 3 * 8 * 8 && values.iter().all(|value| value.is_finite()));
    }
}

/// The sound rows. Every row takes at least a byte of the file, but for tables, which are compressed, and for HA-DPO's, of
/// whose texts each of 64 meets each of 64 others.
fn ends<T>(rows: impl Iterator<Item = Result<T, Error>>, bytes: &[u8]) -> Vec<T> {
    let limit = if bytes.starts_with(b"PAR1") { 100_000 } else { 16 * (bytes.len() + 1) };
    let mut sound = Vec::new();
    for (index, row) in rows.enumerate() {
        assert!(index < limit, "the reader does not end");
        match row {
            Ok(row) if sound.len() < 4 => sound.push(row),
            Ok(_) => {}
            Err(error) => assert!(error.to_string().len() < 4000, "a message as long as the file"),
        }
    }
    sound
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a scratch folder")
}
