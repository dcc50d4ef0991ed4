//! Minimum and maximum length, and the plain rules of others.

use aspo_segment::{Language, Rules, SplitOptions};

use crate::sentences_with;

#[test]
fn every_full_stop_ends_a_sentence_by_the_period_rule() {
    let options = SplitOptions { rules: Rules::Period, ..Default::default() };
    assert_eq!(
        sentences_with("It costs 3.50. Mr. X paid...\nDone", &options),
        ["It costs 3.", "50.", "Mr.", "X paid...", "Done"]
    );
}

#[test]
fn every_line_is_a_sentence_by_the_newline_rule() {
    let options = SplitOptions { rules: Rules::Newline, ..Default::default() };
    assert_eq!(sentences_with("\nOne. Two.\r\nThree\n\n\nFour", &options), ["One. Two.", "Three", "Four"]);
    assert_eq!(sentences_with("One\u{2028}Two\u{85}Three", &options), ["One", "Two", "Three"]);
}

#[test]
fn a_list_number_cut_off_joins_its_item() {
    let options = SplitOptions { rules: Rules::Period, min_length: 3, ..Default::default() };
    assert_eq!(sentences_with("1. The cat. 2. The dog.", &options), ["1. The cat.", "2. The dog."]);
}

#[test]
fn a_short_last_sentence_joins_the_one_before() {
    let options = SplitOptions { min_length: 6, ..Default::default() };
    assert_eq!(sentences_with("A dog runs. Yes.", &options), ["A dog runs. Yes."]);
    assert_eq!(sentences_with("Yes.", &options), ["Yes."]);
}

#[test]
fn a_long_sentence_is_cut_after_a_comma_else_between_words_else_between_characters() {
    let at = |max_length, text| sentences_with(text, &SplitOptions { max_length, ..Default::default() });
    assert_eq!(
        at(24, "A dog, brown and old, runs over the wet grass."),
        ["A dog, brown and old,", "runs over the wet grass."]
    );
    assert_eq!(at(10, "one two three four"), ["one two", "three four"]);
    assert_eq!(at(4, "abcdefghij"), ["abcd", "efgh", "ij"]);
    assert_eq!(at(0, "abc"), ["a", "b", "c"]);
}

#[test]
fn a_cut_keeps_an_emoji_and_an_accent_whole() {
    let options = SplitOptions { max_length: 4, ..Default::default() };
    assert_eq!(sentences_with("ab👨\u{200d}👩x", &options), ["ab", "👨\u{200d}👩x"]);
    assert_eq!(sentences_with("abce\u{301}d", &options), ["abc", "e\u{301}d"]);
    // A flag is two letters, a syllable of Hindi or Korean several signs.
    assert_eq!(sentences_with("abc🇩🇪d", &options), ["abc", "🇩🇪d"]);
    assert_eq!(sentences_with("abcक्षि", &options), ["abc", "क्षि"]);
    assert_eq!(sentences_with("abc\u{1112}\u{1161}\u{11ab}", &options), ["abc", "\u{1112}\u{1161}\u{11ab}"]);
}

#[test]
fn the_maximum_wins_over_the_minimum() {
    let options = SplitOptions { min_length: 20, max_length: 12, ..Default::default() };
    assert_eq!(sentences_with("A dog runs. A cat runs.", &options), ["A dog runs.", "A cat runs."]);
}

#[test]
fn a_language_hint_brings_its_abbreviations_and_ordinals() {
    let hint = |language, text| sentences_with(text, &SplitOptions { language, ..Default::default() });
    let german = "Die Wahl war am 3. Mai, d.h. vor Dr. Meyers Reise. Sie steht auf Seite 12. Dort endet sie.";
    assert_eq!(
        hint(Language::German, german),
        ["Die Wahl war am 3. Mai, d.h. vor Dr. Meyers Reise.", "Sie steht auf Seite 12.", "Dort endet sie."]
    );
    assert_eq!(hint(Language::French, "Voici M. Dupont. Il dort."), ["Voici M. Dupont.", "Il dort."]);
    assert_eq!(
        hint(Language::Spanish, "La Sra. Pérez vive aquí. ¿Quién es?"),
        ["La Sra. Pérez vive aquí.", "¿Quién es?"]
    );
}
