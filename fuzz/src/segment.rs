//! The splitter and the aligner.

use aspo_segment::{Language, Rules, SplitOptions, align, byte_offsets, split as sentences, within};

/// Three bytes of options, then the text: the spans tile it, keep to the lengths and stay whole when split again.
pub fn split(bytes: &[u8]) {
    let Some((&[kind, min, max], text)) = bytes.split_first_chunk() else { return };
    let text = String::from_utf8_lossy(text);
    let options = SplitOptions {
        rules: [Rules::Answer, Rules::Answer, Rules::Period, Rules::Newline][usize::from(kind % 4)],
        language: [Language::English, Language::German, Language::French, Language::Spanish]
            [usize::from(kind / 4 % 4)],
        min_length: usize::from(min / 4),
        max_length: if max < 128 { usize::MAX } else { usize::from(max - 128) },
    };
    let unlimited = options.max_length == usize::MAX;
    let spans: Vec<_> = sentences(&text, &options).collect();
    let mut end = 0;
    for span in &spans {
        assert!(
            span.start == end && span.end > end && text.is_char_boundary(span.end),
            "{span:?} after {end}"
        );
        let sentence = &text[span.clone()];
        assert!(
            span.start == 0 || !sentence.starts_with(char::is_whitespace),
            "white space in front of {span:?}"
        );
        let length = sentence.trim().chars().count();
        assert!(unlimited || length <= options.max_length.max(1), "{span:?} is too long");
        if unlimited {
            assert!(spans.len() == 1 || length >= options.min_length, "{span:?} is too short");
            assert_eq!(sentences(sentence, &options).count(), 1, "{span:?} splits again");
        }
        end = span.end;
    }
    assert_eq!(end, text.len());
}

/// A count, as many offsets of two bytes, then the text: an error, or ordered ids of sentences that are there.
pub fn alignment(bytes: &[u8]) {
    let Some((&count, rest)) = bytes.split_first() else { return };
    let (numbers, text) = rest.split_at(rest.len().min(2 * usize::from(count % 64)));
    let text = String::from_utf8_lossy(text);
    let offsets: Vec<(usize, usize)> =
        numbers.chunks_exact(2).map(|pair| (usize::from(pair[0]), usize::from(pair[1]))).collect();
    let spans: Vec<_> = sentences(&text, &SplitOptions::default()).collect();
    let wild: Vec<_> = offsets.iter().map(|&(start, end)| start..end).collect();
    let shifted = within(3..40, &offsets).unwrap_or_default();
    let characters = byte_offsets(&text, &offsets).unwrap_or_default();
    for (spans, offsets) in [(&spans, &offsets), (&wild, &offsets), (&spans, &shifted), (&spans, &characters)]
    {
        if let Ok(ids) = align(&text, spans, offsets) {
            assert_eq!(ids.len(), offsets.len());
            assert!(ids.is_sorted() && ids.iter().all(|&id| id < spans.len()));
        }
    }
}
