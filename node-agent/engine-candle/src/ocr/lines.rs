//! Lines of text cut out of the page, straightened to a height of 48, and packed into batches of nearly equal widths.

use ingle_engine::PageImage;

use super::geometry::Corners;

/// Rows of every strip: what the recogniser takes.
pub(crate) const STRIP_HEIGHT: usize = 48;
/// Longest strip in columns; a longer line is squeezed to it (no text of 150 heights is a line of text).
pub(crate) const STRIP_WIDTH_MAX: usize = STRIP_HEIGHT * 150;
/// Columns of a batch, all its pieces together: its activations stay in cache.
const BATCH_COLUMNS: usize = 2560;
/// Most pieces of a batch.
const BATCH_PIECES: usize = 32;
/// A batch's width is a multiple of this; the recogniser needs 8.
const WIDTH_STEP: usize = 16;
/// Columns that a piece may be padded by.
const PADDING_MAX: usize = 32;

/// A line's pixels: [[`STRIP_HEIGHT`], width, channels], 8 bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Strip {
    pub(crate) width: usize,
    pub(crate) channels: usize,
    pub(crate) values: Vec<u8>,
}

/// Columns of the strip that a rectangle of the page makes.
pub(crate) fn strip_width(corners: &Corners) -> usize {
    let distance = |a: [f32; 2], b: [f32; 2]| (a[0] - b[0]).hypot(a[1] - b[1]);
    let (length, height) = (distance(corners[0], corners[1]), distance(corners[0], corners[3]));
    let width = (STRIP_HEIGHT as f32 * length / height.max(1.0)).round();
    (width as usize).clamp(WIDTH_STEP, STRIP_WIDTH_MAX)
}

/// Cuts a rectangle out of the page: a bilinear sample at each pixel, a mean of several where the page is finer than the strip.
pub(crate) fn cut(page: &PageImage, corners: &Corners) -> Strip {
    let width = strip_width(corners);
    let channels = usize::from(page.channels);
    let [begin, end, _, below] = *corners;
    let across = [(end[0] - begin[0]) / width as f32, (end[1] - begin[1]) / width as f32];
    let down = [(below[0] - begin[0]) / STRIP_HEIGHT as f32, (below[1] - begin[1]) / STRIP_HEIGHT as f32];
    // Up to a quarter finer is still one sample's business.
    let samples = |step: [f32; 2]| ((step[0].hypot(step[1]) - 0.25).ceil() as usize).clamp(1, 8);
    let (columns, rows) = (samples(across), samples(down));
    let mut values = Vec::with_capacity(STRIP_HEIGHT * width * channels);
    for y in 0..STRIP_HEIGHT {
        for x in 0..width {
            let mut sums = [0.0f32; 3];
            for row in 0..rows {
                let v = y as f32 + (row as f32 + 0.5) / rows as f32;
                for column in 0..columns {
                    let u = x as f32 + (column as f32 + 0.5) / columns as f32;
                    let at = [0, 1].map(|axis| begin[axis] + u * across[axis] + v * down[axis]);
                    add_sample(page, at, &mut sums);
                }
            }
            let count = (columns * rows) as f32;
            values.extend(sums[..channels].iter().map(|sum| (sum / count).round() as u8));
        }
    }
    Strip { width, channels, values }
}

/// Adds the page's value at a point, between four pixels; beyond the edge the nearest pixel counts.
fn add_sample(page: &PageImage, at: [f32; 2], sums: &mut [f32; 3]) {
    let (width, channels) = (page.width as usize, usize::from(page.channels));
    let place = |value: f32, limit: u32| {
        let value = (value - 0.5).clamp(0.0, (limit - 1) as f32);
        let low = value as usize;
        (low, (low + 1).min(limit as usize - 1), value - low as f32)
    };
    let (left, right, across) = place(at[0], page.width);
    let (above, below, down) = place(at[1], page.height);
    for (channel, sum) in sums.iter_mut().enumerate().take(channels) {
        let pixel = |x: usize, y: usize| f32::from(page.pixels[(y * width + x) * channels + channel]);
        let upper = pixel(left, above) * (1.0 - across) + pixel(right, above) * across;
        let lower = pixel(left, below) * (1.0 - across) + pixel(right, below) * across;
        *sum += upper * (1.0 - down) + lower * down;
    }
}

/// A part of a strip: columns `begin..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Which line it belongs to.
    pub(crate) line: usize,
    pub(crate) begin: usize,
    pub(crate) end: usize,
}

/// Pieces that are recognised together.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Batch {
    /// Columns of each; a multiple of 8.
    pub(crate) width: usize,
    pub(crate) pieces: Vec<Piece>,
}

/// Packs pieces into batches, wide ones first.
pub(crate) fn pack(mut pieces: Vec<Piece>) -> Vec<Batch> {
    pieces.sort_by_key(|piece| std::cmp::Reverse(piece.end - piece.begin));
    let mut batches: Vec<Batch> = Vec::new();
    for piece in pieces {
        let width = piece.end - piece.begin;
        match batches.last_mut() {
            Some(batch)
                if width + PADDING_MAX >= batch.width
                    && batch.pieces.len() < BATCH_PIECES
                    && (batch.pieces.len() + 1) * batch.width <= BATCH_COLUMNS =>
            {
                batch.pieces.push(piece);
            }
            _ => batches.push(Batch { width: width.div_ceil(WIDTH_STEP).max(1) * WIDTH_STEP, pieces: vec![piece] }),
        }
    }
    batches
}

/// A batch's input: [pieces, [`STRIP_HEIGHT`], width, 3], blue first, (value / 255 - 0.5) / 0.5; 0 to the right of a shorter piece, as in the
/// network's training.
pub(crate) fn input<'a>(batch: &Batch, strip: impl Fn(usize) -> &'a Strip) -> Vec<f32> {
    let mut values = Vec::with_capacity(batch.pieces.len() * STRIP_HEIGHT * batch.width * 3);
    for piece in &batch.pieces {
        let strip = strip(piece.line);
        for row in strip.values.chunks_exact(strip.width * strip.channels) {
            let end = values.len() + batch.width * 3;
            for pixel in row.chunks_exact(strip.channels).take(piece.end).skip(piece.begin) {
                let normal = |value: u8| f32::from(value) / 127.5 - 1.0;
                match *pixel {
                    [red, green, blue] => values.extend([normal(blue), normal(green), normal(red)]),
                    _ => values.extend([normal(pixel[0]); 3]),
                }
            }
            values.resize(end, 0.0);
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ocr::geometry::{Rect, Turn};

    fn page(width: u32, height: u32, pixel: impl Fn(u32, u32) -> u8) -> PageImage {
        let pixels: Vec<u8> =
            (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).map(|(x, y)| pixel(x, y)).collect();
        PageImage { width, height, channels: 1, pixels: pixels.into() }
    }

    fn rect(x: f32, y: f32, length: f32, height: f32) -> Corners {
        Rect { centre: [x, y], angle: 0.0, length, height }.corners()
    }

    #[test]
    fn a_rectangle_of_the_strips_height_is_copied() {
        let sheet = page(300, 100, |x, y| (x * 7 + y * 3) as u8);
        let strip = cut(&sheet, &rect(150.0, 50.0, 96.0, 48.0));
        assert_eq!((strip.width, strip.channels), (96, 1));
        for (x, y) in [(0, 0), (95, 47), (40, 20)] {
            assert_eq!(strip.values[y * 96 + x], ((x + 102) * 7 + (y + 26) * 3) as u8, "{x} {y}");
        }
    }

    #[test]
    fn finer_pages_are_averaged_and_edges_repeat() {
        let fine = page(800, 400, |x, y| if (x + y) % 2 == 0 { 0 } else { 200 });
        let strip = cut(&fine, &rect(400.0, 200.0, 400.0, 192.0));
        assert_eq!(strip.width, 100);
        assert!(strip.values.iter().all(|value| (90..=110).contains(value)));
        let over = cut(&page(50, 50, |_, _| 77), &rect(25.0, 25.0, 200.0, 100.0));
        assert!(over.values.iter().all(|value| *value == 77));
    }

    #[test]
    fn a_line_reads_the_same_from_a_turned_page() {
        let pixel = |x: u32, y: u32| (x * 2 + y * 5 % 11) as u8;
        let upright = page(120, 90, pixel);
        // The page as it lies when a quarter turn would make it upright.
        let lying = page(90, 120, |x, y| pixel(119 - y, x));
        let corners = rect(60.0, 45.0, 96.0, 48.0);
        let turned = corners.map(|corner| Turn::Quarter.back(corner, (90.0, 120.0)));
        assert_eq!(cut(&upright, &corners), cut(&lying, &turned));
    }

    #[test]
    fn widths_are_bounded() {
        assert_eq!(strip_width(&rect(0.0, 0.0, 100_000.0, 1.0)), STRIP_WIDTH_MAX);
        assert_eq!(strip_width(&rect(0.0, 0.0, 0.0, 0.0)), WIDTH_STEP);
        assert_eq!(strip_width(&rect(0.0, 0.0, 200.0, 24.0)), 400);
    }

    #[test]
    fn batches_hold_every_piece_once_with_little_padding() {
        let pieces: Vec<Piece> =
            (0..200).map(|line| Piece { line, begin: 5, end: 5 + 10 + (line * 37) % 500 }).collect();
        let batches = pack(pieces.clone());
        let mut lines: Vec<usize> = batches.iter().flat_map(|batch| &batch.pieces).map(|piece| piece.line).collect();
        lines.sort_unstable();
        assert_eq!(lines, (0..200).collect::<Vec<_>>());
        for batch in &batches {
            assert_eq!(batch.width % 8, 0);
            assert!(
                batch.pieces.len() <= BATCH_PIECES
                    && batch.pieces.len() * batch.width <= BATCH_COLUMNS.max(batch.width)
            );
            for piece in &batch.pieces {
                let width = piece.end - piece.begin;
                assert!(width <= batch.width && width + PADDING_MAX >= batch.width, "{width} in {}", batch.width);
            }
        }
        assert!(pack(vec![]).is_empty());
    }

    #[test]
    fn inputs_are_normalised_blue_first_and_padded() {
        let strip = Strip { width: 20, channels: 3, values: [255, 51, 0].repeat(20 * STRIP_HEIGHT) };
        let batch = Batch { width: 16, pieces: vec![Piece { line: 0, begin: 2, end: 14 }] };
        let values = input(&batch, |_| &strip);
        assert_eq!(values.len(), STRIP_HEIGHT * 16 * 3);
        assert_eq!(&values[..3], &[-1.0, 51.0 / 127.5 - 1.0, 1.0]);
        assert_eq!(&values[12 * 3..16 * 3], &[0.0; 12]);
        assert_eq!(values[16 * 3], -1.0);
    }
}
