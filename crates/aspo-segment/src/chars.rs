//! Classes of characters that the rules ask about.

/// White space that starts a new line.
pub(crate) fn is_newline(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// Full stops that end a sentence without white space behind them: Chinese, Japanese, full-width, Devanagari, Urdu,
/// Arabic, Armenian, Ethiopic, Khmer and Burmese.
pub(crate) fn is_wide_stop(c: char) -> bool {
    matches!(
        c,
        '。' | '！'
            | '？'
            | '．'
            | '｡'
            | '।'
            | '॥'
            | '۔'
            | '؟'
            | '։'
            | '።'
            | '፧'
            | '។'
            | '။'
            | '‼'
            | '⁇'
            | '⁈'
            | '⁉'
    )
}

/// What may stand between the full stop and the white space behind a sentence.
pub(crate) fn is_closer(c: char) -> bool {
    matches!(c, '"' | '\'' | ')' | ']' | '}' | '*' | '_' | '`')
        || is_closing_quote(c)
        || matches!(c, '）' | '】' | '》' | '〉')
}

/// Quotation marks that close, straight ones left out.
pub(crate) fn is_closing_quote(c: char) -> bool {
    matches!(c, '”' | '’' | '»' | '›' | '」' | '』' | '“')
}

/// What may stand in front of a sentence's first word.
pub(crate) fn is_opener(c: char) -> bool {
    matches!(
        c,
        '"' | '\''
            | '('
            | '['
            | '{'
            | '*'
            | '_'
            | '`'
            | '“'
            | '”'
            | '„'
            | '‘'
            | '’'
            | '«'
            | '»'
            | '‹'
            | '「'
            | '『'
            | '（'
            | '【'
            | '《'
            | '¿'
            | '¡'
    )
}

/// Bullets that are emoji too: in a line, behind a sentence that does not start with one, they are emoji.
pub(crate) fn is_tick(c: char) -> bool {
    matches!(c, '✓' | '✔' | '✅' | '❌')
}

/// Bullets at the start of a line or a sentence.
pub(crate) fn is_bullet(c: char) -> bool {
    matches!(c, '•' | '⁃' | '●' | '○' | '◦' | '▪' | '▫' | '■' | '□' | '‣' | '►' | '▶' | '➢' | '➤')
        || is_tick(c)
}

/// Emoji and what joins and colours them.
pub(crate) fn is_emoji(c: char) -> bool {
    matches!(
        c,
        '\u{1f000}'..='\u{1faff}' | '\u{2600}'..='\u{27bf}' | '\u{2b50}' | '\u{2b55}' | '\u{200d}' | '\u{fe0e}' | '\u{fe0f}'
            | '\u{20e3}' | '\u{e0020}'..='\u{e007f}'
    )
}

/// Bytes of white space at the start.
pub(crate) fn leading_space(text: &str) -> usize {
    text.len() - text.trim_start().len()
}
