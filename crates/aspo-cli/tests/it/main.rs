//! The program, run as people run it.

mod compare;
mod newer;
#[cfg(feature = "mpi")]
mod ranks;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use aspo_train::TrainConfig;

fn assets(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name)
}

/// Runs `aspo` in `folder` with these words, and something on standard input.
fn aspo_fed(folder: &Path, words: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_aspo"))
        .args(words)
        .current_dir(folder)
        .env("ASPO_CACHE", folder.join("cache"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn aspo(folder: &Path, words: &[&str]) -> Output {
    aspo_fed(folder, words, "")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What a run prints that ends well.
#[track_caller]
fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// The complaint of a run that does not, on one line.
#[track_caller]
fn complaint(output: &Output, code: i32) -> String {
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{}{told}", text(&output.stdout));
    assert!(!told.contains("panicked"), "{told}");
    told
}

/// Part of the committed pairs.
fn few_pairs(folder: &Path, count: usize) -> PathBuf {
    let all: Vec<serde_json::Value> =
        serde_json::from_slice(&std::fs::read(assets("assets/pairs.json")).unwrap()).unwrap();
    let path = folder.join("pairs.json");
    std::fs::write(&path, serde_json::to_vec(&all[..count]).unwrap()).unwrap();
    path
}

#[test]
fn help_lists_every_command_and_the_defaults_that_count() {
    let folder = tempfile::tempdir().unwrap();
    let all = said(&aspo(folder.path(), &["--help"]));
    for command in [
        "train",
        "plan",
        "pairs",
        "validate",
        "evaluate",
        "generate",
        "merge",
        "segment",
        "completions",
        "weigh",
        "report",
    ] {
        assert!(all.contains(&format!("\n  {command} ")), "{all}");
        assert!(said(&aspo(folder.path(), &[command, "--help"])).contains("Usage: aspo"), "{command}");
    }
    let help = said(&aspo(folder.path(), &["train", "--help"]));
    let default = TrainConfig::default();
    for (option, value) in [
        ("--max-length", default.max_length.to_string()),
        ("--reward-scaling", default.reward_scaling.clone()),
        ("--loss-type", default.loss_type.join(",")),
        ("--alpha", default.alpha.to_string()),
        ("--beta", default.beta.to_string()),
        ("--learning-rate", format!("{:e}", default.learning_rate)),
        ("--per-device-train-batch-size", default.per_device_train_batch_size.to_string()),
        ("--gradient-accumulation-steps", default.gradient_accumulation_steps.to_string()),
        ("--num-train-epochs", default.num_train_epochs.to_string()),
        ("--save-steps", default.save_steps.to_string()),
        ("--eval-steps", default.eval_steps.to_string()),
        ("--seed", default.seed.to_string()),
    ] {
        let (_, rest) = help.split_once(&format!("{option} <")).unwrap_or_else(|| panic!("{option}: {help}"));
        let own = rest.split("\n      --").next().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        let told =
            own.contains(&format!("[default: {value}]")) || own.contains(&format!("[default: {value},"));
        assert!(told, "{option} is {value} by default, told: {own}");
    }
    let scaling = help.split("--reward-scaling").nth(1).unwrap();
    assert!(scaling[..400].contains("[possible values: total_weight, token_weight, reward_ratio, none]"));
}

#[test]
fn completions_are_printed_for_every_shell() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = said(&aspo(folder.path(), &["completions", shell]));
        assert!(script.contains("aspo") && script.contains("merge"), "{shell}");
    }
}

#[test]
fn sentences_end_where_they_end_in_characters() {
    let folder = tempfile::tempdir().unwrap();
    let lines = "{\"text\": \"Ein Hügel. Er ist 3.5 m hoch.\"}\n\n";
    let told = said(&aspo_fed(folder.path(), &["segment"], lines));
    assert_eq!(told, "{\"ends\":[10,29]}\n");
    let told = complaint(&aspo_fed(folder.path(), &["segment"], "{\"text\": \"A.\"}\nnot json\n"), 1);
    assert!(told.starts_with("error: standard input: line 2: "), "{told}");
}

#[test]
fn a_file_of_pairs_is_told_sound_faulty_or_unreadable_by_the_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let (pairs, images) = (few_pairs(folder.path(), 5), assets("assets/scenes"));
    let words = ["validate", pairs.to_str().unwrap(), "--images", images.to_str().unwrap(), "--decode"];
    assert!(said(&aspo(folder.path(), &words)).contains('5'));
    let row = |answer: &str| {
        serde_json::json!({ "question": "What?", "chosen": answer, "reject": "B.", "image_id": "a.png" })
            .to_string()
    };
    std::fs::write(folder.path().join("faulty.jsonl"), [row("A."), row("")].join("\n")).unwrap();
    assert_eq!(aspo(folder.path(), &["validate", "faulty.jsonl"]).status.code(), Some(1));
    assert!(complaint(&aspo(folder.path(), &["validate", "nowhere.json"]), 2).contains("nowhere.json"));
}

#[test]
fn pairs_are_shown_as_a_model_sees_them_and_their_sentences_by_weight() {
    let folder = tempfile::tempdir().unwrap();
    let pairs = few_pairs(folder.path(), 5).display().to_string();
    let path = |name: &str| assets(name).display().to_string();
    let (model, clip, images) = (path("assets/llava"), path("assets/clip"), path("assets/scenes"));
    let seen =
        ["validate", &pairs, "--images", &images, "--decode", "--model", &model, "--html", "seen.html"];
    let told = said(&aspo(folder.path(), &seen));
    assert!(
        told.contains("image tokens         min     9") && told.contains("image width          min    72"),
        "{told}"
    );
    let page = std::fs::read_to_string(folder.path().join("seen.html")).unwrap();
    assert_eq!(page.matches("data:image/png;base64,").count(), 5);
    assert!(page.contains("ASSISTANT:</p>") && page.contains("tokens, 9 of them of pictures"));
    let weighed = [
        "weigh", "--model", &model, "--clip", &clip, "--data", &pairs, "--images", &images, "--count", "3",
        "--json",
    ];
    let told = said(&aspo(folder.path(), &weighed));
    let lines: Vec<serde_json::Value> =
        told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 6, "two answers of three pairs");
    for line in &lines {
        let weights =
            line["sentences"].as_array().unwrap().iter().map(|sentence| sentence["weight"].as_f64().unwrap());
        assert!(weights.clone().all(|weight| (0.0..=1.0).contains(&weight)), "{line}");
        assert!(weights.fold(0.0, f64::max) > 0.0, "some sentence counts more than another: {line}");
    }
    let page = std::fs::read_to_string(folder.path().join("weights.html")).unwrap();
    assert!(page.contains("<b>rejected</b>") && page.contains("similarity"));
    // Answers alone, their pictures beside the file.
    let picture = std::fs::read_dir(assets("assets/scenes/pairs")).unwrap().next().unwrap().unwrap().path();
    std::fs::copy(picture, folder.path().join("seen.png")).unwrap();
    let row = |answer: &str| {
        serde_json::json!({ "prompt": "What is there?", "image": "seen.png", "answer": answer }).to_string()
            + "\n"
    };
    std::fs::write(folder.path().join("answers.jsonl"), row("A red circle. It is small.")).unwrap();
    let weigh = |file: &str| {
        let words =
            ["weigh", "--model", &model, "--clip", &clip, "--answers", file, "--out", "alone.html", "--json"];
        aspo(folder.path(), &words)
    };
    let told: serde_json::Value = serde_json::from_str(&said(&weigh("answers.jsonl"))).unwrap();
    assert_eq!((&told["answer"], told["sentences"].as_array().unwrap().len()), (&"answer".into(), 2));
    let page = std::fs::read_to_string(folder.path().join("alone.html")).unwrap();
    assert!(
        page.contains("<b>answer</b>")
            && page.contains("data:image/png;base64,")
            && !page.contains("rejected")
    );
    std::fs::write(folder.path().join("empty.jsonl"), row("A dot.") + &row(" ")).unwrap();
    assert!(complaint(&weigh("empty.jsonl"), 1).contains("empty.jsonl: answer 2: `answer` is empty"));
    let without = ["weigh", "--model", &model, "--data", &pairs, "--images", &images];
    assert!(complaint(&aspo(folder.path(), &without), 1).contains("option `clip`"));
}

#[test]
fn several_sources_with_columns_and_weights_are_one_set() {
    let folder = tempfile::tempdir().unwrap();
    let few = few_pairs(folder.path(), 12);
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(&few).unwrap()).unwrap();
    let other: String = rows[8..]
        .iter()
        .map(|row| {
            let row = serde_json::json!({
                "query_text": row["question"], "good": row["chosen"], "bad": row["reject"], "picture": row["image_id"]
            });
            row.to_string() + "\n"
        })
        .collect();
    std::fs::write(folder.path().join("other.jsonl"), other).unwrap();
    std::fs::write(&few, serde_json::to_vec(&rows[..8]).unwrap()).unwrap();
    let (model, images) = (assets("assets/llava"), assets("assets/scenes"));
    let config = format!(
        "model = {model:?}\nimages = {images:?}\ntemplate = \"llava_hf\"\nmax_length = 512\nalpha = 0.0\nmix_strategy = \"interleave_under\"\n\
         [[data]]\npath = \"pairs.json\"\nweight = 1\n\
         [[data]]\npath = \"other.jsonl\"\nweight = 2\ncolumns = {{ prompt = \"query_text\", chosen = \"good\", rejected = \"bad\", image = \"picture\" }}\n"
    );
    std::fs::write(folder.path().join("mix.toml"), config).unwrap();
    let told = said(&aspo(folder.path(), &["plan", "--config", "mix.toml"]));
    // Four of the scarcer one, which counts twice, and two of the other.
    assert!(told.lines().any(|line| line.contains("pairs  ") && line.contains(" 6 ")), "{told}");
    let wrong = ["validate", "other.jsonl", "--column", "chosen=better"];
    assert!(complaint(&aspo(folder.path(), &wrong), 2).contains("`chosen` is to be read from `better`"));
}

#[test]
fn what_cannot_be_done_is_told_with_option_and_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let model = assets("assets/llava");
    let model = model.to_str().unwrap();
    let told = |words: &[&str]| complaint(&aspo(folder.path(), words), 1);
    let train = told(&["train"]);
    assert!(train.starts_with("error: option `model`: not given") && train.contains("--config"), "{train}");
    assert!(told(&["train", "--model", "nowhere"]).contains("nowhere"));
    let clip = told(&["train", "--model", model, "--data", "none.json", "--images", "."]);
    assert!(clip.contains("option `clip`: not given") && clip.contains("`alpha = 0`"), "{clip}");
    let none = told(&["train", "--model", model, "--alpha", "0", "--data", "none.json", "--images", "."]);
    assert!(none.contains("none.json"), "{none}");
    let set = told(&["plan", "--model", model, "--set", "betta=1"]);
    assert!(set.contains("option `set`") && set.contains("betta"), "{set}");
    let merge = told(&["merge", "--model", model, "--adapter", "nowhere", "--out", "merged"]);
    assert!(merge.contains("nowhere"), "{merge}");
    let none = told(&["generate", "--model", model, "--image", "none.png", "What is here?"]);
    assert!(none.starts_with("error: none.png: "), "{none}");
    // Words that clap refuses.
    complaint(&aspo(folder.path(), &["generate", "--model", model]), 2);
    complaint(&aspo(folder.path(), &["train", "--reward-scaling", "most"]), 2);
    assert!(!folder.path().join("out").exists(), "nothing was begun");
}

#[test]
fn a_plan_is_told_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let config = assets("configs/scenes.toml");
    let words = ["plan", "--config", config.to_str().unwrap(), "--max-steps", "3", "--out", "run"];
    let told = said(&aspo(folder.path(), &words));
    assert!(told.contains("plan\n") && told.contains("3 steps"), "{told}");
    assert!(!folder.path().join("run").exists());
}

#[test]
fn a_model_is_trained_asked_merged_and_asked_again_and_scored() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    few_pairs(folder.path(), 12);
    let config = assets("configs/scenes.toml");
    let train = |more: &[&str]| {
        let words = ["train", "--config", config.to_str().unwrap(), "--data", "pairs.json", "--out", "run"];
        let fast =
            ["--set", "learning_rate=5e-3", "--set", "gradient_accumulation_steps=1", "--save-steps", "1"];
        aspo(folder.path(), &[&words[..], &fast, more].concat())
    };
    let told = said(&train(&["--max-steps", "2"]));
    assert!(told.contains("trained 2 steps") && at("run/report.html").exists(), "{told}");
    let card = std::fs::read_to_string(at("run/adapter/README.md")).unwrap();
    assert!(card.starts_with("---\nbase_model: ") && card.contains("library_name: peft\n"), "{card}");
    assert!(card.contains("| rewards/margins |") && card.contains("max_steps = 2"), "{card}");
    // The same folder is not written twice, and a longer run goes on there.
    assert!(complaint(&train(&["--max-steps", "2"]), 1).contains("holds a run"));
    assert!(said(&train(&["--max-steps", "3", "--resume"])).contains("step 2 of 3"));
    assert!(at("run/report-000002.html").exists() && at("run/report-000002.json").exists());
    said(&aspo(folder.path(), &["report", "run"]));
    let page = std::fs::read_to_string(at("runs.html")).unwrap();
    assert!(page.contains("<b>chosen, trained, run</b>") && page.contains("aria-label=\"Loss: loss\""));

    let model = assets("assets/llava");
    let picture = std::fs::read_dir(assets("assets/scenes/pairs")).unwrap().next().unwrap().unwrap().path();
    let (model, picture) = (model.to_str().unwrap(), picture.to_str().unwrap());
    let ask = |more: &[&str], prompt: &str| {
        let words = ["generate", "--image", picture, "--max-new-tokens", "24"];
        said(&aspo(folder.path(), &[&words[..], more, &[prompt]].concat()))
    };
    let question = "Describe this image in detail.";
    let adapted = ask(&["--model", model, "--adapter", "run/adapter"], question);
    assert!(adapted.trim().len() > 10 && adapted.ends_with('\n'), "{adapted}");

    let merge = ["merge", "--model", model, "--adapter", "run/adapter", "--out", "merged"];
    said(&aspo(folder.path(), &merge));
    assert!(complaint(&aspo(folder.path(), &merge), 1).contains("option `out`"));
    let mut files: Vec<String> = std::fs::read_dir(at("merged"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(files, ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"]);
    let merged = ask(&["--model", "merged", "--template", "llava_hf"], question);
    assert_eq!(merged, adapted, "merged weights say what base and adapter say");

    // Several questions, each a line; the same words as alone.
    let line = serde_json::json!({ "prompt": question, "image": picture }).to_string();
    std::fs::write(at("asked.jsonl"), line + "\n{\"prompt\": \"Is it day?\"}\n").unwrap();
    let words = ["generate", "--model", "merged", "--prompts", "asked.jsonl", "--max-new-tokens", "24"];
    let told = said(&aspo(folder.path(), &words));
    let lines: Vec<serde_json::Value> =
        told.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["answer"], adapted.trim());
    // Drawn answers follow from the seed.
    let drawn = |seed: &str| ask(&["--model", "merged", "--temperature", "1.5", "--seed", seed], question);
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));

    std::fs::create_dir(at("pope")).unwrap();
    let name = Path::new(picture).file_name().unwrap().to_str().unwrap();
    for split in ["random", "popular", "adversarial"] {
        let row = |id: usize, label: &str| {
            let text = "Is there a circle in the image?";
            serde_json::json!({ "question_id": id, "image": name, "text": text, "label": label }).to_string()
        };
        let path = at("pope").join(format!("coco_pope_{split}.json"));
        std::fs::write(path, [row(1, "yes"), row(2, "no")].join("\n")).unwrap();
    }
    let images = Path::new(picture).parent().unwrap().to_str().unwrap();
    let words =
        ["evaluate", "--benchmark", "pope", "--data", "pope", "--images", images, "--model", "merged"];
    let told = said(&aspo(folder.path(), &[&words[..], &["--out", "answers.jsonl", "--json"]].concat()));
    let figures: serde_json::Value = serde_json::from_str(&told).unwrap();
    // One question of the same words is answered rightly, the other not.
    assert!(figures.to_string().contains("0.5"), "{figures}");
    assert_eq!(std::fs::read_to_string(at("answers.jsonl")).unwrap().lines().count(), 6);
}

#[test]
fn pairs_are_made_from_a_models_own_answers() {
    let folder = tempfile::tempdir().unwrap();
    let images = assets("assets/scenes");
    let picture = std::fs::read_dir(images.join("pairs")).unwrap().next().unwrap().unwrap().file_name();
    let rows = serde_json::json!([{ "id": "one", "image": format!("pairs/{}", picture.to_str().unwrap()),
        "conversations": [{ "from": "human", "value": "<image>\nDescribe this image in detail." },
                          { "from": "gpt", "value": "" }] }]);
    std::fs::write(folder.path().join("asked.json"), rows.to_string()).unwrap();
    let (model, images) = (assets("assets/llava"), images.to_str().unwrap());
    let words =
        ["pairs", "--model", model.to_str().unwrap(), "--questions", "asked.json", "--images", images];
    let told =
        said(&aspo(folder.path(), &[&words[..], &["--out", "made", "--max-new-tokens", "20"]].concat()));
    assert!(
        told.contains("1 pairs in made/pairs.json") || told.contains("1 equal answers dropped"),
        "{told}"
    );
    assert!(folder.path().join("made/pairs.json").exists());
}
