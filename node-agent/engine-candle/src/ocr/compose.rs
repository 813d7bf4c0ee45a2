//! What was read of a page, put together: noise dropped, blanks put back, rows joined, all in reading order.

use ingle_engine::{PageText, TextLine};

use super::blanks::{self, Spacing};
use super::ctc;
use super::geometry::{Corners, Rect, Turn};
use super::reading_order::{self, Item, Row};

/// Text whose mean confidence is below this is noise.
const CONFIDENCE_MIN: f32 = 0.5;

/// A line, or a part of one, as it was read.
#[derive(Debug, Clone)]
pub(crate) struct Read {
    /// On the upright page.
    pub(crate) rect: Rect,
    /// On the page as it came.
    pub(crate) corners: Corners,
    pub(crate) spacing: Spacing,
}

/// `skew` is the page's angle in radians, `turn` what makes it upright.
pub(crate) fn compose(read: &[Read], skew: f32, turn: Turn) -> PageText {
    let border = blanks::page_border(read.iter().map(|each| &each.spacing));
    let text = |each: &Read| ctc::narrow(&each.spacing.text(border)).trim().to_string();
    let kept: Vec<(&Read, String)> = read
        .iter()
        .filter(|each| each.spacing.confidence() >= CONFIDENCE_MIN)
        .map(|each| (each, text(each)))
        .filter(|(_, text)| !text.is_empty())
        .collect();
    let items: Vec<Item> =
        kept.iter().map(|(each, text)| Item { rect: straight(&each.rect, skew), text: text.clone() }).collect();
    let rows = reading_order::order(&items);
    PageText { turn: turn.degrees(), lines: rows.iter().filter_map(|row| line(row, &kept)).collect() }
}

/// On the page turned back by its skew about its corner.
fn straight(rect: &Rect, skew: f32) -> Rect {
    let (x, y) = (skew.cos(), skew.sin());
    let [across, down] = rect.centre;
    Rect { centre: [across * x + down * y, down * x - across * y], angle: rect.angle - skew, ..*rect }
}

/// Joins what stands in one row.
fn line(row: &Row, kept: &[(&Read, String)]) -> Option<TextLine> {
    let members: Vec<&(&Read, String)> = row.members.iter().map(|member| &kept[*member]).collect();
    let ((first, _), (last, _)) = (members.first()?, members.last()?);
    let weights = members.iter().map(|(each, text)| (each.spacing.confidence(), text.chars().count() as f32));
    let (sum, count) = weights.fold((0.0, 0.0), |(sum, count), (each, weight)| (sum + each * weight, count + weight));
    let texts: Vec<&str> = members.iter().map(|(_, text)| text.as_str()).collect();
    Some(TextLine {
        text: texts.join(" "),
        confidence: (sum / count).clamp(0.0, 1.0),
        corners: [first.corners[0], last.corners[1], last.corners[2], first.corners[3]],
        block: row.block,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ocr::blanks::Placed;
    use crate::ocr::ink::Ink;

    fn read(x: f32, y: f32, text: &str, confidence: f32) -> Read {
        let rect = Rect { centre: [x, y], angle: 0.0, length: 80.0, height: 20.0 };
        let placed = |(index, c): (usize, char)| Placed { text: c.into(), at: index as f32 * 10.0, confidence };
        let spacing = Spacing::new(&Ink::default(), text.chars().enumerate().map(placed).collect());
        Read { rect, corners: rect.corners(), spacing }
    }

    #[test]
    fn rows_are_joined_and_noise_is_dropped() {
        let page = compose(
            &[
                read(300.0, 51.0, "12.50", 0.9),
                read(60.0, 50.0, "milk", 1.0),
                read(60.0, 90.0, "#~", 0.3),
                read(60.0, 130.0, " ", 1.0),
            ],
            0.0,
            Turn::Half,
        );
        assert_eq!((page.turn, page.lines.len()), (180, 1));
        let line = &page.lines[0];
        assert_eq!(line.text, "milk 12.50");
        assert!((line.confidence - (4.0 + 0.9 * 5.0) / 9.0).abs() < 1e-5, "{}", line.confidence);
        assert_eq!(line.corners, [[20.0, 40.0], [340.0, 41.0], [340.0, 61.0], [20.0, 60.0]]);
    }

    #[test]
    fn rows_of_a_tilted_page_stay_rows() {
        let skew = 0.02f32;
        let tilted: Vec<Read> = (0..12)
            .map(|index| {
                let (x, y) = (100.0 + 1200.0 * (index % 2) as f32, 100.0 + 24.0 * (index / 2) as f32);
                let rotated = (x * skew.cos() - y * skew.sin(), x * skew.sin() + y * skew.cos());
                let mut each = read(rotated.0, rotated.1, &format!("{index}.00"), 1.0);
                each.rect.angle = skew;
                each
            })
            .collect();
        let page = compose(&tilted, skew, Turn::None);
        let texts: Vec<&str> = page.lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts, ["0.00 1.00", "2.00 3.00", "4.00 5.00", "6.00 7.00", "8.00 9.00", "10.00 11.00"]);
    }

    #[test]
    fn an_empty_page_has_no_lines() {
        assert_eq!(compose(&[], 0.0, Turn::None), PageText::default());
    }
}
