//! `aspo report`: several runs side by side, on one page.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use aspo_data::files::write_atomic;
use aspo_eval::interval::share_change;
use aspo_train::{CURVES, MarkedSentence, Picture, Report, chart, escape, gallery, page, table};
use clap::Parser;

use crate::{Failure, note};

/// Lays runs side by side: their curves over one another, their figures, and what each model says of the same pictures.
#[derive(Parser)]
pub struct ReportArgs {
    /// Folders of runs, as `aspo train --out` writes them; the others are compared with the first
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The page that is written
    #[arg(long, default_value = "runs.html")]
    out: PathBuf,
}

struct Run {
    name: String,
    report: Report,
}

/// Reads the runs, and writes the page.
///
/// # Errors
/// A folder that is named twice, is not there, or holds no run; a full disk.
pub fn run(args: &ReportArgs) -> Result<(), Failure> {
    let runs = read(&args.runs)?;
    let html = page("Runs side by side", &body(&runs));
    write_atomic(&args.out, |file| {
        let failed = |source| aspo_data::Error::Io { path: args.out.clone(), source };
        file.write_all(html.as_bytes()).map_err(failed)
    })?;
    note!("page: {}", args.out.display());
    Ok(())
}

fn read(folders: &[PathBuf]) -> Result<Vec<Run>, Failure> {
    let name = |folder: &Path| folder.file_name().map(|name| name.to_string_lossy().into_owned());
    let names: Vec<_> = folders.iter().map(|folder| name(folder)).collect();
    let read = |(folder, own): (&PathBuf, &Option<String>)| -> Result<Run, Failure> {
        let shown = folder.display();
        if folders.iter().filter(|other| *other == folder).count() > 1 {
            return Err(format!("{shown} is named twice; name each run once").into());
        }
        if !folder.join("metrics.jsonl").is_file() {
            return Err(format!(
                "{shown}: no metrics.jsonl; name the folder that `aspo train --out` was given"
            )
            .into());
        }
        // Folders of the same name are told apart by their paths.
        let own = own.clone().filter(|own| names.iter().flatten().filter(|name| *name == own).count() == 1);
        Ok(Run { name: own.unwrap_or(shown.to_string()), report: Report::read(folder)? })
    };
    folders.iter().zip(&names).map(read).collect()
}

fn body(runs: &[Run]) -> String {
    let mut html = facts(runs);
    let bare: Vec<_> = runs.iter().filter(|run| run.report.facts.is_empty()).map(|run| &*run.name).collect();
    if !bare.is_empty() {
        let _ = write!(
            html,
            "<p class=note>Curves alone of {}: no report.json, for the run was not finished, or is of an older version.</p>",
            escape(&bare.join(", "))
        );
    }
    html += &differences(runs);
    for heading in headings(runs, |report| report.tables.iter().map(|(heading, _)| heading)) {
        html += &table(heading, &merged(runs, heading));
    }
    html += "<h2>Training</h2><p class=note>Point at a curve, or go along it with the arrow keys, for its values.</p>";
    html += "<div class=curves>";
    for (heading, names) in CURVES {
        for name in names {
            let lines = runs.iter().map(|run| (run.name.clone(), run.report.series(name)));
            let lines: Vec<_> = lines.filter(|(_, line)| line.len() > 1).collect();
            if !lines.is_empty() {
                html += &chart(&format!("{heading}: {name}"), &lines);
            }
        }
    }
    html += "</div>";
    let headings = headings(runs, |report| report.pictures.iter().map(|(heading, _)| heading));
    if !headings.is_empty() {
        html += "<p><label><input type=checkbox data-only> Only the sentences that training changed: those the base model \
                 did not write, or weighs differently by 0.1 or more (outlined)</label></p>";
    }
    for heading in headings {
        let pictures = together(runs, heading);
        html += &gallery(heading, pictures.iter());
        pictures.iter().for_each(|picture| html += &picture.html(|row, index| changed(picture, row, index)));
    }
    html
}

/// What the runs' reports have, each once, in the order of the first that has it.
fn headings<'a, I: Iterator<Item = &'a String>>(
    runs: &'a [Run],
    of: impl Fn(&'a Report) -> I,
) -> Vec<&'a str> {
    let mut seen = HashSet::new();
    runs.iter().flat_map(|run| of(&run.report)).map(String::as_str).filter(|own| seen.insert(*own)).collect()
}

fn facts(runs: &[Run]) -> String {
    let mut html = String::from("<div class=wide><table class=facts><tr><th>");
    runs.iter().for_each(|run| html += &format!("<th>{}", escape(&run.name)));
    for name in headings(runs, |report| report.facts.iter().map(|(name, _)| name)) {
        let of = |run: &Run| {
            let fact = run.report.facts.iter().find(|(own, _)| own == name);
            fact.map_or(String::new(), |(_, value)| value.clone())
        };
        let values: Vec<String> = runs.iter().map(of).collect();
        let other = values.iter().any(|value| *value != values[0]);
        let _ = write!(html, "<tr{}><td>{}", if other { " class=other" } else { "" }, escape(name));
        values.iter().for_each(|value| html += &format!("<td>{}", escape(value)));
    }
    html + "</table></div>"
}

/// Shares that were counted item by item: each run's, minus the first's on the same items.
fn differences(runs: &[Run]) -> String {
    let [first, others @ ..] = runs else { return String::new() };
    if others.is_empty() {
        return String::new();
    }
    let header =
        ["".to_owned(), first.name.clone()].into_iter().chain(others.iter().map(|run| run.name.clone()));
    let mut rows = vec![header.collect::<Vec<_>>()];
    for own in &first.report.counts {
        let sum = |at: usize| own.counts.iter().map(|count| count[at]).sum::<usize>();
        let share = 100.0 * sum(1) as f64 / sum(0).max(1) as f64;
        let mut row = vec![format!("{}, %", own.name), format!("{share:.1}")];
        for run in others {
            let same = run.report.counts.iter().find(|other| {
                (&other.name, &other.items, other.counts.len()) == (&own.name, &own.items, own.counts.len())
            });
            row.push(match same {
                Some(other) => share_change(&own.counts, &other.counts).scaled(100.0).to_string(),
                None if run.report.counts.is_empty() => "–".to_owned(),
                None => "not on the same items".to_owned(),
            });
        }
        rows.push(row);
    }
    let without: Vec<_> =
        runs.iter().filter(|run| run.report.counts.is_empty()).map(|run| &*run.name).collect();
    let mut html = String::new();
    if rows.len() > 1 {
        html += &table(&format!("Minus {}, on the same items", first.name), &rows);
        html += "<p class=note>Percentage points, with their 95% interval over the items, paired.</p>";
    }
    if !without.is_empty() {
        let names = escape(&without.join(", "));
        let _ = write!(
            html,
            "<p class=note>No paired differences with {names}: no figures of single items were kept there.</p>"
        );
    }
    html
}

/// The tables of one heading as one: a column that says the same in all runs is there once.
fn merged(runs: &[Run], heading: &str) -> Vec<Vec<String>> {
    let mut tables: Vec<(&str, &[Vec<String>])> = Vec::new();
    for run in runs {
        let own = run.report.tables.iter().find(|(own, rows)| own == heading && !rows.is_empty());
        tables.extend(own.map(|(_, rows)| (run.name.as_str(), rows.as_slice())));
    }
    let mut names: Vec<&str> = Vec::new();
    let mut columns: Vec<&str> = Vec::new();
    for (_, rows) in &tables {
        for name in rows[1..].iter().filter_map(|row| row.first()) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        for column in
            rows[0].iter().skip(1).filter(|column| !columns.contains(&column.as_str())).collect::<Vec<_>>()
        {
            columns.push(column);
        }
    }
    let mut merged: Vec<Vec<String>> =
        std::iter::once("").chain(names.iter().copied()).map(|name| vec![name.to_owned()]).collect();
    for column in columns {
        let cells = |rows: &[Vec<String>]| -> Vec<String> {
            let at = rows[0].iter().position(|own| own == column);
            let cell = |name: &&str| {
                let row = rows[1..].iter().find(|row| row.first().is_some_and(|own| own == name))?;
                row.get(at?).cloned()
            };
            names.iter().map(|name| cell(name).unwrap_or_default()).collect()
        };
        let of_runs: Vec<(&str, Vec<String>)> =
            tables.iter().map(|(run, rows)| (*run, cells(rows))).collect();
        let same = of_runs.iter().all(|(_, cells)| *cells == of_runs[0].1);
        let shown = if same { &of_runs[..1] } else { &of_runs[..] };
        for (run, cells) in shown {
            let header = if same { column.to_owned() } else { format!("{run}: {column}") };
            let values = std::iter::once(&header).chain(cells);
            merged.iter_mut().zip(values).for_each(|(row, value)| row.push(value.clone()));
        }
    }
    merged
}

/// The pictures of one heading, each once, with the answers of all runs; what several runs have alike is there once.
fn together(runs: &[Run], heading: &str) -> Vec<Picture> {
    let mut shown: Vec<Picture> = Vec::new();
    for run in runs {
        let own =
            run.report.pictures.iter().filter(|(own, _)| own == heading).flat_map(|(_, pictures)| pictures);
        for picture in own {
            let same = |other: &&mut Picture| {
                (&other.images, &other.question) == (&picture.images, &picture.question)
            };
            let at = match shown.iter_mut().find(same) {
                Some(at) => at,
                None => {
                    shown.push(Picture { answers: Vec::new(), ..picture.clone() });
                    let last = shown.len() - 1;
                    &mut shown[last]
                }
            };
            for (name, sentences) in &picture.answers {
                // Bases may differ too, in their weights by another α.
                let other = at.answers.iter().any(|(own, said)| own == name && said != sentences);
                let named = match other || name.contains(TRAINED) {
                    true => format!("{name}, {}", run.name),
                    false => name.clone(),
                };
                if !at.answers.iter().any(|(own, said)| *own == named && said == sentences) {
                    at.answers.push((named, sentences.clone()));
                }
            }
        }
    }
    // The base's answers first.
    for picture in &mut shown {
        picture.answers.sort_by_key(|(name, _)| name.contains(TRAINED));
    }
    shown
}

/// What the answers of a trained model have in their name, where the base's have [`BASE`].
const TRAINED: &str = "trained";
const BASE: &str = "base";

/// Whether a sentence is another than the base's: not among those it wrote, or weighed differently.
fn changed(picture: &Picture, row: usize, index: usize) -> bool {
    let (name, sentences) = &picture.answers[row];
    let Some((kind, run)) = name.split_once(TRAINED) else { return false };
    let own = &sentences[index].sentence;
    let alike = |other: &MarkedSentence| {
        other.sentence.text.trim() == own.text.trim() && (other.sentence.weight - own.weight).abs() < 0.1
    };
    let said_by = |base: String| picture.answers.iter().find(|(own, _)| *own == base);
    // The run's own, where it is another than the first run's.
    let base = said_by(format!("{kind}{BASE}{run}")).or_else(|| said_by(format!("{kind}{BASE}")));
    base.is_some_and(|(_, said)| !said.iter().any(alike))
}
