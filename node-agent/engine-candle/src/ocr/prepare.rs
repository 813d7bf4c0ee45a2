//! A page made ready for the detector: shrunk by area, turned, padded to multiples of 32, normalised.
//!
//! The scale is the same in both directions, so that a rectangle found on the map is one on the page. What is missing to the next
//! multiple of 32 is filled with the page's own background, which also gives text at the very edge some air.

use ingle_engine::PageImage;
use rayon::prelude::*;

use super::geometry::Turn;

/// The detector halves its input five times.
pub(crate) const MULTIPLE: usize = 32;
/// Longest side of the detector's input in pixels.
pub(crate) const LONGER_SIDE_MAX: usize = 1536;
/// A page whose longer side is below this is enlarged towards it, at most [`ENLARGED_MAX`] times: small pictures hold small letters.
const LONGER_SIDE_MIN: f32 = 736.0;
const ENLARGED_MAX: f32 = 2.0;
/// Air on each side in pixels of the map.
const AIR: usize = 8;

/// What the network was trained with: (value / 255 - mean) / deviation, in the order blue, green, red.
const MEANS: [f32; 3] = [0.485, 0.456, 0.406];
const DEVIATIONS: [f32; 3] = [0.229, 0.224, 0.225];

/// How a page lies in the detector's input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Frame {
    /// Of the input; multiples of [`MULTIPLE`].
    pub(crate) width: usize,
    pub(crate) height: usize,
    /// How the page is turned first.
    pub(crate) turn: Turn,
    /// Pixels of the page per pixel here.
    pub(crate) scale: f32,
    /// The shrunk page before its turn.
    across: usize,
    down: usize,
}

impl Frame {
    /// For a page of this size.
    pub(crate) fn new(width: u32, height: u32, turn: Turn) -> Self {
        let (across, down, scale) = shrunk_size(width, height);
        let whole = |pixels: usize| (pixels + 2 * AIR).div_ceil(MULTIPLE) * MULTIPLE;
        let (width, height) = turn.size((whole(across), whole(down)));
        Self { width, height, turn, scale, across, down }
    }

    /// A point of the map on the turned page.
    pub(crate) fn on_page(&self, [x, y]: [f32; 2]) -> [f32; 2] {
        [(x - AIR as f32) * self.scale, (y - AIR as f32) * self.scale]
    }
}

/// A page's size at the detector's scale, and pixels of the page per pixel there.
fn shrunk_size(width: u32, height: u32) -> (usize, usize, f32) {
    let longer = width.max(height).max(1) as f32;
    let room = (LONGER_SIDE_MAX - 2 * AIR) as f32;
    let scale = (longer / room).max((longer / LONGER_SIDE_MIN).clamp(1.0 / ENLARGED_MAX, 1.0));
    let side = |pixels: u32| ((pixels as f32 / scale).round() as usize).clamp(1, LONGER_SIDE_MAX - 2 * AIR);
    (side(width), side(height), scale)
}

/// The detector's input, [height, width, 3], blue first.
pub(crate) fn prepare(page: &PageImage, frame: &Frame) -> Vec<f32> {
    let channels = usize::from(page.channels);
    let Frame { width, height, turn, across, down, .. } = *frame;
    let shrunk = resample(page, across, down);
    let background: Vec<f32> = (0..channels).map(|channel| median(&shrunk, channel, channels)).collect();
    let (inner_width, inner_height) = turn.size((across, down));
    let normal = |value: f32, place: usize| (value / 255.0 - MEANS[place]) / DEVIATIONS[place];
    let mut values = vec![0.0; width * height * 3];
    for (y, row) in values.chunks_exact_mut(width * 3).enumerate() {
        for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
            let inside = (AIR..AIR + inner_width).contains(&x) && (AIR..AIR + inner_height).contains(&y);
            let from = inside.then(|| {
                let (x, y) = (x - AIR, y - AIR);
                let (x, y) = match turn {
                    Turn::None => (x, y),
                    Turn::Quarter => (y, down - 1 - x),
                    Turn::Half => (across - 1 - x, down - 1 - y),
                    Turn::ThreeQuarters => (across - 1 - y, x),
                };
                &shrunk[(y * across + x) * channels..][..channels]
            });
            let from = from.unwrap_or(&background);
            for (place, value) in pixel.iter_mut().enumerate() {
                // Pages come red first.
                *value = normal(from[if channels == 3 { 2 - place } else { 0 }], place);
            }
        }
    }
    values
}

/// Source pixels that make one target pixel, with weights that sum to 1.
struct Taps {
    first: usize,
    weights: Vec<f32>,
}

/// By area when shrinking, between two neighbours when enlarging.
fn taps(from: usize, to: usize) -> Vec<Taps> {
    let ratio = from as f32 / to as f32;
    let tap = |index: usize| {
        if ratio <= 1.0 {
            let at = ((index as f32 + 0.5) * ratio - 0.5).clamp(0.0, (from - 1) as f32);
            let first = (at as usize).min(from.saturating_sub(2));
            let rest = at - first as f32;
            return Taps { first, weights: if from == 1 { vec![1.0] } else { vec![1.0 - rest, rest] } };
        }
        let (begin, end) = (index as f32 * ratio, ((index + 1) as f32 * ratio).min(from as f32));
        let first = (begin as usize).min(from - 1);
        let last = (end.ceil() as usize).clamp(first + 1, from);
        let cover = |pixel: usize| (end.min((pixel + 1) as f32) - begin.max(pixel as f32)).max(0.0);
        let mut weights: Vec<f32> = (first..last).map(cover).collect();
        let sum: f32 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum.max(f32::MIN_POSITIVE));
        Taps { first, weights }
    };
    (0..to).map(tap).collect()
}

/// The page at another size: [down, across, channels], 0 to 255.
fn resample(page: &PageImage, across: usize, down: usize) -> Vec<f32> {
    let (width, channels) = (page.width as usize, usize::from(page.channels));
    let columns = taps(width, across);
    let rows = taps(page.height as usize, down);
    let mut out = vec![0.0; across * down * channels];
    out.par_chunks_mut(across * channels).zip(rows.par_iter()).for_each_init(
        || vec![0.0f32; width * channels],
        |sums, (out, row)| {
            sums.fill(0.0);
            for (line, weight) in page.pixels.chunks_exact(width * channels).skip(row.first).zip(&row.weights) {
                sums.iter_mut().zip(line).for_each(|(sum, value)| *sum += f32::from(*value) * weight);
            }
            for (out, column) in out.chunks_exact_mut(channels).zip(&columns) {
                let pixels = sums[column.first * channels..].chunks_exact(channels);
                for (pixel, weight) in pixels.zip(&column.weights) {
                    out.iter_mut().zip(pixel).for_each(|(out, value)| *out += value * weight);
                }
            }
        },
    );
    out
}

/// The middle value of one channel, to the next whole number.
fn median(values: &[f32], channel: usize, channels: usize) -> f32 {
    let mut counts = [0usize; 256];
    for pixel in values.chunks_exact(channels) {
        counts[pixel[channel].clamp(0.0, 255.0) as usize] += 1;
    }
    let half = values.len() / channels / 2;
    let mut seen = 0;
    let found = counts.iter().position(|count| {
        seen += count;
        seen > half
    });
    found.unwrap_or(255) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(width: u32, height: u32, channels: u8, pixel: impl Fn(u32, u32, u8) -> u8) -> PageImage {
        let mut pixels = Vec::new();
        for y in 0..height {
            for x in 0..width {
                (0..channels).for_each(|channel| pixels.push(pixel(x, y, channel)));
            }
        }
        PageImage { width, height, channels, pixels: pixels.into() }
    }

    #[test]
    fn sizes_fit_the_detector() {
        for (width, height) in [(1, 1), (1654, 2339), (20_000, 3), (3, 20_000), (500, 200), (4000, 4000)] {
            let (across, down, scale) = shrunk_size(width, height);
            assert!(across.max(down) <= LONGER_SIDE_MAX - 2 * AIR, "{width} × {height}");
            assert!((across as f32 * scale - width as f32).abs() <= scale, "{width} × {height}");
            assert!(scale >= 1.0 / ENLARGED_MAX);
        }
        assert_eq!(shrunk_size(500, 200).0, 736);
        assert_eq!(shrunk_size(900, 200), (900, 200, 1.0));
    }

    #[test]
    fn shrinking_keeps_the_mean_and_enlarging_keeps_edges_in_place() {
        let fine = page(60, 40, 1, |x, y, _| if (x + y) % 2 == 0 { 0 } else { 200 });
        let small = resample(&fine, 7, 9);
        let mean = small.iter().sum::<f32>() / small.len() as f32;
        assert!((mean - 100.0).abs() < 1.0, "{mean}");
        let step = page(8, 4, 3, |x, _, channel| if x < 4 { 10 * channel } else { 250 });
        let large = resample(&step, 16, 8);
        assert_eq!(&large[..3], &[0.0, 10.0, 20.0]);
        assert_eq!(&large[15 * 3..16 * 3], &[250.0; 3]);
        let middle = (large[7 * 3] + large[8 * 3]) / 2.0;
        assert!((middle - 125.0).abs() < 1.0, "{middle}");
    }

    #[test]
    fn a_mark_is_found_again_after_every_turn() {
        let mark = |x: u32, y: u32| (100..110).contains(&x) && (300..320).contains(&y);
        let sheet = page(600, 900, 1, |x, y, _| if mark(x, y) { 0 } else { 240 });
        for turn in [Turn::None, Turn::Quarter, Turn::Half, Turn::ThreeQuarters] {
            let frame = Frame::new(600, 900, turn);
            let values = prepare(&sheet, &frame);
            assert_eq!((frame.width % MULTIPLE, frame.height % MULTIPLE), (0, 0));
            assert_eq!(values.len(), frame.width * frame.height * 3);
            let pixels = 0..frame.width * frame.height;
            let darkest = pixels.min_by(|a, b| values[a * 3].total_cmp(&values[b * 3])).unwrap();
            let at = [(darkest % frame.width) as f32 + 0.5, (darkest / frame.width) as f32 + 0.5];
            let [x, y] = turn.back(frame.on_page(at), (600.0, 900.0));
            assert!((99.0..111.0).contains(&x) && (299.0..321.0).contains(&y), "{turn:?}: {x} {y}");
        }
    }

    #[test]
    fn colours_come_blue_first_and_the_padding_is_background() {
        let sheet = page(736, 40, 3, |_, _, channel| [10, 20, 30][channel as usize]);
        let frame = Frame::new(736, 40, Turn::None);
        let values = prepare(&sheet, &frame);
        let pixel = |x: usize, y: usize| &values[(y * frame.width + x) * 3..][..3];
        let expected: Vec<f32> =
            (0..3).map(|place| ([30.0, 20.0, 10.0][place] / 255.0 - MEANS[place]) / DEVIATIONS[place]).collect();
        for (x, y) in [(100, 20), (0, 0), (frame.width - 1, frame.height - 1)] {
            pixel(x, y).iter().zip(&expected).for_each(|(a, b)| assert!((a - b).abs() < 1e-4));
        }
    }
}
