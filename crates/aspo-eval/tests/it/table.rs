//! The paper's table.

use aspo_eval::Error;
use aspo_eval::table::{COLUMNS, Table};

use crate::common::Folder;

/// LLaVA-1.5-7B's row of the paper, with made-up figures where the table of the method does not give one.
fn paper() -> Table {
    let mut table = Table::default();
    for (column, percent) in
        COLUMNS.into_iter().zip([35.3, 65.6, 66.0, 58.0, 75.7, 66.2, 62.0, 67.7, 86.6, 33.9])
    {
        table.set("LLaVA-1.5-7B + ASPO", column, percent);
    }
    table.set("LLaVA-1.5-7B", "POPE", 85.94);
    table
}

#[test]
fn the_average_is_over_nine_and_only_when_all_are_there() {
    let table = paper();
    let expected = (35.3 + 65.6 + 66.0 + 58.0 + 75.7 + 66.2 + 62.0 + 67.7 + 86.6) / 9.0;
    assert!((table.rows[0].average().unwrap() - expected).abs() < 1e-9);
    assert_eq!(table.rows[1].average(), None);
}

#[test]
fn the_table_has_the_papers_shape() {
    let markdown = "\
| model | MM-Vet | MMB-dev | MMB-test | MMB-CN | LLaVA-W | SEED-I | GQA | SQA-I | POPE | SHR ↓ | avg |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|
| LLaVA-1.5-7B + ASPO | 35.3 | 65.6 | 66.0 | 58.0 | 75.7 | 66.2 | 62.0 | 67.7 | 86.6 | 33.9 | 64.8 |
| LLaVA-1.5-7B | – | – | – | – | – | – | – | – | 85.9 | – | – |
";
    assert_eq!(paper().markdown(), markdown);
    let text = paper().text();
    let widths: Vec<usize> = text.lines().map(|line| line.chars().count()).collect();
    assert!(widths.iter().all(|w| *w == widths[0]), "{text}");

    let mut one = Table::default();
    one.set("a|b", "POPE", 100.0);
    assert_eq!(one.markdown(), "| model | POPE |\n|---|---:|\n| a\\|b | 100.0 |\n");
}

#[test]
fn tables_are_kept_and_merged() {
    let folder = Folder::new();
    let path = folder.at("deep/table.json");
    paper().write(&path).unwrap();
    let mut table = Table::read(&path).unwrap();
    assert_eq!(table, paper());
    let mut other = Table::default();
    other.set("LLaVA-1.5-7B", "GQA", 62.0);
    table.merge(&other);
    assert_eq!((table.rows.len(), table.rows[1].scores.len()), (2, 2));

    folder.put("odd.json", &std::fs::read_to_string(&path).unwrap().replace("POPE", "PIPE"));
    assert!(matches!(Table::read(folder.at("odd.json")), Err(Error::UnknownCategory { .. })));
    folder.put("odd.json", "{\"rows\": [");
    assert!(matches!(Table::read(folder.at("odd.json")), Err(Error::Truncated { .. })));
}
