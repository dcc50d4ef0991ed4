//! The default rules, on the kinds of text that models answer with.

use crate::sentences;

/// States the sentences of a text by writing them one below the other.
macro_rules! splits {
    ($($name:ident: $($sentence:literal)+ from $text:expr;)+) => {
        $(#[test] fn $name() { assert_eq!(sentences($text), [$($sentence),+]); })+
    };
}

splits! {
    prose:
        "The image features a man on a surfboard."
        "Is he waiting?"
        "He is!"
        "He has been there for a while"
        from "The image features a man on a surfboard. Is he waiting? He is! He has been there for a while";
    paragraphs:
        "The first one."
        "The second"
        "the third"
        from "The first one.\n\nThe second\n\n  \nthe third\n";
    titles_and_initials_go_on:
        "Mr. and Mrs. J. R. Smith met Dr. Who."
        "They live in the U.S. Virgin Islands."
        from "Mr. and Mrs. J. R. Smith met Dr. Who. They live in the U.S. Virgin Islands.";
    abbreviations_end_a_sentence_where_a_sentence_starts:
        "She works for Acme Inc."
        "The firm is in the U.S."
        "It sells cups, plates, etc."
        "Nobody buys them."
        from "She works for Acme Inc. The firm is in the U.S. It sells cups, plates, etc. Nobody buys them.";
    words_that_look_like_abbreviations:
        "The answer is no."
        "The dog is ill."
        "Nobody knows where I am."
        "It is art."
        from "The answer is no. The dog is ill. Nobody knows where I am. It is art.";
    numbers:
        "It costs $3.50 or 1.000,25 at version 1.2.3 of No. 5."
        "Pi is 3.14."
        "There are 4."
        "5 are red."
        from "It costs $3.50 or 1.000,25 at version 1.2.3 of No. 5. Pi is 3.14. There are 4. 5 are red.";
    what_counts_behind_an_abbreviation_goes_on:
        "It is in vol. IX of the atlas, on pp. XI and 12."
        "See Fig. A for the layout, and Figs. B-2 and S1."
        "The sign says Apt. B on it."
        "The label reads No. A12, not No. B or no. II."
        "Fig. A shows Sec. A and Art. IV of App. C."
        from "It is in vol. IX of the atlas, on pp. XI and 12. See Fig. A for the layout, and Figs. B-2 and S1. \
              The sign says Apt. B on it. The label reads No. A12, not No. B or no. II. Fig. A shows Sec. A and Art. IV of App. C.";
    what_only_looks_like_it_ends:
        "The answer is no."
        "B is right."
        "No."
        "A dog sits there."
        "She likes art."
        "A man waits one sec."
        "I do not."
        "It is on the fig."
        "The end of vol."
        "Nobody came in Jan."
        "I did."
        "See Fig. A."
        "It shows a room."
        from "The answer is no. B is right. No. A dog sits there. She likes art. A man waits one sec. I do not. \
              It is on the fig. The end of vol. Nobody came in Jan. I did. See Fig. A. It shows a room.";
    times_of_day:
        "It was 5 p.m. on Monday."
        "We met at 6 p.m. Tuesday."
        "They left at 7 a.m."
        "Nobody saw them."
        from "It was 5 p.m. on Monday. We met at 6 p.m. Tuesday. They left at 7 a.m. Nobody saw them.";
    ellipses:
        "He waited... and waited… until it rained."
        "Then..."
        "Nothing happened."
        "The end…"
        from "He waited... and waited… until it rained. Then... Nothing happened. The end…";
    quotations:
        "He said, \"I came.\""
        "“Why?” she asked."
        "'Because.'"
        "\"Stop.\""
        "Then he left."
        from "He said, \"I came.\" “Why?” she asked. 'Because.' \"Stop.\" Then he left.";
    brackets:
        "A dog (it is brown.) sits there."
        "(Its name is Rex.)"
        "It barks [loudly]."
        "\"He agreed\" (Smith 55)."
        from "A dog (it is brown.) sits there. (Its name is Rex.) It barks [loudly]. \"He agreed\" (Smith 55).";
    raised_numbers:
        "It was seen before.11, 12"
        "Others (see there).3"
        "It was 1.5 m at No.5 Main Street."
        from "It was seen before.11, 12 Others (see there).3 It was 1.5 m at No.5 Main Street.";
    words_that_somebody_cried:
        "Leave me alone! he cried."
        "Why? she asked."
        "Good!"
        "he is here"
        from "Leave me alone! he cried. Why? she asked. Good! he is here";
    references_and_footnotes:
        "It was built in 1900.[1]"
        "It burnt down. [12]"
        "It was rebuilt.[3][4]"
        from "It was built in 1900.[1] It burnt down. [12] It was rebuilt.[3][4]";
    glued_sentences:
        "He rides the waves."
        "There are people."
        "It's late!"
        "They watch?"
        "A man sits (left)."
        "Two of 3."
        "The end"
        from "He rides the waves.There are people.It's late!They watch?A man sits (left).Two of 3.The end";
    names_of_files_and_places_on_the_net_stay_whole:
        "See example.com/Foo.Bar, Main.java, node.Js and System.Out.println(x)."
        "Write to Jane.Doe@Example.Com or visit https://a.org/?q=A.B!"
        from "See example.com/Foo.Bar, Main.java, node.Js and System.Out.println(x). \
              Write to Jane.Doe@Example.Com or visit https://a.org/?q=A.B!";
    lists_with_numbers:
        "It has:"
        "1. A cat"
        "2. A dog."
        "It barks."
        "3) A bird"
        "10. The end"
        from "It has:\n1. A cat\n2. A dog. It barks.\n3) A bird\n\n10. The end";
    lists_in_one_line:
        "1. The cat"
        "2. The dog"
        "3. The end."
        from "1. The cat 2. The dog 3. The end.";
    lists_with_bullets:
        "Objects:"
        "- a cup"
        "* **Left:** A plate."
        "It is white."
        "• 3 forks"
        "– a knife"
        from "Objects:\n- a cup\n* **Left:** A plate. It is white.\n• 3 forks\n  – a knife";
    a_number_on_a_line_of_its_own_joins_its_item:
        "1.\nThe cat sits."
        "2.\n\nThe dog runs."
        from "1.\nThe cat sits.\n2.\n\nThe dog runs.";
    headings:
        "# Overview"
        "A street."
        "## Details"
        "**Cars**"
        "They are red."
        from "# Overview\nA street.\n## Details\n**Cars**\nThey are red.";
    fenced_code_is_one_sentence:
        "Run this:"
        "```python\nx = 1. \nprint(\"Hi. There!\")\n\n# Done. Yes.\n```"
        "It prints."
        from "Run this:\n```python\nx = 1. \nprint(\"Hi. There!\")\n\n# Done. Yes.\n```\nIt prints.";
    code_that_is_never_closed_runs_to_the_end:
        "Run this:"
        "~~~\na. B\n\nc! D"
        from "Run this:\n~~~\na. B\n\nc! D";
    ticks_without_a_line_are_no_fence:
        "````Done."
        "````Done."
        "It ends."
        from "````Done. ````Done. It ends.";
    code_in_a_line:
        "Call `a. B! C` first."
        "Then stop."
        from "Call `a. B! C` first. Then stop.";
    tables:
        "| Name | Use |"
        "|---|---|"
        "| 1. Cup | Drink. Now! |"
        from "| Name | Use |\n|---|---|\n| 1. Cup | Drink. Now! |";
    wrapped_lines_go_on:
        "The quick brown fox jumps over\nthe lazy dog of the\nUnited States."
        "It is fast and it has been seen all over the\ncountry, at least by those who were awake, in\nAugust."
        from "The quick brown fox jumps over\nthe lazy dog of the\nUnited States. It is fast and it has been seen all over the\n\
              country, at least by those who were awake, in\nAugust.";
    lines_without_a_full_stop:
        "Dear Sir"
        "Thank you"
        "Best regards"
        from "Dear Sir\nThank you\nBest regards";
    emoji:
        "Great! 😀"
        "A family 👨\u{200d}👩\u{200d}👧 walks. 🎉🎉"
        "Party ☀️ time"
        from "Great! 😀 A family 👨\u{200d}👩\u{200d}👧 walks. 🎉🎉 Party ☀️ time";
    ticks_in_a_line:
        "It is done. ✅"
        "Next comes lunch. ❌"
        "Never mind ✅"
        "The end"
        from "It is done. ✅ Next comes lunch. ❌ Never mind ✅ The end";
    ticks_that_number_items:
        "✅ Fast."
        "✅ Cheap."
        "❌ Heavy"
        from "✅ Fast. ✅ Cheap. ❌ Heavy";
    emoticons:
        "Thanks :)"
        "See you. ;-)"
        "Bye"
        from "Thanks :) See you. ;-) Bye";
    chinese:
        "图中有一只猫。"
        "它在睡觉！"
        "旁边有两只狗吗？"
        "她说：“你好。”"
        "看《摔跤吧！爸爸》好吗？"
        "没有"
        from "图中有一只猫。它在睡觉！旁边有两只狗吗？她说：“你好。”看《摔跤吧！爸爸》好吗？没有";
    japanese:
        "これはペンです。"
        "「行く。」と言った。"
        "それは（とても。）いい！"
        "「本当？」"
        "「はい。」"
        "ええ"
        from "これはペンです。「行く。」と言った。それは（とても。）いい！「本当？」「はい。」ええ";
    other_scripts:
        "यह एक किताब है।"
        "वह लाल है।"
        "کیا یہ کتاب ہے؟"
        "ہاں۔"
        "Это дом."
        "Он большой."
        "Բարև։"
        "ሰላም።"
        from "यह एक किताब है। वह लाल है। کیا یہ کتاب ہے؟ ہاں۔ Это дом. Он большой. Բարև։ ሰላም።";
    small_letters_of_hasty_writers:
        "i went there."
        "it was good!"
        "would you go?"
        "i would"
        from "i went there. it was good! would you go? i would";
    names_with_an_exclamation_mark:
        "She works at Yahoo! in the city."
        from "She works at Yahoo! in the city.";
    lines_drawn_with_signs:
        "Above"
        "=========="
        "Below"
        from "Above ========== Below";
    answers_to_choices:
        "B. The cat"
        "The answer is: C. The dog"
        "D."
        "It is a bird."
        from "B. The cat\nThe answer is: C. The dog\n\nD.\n\nIt is a bird.";
}

#[test]
fn an_empty_text_has_no_sentence_and_a_blank_one_has_one() {
    assert!(sentences("").is_empty());
    assert_eq!(sentences(" \n\n "), [""]);
}

/// Texts that invite a rule to read ahead or back without end. Quadratic time would be an hour for each: whoever breaks
/// the promise of linear time finds this test hanging.
#[test]
fn texts_that_invite_endless_reading_are_tiled() {
    let seeds = [
        "a",
        "A\n",
        "a\n",
        ". ",
        "...",
        " ",
        "(",
        "\"",
        "` ",
        "```\n",
        "```a\n",
        "```a. ",
        "````Done. ",
        "~~~Done. ",
        "-",
        "- ",
        "1. ",
        "a. b ",
        "[1",
        "😀",
        "✅ ",
        "🇩🇪",
        "「",
        "。",
        "A\u{2028}a",
        "i. ",
        "Fig. A ",
    ];
    let tiled = |text: &str, options: aspo_segment::SplitOptions| {
        let end = aspo_segment::split(text, &options).fold(0, |end, span| {
            assert_eq!(span.start, end);
            span.end
        });
        assert_eq!(end, text.len());
    };
    for seed in seeds {
        let text = seed.repeat(400_000 / seed.len());
        for (min_length, max_length) in [
            (0, usize::MAX),
            (3, 100),
            (usize::MAX, usize::MAX),
            (100_000, usize::MAX),
            (0, 300_000),
            (10, 900_000),
        ] {
            tiled(&text, aspo_segment::SplitOptions { min_length, max_length, ..Default::default() });
        }
        tiled(&format!("A{text}"), Default::default());
    }
}
