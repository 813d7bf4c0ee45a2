//! Which way up a page lies, decided once for the whole page.
//!
//! Sideways or not follows from the shapes of the regions found. Upright or on its head is asked of the orientation network on windows
//! of full height out of several lines (a whole line squeezed to the network's width looks like nothing it was trained on); where that
//! isn't clear, some lines are recognised both ways and the more confident reading wins.

use super::lines::{STRIP_HEIGHT, Strip};
use super::postprocess::Found;

/// Columns of the orientation network's input.
pub(crate) const WINDOW: usize = 192;
/// Lines that are asked.
pub(crate) const LINES_ASKED: usize = 12;
/// Lines that are recognised both ways in doubt.
pub(crate) const LINES_TRIED: usize = 4;
/// Columns of each of those.
pub(crate) const TRIED_COLUMNS: usize = 320;
/// A rectangle shows a direction if one side is this many times the other.
const CLEAR_ASPECT: f32 = 1.6;
/// Mean probability of standing on the head below which a page is upright.
const SURELY_UPRIGHT: f32 = 0.25;

/// Whether more text runs up and down than across, by length.
pub(crate) fn lies_sideways(found: &[Found]) -> bool {
    let (mut across, mut upright) = (0.0, 0.0);
    for Found { rect, .. } in found {
        if rect.length > CLEAR_ASPECT * rect.height {
            across += rect.length;
        } else if rect.height > CLEAR_ASPECT * rect.length {
            upright += rect.height;
        }
    }
    upright > across
}

/// Lines that tell most, as indices: the longest, spread over the page's order so that one odd block doesn't decide.
pub(crate) fn telling(lengths: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by(|a, b| lengths[*b].total_cmp(&lengths[*a]).then(a.cmp(b)));
    // Among the longest third, every n-th from top to bottom.
    order.truncate((lengths.len() / 3).max(count));
    order.sort_unstable();
    let step = order.len().div_ceil(count.max(1)).max(1);
    order.into_iter().step_by(step).collect()
}

/// Appends one window [48, 192, 3] out of the middle of a strip, blue first, -1 to 1; a shorter strip is padded with 0.
pub(crate) fn window(strip: &Strip, out: &mut Vec<f32>) {
    let begin = strip.width.saturating_sub(WINDOW) / 2;
    let end = strip.width.min(begin + WINDOW);
    let batch = super::lines::Batch { width: WINDOW, pieces: vec![super::lines::Piece { line: 0, begin, end }] };
    out.extend(super::lines::input(&batch, |_| strip));
}

/// The strip turned by half.
pub(crate) fn reversed(strip: &Strip) -> Strip {
    let values = strip.values.chunks_exact(strip.channels).rev().flatten().copied().collect();
    debug_assert_eq!(strip.values.len(), STRIP_HEIGHT * strip.width * strip.channels);
    Strip { values, ..*strip }
}

/// What the network's answers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Upright,
    /// On its head, or unclear: that is worth a second look, as a wrong turn spoils the whole page.
    Doubtful,
}

/// `reversed` holds each window's probability of standing on its head.
pub(crate) fn verdict(reversed: &[f32]) -> Verdict {
    let mean = reversed.iter().sum::<f32>() / reversed.len().max(1) as f32;
    if !reversed.is_empty() && mean < SURELY_UPRIGHT { Verdict::Upright } else { Verdict::Doubtful }
}

/// Whether the readings with the page turned by half are the better ones. A reading is its characters' confidences.
pub(crate) fn reads_better_reversed(upright: &[Vec<f32>], turned: &[Vec<f32>]) -> bool {
    // Each line by its mean, so that a long line of guesses doesn't outweigh a short one that was read.
    let total = |readings: &[Vec<f32>]| -> f32 {
        readings.iter().map(|line| line.iter().sum::<f32>() / line.len().max(1) as f32).sum()
    };
    total(turned) > total(upright)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ocr::geometry::Rect;

    fn found(length: f32, height: f32) -> Found {
        Found { rect: Rect { centre: [0.0; 2], angle: 0.0, length, height }, score: 1.0 }
    }

    #[test]
    fn length_of_text_decides_about_sideways() {
        assert!(!lies_sideways(&[]));
        assert!(!lies_sideways(&[found(100.0, 10.0), found(10.0, 40.0), found(10.0, 40.0)]));
        assert!(lies_sideways(&[found(10.0, 100.0), found(40.0, 10.0), found(12.0, 10.0)]));
    }

    #[test]
    fn telling_lines_are_long_and_spread() {
        let lengths: Vec<f32> = (0..90).map(|index| if index % 3 == 0 { 100.0 } else { 5.0 }).collect();
        let chosen = telling(&lengths, 12);
        assert!(chosen.len() <= 12 && chosen.iter().all(|index| index % 3 == 0), "{chosen:?}");
        assert!(*chosen.last().unwrap() > 60, "{chosen:?}");
        assert_eq!(telling(&[1.0, 2.0], 12), [0, 1]);
        assert!(telling(&[], 12).is_empty());
    }

    #[test]
    fn windows_come_from_the_middle_at_full_height() {
        let values = (0..STRIP_HEIGHT).flat_map(|_| (0..300).map(|x| if x < 54 { 0 } else { 255 })).collect();
        let strip = Strip { width: 300, channels: 1, values };
        let mut out = Vec::new();
        window(&strip, &mut out);
        assert_eq!(out.len(), STRIP_HEIGHT * WINDOW * 3);
        assert!(out.iter().all(|value| *value == 1.0));
        let small = Strip { width: 16, channels: 1, values: vec![0; 16 * STRIP_HEIGHT] };
        out.clear();
        window(&small, &mut out);
        assert_eq!((out[15 * 3], out[16 * 3]), (-1.0, 0.0));
    }

    #[test]
    fn half_a_turn_reverses_rows_and_columns() {
        let values: Vec<u8> = (0..16 * STRIP_HEIGHT).map(|index| index as u8).collect();
        let strip = Strip { width: 16, channels: 1, values };
        let turned = reversed(&strip);
        assert_eq!(turned.values[0], strip.values[16 * STRIP_HEIGHT - 1]);
        assert_eq!(reversed(&turned), strip);
    }

    #[test]
    fn only_a_clear_answer_spares_the_second_look() {
        assert_eq!(verdict(&[0.1, 0.0, 0.3]), Verdict::Upright);
        assert_eq!(verdict(&[0.9, 1.0]), Verdict::Doubtful);
        assert_eq!(verdict(&[]), Verdict::Doubtful);
        assert!(reads_better_reversed(&[vec![0.5; 40]], &[vec![0.9; 8]]));
        assert!(!reads_better_reversed(&[vec![0.9], vec![0.8]], &[vec![0.5], vec![]]));
        assert!(!reads_better_reversed(&[], &[]));
    }
}
