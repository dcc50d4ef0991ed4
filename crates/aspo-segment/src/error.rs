//! What can be wrong with spans and offsets.

/// Why tokens could not be given to sentences.
///
/// Offsets that do not fit are refused, never guessed at: a wrong sentence id would silently weight the wrong words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The spans leave a hole, overlap, are empty, or do not end where the text ends.
    #[error(
        "sentence {sentence} should start at byte {expected} and lie within the text's {length} bytes, \
         but spans {start}..{end}; pass the spans that `split` gave for this very text"
    )]
    Spans {
        /// Index of the first span that does not fit; the number of spans, where the last one ends too early.
        sentence: usize,
        /// The byte at which it should start.
        expected: usize,
        /// The byte at which it starts.
        start: usize,
        /// The byte at which it ends.
        end: usize,
        /// Length of the text in bytes.
        length: usize,
    },

    /// There are tokens, but the text holds no sentence they could belong to.
    #[error("{tokens} tokens but no sentence: the text is empty; drop the answer, or give it a text")]
    NoSentence {
        /// Number of tokens.
        tokens: usize,
    },

    /// A token's offsets run backwards or point outside the text.
    #[error(
        "token {token} has offsets {start}..{end}, outside the text's {length} {unit}; \
         encode this very text, and mark special tokens with equal offsets such as (0, 0)"
    )]
    Outside {
        /// Index of the token.
        token: usize,
        /// Its first offset.
        start: usize,
        /// Its last offset, exclusive.
        end: usize,
        /// Length of the text.
        length: usize,
        /// What the offsets count: `bytes` or `characters`.
        unit: &'static str,
    },

    /// A token starts before the one in front of it.
    #[error(
        "token {token} starts at byte {start}, before byte {previous} where the token in front of it starts"
    )]
    Order {
        /// Index of the token.
        token: usize,
        /// Where it starts.
        start: usize,
        /// Where the token in front of it starts.
        previous: usize,
    },

    /// Some of the text is covered by no token, so the offsets are of another text or another unit.
    #[error(
        "no token covers {missed:?} at byte {at} (next token: {token}); offsets must be in bytes \
         (convert characters with `byte_offsets`) and of all of the text: truncate after aligning"
    )]
    Uncovered {
        /// Index of the first token behind the hole; the number of tokens, where the hole is at the end.
        token: usize,
        /// The byte where the hole starts.
        at: usize,
        /// The first characters of what no token covers.
        missed: String,
    },

    /// A token lies, in whole, outside the part of the document that was asked for.
    #[error(
        "token {token} at {start}..{end} lies outside the response at {from}..{to}; \
         pass the response's tokens only, special tokens with equal offsets such as (0, 0)"
    )]
    NotInResponse {
        /// Index of the token.
        token: usize,
        /// Its first offset.
        start: usize,
        /// Its last offset, exclusive.
        end: usize,
        /// Where the response starts.
        from: usize,
        /// Where the response ends.
        to: usize,
    },
}
