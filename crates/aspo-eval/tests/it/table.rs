//! The paper's table.

use aspo_eval::table::{COLUMNS, Table};
use aspo_eval::{Error, Headline};

use crate::common::Folder;

fn headline(column: &'static str, percent: f64) -> Headline {
    Headline { column, percent: Some(percent), unreadable: 0 }
}

/// LLaVA-1.5-7B's row of the paper, with made-up figures where the table of the method does not give one.
fn paper() -> Table {
    let mut table = Table::default();
    for (column, percent) in
        COLUMNS.into_iter().zip([35.3, 65.6, 66.0, 58.0, 75.7, 66.2, 62.0, 67.7, 86.6, 33.9])
    {
        table.set("LLaVA-1.5-7B + ASPO", headline(column, percent));
    }
    table.set("LLaVA-1.5-7B", headline("POPE", 85.94));
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
    one.set("a|b", headline("POPE", 100.0));
    assert_eq!(one.markdown(), "| model | POPE |\n|---|---:|\n| a\\|b | 100.0 |\n");
}

#[test]
fn unreadable_replies_stand_beside_the_figure_and_no_figure_takes_the_old_one_away() {
    let mut table = Table::default();
    table.set("m", Headline { unreadable: 2, ..headline("LLaVA-W", 64.8) });
    assert_eq!(table.text(), "model              LLaVA-W\nm      64.8 [2 unreadable]\n");
    let folder = Folder::new();
    table.write(&folder.at("t.json")).unwrap();
    assert_eq!(Table::read(folder.at("t.json")).unwrap(), table);
    table.set("m", Headline { column: "LLaVA-W", percent: None, unreadable: 3 });
    assert_eq!(table.text(), "model           LLaVA-W\nm      – [3 unreadable]\n");
    table.set("m", headline("LLaVA-W", 70.0));
    assert_eq!(table.text(), "model  LLaVA-W\nm         70.0\n");
}

#[test]
fn tables_are_kept() {
    let folder = Folder::new();
    let path = folder.at("deep/table.json");
    paper().write(&path).unwrap();
    assert_eq!(Table::read(&path).unwrap(), paper());

    folder.put("odd.json", &std::fs::read_to_string(&path).unwrap().replace("POPE", "PIPE"));
    assert!(matches!(Table::read(folder.at("odd.json")), Err(Error::UnknownCategory { .. })));
    folder.put("odd.json", "{\"rows\": [");
    assert!(matches!(Table::read(folder.at("odd.json")), Err(Error::Truncated { .. })));
}
