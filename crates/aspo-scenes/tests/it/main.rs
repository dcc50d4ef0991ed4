//! The scenes world: what it promises about pictures, texts and verdicts.

use std::collections::HashSet;

use aspo_scenes::{
    Background, Kind, PopeKind, Scene, Split, Verdict, describe, judge, load, plant_mistakes, pope,
    questions, render, scene, write,
};

fn sample(split: Split, count: usize) -> Vec<Scene> {
    (0..count).map(|index| scene(3, split, index)).collect()
}

/// What a text can say about a scene: everything but the jitter of centres and radii.
fn said(scene: &Scene) -> String {
    let objects: Vec<String> =
        scene.objects.iter().map(|o| format!("{:?} {:?} {:?}", o.kind, o.size, o.place)).collect();
    format!("{:?} {objects:?}", scene.background)
}

#[test]
fn the_same_seed_draws_the_same_scene_and_another_seed_another() {
    assert_eq!(scene(1, Split::Train, 5), scene(1, Split::Train, 5));
    assert_ne!(scene(1, Split::Train, 5), scene(2, Split::Train, 5));
    assert_ne!(scene(1, Split::Train, 5), scene(1, Split::Train, 6));
}

#[test]
fn splits_never_share_a_scene() {
    let splits = [Split::Train, Split::Pairs, Split::Validation, Split::Test];
    let seen: Vec<HashSet<String>> =
        splits.map(|split| sample(split, 1500).iter().map(said).collect()).into();
    for (index, a) in seen.iter().enumerate() {
        for b in &seen[index + 1..] {
            assert_eq!(a.intersection(b).count(), 0);
        }
    }
}

#[test]
fn every_sentence_of_a_description_is_true_and_every_object_is_described() {
    for (index, scene) in sample(Split::Test, 500).iter().enumerate() {
        let text = describe(scene, index as u64);
        let judgement = judge(scene, &text);
        assert!(judgement.sentences.len() >= 2, "{text}");
        for (sentence, verdict) in &judgement.sentences {
            assert_eq!(*verdict, Verdict::True, "{sentence} in {text} of {scene:?}");
        }
        assert_eq!(judgement.described, scene.objects.len(), "{text}");
    }
}

#[test]
fn exactly_the_planted_mistakes_are_judged_false() {
    for (index, scene) in sample(Split::Test, 500).iter().enumerate() {
        let planted = plant_mistakes(scene, 1 + index % 3, index as u64);
        let judgement = judge(scene, &planted.text);
        let wrong: Vec<usize> = judgement
            .sentences
            .iter()
            .enumerate()
            .filter(|(_, (_, verdict))| *verdict == Verdict::False)
            .map(|(index, _)| index)
            .collect();
        assert_eq!(wrong, planted.mistaken, "{} of {scene:?}", planted.text);
        let right = judge(scene, &planted.right).sentences;
        assert_eq!(right.len(), judgement.sentences.len());
        for (at, (right, said)) in right.iter().zip(&judgement.sentences).enumerate() {
            assert_eq!(right.1, Verdict::True, "{} of {scene:?}", planted.right);
            assert_eq!(right.0 != said.0, planted.mistaken.contains(&at), "{} | {}", right.0, said.0);
        }
    }
}

#[test]
fn judging_knows_denials_numbers_relations_and_what_it_cannot_read() {
    let mut scene = scene(3, Split::Test, 0);
    scene.background = Background::Gray;
    let present = scene.objects[0].kind.words();
    let absent = Kind::all().find(|&kind| scene.find(kind).is_none()).unwrap().words();
    let verdict = |text: &str| judge(&scene, text).sentences[0].1;
    assert_eq!(verdict(&format!("There is no {absent}.")), Verdict::True);
    assert_eq!(verdict(&format!("There is no {present}.")), Verdict::False);
    assert_eq!(verdict(&format!("I see a {present}")), Verdict::True);
    assert_eq!(verdict(&format!("The {present} is above the {present}.")), Verdict::False);
    assert_eq!(verdict(&format!("The {present} is above the {absent}.")), Verdict::False);
    assert_eq!(verdict("Nine shapes float about."), Verdict::False);
    assert_eq!(verdict("They lie on a gray background."), Verdict::True);
    assert_eq!(verdict("They lie on a white background."), Verdict::False);
    assert_eq!(verdict("What a lovely picture!"), Verdict::Unreadable);
    assert_eq!(judge(&scene, "  ").sentences.len(), 0);
}

#[test]
fn pope_is_balanced_and_its_labels_are_the_truth() {
    for (index, scene) in sample(Split::Test, 300).iter().enumerate() {
        for kind in PopeKind::ALL {
            let asked = pope(scene, kind, index as u64);
            assert_eq!(asked.iter().filter(|q| q.label).count() * 2, asked.len());
            for question in asked {
                let claim = question.text.replace("Is there", "There is").replace(" in the image?", ".");
                let verdict = judge(scene, &claim).sentences[0].1;
                assert_eq!(verdict == Verdict::True, question.label, "{claim}");
            }
        }
    }
}

#[test]
fn popular_and_adversarial_questions_ask_about_likelier_objects_than_random_ones() {
    let scenes = sample(Split::Test, 300);
    let kind_of = |text: &str| Kind::all().find(|kind| text.contains(&kind.words())).unwrap();
    let mean = |pope_kind: PopeKind, score: &dyn Fn(&Scene, Kind) -> f64| {
        let scores: Vec<f64> = scenes
            .iter()
            .flat_map(|scene| pope(scene, pope_kind, 1).into_iter().map(move |q| (scene, q)))
            .filter(|(_, q)| !q.label)
            .map(|(scene, q)| score(scene, kind_of(&q.text)))
            .collect();
        scores.iter().sum::<f64>() / scores.len() as f64
    };
    let frequency = |_: &Scene, kind: Kind| kind.frequency();
    let company = |scene: &Scene, kind: Kind| {
        f64::from(u8::from(scene.objects.iter().any(|object| object.kind.companion() == kind)))
    };
    assert!(mean(PopeKind::Popular, &frequency) > 1.5 * mean(PopeKind::Random, &frequency));
    assert!(mean(PopeKind::Adversarial, &company) > 3.0 * mean(PopeKind::Random, &company));
}

#[test]
fn yes_and_no_questions_have_true_answers_and_both_kinds() {
    let mut yes = 0;
    let mut no = 0;
    for (index, scene) in sample(Split::Train, 200).iter().enumerate() {
        for question in questions(scene, index as u64) {
            assert!(question.question.ends_with('?') && !question.answer.is_empty());
            if question.question.starts_with("Is there") {
                let present =
                    Kind::all().any(|k| question.question.contains(&k.words()) && scene.find(k).is_some());
                assert_eq!(question.answer, if present { "Yes" } else { "No" });
                *(if present { &mut yes } else { &mut no }) += 1;
            }
        }
    }
    assert_eq!(yes, no);
}

#[test]
fn a_picture_shows_each_object_at_its_place_in_its_colour() {
    for scene in sample(Split::Test, 50) {
        let picture = render(&scene);
        let background = picture.get_pixel(0, 0).0;
        let of_object = |centre: [f32; 2]| {
            (0..24).flat_map(|dy| (0..24).map(move |dx| (dx, dy))).any(|(dx, dy)| {
                let (x, y) = (centre[0] as i32 - 12 + dx, centre[1] as i32 - 12 + dy);
                (0..72).contains(&x)
                    && (0..72).contains(&y)
                    && picture.get_pixel(x as u32, y as u32).0 != background
            })
        };
        assert!(scene.objects.iter().all(|object| of_object(object.centre)));
    }
}

#[test]
fn a_written_split_is_read_back_equal_with_a_picture_for_every_scene() {
    let folder = tempfile::tempdir().unwrap();
    let written = write(folder.path(), 9, Split::Validation, 4).unwrap();
    assert_eq!(load(folder.path(), Split::Validation).unwrap(), written);
    for line in &written {
        let picture = image::open(folder.path().join(&line.image)).unwrap().to_rgb8();
        assert_eq!(picture, render(&line.scene));
    }
    std::fs::write(folder.path().join("validation/scenes.jsonl"), "{\"image\":").unwrap();
    let error = load(folder.path(), Split::Validation).unwrap_err().to_string();
    assert!(error.contains("line 1"), "{error}");
}
