//! The model card beside an adapter: `README.md`, as PEFT writes it and the hub reads it.

use std::path::Path;

use aspo_train::{Report, TrainConfig};

use crate::Failure;

/// Writes the card of a finished run into its adapter's folder.
///
/// # Errors
/// A folder that cannot be written.
pub(crate) fn write(adapter: &Path, config: &TrainConfig, report: &Report) -> Result<(), Failure> {
    let path = adapter.join("README.md");
    let text = text(config, report)?;
    aspo_data::files::write_atomic(&path, |file| {
        file.write_all(text.as_bytes()).map_err(|source| aspo_data::Error::Io { path: path.clone(), source })
    })?;
    Ok(())
}

fn text(config: &TrainConfig, report: &Report) -> Result<String, Failure> {
    let base = config.model.display().to_string();
    // JSON's quoting is YAML's: a path may hold anything.
    let quoted = |text: &str| serde_json::to_string(text);
    let mut card = String::from("---\n");
    card += &format!("base_model: {}\n", quoted(&base)?);
    card += "library_name: peft\npipeline_tag: image-text-to-text\ntags:\n";
    card +=
        &format!("- {}\n- lora\n- preference-optimization\n", quoted(&format!("base_model:adapter:{base}"))?);
    for loss in &config.loss_type {
        card += &format!("- {}\n", quoted(loss)?);
    }
    card += &format!("---\n\n# {}\n\n", report.title);
    card += "A LoRA adapter, trained on preference pairs";
    if config.objective()?.aspo().is_some() {
        card += " with Adaptive Sentence-level Preference Optimization ([arXiv:2505.19100](https://arxiv.org/abs/2505.19100))";
    }
    card += ".\n\n```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForImageTextToText\n\n";
    card += &format!("base = AutoModelForImageTextToText.from_pretrained({})\n", quoted(&base)?);
    card += "model = PeftModel.from_pretrained(base, \".\")\n```\n\n## Training\n\n| | |\n|---|---|\n";
    let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
    for (name, value) in &report.facts {
        card += &format!("| {} | {} |\n", cell(name), cell(value));
    }
    if let Some(last) = report.metrics.last() {
        card += "\n| last metrics | |\n|---|--:|\n";
        for (name, value) in &last.values {
            let told = if *value != 0.0 && value.abs() < 1e-3 {
                format!("{value:.3e}")
            } else {
                format!("{value:.5}")
            };
            card += &format!("| {} | {told} |\n", cell(name));
        }
    }
    for (heading, rows) in &report.tables {
        card += &format!("\n## {heading}\n\n");
        for (index, row) in rows.iter().enumerate() {
            let cells: Vec<String> = row.iter().map(|text| cell(text)).collect();
            card += &format!("| {} |\n", cells.join(" | "));
            if index == 0 {
                card += &format!("|{}\n", "---|".repeat(cells.len()));
            }
        }
    }
    card += "\n## Options\n\n```toml\n";
    card += &toml::to_string(config)?;
    card += "```\n";
    Ok(card)
}
