//! What can be asked of the splitter.

/// How to split; the default is made for model answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitOptions {
    /// What ends a sentence. Default: [`Rules::Answer`].
    pub rules: Rules,
    /// The language of the text, where it is known. Default: [`Language::English`].
    pub language: Language,
    /// A sentence with fewer characters than this (white space around it not counted) joins the next one, the last
    /// one the sentence before it. Default: 0, nothing is joined.
    pub min_length: usize,
    /// A sentence with more characters than this (white space around it not counted) is cut, after a comma, semicolon
    /// or colon if there is one in the second half, else at white space, else anywhere but inside a grapheme cluster (an
    /// emoji, a flag, an accented letter). What is left is read as a sentence of its own, also of code. It wins over `min_length`; 0 counts as 1.
    /// Default: [`usize::MAX`], nothing is cut.
    pub max_length: usize,
}

impl Default for SplitOptions {
    fn default() -> Self {
        Self { rules: Rules::Answer, language: Language::English, min_length: 0, max_length: usize::MAX }
    }
}

/// What ends a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Rules {
    /// Made for model answers. A sentence ends
    ///
    /// - at `.`, `!`, `?`, `…` and their kin of other scripts, closing quotation marks, brackets, emoji and references
    ///   included, unless the word before is an abbreviation, an initial or a number that goes on, or the next one says so;
    /// - there too where the white space was lost (`waves.There`), but not inside names of files and addresses;
    /// - at a blank line, and at a line break unless the line is wrapped prose;
    /// - in front of each item of a list, also of one in a single line (`1. A cat 2. A dog`); a number stays with its item;
    /// - around a fenced block of code, which is one sentence, as is a row of a table.
    #[default]
    Answer,
    /// Every `.`, as SHR cuts: decimals and abbreviations are cut too.
    Period,
    /// Every line break.
    Newline,
}

/// A hint at the language, for its abbreviations and ordinals. Scripts need no hint: `。` ends a sentence in any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Language {
    /// English; also for a text of a language that is not known.
    #[default]
    English,
    /// German: its abbreviations; a number with a full stop is an ordinal ("am 3. Mai").
    German,
    /// French.
    French,
    /// Spanish.
    Spanish,
}
