//! SeVa's diffusion noise, which turns a clean picture into one whose answer is worse.
//!
//! `β_t = sigmoid(linspace(-6, 6, 1000)_t) (0.5e-2 - 1e-5) + 1e-5`, `ᾱ_t = Π_{s≤t} (1 - β_s)`,
//! `x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε`, on the normalised values in f32, `t` used as the index (F: Kevinz-code/SeVa). SeVa
//! draws ε without a seed; here it follows from `(seed, image, t)` (C).

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Steps of the schedule: `t` is 0 to 999.
pub const NOISE_STEPS: usize = 1000;

/// `(√ᾱ_t, √(1-ᾱ_t))`: how much of the picture stays and how much noise is added.
///
/// # Errors
/// [`Error::Option`] for a step past [`NOISE_STEPS`].
///
/// ```
/// let (signal, noise) = aspo_data::noise::schedule(500)?;
/// assert!((signal - 0.863017).abs() < 1e-6 && (noise - 0.505175).abs() < 1e-6);
/// # Ok::<(), aspo_data::Error>(())
/// ```
pub fn schedule(step: usize) -> Result<(f64, f64)> {
    if step >= NOISE_STEPS {
        return Err(Error::Option { name: "noise_step", found: step.to_string(), remedy: "use 0 to 999" });
    }
    let kept: f64 = (0..=step)
        .map(|t| {
            let x = -6.0 + 12.0 * t as f64 / (NOISE_STEPS - 1) as f64;
            let beta = (0.5e-2 - 1e-5) / (1.0 + libm::exp(-x)) + 1e-5;
            1.0 - beta
        })
        .product();
    Ok((kept.sqrt(), (1.0 - kept).sqrt()))
}

/// Adds the noise of `step` to the normalised values of one image, in place.
///
/// The same `(seed, image, step)` gives the same noise on every machine; `image` is [`ImageSource::key`], so that two
/// images of one run are noised independently and the order of the work does not matter.
///
/// [`ImageSource::key`]: crate::ImageSource::key
///
/// # Errors
/// [`Error::Option`] for a step past [`NOISE_STEPS`].
pub fn add_noise(values: &mut [f32], seed: u64, image: &str, step: usize) -> Result<()> {
    let (signal, noise) = schedule(step)?;
    let (signal, noise) = (signal as f32, noise as f32);
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update((step as u64).to_le_bytes());
    hash.update(image);
    let mut normal = Normal { random: ChaCha8Rng::from_seed(hash.finalize().into()), spare: None };
    for value in values {
        *value = signal * *value + noise * normal.draw() as f32;
    }
    Ok(())
}

/// Standard normal numbers by Box and Muller, two at a time. Logarithm and circle functions are libm's own, because those
/// of the system differ in their last bits.
struct Normal {
    random: ChaCha8Rng,
    spare: Option<f64>,
}

impl Normal {
    fn draw(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        // 53 random bits; the first number lies in (0, 1], so that its logarithm is finite.
        let unit = |bits: u64| (bits >> 11) as f64 / (1_u64 << 53) as f64;
        let radius = (-2.0 * libm::log(1.0 - unit(self.random.next_u64()))).sqrt();
        let (sine, cosine) = libm::sincos(std::f64::consts::TAU * unit(self.random.next_u64()));
        self.spare = Some(radius * sine);
        radius * cosine
    }
}
