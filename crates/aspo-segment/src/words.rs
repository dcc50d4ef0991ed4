//! The lists behind [`abbreviation`](crate::abbreviation): small on purpose, the words that models and newspapers use.
//!
//! An entry in small letters stands for the word in any case, one with a capital only for the word with a capital, one
//! of a single letter only for itself.

use Kind::{Always, Inner, Label, LabelOrWord, Last, Number, Time, Title};

/// What a full stop behind an abbreviation means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Stands in front of a name: `Mr. Smith`. Never ends a sentence.
    Title,
    /// Stands in front of a number: `approx. 3`, `Jan. 5`. Ends a sentence in front of a capital.
    Number,
    /// Stands in front of a number or what counts like one: `Fig. 3`, `vol. IX`, `Apt. B`, `No. A12`. Ends a sentence in
    /// front of any other capital.
    Label,
    /// The same, but also a word of its own: `the answer is no. B is right`, `she likes art. A dog`.
    LabelOrWord,
    /// Always goes on: `e.g.`, `vs.`.
    Always,
    /// Ends a sentence where a word follows that starts sentences: `Apple Inc. The …`, but `Apple Inc. Chairman …`.
    Inner,
    /// Ends a sentence where any capital follows: `etc.`.
    Last,
    /// A time of day, which ends a sentence where a capital follows, unless it opens it: `At 5 a.m. Mr. Smith …`.
    Time,
}

/// Abbreviations of one kind, without the last full stop.
pub(crate) type List = (Kind, &'static [&'static str]);

/// English.
#[rustfmt::skip]
pub(crate) const ENGLISH: &[List] = &[
    (Title, &[
        "dr", "drs", "messrs", "mr", "mrs", "ms", "mlle", "mme", "mx", "prof", "rev", "sgt", "capt", "lt", "gov",
    ]),
    (Title, &[
        "Adm", "Amb", "Atty", "Brig", "Cdr", "Cmdr", "Col", "Cpl", "Fr", "Ft", "Gen", "Hon", "Insp", "Lieut", "Maj",
        "Msgr", "Mt", "Pfc", "Pres", "Pvt", "Rep", "Reps", "Sen", "Sens", "Ste", "Supt",
    ]),
    (Label, &[
        "chap", "eq", "eqs", "fig", "figs", "n°", "nº", "nr", "p", "pg", "pp", "para", "sect", "vol", "vols", "apt",
        "App", "Bk", "Exh", "Pl",
    ]),
    (LabelOrWord, &[
        "art", "arts", "ch", "ex", "ext", "ln", "no", "nos", "op", "par", "pt", "ref", "refs", "rm", "sec", "secs",
        "tab", "ver",
    ]),
    (Number, &[
        "tel", "approx", "c", "ca", "Apr", "Aug", "Dec", "Feb", "Jan", "Jul", "Jun", "Mar", "Nov", "Oct", "Sep",
        "Sept", "rs", "pop",
    ]),
    (Always, &[
        "a.k.a", "cf", "e.g", "eg", "esp", "i.a", "i.e", "ie", "incl", "resp", "v", "viz", "vs",
    ]),
    (Inner, &[
        "al", "assn", "assoc", "ave", "bldg", "blvd", "bros", "co", "corp", "cos", "dept", "dist", "div", "est",
        "esq", "gmbh", "hwy", "inc", "intl", "jr", "llc", "ltd", "mfg", "mgr", "natl", "ph.d", "pkwy", "pty", "rd",
        "rte", "sq", "sr", "st", "univ", "b.sc", "m.sc", "ed", "eds", "publ", "suppl", "transl", "med", "seq",
        "attn", "govt", "adj", "adv",
    ]),
    (Inner, &[
        "Ala", "Ariz", "Ark", "Calif", "Colo", "Conn", "Del", "Fla", "Ga", "Ill", "Ind", "Kan", "Ky", "Mass", "Md",
        "Mich", "Minn", "Miss", "Mo", "Mont", "Neb", "Nev", "Okla", "Ont", "Ore", "Pa", "Penn", "Que", "Tenn",
        "Tex", "Va", "Vt", "Wash", "Wis", "Wyo", "Fri", "Mon", "Thu", "Thur", "Thurs", "Tue", "Tues", "Wed",
    ]),
    (Last, &[
        "abbr", "appt", "avg", "cm", "etc", "ect", "ft", "gal", "hr", "hrs", "kg", "km", "lb", "lbs", "max", "mi",
        "min", "mins", "misc", "mm", "mph", "oz", "qt", "std", "tbsp", "temp", "tsp", "yd", "yds", "yr", "yrs",
    ]),
    (Time, &[
        "a.m", "am", "p.m", "pm",
    ]),
];

/// What other languages share with English.
#[rustfmt::skip]
pub(crate) const COMMON: &[List] = &[
    (Title, &[
        "dr", "prof", "st", "mt",
    ]),
    (Label, &[
        "fig", "nr", "n°", "nº", "p", "pp", "vol",
    ]),
    (LabelOrWord, &[
        "art", "no",
    ]),
    (Number, &[
        "tel",
    ]),
    (Always, &[
        "cf", "vs",
    ]),
    (Inner, &[
        "co", "inc", "ltd", "jr", "sr",
    ]),
    (Last, &[
        "etc", "max", "min",
    ]),
];

/// German; the parts of "z. B." are entries of their own.
#[rustfmt::skip]
pub(crate) const GERMAN: &[List] = &[
    (Title, &[
        "fr", "frl", "hr", "hrn", "ing", "mag", "med", "phil", "rer", "nat", "jur", "dipl", "priv", "doz", "hl",
    ]),
    (Label, &[
        "abb", "abs", "anm", "bd", "kap", "s", "S", "tab", "ziff", "zl", "par",
    ]),
    (LabelOrWord, &[
        "art",
    ]),
    (Number, &[
        "aufl", "bzgl", "zit",
    ]),
    (Always, &[
        "bspw", "bzw", "ca", "d.h", "evtl", "exkl", "gegr", "ggf", "inkl", "insb", "s.o", "s.u", "sog", "u.a",
        "vgl", "z.b", "z.t", "z.zt", "zzgl", "i.d.r", "o.ä", "gest", "geb", "v.a", "b", "B", "d", "h", "i", "R",
        "t", "T", "u", "z", "Z", "lt",
    ]),
    (Inner, &[
        "jh", "jhd", "jhdt", "str", "v.chr", "n.chr", "mio", "mrd", "e.v", "jan", "feb", "mär", "apr", "jun", "jul",
        "aug", "sep", "sept", "okt", "nov", "dez",
    ]),
    (Last, &[
        "usw", "usf", "uvm", "u.v.m", "std", "sek", "u.ä",
    ]),
];

/// French.
#[rustfmt::skip]
pub(crate) const FRENCH: &[List] = &[
    (Title, &[
        "M", "mm", "mme", "mmes", "mlle", "mlles", "me", "mgr", "ste", "pr", "gén",
    ]),
    (Label, &[
        "chap", "fig", "t", "réf",
    ]),
    (Number, &[
        "éd", "env", "janv", "févr", "avr", "juill", "sept", "oct", "nov", "déc",
    ]),
    (Always, &[
        "c.-à-d", "ex", "c.à.d", "apr", "av", "inf", "sup",
    ]),
    (Inner, &[
        "bd", "boul", "cie", "s.a", "j.-c",
    ]),
];

/// Spanish.
#[rustfmt::skip]
pub(crate) const SPANISH: &[List] = &[
    (Title, &[
        "sr", "sra", "srta", "sres", "dra", "dña", "D", "lic", "ing", "gral", "ud", "uds", "vd", "vds", "sto",
        "sta",
    ]),
    (Label, &[
        "pág", "págs", "núm", "cap", "art", "arts", "párr", "cra",
    ]),
    (Number, &[
        "aprox", "ed", "ene", "feb", "mar", "abr", "jun", "jul", "ago", "sept", "oct", "nov", "dic", "lun", "mié",
        "jue", "vie", "ext",
    ]),
    (Always, &[
        "p.ej", "ej", "a.c", "d.c", "ee",
    ]),
    (Inner, &[
        "ee.uu", "s.a", "av", "avda", "cía", "dpto", "rep", "uu", "admón",
    ]),
];

/// English words that start sentences and not names.
#[rustfmt::skip]
pub(crate) const ENGLISH_STARTERS: &[&str] = &[
    "the", "a", "an", "this", "that", "these", "those", "there", "here", "it", "its", "he", "she", "they", "we",
    "you", "i", "his", "her", "their", "our", "my", "your", "who", "what", "when", "where", "why", "how", "which",
    "whose", "if", "although", "though", "because", "since", "while", "after", "before", "during", "until",
    "unless", "as", "at", "by", "for", "from", "in", "into", "on", "of", "to", "with", "without", "within", "under",
    "over", "through", "among", "between", "despite", "and", "but", "or", "nor", "so", "yet", "however", "moreover",
    "furthermore", "meanwhile", "nevertheless", "then", "thus", "therefore", "hence", "also", "another", "other",
    "others", "all", "any", "both", "each", "every", "many", "most", "much", "more", "no", "none", "nobody",
    "nothing", "not", "now", "once", "one", "only", "some", "someone", "something", "several", "such", "today",
    "yesterday", "tomorrow", "later", "next", "first", "second", "finally", "last", "please", "yes", "well", "is",
    "are", "was", "were", "do", "does", "did", "can", "could", "will", "would", "should", "has", "have", "had",
    "let", "see", "according", "even", "just", "like", "overall", "instead", "additionally", "still", "perhaps",
    "maybe", "two", "three",
];

/// German ones.
#[rustfmt::skip]
pub(crate) const GERMAN_STARTERS: &[&str] = &[
    "der", "die", "das", "den", "dem", "des", "ein", "eine", "einer", "einem", "einen", "er", "sie", "es", "wir",
    "ich", "du", "ihr", "man", "dies", "diese", "dieser", "dieses", "hier", "dort", "da", "dann", "danach", "doch",
    "aber", "und", "oder", "denn", "weil", "wenn", "als", "ob", "auch", "auf", "aus", "bei", "bis", "durch", "für",
    "gegen", "im", "in", "mit", "nach", "nur", "noch", "seit", "seine", "seiner", "ihre", "so", "unter", "über",
    "um", "von", "vom", "vor", "während", "wegen", "zu", "zum", "zur", "zwischen", "was", "wer", "wie", "wo",
    "warum", "nun", "jetzt", "heute", "gestern", "jedoch", "sein", "am", "an", "ab", "beim", "alle", "viele",
    "einige", "nicht", "kein", "keine", "trotz", "damit", "dabei",
];

/// French ones.
#[rustfmt::skip]
pub(crate) const FRENCH_STARTERS: &[&str] = &[
    "le", "la", "les", "l", "un", "une", "des", "ce", "cet", "cette", "ces", "c", "il", "elle", "ils", "elles",
    "on", "nous", "vous", "je", "j", "tu", "son", "sa", "ses", "leur", "leurs", "mon", "ma", "mes", "qui", "que",
    "quand", "où", "comment", "pourquoi", "si", "mais", "et", "ou", "donc", "or", "car", "puis", "ensuite", "enfin",
    "alors", "ainsi", "aussi", "en", "dans", "sur", "sous", "par", "pour", "avec", "sans", "à", "au", "aux", "de",
    "du", "d", "après", "avant", "pendant", "depuis", "lors", "cependant", "toutefois", "selon", "plus", "tout",
    "tous", "toutes", "y", "voici", "voilà", "ne", "pas",
];

/// Spanish ones.
#[rustfmt::skip]
pub(crate) const SPANISH_STARTERS: &[&str] = &[
    "el", "la", "los", "las", "lo", "un", "una", "unos", "unas", "este", "esta", "estos", "estas", "ese", "esa",
    "esto", "eso", "él", "ella", "ellos", "ellas", "yo", "tú", "nosotros", "usted", "ustedes", "su", "sus", "mi",
    "mis", "qué", "quién", "cuándo", "cuando", "dónde", "donde", "cómo", "como", "por", "porque", "para", "pero",
    "y", "o", "si", "sin", "en", "entre", "desde", "hasta", "con", "de", "del", "a", "al", "ante", "bajo", "según",
    "sobre", "tras", "durante", "después", "antes", "luego", "entonces", "también", "además", "aunque", "mientras",
    "no", "ya", "hay", "se", "aquí", "allí", "hoy", "ayer", "más", "muy", "todo", "todos", "todas", "otro", "otra",
    "cada", "sólo", "solo", "es", "fue",
];

/// A line that ends in one of these goes on in the next.
#[rustfmt::skip]
pub(crate) const LEADING_ON: &[&str] = &[
    "the", "a", "an", "of", "and", "or", "in", "on", "at", "to", "for", "from", "with", "by", "as", "into", "that",
    "which", "is", "are", "was", "were", "be", "his", "her", "their", "its", "our", "my", "your", "this", "these",
    "than", "between", "der", "die", "das", "und", "oder", "von", "mit", "für", "le", "la", "les", "de", "des",
    "du", "et", "ou", "el", "los", "las", "del", "y", "en", "con",
];

/// What may stand in front of a time of day that opens a sentence.
#[rustfmt::skip]
pub(crate) const LEADING_TO_TIME: &[&str] = &[
    "at", "by", "around", "about", "after", "before", "until", "from", "since",
];

/// What says more about a time of day.
#[rustfmt::skip]
pub(crate) const DATES: &[&str] = &[
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "Mon", "Tue", "Tues", "Wed",
    "Thu", "Thurs", "Fri", "Sat", "Sun", "Jan", "Feb", "Mar", "Apr", "Jun", "Jul", "Aug", "Sep", "Sept", "Oct",
    "Nov", "Dec", "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December", "EST", "EDT", "ET", "CST", "CDT", "CT", "MST", "MDT", "MT", "PST", "PDT", "PT", "GMT",
    "UTC", "BST", "CET", "CEST", "IST", "JST", "Eastern", "Central", "Mountain", "Pacific",
];

/// Verbs of saying, behind words that somebody cried.
#[rustfmt::skip]
pub(crate) const REPORTING: &[&str] = &[
    "said", "says", "asked", "asks", "cried", "cries", "exclaimed", "shouted", "yelled", "screamed", "called", "replied",
    "answered", "whispered", "murmured", "muttered", "added", "went", "repeated", "demanded", "thought", "wondered",
];
