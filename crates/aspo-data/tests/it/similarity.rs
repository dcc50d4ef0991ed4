//! Sentence-image cosines.

use aspo_data::similarity::{CLIP_WINDOW, Embed, ImageVectors, Scorer, SimilarityReport, text_windows};
use aspo_data::{
    EncodedPair, Encoder, Error, ImageLoader, ImageProcessor, Pair, PairSet, Template, Tokenizer,
};

use crate::support::{png, tiny_tokenizer};

struct World {
    folder: tempfile::TempDir,
    loader: ImageLoader,
    tokenizer: Tokenizer,
    pairs: Vec<EncodedPair>,
}

fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.png"), png(4, 4, [200, 10, 10])).unwrap();
    std::fs::write(folder.path().join("b.png"), png(4, 4, [10, 200, 10])).unwrap();
    // The same content under another name.
    std::fs::write(folder.path().join("c.png"), png(4, 4, [200, 10, 10])).unwrap();
    let encoder = Encoder::new(tiny_tokenizer(), Template::LlavaHf, 4);
    let long = format!("The dog {}ends.", "runs the dog ".repeat(60));
    let pairs = [
        Pair::new("1", "q", format!("One dog. Two dogs. {long}"), "No.").with_image("a.png"),
        Pair::new("2", "q", "One dog. Three.", "Never. Ever.").with_image("b.png"),
        Pair::new("3", "q", "Two dogs.", "x").with_image("c.png"),
        Pair::new("4", "q", "No image.", "x"),
    ];
    let pairs = pairs.iter().map(|pair| encoder.encode(pair).unwrap()).collect();
    let loader = ImageLoader::new(folder.path(), ImageProcessor::clip(4)).unwrap();
    World { folder, loader, tokenizer: tiny_tokenizer(), pairs }
}

impl World {
    fn scorer(&self) -> Scorer<'_> {
        Scorer {
            images: &self.loader,
            tokenizer: &self.tokenizer,
            model: "toy".into(),
            window: CLIP_WINDOW,
            batch: 2,
            rejected: false,
        }
    }
}

/// Red, green, blue of the first pixel, as a vector.
fn image_vector(pixels: &[f32]) -> Vec<f32> {
    vec![pixels[0], pixels[16], pixels[32]]
}

fn text_vector(ids: &[u32]) -> Vec<f32> {
    vec![ids.len() as f32, ids.iter().sum::<u32>() as f32 / 100.0, 1.0]
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn each_chosen_sentence_has_its_cosine_and_long_ones_the_mean_of_their_windows() {
    let mut world = world();
    let mut pairs = std::mem::take(&mut world.pairs);
    let mut images = 0;
    let report = world
        .scorer()
        .score(
            &mut pairs,
            &mut ImageVectors::default(),
            &mut |pixels: &[Vec<f32>]| {
                images += pixels.len();
                Ok(pixels.iter().map(|pixels| image_vector(pixels)).collect())
            },
            &mut |ids: &[Vec<u32>]| {
                assert!(ids.len() <= 2 && ids.iter().all(|ids| ids.len() <= CLIP_WINDOW && ids[0] == 1));
                Ok(ids.iter().map(|ids| text_vector(ids)).collect())
            },
        )
        .unwrap();
    assert_eq!((report.sentences, report.cached, report.windowed, report.images), (6, 1, 1, 2));
    assert_eq!(images, 2, "the same content is embedded once");
    assert_eq!(pairs.iter().map(|pair| pair.chosen.similarity.len()).collect::<Vec<_>>(), [3, 2, 1, 0]);
    assert!(pairs.iter().all(|pair| pair.rejected.similarity.is_empty()));
    assert_eq!(pairs[0].chosen.similarity[1], pairs[2].chosen.similarity[0]);
    let red = image_vector(&world.loader.load(&"a.png".into()).unwrap());
    for (sentence, score) in pairs[0].chosen.sentence_texts().zip(&pairs[0].chosen.similarity) {
        let windows = text_windows(&world.tokenizer, sentence.trim(), CLIP_WINDOW).unwrap();
        let mean =
            windows.iter().map(|ids| cosine(&text_vector(ids), &red)).sum::<f32>() / windows.len() as f32;
        // f32 sums of a handful of terms.
        assert!((mean - score).abs() < 1e-5, "{mean} {score}");
    }
}

#[test]
fn windows_hold_every_token_once_and_differ_by_one_at_most() {
    let tokenizer = tiny_tokenizer();
    for repeats in [1, 20, 37, 38, 39, 100] {
        let text = "the dog ".repeat(repeats);
        let bare = tokenizer.encode(&text, false).unwrap().ids;
        let windows = text_windows(&tokenizer, &text, 77).unwrap();
        assert_eq!(windows.len(), bare.len().div_ceil(76));
        assert!(windows.iter().all(|window| window[0] == 1 && window.len() <= 77));
        let joined: Vec<u32> = windows.iter().flat_map(|window| window[1..].to_vec()).collect();
        assert_eq!(joined, bare);
        let lengths: Vec<usize> = windows.iter().map(Vec::len).collect();
        assert!(lengths.iter().max().unwrap() - lengths.iter().min().unwrap() <= 1);
    }
    assert!(matches!(text_windows(&tokenizer, "the dog", 1), Err(Error::Option { .. })));
}

#[test]
fn kept_scores_save_every_embedding_and_belong_to_one_model_and_its_pictures() {
    let mut world = world();
    let set = PairSet::from(std::mem::take(&mut world.pairs));
    let folder = world.folder.path().join("kept");
    let run =
        |scorer: &Scorer<'_>, set: &PairSet, kept: Option<&str>| -> (PairSet, SimilarityReport, usize) {
            let mut calls = 0;
            let (set, report) = scorer
                .score_set(
                    set,
                    kept.map(|pictures| (folder.as_path(), pictures)),
                    &mut |pixels: &[Vec<f32>]| Ok(pixels.iter().map(|pixels| image_vector(pixels)).collect()),
                    &mut |ids: &[Vec<u32>]| {
                        calls += 1;
                        Ok(ids.iter().map(|ids| text_vector(ids)).collect())
                    },
                )
                .unwrap();
            (set, report, calls)
        };
    let all = |set: &PairSet| set.iter().collect::<Result<Vec<_>, _>>().unwrap();
    let mut scorer = world.scorer();
    scorer.rejected = true;
    let (scored, first, _) = run(&scorer, &set, Some("pictures"));
    assert_eq!((first.sentences, first.images), (6 + 4, 2));
    assert_eq!(scored.get(1).unwrap().rejected.similarity.len(), 2);
    let (again, second, calls) = run(&scorer, &set, Some("pictures"));
    assert_eq!((second.sentences, second.cached, second.images, calls), (10, 10, 0, 0));
    assert_eq!(all(&again), all(&scored));
    let (in_memory, _, _) = run(&scorer, &set, None);
    assert_eq!(all(&in_memory), all(&scored), "kept or not, the scores are the same");
    assert_eq!(run(&scorer, &set, Some("other pictures")).1.images, 2);
    assert_eq!(run(&scorer, &set.select(&[0, 1]), Some("pictures")).1.images, 2);
    scorer.model = "another".into();
    assert_eq!(run(&scorer, &set, Some("pictures")).1.images, 2);
}

#[test]
fn a_sentence_about_several_pictures_has_the_largest_of_its_scores() {
    let mut world = world();
    let mut pairs = std::mem::take(&mut world.pairs);
    pairs.truncate(2);
    let score = |pairs: &mut [EncodedPair]| {
        let report = world.scorer().score(
            pairs,
            &mut ImageVectors::default(),
            &mut |pixels: &[Vec<f32>]| Ok(pixels.iter().map(|pixels| image_vector(pixels)).collect()),
            &mut |ids: &[Vec<u32>]| Ok(ids.iter().map(|ids| text_vector(ids)).collect()),
        );
        report.unwrap()
    };
    let alone = |pairs: &mut Vec<EncodedPair>, image: &str| {
        pairs.iter_mut().for_each(|pair| pair.images = vec![image.into()]);
        score(pairs);
        pairs.iter().flat_map(|pair| pair.chosen.similarity.clone()).collect::<Vec<f32>>()
    };
    let (a, b) = (alone(&mut pairs, "a.png"), alone(&mut pairs, "b.png"));
    assert!(a.iter().zip(&b).any(|(a, b)| a > b) || a.iter().zip(&b).any(|(a, b)| a < b));
    let wanted: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a.max(*b)).collect();
    for order in [["a.png", "b.png"], ["b.png", "a.png"]] {
        pairs.iter_mut().for_each(|pair| pair.images = order.map(|image| image.into()).to_vec());
        score(&mut pairs);
        let found: Vec<f32> = pairs.iter().flat_map(|pair| pair.chosen.similarity.clone()).collect();
        assert_eq!(found, wanted);
        assert!(pairs.iter().all(|pair| pair.chosen.similarity.len() == pair.chosen.sentence_count()));
    }
}

#[test]
fn a_wrong_embedding_is_named() {
    let fails = |images: &mut Embed<'_, Vec<f32>>| {
        let mut world = world();
        let mut pairs = std::mem::take(&mut world.pairs);
        let error =
            world.scorer().score(&mut pairs, &mut ImageVectors::default(), images, &mut |ids: &[Vec<
                u32,
            >]| {
                Ok(ids.iter().map(|ids| text_vector(ids)).collect())
            });
        error.unwrap_err().to_string()
    };
    assert!(fails(&mut |_| Err("out of memory".into())).contains("out of memory"));
    assert!(fails(&mut |_| Ok(vec![])).contains("0 vectors for"));
    assert!(fails(&mut |images| Ok(vec![vec![0.0; 3]; images.len()])).contains("zero or not finite"));
    assert!(fails(&mut |images| Ok(vec![vec![1.0; 2]; images.len()])).contains("an image vector of 2"));
}
