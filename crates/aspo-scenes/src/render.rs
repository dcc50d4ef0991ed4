//! From a scene to pixels.

use image::{Rgb, RgbImage};

use crate::scene::{Background, Colour, Object, Scene, Shape};

/// Width and height of every picture, in pixels.
pub const SIDE: u32 = 72;

/// Samples per pixel and axis: edges are smooth.
const SUPERSAMPLE: u32 = 4;

/// Width of the outlines, in pixels, about.
const OUTLINE: f32 = 1.8;

/// Draws a scene as a [`SIDE`]×[`SIDE`] RGB picture.
pub fn render(scene: &Scene) -> RgbImage {
    RgbImage::from_fn(SIDE, SIDE, |x, y| {
        let mut sum = [0u32; 3];
        for sub_y in 0..SUPERSAMPLE {
            for sub_x in 0..SUPERSAMPLE {
                let at = |pixel: u32, sub: u32| pixel as f32 + (sub as f32 + 0.5) / SUPERSAMPLE as f32;
                let colour = sample(scene, at(x, sub_x), at(y, sub_y));
                for (total, channel) in sum.iter_mut().zip(colour) {
                    *total += u32::from(channel);
                }
            }
        }
        Rgb(sum.map(|total| (total / (SUPERSAMPLE * SUPERSAMPLE)) as u8))
    })
}

fn sample(scene: &Scene, x: f32, y: f32) -> [u8; 3] {
    let hit = scene.objects.iter().find(|object| covers(object, x, y));
    // A dark outline stands out from every fill and background alike, so that a shape is a shape in any colour.
    let inside = |object: &Object| covers(&Object { radius: object.radius - OUTLINE, ..*object }, x, y);
    if hit.is_some_and(|object| !inside(object)) {
        return [20, 20, 20];
    }
    match hit.map(|object| object.kind.colour) {
        None => match scene.background {
            Background::Pink => [250, 190, 205],
            Background::Gray => [128, 128, 128],
            Background::White => [240, 240, 240],
        },
        Some(Colour::Red) => [220, 30, 40],
        Some(Colour::Green) => [30, 160, 60],
        Some(Colour::Blue) => [40, 70, 220],
        Some(Colour::Yellow) => [240, 220, 40],
        Some(Colour::Purple) => [140, 40, 170],
        Some(Colour::Orange) => [245, 140, 30],
    }
}

fn covers(object: &Object, x: f32, y: f32) -> bool {
    // Coordinates in units of the radius, y upwards.
    let u = (x - object.centre[0]) / object.radius;
    let v = (object.centre[1] - y) / object.radius;
    match object.kind.shape {
        Shape::Circle => u.hypot(v) <= 1.0,
        Shape::Square => u.abs() <= 0.88 && v.abs() <= 0.88,
        Shape::Triangle => (-0.85..=1.0).contains(&v) && u.abs() <= (1.0 - v) * 0.57,
        Shape::Cross => u.abs().max(v.abs()) <= 1.0 && u.abs().min(v.abs()) <= 0.32,
    }
}
