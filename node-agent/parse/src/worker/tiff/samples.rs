//! From a TIFF's samples, as they are stored, to a page's pixels.

use tiff::ColorType;
use tiff::decoder::DecodingResult;

use super::super::picture::eight;
use super::super::raster::{Raster, from_cmyk};
use crate::error::ParseError;

/// Samples of one page as they came out of the file.
pub(super) struct Samples {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) colour: ColorType,
    /// Channel after channel instead of pixel after pixel.
    pub(super) planar: bool,
    /// `ExtraSamples`: 1 for alpha that colours were multiplied by, 2 for alpha that they weren't, 0 for none.
    pub(super) alpha: u16,
    pub(super) data: DecodingResult,
}

/// Red, green and blue for each index, 8 bits.
pub(super) type Palette = Vec<[u8; 3]>;

impl Samples {
    /// Eight bits a sample, pixel after pixel, with the number of samples of a pixel.
    fn unpacked(&mut self) -> Result<(Vec<u8>, usize), ParseError> {
        let (depth, channels) = (self.colour.bit_depth(), usize::from(self.colour.num_samples()));
        let data = std::mem::replace(&mut self.data, DecodingResult::U8(Vec::new()));
        let samples = match (data, depth) {
            (DecodingResult::U8(samples), 8) => samples,
            (DecodingResult::U16(samples), 16) => eight(&samples),
            (DecodingResult::U8(packed), bits @ (1 | 2 | 4)) if channels == 1 => {
                let most = (1_u8 << bits) - 1;
                self.spread(&packed, bits, |sample| sample * (255 / most))
            }
            _ => {
                let what = format!("TIFF with samples of {depth} bits , signed or with fractions, which no page has");
                return Err(ParseError::unsupported(what));
            }
        };
        let pixels = self.width as usize * self.height as usize;
        if samples.len() != pixels * channels {
            let message = format!("the TIFF has {} samples, its size asks for {}", samples.len(), pixels * channels);
            return Err(ParseError::malformed(message));
        }
        if !self.planar || channels == 1 {
            return Ok((samples, channels));
        }
        let mut woven = Vec::with_capacity(samples.len());
        for pixel in 0..pixels {
            woven.extend((0..channels).map(|channel| samples[channel * pixels + pixel]));
        }
        Ok((woven, channels))
    }

    /// Samples of fewer than eight bits, rows padded to whole bytes, the first in the highest bits.
    fn spread(&self, packed: &[u8], bits: u8, value: impl Fn(u8) -> u8) -> Vec<u8> {
        let per_byte = 8 / usize::from(bits);
        let row_bytes = (self.width as usize).div_ceil(per_byte);
        let mask = (1_u8 << bits) - 1;
        let mut samples = Vec::with_capacity(self.width as usize * self.height as usize);
        for row in packed.chunks_exact(row_bytes) {
            let places = (0..per_byte).map(|place| 8 - bits * (place as u8 + 1));
            let row = row.iter().flat_map(|byte| places.clone().map(move |shift| byte >> shift & mask));
            samples.extend(row.take(self.width as usize).map(&value));
        }
        samples
    }

    /// The page, whatever its colours were.
    pub(super) fn raster(mut self) -> Result<Raster, ParseError> {
        let (samples, channels) = self.unpacked()?;
        let alpha = self.alpha;
        let on_white = |colour: u8, a: u8| match alpha {
            // Already multiplied: only the paper is missing.
            1 => colour.saturating_add(255 - a),
            _ => super::super::raster::on_white(u32::from(colour), u32::from(a), 255),
        };
        let (out, pixels) = match (self.colour, channels) {
            (ColorType::Gray(_), 1) => (1, samples),
            (ColorType::RGB(_), 3) => (3, samples),
            (ColorType::RGBA(_), 4) => {
                let pixels = samples.as_chunks::<4>().0.iter();
                (3, pixels.flat_map(|[r, g, b, a]| [r, g, b].map(|colour| on_white(*colour, *a))).collect())
            }
            (ColorType::CMYK(_), 4) => {
                (3, samples.as_chunks::<4>().0.iter().flat_map(|inks| from_cmyk(*inks)).collect())
            }
            (ColorType::CMYKA(_), 5) => {
                (3, samples.as_chunks::<5>().0.iter().flat_map(|[c, m, y, k, _]| from_cmyk([*c, *m, *y, *k])).collect())
            }
            (ColorType::YCbCr(_), 3) => (3, samples.as_chunks::<3>().0.iter().flat_map(|ycc| from_ycc(*ycc)).collect()),
            // Grey with something beside it: alpha, or nothing that we know.
            (ColorType::GrayA(_) | ColorType::Multiband { .. }, 2) if alpha > 0 => {
                (1, samples.as_chunks::<2>().0.iter().map(|[grey, a]| on_white(*grey, *a)).collect())
            }
            (ColorType::GrayA(_) | ColorType::Multiband { .. }, channels) if channels > 0 => {
                (1, samples.chunks_exact(channels).map(|pixel| pixel[0]).collect())
            }
            (colour, _) => return Err(ParseError::unsupported(format!("TIFF with colours of kind {colour:?}"))),
        };
        Ok(Raster { width: self.width, height: self.height, channels: out, pixels })
    }

    /// The page, its samples being indices into a palette.
    pub(super) fn looked_up(self, palette: &Palette) -> Result<Raster, ParseError> {
        let colour_of = |index: usize| palette.get(index).copied().unwrap_or([255; 3]);
        let pixels: Vec<u8> = match (&self.data, self.colour) {
            (DecodingResult::U8(indices), ColorType::Gray(8)) => {
                indices.iter().flat_map(|index| colour_of(usize::from(*index))).collect()
            }
            (DecodingResult::U8(packed), ColorType::Gray(bits @ (1 | 2 | 4))) => {
                let indices = self.spread(packed, bits, |index| index);
                indices.iter().flat_map(|index| colour_of(usize::from(*index))).collect()
            }
            (DecodingResult::U16(indices), ColorType::Gray(16)) => {
                indices.iter().flat_map(|index| colour_of(usize::from(*index))).collect()
            }
            (_, colour) => return Err(ParseError::unsupported(format!("TIFF with a palette of {colour:?}"))),
        };
        if pixels.len() != self.width as usize * self.height as usize * 3 {
            return Err(ParseError::malformed("the TIFF has fewer pixels than its size asks for"));
        }
        Ok(Raster { width: self.width, height: self.height, channels: 3, pixels })
    }
}

/// Full-range BT.601, as JFIF has it (ITU-T T.871, 7).
fn from_ycc([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let (y, cb, cr) = (f32::from(y), f32::from(cb) - 128.0, f32::from(cr) - 128.0);
    [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb].map(|value| value.round() as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(width: u32, height: u32, colour: ColorType, data: Vec<u8>) -> Samples {
        Samples { width, height, colour, planar: false, alpha: 0, data: DecodingResult::U8(data) }
    }

    #[test]
    fn bits_are_spread() {
        let page =
            samples(10, 2, ColorType::Gray(1), vec![0b1010_0000, 0b0100_0000, 0xff, 0xff]).raster().expect("grey");
        assert_eq!(page.pixels[..10], [255, 0, 255, 0, 0, 0, 0, 0, 0, 255]);
        assert_eq!(page.pixels[10..], [255; 10]);
        let page = samples(3, 1, ColorType::Gray(4), vec![0x0f, 0x70]).raster().expect("grey");
        assert_eq!(page.pixels, [0, 255, 119]);
        assert!(samples(9, 2, ColorType::Gray(1), vec![0; 3]).raster().is_err(), "a row too few");
    }

    #[test]
    fn colours_become_three() {
        let check = |colour: ColorType, alpha: u16, data: &[u8], expect: &[u8]| {
            let page = Samples { alpha, ..samples(1, 1, colour, data.to_vec()) }.raster().expect("a page");
            assert_eq!(page.pixels, expect, "{colour:?}");
        };
        check(ColorType::RGB(8), 0, &[1, 2, 3], &[1, 2, 3]);
        check(ColorType::RGBA(8), 2, &[10, 20, 30, 0], &[255; 3]);
        check(ColorType::RGBA(8), 1, &[10, 20, 30, 200], &[65, 75, 85]);
        check(ColorType::CMYK(8), 0, &[0, 0, 0, 255], &[0; 3]);
        check(ColorType::YCbCr(8), 0, &[76, 85, 255], &[254, 0, 0]);
        check(ColorType::Multiband { bit_depth: 8, num_samples: 2 }, 2, &[0, 0], &[255]);
        check(ColorType::Multiband { bit_depth: 8, num_samples: 3 }, 0, &[7, 8, 9], &[7]);
        let planar = Samples { planar: true, ..samples(2, 1, ColorType::RGB(8), vec![1, 2, 3, 4, 5, 6]) };
        assert_eq!(planar.raster().expect("a page").pixels, [1, 3, 5, 2, 4, 6]);
    }

    #[test]
    fn palettes_are_looked_up() {
        let palette = vec![[1, 2, 3], [4, 5, 6]];
        let page = samples(3, 1, ColorType::Gray(8), vec![1, 0, 9]).looked_up(&palette).expect("a page");
        assert_eq!(page.pixels, [4, 5, 6, 1, 2, 3, 255, 255, 255], "an index without a colour is white");
        let page = samples(2, 1, ColorType::Gray(1), vec![0b0100_0000]).looked_up(&palette).expect("a page");
        assert_eq!(page.pixels, [1, 2, 3, 4, 5, 6]);
    }
}
