//! Pixels as a page has them: 8 bits, grey or red-green-blue, on white, within the engine's bounds.

use ingle_engine::page::{PAGE_PIXELS_MAX, PAGE_SIDE_MAX};

use crate::error::ParseError;
use crate::limits::{DECODED_PIXELS_MAX, DECODED_SIDE_MAX};

/// A page's pixels, rows from the top without padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Raster {
    pub(super) width: u32,
    pub(super) height: u32,
    /// 1 or 3.
    pub(super) channels: u8,
    /// `width · height · channels` bytes.
    pub(super) pixels: Vec<u8>,
}

/// Refuses a picture that is too large to be decoded, before it is.
pub(super) fn check_size(width: u32, height: u32) -> Result<(), ParseError> {
    if width == 0 || height == 0 {
        return Err(ParseError::malformed(format!("a picture of {width} × {height} pixels has none")));
    }
    let pixels = u64::from(width) * u64::from(height);
    if width.max(height) > DECODED_SIDE_MAX || pixels > DECODED_PIXELS_MAX {
        let bounds =
            format!("sides up to {DECODED_SIDE_MAX} and {} million pixels are read", DECODED_PIXELS_MAX / 1_000_000);
        return Err(ParseError::too_large(format!("a picture of {width} × {height} pixels; {bounds}")));
    }
    Ok(())
}

/// What alpha leaves of a colour on white paper; `most` is the largest sample.
pub(super) fn on_white(colour: u32, alpha: u32, most: u32) -> u8 {
    // At most 65,535² in each term: fits.
    let mixed = (u64::from(colour) * u64::from(alpha) + u64::from(most) * u64::from(most - alpha)) / u64::from(most);
    to_eight(mixed as u32, most)
}

/// A sample between 0 and `most` as 8 bits, rounded.
pub(super) fn to_eight(sample: u32, most: u32) -> u8 {
    ((u64::from(sample) * 255 + u64::from(most) / 2) / u64::from(most)).min(255) as u8
}

/// The naive mixture of inks; profiles are for printers.
pub(super) fn from_cmyk([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    let left = |ink: u8| ((255 - u32::from(ink)) * (255 - u32::from(k)) / 255) as u8;
    [left(c), left(m), left(y)]
}

impl Raster {
    /// One channel where all three are the same everywhere.
    pub(super) fn grey_if_grey(mut self) -> Self {
        let (triples, _) = self.pixels.as_chunks::<3>();
        if self.channels != 3 || triples.iter().any(|[r, g, b]| r != g || g != b) {
            return self;
        }
        // In place: the first of each triple moves down.
        let count = self.pixels.len() / 3;
        for index in 0..count {
            self.pixels[index] = self.pixels[index * 3];
        }
        self.pixels.truncate(count);
        self.pixels.shrink_to_fit();
        Raster { channels: 1, ..self }
    }

    /// Shrinks by the least whole number that takes it within the engine's bounds, or by `at_least`. Returns the number.
    pub(super) fn within_bounds(self, at_least: u32) -> (Self, u32) {
        let fits = |by: u32| {
            let (width, height) = (self.width.div_ceil(by), self.height.div_ceil(by));
            width.max(height) <= PAGE_SIDE_MAX && u64::from(width) * u64::from(height) <= PAGE_PIXELS_MAX
        };
        let by = (at_least.max(1)..).find(|by| fits(*by)).expect("one pixel is within bounds");
        (self.shrunk(by), by)
    }

    /// Each pixel the mean of a square of `by` × `by`; squares at the right and below may be narrower.
    fn shrunk(self, by: u32) -> Self {
        if by <= 1 {
            return self;
        }
        let channels = usize::from(self.channels);
        let (width, height) = (self.width.div_ceil(by) as usize, self.height.div_ceil(by) as usize);
        let row_bytes = self.width as usize * channels;
        let by = by as usize;
        let mut pixels = Vec::with_capacity(width * height * channels);
        let mut sums = vec![0_u32; width * channels];
        for rows in self.pixels.chunks(row_bytes * by) {
            sums.fill(0);
            for row in rows.chunks_exact(row_bytes) {
                for (sum, square) in sums.chunks_exact_mut(channels).zip(row.chunks(by * channels)) {
                    for pixel in square.chunks_exact(channels) {
                        sum.iter_mut().zip(pixel).for_each(|(sum, sample)| *sum += u32::from(*sample));
                    }
                }
            }
            let tall = rows.len() / row_bytes;
            for (column, sum) in sums.chunks_exact(channels).enumerate() {
                let wide = by.min(self.width as usize - column * by);
                let count = (tall * wide) as u32;
                pixels.extend(sum.iter().map(|sum| ((sum + count / 2) / count) as u8));
            }
        }
        Raster { width: width as u32, height: height as u32, channels: self.channels, pixels }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(width: u32, height: u32, pixels: &[u8]) -> Raster {
        Raster { width, height, channels: 1, pixels: pixels.to_vec() }
    }

    #[test]
    fn grey_is_found() {
        let page = |pixels: &[u8]| Raster { width: 2, height: 1, channels: 3, pixels: pixels.to_vec() };
        assert_eq!(page(&[1, 1, 1, 9, 9, 9]).grey_if_grey(), grey(2, 1, &[1, 9]));
        assert_eq!(page(&[1, 1, 1, 9, 9, 8]).grey_if_grey().channels, 3);
        assert_eq!(grey(2, 1, &[1, 9]).grey_if_grey(), grey(2, 1, &[1, 9]));
    }

    #[test]
    fn means_of_squares() {
        let page = grey(3, 3, &[0, 10, 100, 20, 30, 200, 7, 9, 50]);
        assert_eq!(page.shrunk(2), grey(2, 2, &[15, 150, 8, 50]));
        let colours = Raster { width: 2, height: 1, channels: 3, pixels: vec![0, 100, 200, 10, 110, 210] };
        assert_eq!(colours.shrunk(2).pixels, [5, 105, 205]);
        assert_eq!(grey(2, 1, &[1, 2]).shrunk(1), grey(2, 1, &[1, 2]));
    }

    #[test]
    fn bounds_hold() {
        let (page, by) = grey(30_000, 2, &vec![7; 60_000]).within_bounds(1);
        assert_eq!((page.width, page.height, by), (15_000, 1, 2));
        assert!(page.pixels.iter().all(|sample| *sample == 7));
        let (page, by) = grey(6, 6, &[1; 36]).within_bounds(3);
        assert_eq!((page.width, page.height, by), (2, 2, 3));
        assert!(check_size(20_000, 11_000).is_ok());
        assert!(check_size(0, 5).is_err());
        assert!(check_size(100_000, 100_000).is_err());
        assert!(check_size(u32::MAX, u32::MAX).is_err());
        assert!(check_size(60_001, 1).is_err());
    }

    #[test]
    fn samples_and_inks() {
        assert_eq!((to_eight(0, 65_535), to_eight(65_535, 65_535), to_eight(1, 1), to_eight(2, 3)), (0, 255, 255, 170));
        assert_eq!((on_white(0, 0, 255), on_white(0, 255, 255), on_white(0, 51, 255)), (255, 0, 204));
        assert_eq!(on_white(0, 65_535, 65_535), 0);
        assert_eq!(from_cmyk([0, 0, 0, 0]), [255; 3]);
        assert_eq!(from_cmyk([0, 0, 0, 255]), [0; 3]);
        assert_eq!(from_cmyk([255, 0, 0, 0]), [0, 255, 255]);
    }
}
