//! MMBench (dev and test, English and Chinese): one question in every rotation of its options.
//!
//! Published files: `mmbench_dev_20230712.tsv`, `mmbench_dev_cn_20231003.tsv`, `mmbench_test_en_20231003.tsv`, … and their
//! later names `MMBench_DEV_EN.tsv`, …. Asked as LLaVA's `model_vqa_mmbench.py` does, scored by CircularEval:
//! rows with equal index modulo 10^6 are one question, right only if every rotation is. Letters are read as
//! [`choice::Letters`](crate::choice::Letters) says.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use base64::Engine;
use serde::Serialize;

use crate::answer::Answers;
use crate::choice::Letters;
use crate::error::{Error, Result, quote};
use crate::file;
use crate::option::LETTERS;
use crate::question::{Id, Image, LETTER_SUFFIX, LETTER_SUFFIX_CN, Question};
use crate::share::Share;

#[cfg(feature = "upload")]
mod upload;

const NAME: &str = "mmbench";
const COLUMNS: [&str; 9] = ["index", "question", "hint", "A", "B", "C", "D", "category", "image"];
/// A shorter entry in the column `image` is the index of the row that has the image.
const SHORTEST_IMAGE: usize = 64;
/// What a table's reader takes for an empty cell (pandas' list, and LLaVA's `is_none`).
const EMPTY: [&str; 15] = [
    "", "#n/a", "#n/a n/a", "#na", "-1.#ind", "-1.#qnan", "-nan", "1.#ind", "1.#qnan", "<na>", "n/a", "na",
    "null", "nan", "none",
];

#[derive(Debug)]
struct Row {
    index: u64,
    question: Question,
    options: Vec<String>,
    /// Letter of the right option; `None` in a test split.
    answer: Option<char>,
    category: String,
    l2_category: Option<String>,
    cells: Vec<String>,
}

/// One of MMBench's files.
#[derive(Debug)]
pub struct Split {
    /// `dev`, `test`, `dev_cn` or `test_cn`.
    pub name: String,
    path: PathBuf,
    columns: Vec<String>,
    rows: Vec<Row>,
}

/// MMBench's files.
#[derive(Debug)]
pub struct MmBench {
    folder: PathBuf,
    splits: Vec<Split>,
}

/// The figures of one split, in percent.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct MmBenchScores {
    /// The headline: questions right in every rotation. None without labels (a test split), or if no answer could be read.
    pub accuracy: Option<f64>,
    /// Questions right in every rotation.
    pub correct: usize,
    /// Questions with labels.
    pub total: usize,
    /// Rows: every rotation of every question.
    pub rows: usize,
    /// Rows that are right, taken alone.
    pub correct_rows: usize,
    /// Answers from which no letter could be read; they are wrong.
    pub unparsable: usize,
    /// CircularEval by category.
    pub by_category: BTreeMap<String, Share>,
    /// CircularEval by the coarser category, where the file has it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub by_l2_category: BTreeMap<String, Share>,
}

impl MmBench {
    /// Reads a folder (every `mmbench*.tsv` in it), or one file. A file whose name tells `test`, or whose column `split`
    /// does, may lack the column `answer`.
    ///
    /// # Errors
    /// Files that are missing or malformed: a column missing, an index twice, an answer that is no option.
    pub fn open(data: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(data.as_ref(), false)
    }

    fn open_with(data: &Path, images: bool) -> Result<Self> {
        let folder = file::folder(NAME, data)?;
        let paths = if data.is_file() { vec![data.to_path_buf()] } else { tables(&folder)? };
        let splits = paths.iter().map(|path| Split::open(path, images)).collect::<Result<Vec<_>>>()?;
        Ok(Self { folder, splits })
    }

    /// Every question of one file, with the images that are inside it.
    ///
    /// # Errors
    /// As [`open`](Self::open); a folder with more than one file; an image that is no base64.
    pub fn questions(data: impl AsRef<Path>) -> Result<Vec<Question>> {
        let mut bench = Self::open_with(data.as_ref(), true)?;
        bench.only()?;
        let split = bench.splits.remove(0);
        let index_of: HashMap<u64, usize> =
            split.rows.iter().enumerate().map(|(at, r)| (r.index, at)).collect();
        let image_at = split.column("image");
        let mut questions = Vec::with_capacity(split.rows.len());
        for (at, row) in split.rows.iter().enumerate() {
            let bad = |text: &str, expected: &str| Error::Value {
                path: split.path.clone(),
                row: at + 1,
                column: "image",
                found: quote(text),
                expected: expected.into(),
            };
            let mut text = &row.cells[image_at];
            if text.len() < SHORTEST_IMAGE {
                let of = text.trim().parse().ok().and_then(|index: u64| index_of.get(&index));
                let of = of.ok_or_else(|| bad(text, "an image in base64, or the index of a row with one"))?;
                text = &split.rows[*of].cells[image_at];
            }
            let bytes = base64::engine::general_purpose::STANDARD.decode(text.trim());
            let bytes = bytes.map_err(|_| bad(text, "an image in base64"))?;
            questions.push(Question { image: Some(Image::Bytes(bytes)), ..row.question.clone() });
        }
        Ok(questions)
    }

    /// The one file there is.
    fn only(&self) -> Result<&Split> {
        match self.splits.as_slice() {
            [one] => Ok(one),
            many => {
                let names: Vec<_> = many.iter().map(|s| s.path.display().to_string()).collect();
                Err(Error::Ambiguous {
                    path: self.folder.clone(),
                    found: format!("several files: {}", names.join(", ")),
                })
            }
        }
    }

    /// Scores answers, by the name of each split that they answer. Where several files are there, a split is scored if
    /// the answers are to its questions, and passed over if none is.
    ///
    /// # Errors
    /// Answers that are missing, unknown, recorded with another question, or that could be of two languages.
    pub fn score(&self, answers: &Answers, letters: Letters) -> Result<BTreeMap<String, MmBenchScores>> {
        let mut scores = BTreeMap::new();
        for split in self.answered(answers)? {
            if scores.insert(split.name.clone(), split.score(answers, self, letters)?).is_some() {
                let found = format!("two files of split {}", split.name);
                return Err(Error::Ambiguous { path: self.folder.clone(), found });
            }
        }
        Ok(scores)
    }

    /// Writes the table that MMBench's server takes for a split without labels (xlsx). Needs the feature `upload`.
    ///
    /// # Errors
    /// A build without that feature; as [`score`](Self::score); answers to more than one split; a file that cannot be written.
    pub fn write_upload(&self, answers: &Answers, path: &Path) -> Result<()> {
        match self.answered(answers)?.as_slice() {
            [split] => split.write_upload(answers, self, path),
            _ => self.only()?.write_upload(answers, self, path),
        }
    }

    fn knows(&self, id: &Id) -> bool {
        self.splits.iter().any(|split| split.rows.iter().any(|row| row.question.id == *id))
    }

    /// The splits that these answers are of.
    fn answered(&self, answers: &Answers) -> Result<Vec<&Split>> {
        if let [one] = self.splits.as_slice() {
            one.matched(answers, self)?;
            return Ok(vec![one]);
        }
        let mut found: Vec<&Split> = Vec::new();
        let mut first_error = None;
        for split in &self.splits {
            match split.matched(answers, self) {
                Ok(_) => found.push(split),
                Err(Error::Missing { missing, total, .. }) if missing == total => {}
                Err(error @ Error::OtherOrder { .. }) => first_error = first_error.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        let share = |a: &Split, b: &Split| b.rows.iter().any(|row| row.question.id == a.rows[0].question.id);
        for (at, a) in found.iter().enumerate() {
            if let Some(b) = found[at + 1..].iter().find(|b| share(a, b)) {
                let found =
                    format!("answers that could be of {} or of {}", a.path.display(), b.path.display());
                return Err(Error::Ambiguous { path: self.folder.clone(), found });
            }
        }
        match (found.is_empty(), first_error) {
            (false, _) => Ok(found),
            (true, Some(error)) => Err(error),
            (true, None) => self.splits[0].matched(answers, self).map(|_| found),
        }
    }
}

impl Split {
    fn open(path: &Path, images: bool) -> Result<Self> {
        let text = file::text(path)?;
        let mut reader = csv::ReaderBuilder::new().delimiter(b'\t').from_reader(text.as_bytes());
        let malformed = |row: usize, e: &csv::Error| Error::Malformed {
            path: path.into(),
            row,
            message: e.to_string().replace('\n', " "),
        };
        let columns: Vec<String> =
            reader.headers().map_err(|e| malformed(0, &e))?.iter().map(str::to_owned).collect();
        let missing =
            |column: &str| Error::MissingColumn { path: path.into(), row: 0, column: column.to_owned() };
        let column = |name: &str| columns.iter().position(|c| c == name);
        let mut places = HashMap::new();
        for name in COLUMNS {
            places.insert(name, column(name).ok_or_else(|| missing(name))?);
        }
        let (answer_at, split_at, l2_at) = (column("answer"), column("split"), column("l2-category"));
        let file_name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let chinese = file_name.contains("_cn");
        let mut all_test = file_name.contains("test");

        let mut rows = Vec::new();
        let mut seen = HashMap::new();
        for (at, record) in reader.records().enumerate() {
            let row = at + 1;
            let record = record.map_err(|e| malformed(row, &e))?;
            let cell = |name: &str| record.get(places[name]).unwrap_or_default();
            let bad = |column: &'static str, found: &str, expected: String| Error::Value {
                path: path.into(),
                row,
                column,
                found: quote(found),
                expected,
            };
            let index: u64 =
                cell("index").trim().parse().map_err(|_| bad("index", cell("index"), "a number".into()))?;
            if seen.insert(index, row).is_some() {
                return Err(Error::DuplicateId { path: path.into(), row, id: index.to_string() });
            }
            let options: Vec<&str> =
                ["A", "B", "C", "D"].map(cell).into_iter().take_while(|text| !is_empty(text)).collect();
            if options.is_empty() {
                return Err(bad("A", cell("A"), "the text of an option".into()));
            }
            if is_empty(cell("category")) {
                let known = "any name".into();
                return Err(Error::UnknownCategory { path: path.into(), row, found: quote(""), known });
            }
            let is_test = match split_at.and_then(|at| record.get(at)) {
                Some(split) => split == "test",
                None => file_name.contains("test"),
            };
            all_test |= is_test && rows.is_empty();
            all_test &= is_test || file_name.contains("test");
            let answer = match answer_at.map(|at| record.get(at).unwrap_or_default()) {
                None if is_test || file_name.contains("test") => None,
                None => return Err(missing("answer")),
                Some(text) if is_empty(text) && is_test => None,
                Some(text) => {
                    let known = &LETTERS[..options.len()];
                    let letter = text.chars().next().filter(|c| text.len() == 1 && known.contains(c));
                    Some(letter.ok_or_else(|| bad("answer", text, format!("a letter of {known:?}")))?)
                }
            };
            let hint = cell("hint");
            let mut prompt = if is_empty(hint) { String::new() } else { format!("{hint}\n") };
            prompt.push_str(cell("question"));
            for (letter, option) in LETTERS.iter().zip(&options) {
                prompt.push_str(&format!("\n{letter}. {option}"));
            }
            let recorded_prompt = prompt.clone();
            prompt.push_str(if chinese { LETTER_SUFFIX_CN } else { LETTER_SUFFIX });
            let question = Question { id: Id::number(index), image: None, prompt, recorded_prompt };
            let mut cells: Vec<String> = record.iter().map(str::to_owned).collect();
            if !images {
                cells[places["image"]].clear();
            }
            let l2_category = l2_at.and_then(|at| record.get(at)).map(str::to_owned);
            let category = cell("category").to_owned();
            let options = options.into_iter().map(str::to_owned).collect();
            rows.push(Row { index, question, options, answer, category, l2_category, cells });
        }
        if rows.is_empty() {
            return Err(Error::Empty { path: path.into() });
        }
        let name = match (all_test, chinese) {
            (false, false) => "dev",
            (true, false) => "test",
            (false, true) => "dev_cn",
            (true, true) => "test_cn",
        };
        Ok(Self { name: name.into(), path: path.into(), columns, rows })
    }

    #[cfg(not(feature = "upload"))]
    fn write_upload(&self, _: &Answers, _: &MmBench, _: &Path) -> Result<()> {
        let message = "the upload table needs the feature `upload`: build with `--features upload`";
        Err(Error::Option(message.into()))
    }

    fn column(&self, name: &str) -> usize {
        self.columns.iter().position(|c| c == name).expect("the columns were checked when the file was read")
    }

    fn matched<'a>(&self, answers: &'a Answers, bench: &MmBench) -> Result<Vec<&'a str>> {
        let questions: Vec<Question> = self.rows.iter().map(|row| row.question.clone()).collect();
        let single = bench.splits.len() == 1;
        let matched = answers.matched(&questions, |id| !single && bench.knows(id))?;
        Ok(matched.into_iter().map(|row| row.text.as_str()).collect())
    }

    fn score(&self, answers: &Answers, bench: &MmBench, letters: Letters) -> Result<MmBenchScores> {
        let texts = self.matched(answers, bench)?;
        let mut scores = MmBenchScores { rows: self.rows.len(), ..MmBenchScores::default() };
        /// One question: whether all rotations so far are right, and where its category is.
        struct Group {
            right: bool,
            row: usize,
        }
        let mut groups: BTreeMap<u64, Group> = BTreeMap::new();
        for (at, (row, text)) in self.rows.iter().zip(&texts).enumerate() {
            let letter = letters.read(text, &row.options);
            scores.unparsable += usize::from(letter.is_none());
            let Some(answer) = row.answer else { continue };
            let right = letter == Some(answer);
            scores.correct_rows += usize::from(right);
            let group = groups.entry(row.index % 1_000_000).or_insert(Group { right: true, row: at });
            group.right &= right;
            // The unrotated row tells the category.
            if row.index < 1_000_000 {
                group.row = at;
            }
        }
        let mut all = Share::default();
        for group in groups.values() {
            let row = &self.rows[group.row];
            all.count(group.right);
            scores.by_category.entry(row.category.clone()).or_default().count(group.right);
            if let Some(name) = &row.l2_category {
                scores.by_l2_category.entry(name.clone()).or_default().count(group.right);
            }
        }
        scores.accuracy = all.percent().filter(|_| scores.unparsable < scores.rows);
        scores.correct = all.correct;
        scores.total = all.total;
        Ok(scores)
    }
}

fn is_empty(cell: &str) -> bool {
    EMPTY.contains(&cell.to_lowercase().as_str())
}

/// `mmbench*.tsv` in the folder, in `mmbench/` or `mmbench_cn/`.
fn tables(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for place in [folder.to_path_buf(), folder.join("mmbench"), folder.join("mmbench_cn")] {
        let Ok(entries) = std::fs::read_dir(&place) else { continue };
        paths.extend(entries.filter_map(|entry| entry.ok().map(|e| e.path())).filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
            name.starts_with("mmbench") && name.ends_with(".tsv")
        }));
    }
    paths.sort();
    if paths.is_empty() {
        file::find_or(
            NAME,
            folder,
            &["mmbench_dev_20230712.tsv", "mmbench_dev_cn_20231003.tsv", "MMBench_DEV_EN.tsv"],
        )?;
    }
    Ok(paths)
}
