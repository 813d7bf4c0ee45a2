//! JPEG 2000 files and codestreams: one picture.

use hayro_jpeg2000::{ColorSpace, DecodeSettings, DecoderContext, Image};

use super::picture::{composed, finished};
use super::raster::{Raster, check_size, from_cmyk};
use super::{Made, Pages};
use crate::error::ParseError;
use crate::limits::DECODED_BYTES_MAX;

/// A picture whose header was found good.
#[derive(Debug)]
pub(super) struct Jpeg2000Page {
    bytes: Vec<u8>,
}

impl Jpeg2000Page {
    pub(super) fn open(bytes: Vec<u8>) -> Result<Self, ParseError> {
        header(&bytes)?;
        Ok(Jpeg2000Page { bytes })
    }
}

impl Pages for Jpeg2000Page {
    fn count(&self) -> u32 {
        1
    }

    fn page(&mut self, _: u32, dpi: f32) -> Result<Made, ParseError> {
        let image = header(&self.bytes)?;
        let (width, height) = (image.width(), image.height());
        let mut context = DecoderContext::default();
        let decoded = image.decode(&mut context).map_err(broken)?;
        let pixels = u64::from(width) * u64::from(height);
        let samples: Vec<usize> = decoded.components().iter().map(|part| part.samples().len()).collect();
        if samples.iter().any(|count| *count as u64 != pixels) {
            return Err(ParseError::unsupported("JPEG 2000 with channels of unlike sizes"));
        }
        let (colours, alpha) = match image.color_space() {
            ColorSpace::Gray => (1, image.has_alpha()),
            ColorSpace::RGB => (3, image.has_alpha()),
            ColorSpace::CMYK => (4, image.has_alpha()),
            ColorSpace::Unknown { num_channels } | ColorSpace::Icc { num_channels, .. } => {
                (*num_channels, image.has_alpha())
            }
        };
        if samples.len() != usize::from(colours) + usize::from(alpha) {
            return Err(ParseError::malformed("the JPEG 2000 has other channels than it says"));
        }
        let interleaved = decoded.data_u8();
        let (channels, pixels) = match (colours, alpha) {
            (1 | 3, false) => (colours, interleaved),
            (1, true) => (1, composed::<2, u8>(&interleaved, 255)),
            (3, true) => (3, composed::<4, u8>(&interleaved, 255)),
            (4, false) => (3, interleaved.as_chunks::<4>().0.iter().flat_map(|inks| from_cmyk(*inks)).collect()),
            (colours, _) => return Err(ParseError::unsupported(format!("JPEG 2000 with {colours} channels"))),
        };
        Ok(finished(Raster { width, height, channels, pixels }, 1, 0.0, dpi))
    }
}

fn header(bytes: &[u8]) -> Result<Image<'_>, ParseError> {
    let image = Image::new(bytes, &DecodeSettings::default()).map_err(broken)?;
    check_size(image.width(), image.height())?;
    // The decoder works in 32-bit floats, channel by channel.
    let channels = u64::from(image.color_space().num_channels()) + u64::from(image.has_alpha());
    let needed = u64::from(image.width()) * u64::from(image.height()) * channels * 4;
    if needed > 2 * DECODED_BYTES_MAX {
        return Err(ParseError::too_large(format!("the JPEG 2000 needs {needed} bytes to be decoded")));
    }
    Ok(image)
}

fn broken(error: impl std::fmt::Display) -> ParseError {
    ParseError::malformed(format!("the JPEG 2000 is broken: {error}"))
}
