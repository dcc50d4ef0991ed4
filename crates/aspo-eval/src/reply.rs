//! What a model's reply says: past its thinking, numbers among its prose.

/// Tags between which models think aloud.
const THINKING: [&str; 4] = ["think", "thinking", "reasoning", "thought"];

/// The text behind the thinking (`<think>…</think>`, with or without its opening tag), trimmed; nothing if the thinking
/// never ends, as in a reply that was cut.
pub(crate) fn after_thinking(text: &str) -> &str {
    // Letters of ASCII alone, so that places stay what they are.
    let lower = text.to_ascii_lowercase();
    let end = THINKING.iter().filter_map(|tag| {
        let tag = format!("</{tag}>");
        lower.rfind(&tag).map(|at| at + tag.len())
    });
    let from = end.max().unwrap_or(0);
    let opened = THINKING.iter().any(|tag| lower[from..].trim_start().starts_with(&format!("<{tag}>")));
    if opened { "" } else { text[from..].trim() }
}

/// A number as judges write it: `8`, `8.5`, `**8**`, `8/10`; only digits and a point. `of` is what `/10` may be.
pub(crate) fn number(word: &str, of: &[&str]) -> Option<f64> {
    fn bare(text: &str) -> &str {
        let is_mark = |c: char| !(c.is_alphanumeric() || "+-%/".contains(c));
        text.trim_start_matches(|c| c != '.' && is_mark(c)).trim_end_matches(is_mark)
    }
    let word = bare(word);
    let word = of.iter().find_map(|whole| word.strip_suffix(whole)).map_or(word, bare);
    let plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    if plain { word.parse().ok() } else { None }
}

/// Words cut at spaces and at the marks that stand between numbers and before them.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() || ",;:=|，；：、".contains(c))
        .filter(|word| word.chars().any(char::is_alphanumeric))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinking_is_passed_over() {
        for (text, rest) in [
            ("8 4", "8 4"),
            ("<think>\n1 2\n</think>\n\n8 4\nfine", "8 4\nfine"),
            ("so 1 2</THINK> 8 4", "8 4"),
            ("<think>a</think><think>b</think> 8", "8"),
            ("<think>\n8 4", ""),
            ("<think>a</think>\n<think>8 4", ""),
            ("I think 8", "I think 8"),
            ("", ""),
        ] {
            assert_eq!(after_thinking(text), rest, "{text:?}");
        }
    }

    #[test]
    fn numbers_are_digits_with_marks_around_them() {
        for (word, value) in [
            ("8", Some(8.0)),
            ("**8.5**", Some(8.5)),
            ("8/10", Some(8.0)),
            ("8/10.", Some(8.0)),
            ("(7)", Some(7.0)),
            (".5", Some(0.5)),
            ("nan", None),
            ("inf", None),
            ("1e3", None),
            ("-1", None),
            ("50%", None),
            ("4/8", None),
            ("", None),
        ] {
            assert_eq!(number(word, &["/10"]), value, "{word:?}");
        }
    }
}
