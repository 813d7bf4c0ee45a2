//! Where a strip holds ink: columns, and the gaps between them.

use super::lines::{STRIP_HEIGHT, Strip};

/// Rows left out above and below: neighbouring lines reach into them.
const MARGIN_ROWS: usize = 2;
/// Share of the way from paper to ink from which a pixel counts.
const DARK: f32 = 0.4;
/// Sum over a column from which it counts as inked.
const COLUMN_MIN: f32 = 1.3;
/// Paper and ink closer together than this: nothing is written there.
const CONTRAST_MIN: f32 = 12.0;

/// Columns of a gap that parts cells or columns: no font's blank is that wide.
const PART_GAP: usize = 44;
/// Columns of paper left beside a part.
const PART_MARGIN: usize = 8;

/// Columns `begin..end` without ink, ink on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) begin: usize,
    pub(crate) end: usize,
}

impl Gap {
    pub(crate) fn width(self) -> usize {
        self.end - self.begin
    }

    pub(crate) fn middle(self) -> usize {
        usize::midpoint(self.begin, self.end)
    }
}

/// Neighbouring columns `begin..end` with ink, and the rows `top..bottom` of the tallest stroke in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blot {
    pub(crate) begin: usize,
    pub(crate) end: usize,
    pub(crate) top: usize,
    pub(crate) bottom: usize,
}

/// Gaps of a strip from left to right, the blots between them, and the columns `begin..end` that hold all its ink (`0..0` if there is
/// none).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ink {
    pub(crate) gaps: Vec<Gap>,
    pub(crate) blots: Vec<Blot>,
    pub(crate) begin: usize,
    pub(crate) end: usize,
}

impl Ink {
    /// What stands between gaps too wide for a blank: cells of a table's row, or lines of two columns that were found as one. A strip
    /// without ink is one part.
    pub(crate) fn parts(&self) -> Vec<Self> {
        let mut parts = vec![Self { begin: self.begin, end: self.end, ..Self::default() }];
        for gap in &self.gaps {
            let last = parts.last_mut().expect("it begins with one part and only grows");
            if gap.width() < PART_GAP {
                last.gaps.push(*gap);
            } else {
                last.end = gap.begin;
                parts.push(Self { begin: gap.end, end: self.end, ..Self::default() });
            }
        }
        for part in &mut parts {
            let within = |blot: &&Blot| part.begin <= blot.begin && blot.end <= part.end;
            part.blots = self.blots.iter().filter(within).copied().collect();
        }
        parts
    }

    /// Columns `begin..end` of a part with some paper around it, for the recogniser. The strip's own ends stay: faint marks there may have
    /// been missed.
    pub(crate) fn columns(&self, whole: &Self, width: usize) -> (usize, usize) {
        let begin = if self.begin == whole.begin { 0 } else { self.begin - PART_MARGIN };
        let end = if self.end == whole.end { width } else { self.end + PART_MARGIN };
        (begin, end)
    }
}

/// Finds a strip's ink, dark on light or light on dark.
pub(crate) fn find(strip: &Strip) -> Ink {
    let grey: Vec<f32> = strip
        .values
        .chunks_exact(strip.channels)
        .map(|pixel| pixel.iter().map(|value| f32::from(*value)).sum::<f32>() / strip.channels as f32)
        .collect();
    let inner = &grey[MARGIN_ROWS * strip.width..(STRIP_HEIGHT - MARGIN_ROWS) * strip.width];
    let Some((paper, ink)) = paper_and_ink(inner) else { return Ink::default() };
    let mut dark = smooth_down(inner, strip.width);
    dark.iter_mut().for_each(|value| *value = ((*value - paper) / (ink - paper)).min(1.0));
    let mut columns = vec![0.0f32; strip.width];
    for row in dark.chunks_exact(strip.width) {
        columns.iter_mut().zip(row).filter(|(_, dark)| **dark > DARK).for_each(|(column, dark)| *column += dark);
    }
    let mut found = Ink::default();
    let mut begin = None;
    for index in 0..=columns.len() {
        let inked = columns.get(index).is_some_and(|sum| *sum >= COLUMN_MIN);
        match begin {
            None if inked => begin = Some(index),
            Some(from) if !inked => {
                let (top, bottom) = tallest_stroke(&dark, strip.width, (from, index));
                found.blots.push(Blot {
                    begin: from,
                    end: index,
                    top: top + MARGIN_ROWS,
                    bottom: bottom + MARGIN_ROWS,
                });
                begin = None;
            }
            _ => {}
        }
    }
    found.gaps = found.blots.windows(2).map(|two| Gap { begin: two[0].end, end: two[1].begin }).collect();
    found.begin = found.blots.first().map_or(0, |blot| blot.begin);
    found.end = found.blots.last().map_or(0, |blot| blot.end);
    found
}

/// The longest run of rows that are dark somewhere in columns `begin..end`.
fn tallest_stroke(dark: &[f32], width: usize, (begin, end): (usize, usize)) -> (usize, usize) {
    let (mut best, mut from) = ((0, 0), 0);
    for (y, row) in dark.chunks_exact(width).enumerate() {
        if !row[begin..end].iter().any(|value| *value > DARK) {
            from = y + 1;
        } else if y + 1 - from > best.1 - best.0 {
            best = (from, y + 1);
        }
    }
    best
}

/// Weighted means of five rows: noise goes, while gaps between columns keep their width.
fn smooth_down(grey: &[f32], width: usize) -> Vec<f32> {
    const WEIGHTS: [(isize, f32); 5] =
        [(-2, 1.0 / 9.0), (-1, 2.0 / 9.0), (0, 3.0 / 9.0), (1, 2.0 / 9.0), (2, 1.0 / 9.0)];
    let last = (grey.len() / width).saturating_sub(1);
    let mut out = vec![0.0; grey.len()];
    for (y, out) in out.chunks_exact_mut(width).enumerate() {
        for (offset, weight) in WEIGHTS {
            let from = y.saturating_add_signed(offset).min(last) * width;
            out.iter_mut().zip(&grey[from..from + width]).for_each(|(out, value)| *out += value * weight);
        }
    }
    out
}

/// Levels of paper and ink: Otsu's threshold (1979) parts the values, the larger part is paper, each level its part's mean.
fn paper_and_ink(values: &[f32]) -> Option<(f32, f32)> {
    let mut counts = [0.0f64; 256];
    values.iter().for_each(|value| counts[value.clamp(0.0, 255.0) as usize] += 1.0);
    let total: f64 = counts.iter().sum();
    let sum: f64 = counts.iter().enumerate().map(|(level, count)| level as f64 * count).sum();
    let (mut below, mut below_sum, mut best) = (0.0, 0.0, (0.0, None));
    for (level, count) in counts.iter().enumerate() {
        below += count;
        below_sum += level as f64 * count;
        let above = total - below;
        if below == 0.0 || above == 0.0 {
            continue;
        }
        let (low, high) = (below_sum / below, (sum - below_sum) / above);
        let between = below * above * (high - low) * (high - low);
        if between > best.0 {
            best = (between, Some((low, high, below > above)));
        }
    }
    let (low, high, dark_paper) = best.1?;
    let (paper, ink) = if dark_paper { (low, high) } else { (high, low) };
    ((high - low) as f32 >= CONTRAST_MIN).then_some((paper as f32, ink as f32))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A strip with bars at columns `begin..end`.
    fn strip(width: usize, bars: &[(usize, usize)], paper: u8, ink: u8) -> Strip {
        let row: Vec<u8> =
            (0..width).map(|x| if bars.iter().any(|(a, b)| (*a..*b).contains(&x)) { ink } else { paper }).collect();
        let blank = vec![paper; width];
        let rows = (0..STRIP_HEIGHT).flat_map(|y| if (12..36).contains(&y) { row.clone() } else { blank.clone() });
        Strip { width, channels: 1, values: rows.collect() }
    }

    #[test]
    fn gaps_lie_between_ink() {
        let bars = [(10, 20), (23, 40), (60, 80)];
        // Dark on light, light on dark, and pale.
        for (paper, ink) in [(250, 10), (20, 230), (200, 170)] {
            let found = find(&strip(100, &bars, paper, ink));
            assert_eq!(found.gaps, [Gap { begin: 20, end: 23 }, Gap { begin: 40, end: 60 }]);
            assert_eq!((found.begin, found.end), (10, 80));
            assert_eq!(found.blots.iter().map(|blot| (blot.begin, blot.end)).collect::<Vec<_>>(), bars);
            // Smoothing along columns adds up to a row.
            assert!(
                found.blots.iter().all(|blot| blot.top.abs_diff(12) <= 1 && blot.bottom.abs_diff(36) <= 1),
                "{found:?}"
            );
        }
    }

    #[test]
    fn wide_gaps_make_parts() {
        let ink = find(&strip(300, &[(10, 20), (40, 80), (150, 160), (260, 280)], 250, 10));
        let parts = ink.parts();
        let ends: Vec<_> = parts.iter().map(|part| (part.begin, part.end)).collect();
        assert_eq!(ends, [(10, 80), (150, 160), (260, 280)]);
        assert_eq!(parts[0].gaps, [Gap { begin: 20, end: 40 }]);
        assert!(parts[1].gaps.is_empty() && parts[2].gaps.is_empty());
        assert_eq!(parts.iter().map(|part| part.blots.len()).collect::<Vec<_>>(), [2, 1, 1]);
        let columns: Vec<_> = parts.iter().map(|part| part.columns(&ink, 300)).collect();
        assert_eq!(columns, [(0, 88), (142, 168), (252, 300)]);
        assert_eq!(Ink::default().parts(), [Ink::default()]);
        assert_eq!(Ink::default().columns(&Ink::default(), 50), (0, 50));
    }

    #[test]
    fn an_empty_strip_has_none() {
        assert_eq!(find(&strip(50, &[], 255, 0)), Ink::default());
        assert_eq!(find(&strip(50, &[(10, 20)], 200, 195)), Ink::default());
    }

    #[test]
    fn a_neighbours_descenders_at_the_edge_do_not_count() {
        let mut strip = strip(60, &[(5, 10), (40, 50)], 250, 0);
        for y in 0..2 {
            strip.values[y * 60 + 25] = 0;
        }
        assert_eq!(find(&strip).gaps, [Gap { begin: 10, end: 40 }]);
    }
}
