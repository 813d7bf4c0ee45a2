//! TIFF: pages with strips or tiles, one to sixteen bits, fax codings, LZW, deflate, PackBits and JPEG.

mod directory;
mod samples;

use std::io::BufReader;

use tiff::decoder::ifd::Value;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;
use tiff::{ColorType, TiffError};

use super::fax::{self, Coding};
use super::picture::finished;
use super::raster::{Raster, check_size, to_eight};
use super::{Made, Pages};
use crate::error::ParseError;
use crate::limits::DECODED_BYTES_MAX;
use directory::{Directory, OnlyPage};
use samples::{Palette, Samples};

type Page<'a> = Decoder<BufReader<OnlyPage<'a>>>;

/// Tags that the decoder has no name for.
const FILL_ORDER: u16 = 266;
const T4_OPTIONS: u16 = 292;
const PALETTE: u16 = 3;
const INCHES_PER_CM: f32 = 2.54;

/// A file whose directories were walked.
#[derive(Debug)]
pub(super) struct TiffPages {
    bytes: Vec<u8>,
    directories: Vec<Directory>,
}

impl TiffPages {
    pub(super) fn open(bytes: Vec<u8>) -> Result<Self, ParseError> {
        let directories = directory::walk(&bytes);
        Ok(TiffPages { bytes, directories })
    }

    fn decoder(&self, index: u32, as_indices: bool) -> Result<Page<'_>, ParseError> {
        let page = OnlyPage::new(&self.bytes, self.directories[index as usize], as_indices);
        let mut limits = Limits::default();
        limits.decoding_buffer_size = DECODED_BYTES_MAX as usize;
        Ok(Decoder::new(BufReader::new(page)).map_err(broken)?.with_limits(limits))
    }
}

impl Pages for TiffPages {
    fn count(&self) -> u32 {
        // At most one above the bound, as the walk says.
        self.directories.len() as u32
    }

    fn page(&mut self, index: u32, dpi: f32) -> Result<Made, ParseError> {
        let mut page = self.decoder(index, false)?;
        let (width, height) = page.dimensions().map_err(broken)?;
        check_size(width, height)?;
        let orientation = short(&mut page, Tag::Orientation, 1)?;
        let (across, down) = resolution(&mut page);
        let raster =
            match (short(&mut page, Tag::Compression, 1)?, short(&mut page, Tag::PhotometricInterpretation, 1)?) {
                (compression @ 2..=4, photometric) => self.faxed(&mut page, width, height, compression, photometric)?,
                (6, _) => return Err(ParseError::unsupported("TIFF with JPEG of the old kind")),
                (_, PALETTE) => {
                    let palette = palette(&mut page)?;
                    samples(&mut self.decoder(index, true)?)?.looked_up(&palette)?
                }
                _ => samples(&mut page)?.raster()?,
            };
        Ok(finished(square(raster, across, down), orientation, across, dpi))
    }
}

impl TiffPages {
    fn faxed(
        &self,
        page: &mut Page,
        width: u32,
        height: u32,
        compression: u16,
        photometric: u16,
    ) -> Result<Raster, ParseError> {
        let samples = short(page, Tag::SamplesPerPixel, 1)?;
        let bits = short(page, Tag::BitsPerSample, 1)?;
        let numbers = |page: &mut Page, tag: Tag| {
            page.find_tag_unsigned_vec::<u64>(tag)
                .map_err(broken)?
                .ok_or_else(|| ParseError::unsupported("fax-coded TIFF in tiles"))
        };
        if samples != 1 || bits != 1 {
            return Err(ParseError::malformed(format!("fax-coded TIFF with {samples} samples of {bits} bits")));
        }
        let offsets = numbers(page, Tag::StripOffsets)?;
        let lengths = numbers(page, Tag::StripByteCounts)?;
        let options = page.find_tag_unsigned::<u32>(Tag::from_u16_exhaustive(T4_OPTIONS)).map_err(broken)?.unwrap_or(0);
        let reversed = short(page, Tag::from_u16_exhaustive(FILL_ORDER), 1)? == 2;
        let rows = page.find_tag_unsigned::<u32>(Tag::RowsPerStrip).map_err(broken)?.unwrap_or(height).clamp(1, height);
        // `WhiteIsZero` is what fax means; the other way round the colours are swapped.
        let (black, white) = if photometric == 1 { (255, 0) } else { (0, 255) };
        let coding = Coding { compression, options, reversed, black, white };
        let mut pixels = Vec::with_capacity(width as usize * height as usize);
        let mut left = height;
        for (offset, length) in offsets.iter().zip(&lengths) {
            let tall = rows.min(left);
            if tall == 0 {
                break;
            }
            let start = usize::try_from(*offset).unwrap_or(usize::MAX).min(self.bytes.len());
            let end = start.saturating_add(usize::try_from(*length).unwrap_or(usize::MAX)).min(self.bytes.len());
            fax::decode(&self.bytes[start..end], width, tall, coding, &mut pixels);
            left -= tall;
        }
        pixels.resize(width as usize * height as usize, white);
        Ok(Raster { width, height, channels: 1, pixels })
    }
}

fn samples(page: &mut Page) -> Result<Samples, ParseError> {
    let (width, height) = page.dimensions().map_err(broken)?;
    let colour = page.colortype().map_err(broken)?;
    let planar = short(page, Tag::PlanarConfiguration, 1)? == 2;
    let extra = page.find_tag_unsigned_vec::<u16>(Tag::ExtraSamples).map_err(broken)?.unwrap_or_default();
    let alpha = match (extra.first(), colour) {
        (Some(kind @ (1 | 2)), _) => *kind,
        (_, ColorType::RGBA(_) | ColorType::GrayA(_)) => 2,
        _ => 0,
    };
    if planar && page.find_tag(Tag::TileWidth).map_err(broken)?.is_some() {
        return Err(ParseError::unsupported("TIFF with colours in separate tiles"));
    }
    let mut data = DecodingResult::U8(Vec::new());
    page.read_image_to_buffer(&mut data).map_err(broken)?;
    let backwards = short(page, Tag::from_u16_exhaustive(FILL_ORDER), 1)? == 2;
    if let (true, 1, DecodingResult::U8(bytes)) = (backwards, short(page, Tag::Compression, 1)?, &mut data) {
        bytes.iter_mut().for_each(|byte| *byte = byte.reverse_bits());
    }
    Ok(Samples { width, height, colour, planar, alpha, data })
}

/// `ColorMap`: all reds, then all greens, then all blues, 16 bits each.
fn palette(page: &mut Page) -> Result<Palette, ParseError> {
    let map = page.find_tag_unsigned_vec::<u16>(Tag::ColorMap).map_err(broken)?.unwrap_or_default();
    if map.is_empty() || map.len() % 3 != 0 {
        return Err(ParseError::malformed("the TIFF says that it has a palette, and has none"));
    }
    let count = map.len() / 3;
    let colour = |index: usize| [0, 1, 2].map(|channel| to_eight(u32::from(map[channel * count + index]), 65_535));
    Ok((0..count).map(colour).collect())
}

fn short(page: &mut Page, tag: Tag, default: u16) -> Result<u16, ParseError> {
    // `BitsPerSample` may be a list of equal numbers.
    let values = page.find_tag_unsigned_vec::<u16>(tag).map_err(broken)?.unwrap_or_default();
    Ok(values.first().copied().unwrap_or(default))
}

/// Pixels per inch across and down; 0 where nothing is said.
fn resolution(page: &mut Page) -> (f32, f32) {
    let scale = match short(page, Tag::ResolutionUnit, 2) {
        Ok(2) => 1.0,
        Ok(3) => INCHES_PER_CM,
        _ => return (0.0, 0.0),
    };
    let mut of = |tag: Tag| match page.find_tag(tag) {
        Ok(Some(Value::Rational(over, under))) if under > 0 => over as f32 / under as f32 * scale,
        Ok(Some(Value::Float(value))) => value * scale,
        _ => 0.0,
    };
    (of(Tag::XResolution), of(Tag::YResolution))
}

/// A fax in standard resolution has half as many rows to the inch as columns: its rows are repeated, so that pixels are square.
fn square(raster: Raster, across: f32, down: f32) -> Raster {
    let times = (across / down).round();
    if !(2.0..=4.0).contains(&times) || check_size(raster.width, raster.height * times as u32).is_err() {
        return raster;
    }
    let times = times as usize;
    let rows = raster.pixels.chunks_exact(raster.width as usize * usize::from(raster.channels));
    let pixels = rows.flat_map(|row| std::iter::repeat_n(row, times)).flatten().copied().collect();
    Raster { height: raster.height * times as u32, pixels, ..raster }
}

fn broken(error: TiffError) -> ParseError {
    match error {
        TiffError::UnsupportedError(what) => ParseError::unsupported(format!("TIFF ({what})")),
        TiffError::LimitsExceeded | TiffError::IntSizeError => {
            ParseError::too_large("the TIFF is larger than can be decoded")
        }
        other => ParseError::malformed(format!("the TIFF is broken: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fax_rows_are_repeated() {
        let fax = || Raster { width: 2, height: 2, channels: 1, pixels: vec![1, 2, 3, 4] };
        assert_eq!(square(fax(), 204.0, 98.0), Raster { height: 4, pixels: vec![1, 2, 1, 2, 3, 4, 3, 4], ..fax() });
        for (across, down) in [(300.0, 300.0), (0.0, 0.0), (300.0, 0.0), (98.0, 204.0), (f32::NAN, 1.0)] {
            assert_eq!(square(fax(), across, down), fax(), "{across} × {down}");
        }
    }
}
