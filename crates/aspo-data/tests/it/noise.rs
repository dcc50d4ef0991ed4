//! SeVa's noise.

use aspo_data::noise::{NOISE_STEPS, add_noise, schedule};

#[test]
fn schedule_has_the_published_check_values() {
    let close = |(a, b): (f64, f64), (c, d): (f64, f64)| (a - c).abs() < 1e-6 && (b - d).abs() < 1e-6;
    assert!(close(schedule(500).unwrap(), (0.863017, 0.505175)));
    assert!(close(schedule(800).unwrap(), (0.467014, 0.884250)));
    let (signal, noise) = schedule(999).unwrap();
    assert!((signal * signal - 0.081249).abs() < 1e-6);
    assert!((signal * signal + noise * noise - 1.0).abs() < 1e-12);
}

#[test]
fn a_step_past_the_schedule_is_refused_and_signal_only_falls() {
    let error = schedule(NOISE_STEPS).unwrap_err().to_string();
    assert!(error.contains("noise_step") && error.contains("1000"), "{error}");
    let signals: Vec<f64> = (0..NOISE_STEPS).map(|step| schedule(step).unwrap().0).collect();
    assert!(signals.windows(2).all(|pair| pair[0] > pair[1]));
}

#[test]
fn noise_follows_from_seed_image_and_step_alone() {
    let draw = |seed, image, step| {
        let mut values = vec![0.5; 100];
        add_noise(&mut values, seed, image, step).unwrap();
        values
    };
    assert_eq!(draw(1, "a.jpg", 500), draw(1, "a.jpg", 500));
    assert_ne!(draw(1, "a.jpg", 500), draw(2, "a.jpg", 500));
    assert_ne!(draw(1, "a.jpg", 500), draw(1, "b.jpg", 500));
    // Other steps draw other noise, not the same noise scaled.
    let centred = |step| {
        let (signal, noise) = schedule(step).unwrap();
        draw(1, "a.jpg", step)
            .iter()
            .map(|x| ((f64::from(*x) - 0.5 * signal) / noise) as f32)
            .collect::<Vec<_>>()
    };
    assert!(centred(500).iter().zip(centred(800)).any(|(a, b)| (a - b).abs() > 0.1));
}

#[test]
fn noise_is_standard_normal() {
    let (signal, noise) = schedule(500).unwrap();
    let count = 200_000;
    let mut values = vec![1.0; count];
    add_noise(&mut values, 7, "image", 500).unwrap();
    let draws: Vec<f64> = values.iter().map(|x| (f64::from(*x) - signal) / noise).collect();
    let moment = |power: i32| draws.iter().map(|x| x.powi(power)).sum::<f64>() / count as f64;
    // Five standard errors of each moment: 1/√n, √2/√n, √15/√n, √96/√n.
    let error = 5.0 / (count as f64).sqrt();
    assert!(moment(1).abs() < error);
    assert!((moment(2) - 1.0).abs() < error * 2_f64.sqrt());
    assert!(moment(3).abs() < error * 15_f64.sqrt());
    assert!((moment(4) - 3.0).abs() < error * 96_f64.sqrt());
    // Neighbours are independent, so also the two halves of each Box-Muller draw.
    let lag = draws.windows(2).map(|pair| pair[0] * pair[1]).sum::<f64>() / count as f64;
    assert!(lag.abs() < error);
}

/// Pairs of an old run are made again by a new one: these bits stay, on every machine.
#[test]
fn noise_of_old_runs_stays() {
    let mut values = vec![0.5; 6];
    add_noise(&mut values, 1, "a.jpg", 500).unwrap();
    let bits: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
    let wanted = [1_026_156_496, 1_060_719_724, 1_063_367_770, 3_198_021_622, 1_041_958_386, 1_025_004_960];
    assert_eq!(bits, wanted);
}
