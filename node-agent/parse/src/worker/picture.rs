//! Files with one picture: PNG, JPEG, WebP, GIF (its first frame), BMP.

use std::io::Cursor;

use image::error::ImageError;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, metadata::Orientation};

use super::raster::{Raster, check_size, on_white, to_eight};
use super::{Made, Pages, orientation, resolution};
use crate::error::ParseError;
use crate::kinds::Kind;
use crate::limits::DECODED_BYTES_MAX;

/// A picture whose header was found good.
#[derive(Debug)]
pub(super) struct Picture {
    kind: Kind,
    bytes: Vec<u8>,
}

impl Picture {
    pub(super) fn open(kind: Kind, bytes: Vec<u8>) -> Result<Self, ParseError> {
        decoder(kind, &bytes)?;
        Ok(Picture { kind, bytes })
    }
}

impl Pages for Picture {
    fn count(&self) -> u32 {
        1
    }

    fn page(&mut self, _: u32, dpi: f32) -> Result<Made, ParseError> {
        let mut decoder = decoder(self.kind, &self.bytes)?;
        let bytes = decoder.total_bytes();
        if bytes > DECODED_BYTES_MAX {
            let message = format!("the {} takes {bytes} bytes unpacked, at most {DECODED_BYTES_MAX}", self.kind.name());
            return Err(ParseError::too_large(message));
        }
        let exif = decoder.exif_metadata().ok().flatten().unwrap_or_default();
        // In WebP some writers keep the mark that only JPEG needs.
        let exif = exif.strip_prefix(b"Exif\0\0").unwrap_or(&exif);
        let orientation = Orientation::from_exif_chunk(exif).map_or(1, |lies| u16::from(lies.to_exif()));
        let image = DynamicImage::from_decoder(decoder).map_err(|error| broken(self.kind, &error))?;
        let own = match self.kind {
            Kind::Png => resolution::of_png(&self.bytes),
            Kind::Jpeg => resolution::of_jpeg(&self.bytes),
            Kind::Bmp => resolution::of_bmp(&self.bytes),
            _ => None,
        };
        let claim = own.or_else(|| resolution::of_exif(exif)).unwrap_or(0.0);
        Ok(finished(flat(image)?, orientation, claim, dpi))
    }
}

/// What all pictures go through: grey where it is grey, upright, no finer than asked for, within the engine's bounds.
pub(super) fn finished(raster: Raster, orientation: u16, claimed_dpi: f32, wanted_dpi: f32) -> Made {
    let dpi = resolution::plausible(claimed_dpi, raster.width, raster.height);
    // A hundredth of tolerance: metadata count in metres, and 400 dpi are 15,748 to one.
    let (raster, by) = raster.grey_if_grey().within_bounds((dpi / wanted_dpi + 0.01) as u32);
    Made::Pixels { raster: orientation::upright(raster, orientation), dpi: dpi / by as f32 }
}

fn decoder<'a>(kind: Kind, bytes: &'a [u8]) -> Result<impl ImageDecoder + 'a, ParseError> {
    let format = match kind {
        Kind::Png => ImageFormat::Png,
        Kind::Jpeg => ImageFormat::Jpeg,
        Kind::WebP => ImageFormat::WebP,
        Kind::Gif => ImageFormat::Gif,
        Kind::Bmp => ImageFormat::Bmp,
        Kind::Pdf | Kind::Tiff | Kind::Jpeg2000 => return Err(ParseError::unsupported(kind.name())),
    };
    // Sides are checked below, by name.
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(DECODED_BYTES_MAX);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|error| broken(kind, &error))?;
    let (width, height) = decoder.dimensions();
    check_size(width, height)?;
    Ok(decoder)
}

fn broken(kind: Kind, error: &ImageError) -> ParseError {
    match error {
        ImageError::Limits(limits) => ParseError::too_large(format!("the {} is too large: {limits}", kind.name())),
        ImageError::Unsupported(what) => ParseError::unsupported(format!("{} ({what})", kind.name())),
        other => ParseError::malformed(format!("the {} is broken: {other}", kind.name())),
    }
}

/// Eight bits, one or three channels, on white.
fn flat(image: DynamicImage) -> Result<Raster, ParseError> {
    let (width, height) = (image.width(), image.height());
    let (channels, pixels) = match image {
        DynamicImage::ImageLuma8(grey) => (1, grey.into_raw()),
        DynamicImage::ImageRgb8(colour) => (3, colour.into_raw()),
        DynamicImage::ImageLumaA8(grey) => (1, composed::<2, _>(grey.as_raw(), 255)),
        DynamicImage::ImageRgba8(colour) => (3, composed::<4, _>(colour.as_raw(), 255)),
        DynamicImage::ImageLuma16(grey) => (1, eight(grey.as_raw())),
        DynamicImage::ImageRgb16(colour) => (3, eight(colour.as_raw())),
        DynamicImage::ImageLumaA16(grey) => (1, composed::<2, _>(grey.as_raw(), 65_535)),
        DynamicImage::ImageRgba16(colour) => (3, composed::<4, _>(colour.as_raw(), 65_535)),
        _ => return Err(ParseError::unsupported("a picture with samples other than 8 or 16 bits")),
    };
    Ok(Raster { width, height, channels, pixels })
}

pub(super) fn eight(samples: &[u16]) -> Vec<u8> {
    samples.iter().map(|sample| to_eight(u32::from(*sample), 65_535)).collect()
}

/// `N` samples a pixel of which the last is alpha, straight; without it, on white.
pub(super) fn composed<const N: usize, T: Copy + Into<u32>>(samples: &[T], most: u32) -> Vec<u8> {
    let (pixels, _) = samples.as_chunks::<N>();
    let mut flat = Vec::with_capacity(pixels.len() * (N - 1));
    for pixel in pixels {
        let alpha: u32 = pixel[N - 1].into();
        flat.extend(pixel[..N - 1].iter().map(|colour| on_white((*colour).into(), alpha, most)));
    }
    flat
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_stands_on_white() {
        assert_eq!(composed::<2, u8>(&[0, 0, 0, 255, 100, 51], 255), [255, 0, 224]);
        assert_eq!(composed::<4, u16>(&[65_535, 0, 0, 65_535, 1, 2, 3, 0], 65_535), [255, 0, 0, 255, 255, 255]);
        assert_eq!(eight(&[0, 257, 65_535]), [0, 1, 255]);
    }

    #[test]
    fn a_fine_scan_is_shrunk_to_what_is_asked() {
        let scan = || Raster { width: 1_200, height: 1_200, channels: 1, pixels: vec![9; 1_200 * 1_200] };
        let sized = |made: Made| match made {
            Made::Pixels { raster, dpi } => (raster.width, raster.height, dpi),
            Made::Words { .. } => panic!("pixels"),
        };
        assert_eq!(sized(finished(scan(), 1, 600.0, 200.0)), (400, 400, 200.0));
        assert_eq!(sized(finished(scan(), 1, 600.0, 310.0)), (1_200, 1_200, 600.0), "never below what is asked");
        assert_eq!(sized(finished(scan(), 6, 0.0, 200.0)), (1_200, 1_200, 0.0));
    }
}
