//! PDF: for each page either its own words, where they are good, or its pixels.

mod gather;
mod judge;
mod lines;
mod meaning;
mod render;
mod strides;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hayro::hayro_interpret::{InterpreterSettings, InterpreterWarning};
use hayro::hayro_syntax::page::Page;
use hayro::hayro_syntax::{DecryptionError, LoadPdfError, Pdf, PdfData};
use hayro::kurbo::Affine;
use ingle_engine::page::{PAGE_PIXELS_MAX, PAGE_SIDE_MAX};

use super::{Made, Pages};
use crate::error::{ErrorKind, ParseError};
use crate::limits::CONTENT_BYTES_MAX;
use crate::table;

const POINTS_PER_INCH: f64 = 72.0;

/// An open PDF.
pub(super) struct PdfPages {
    pdf: Pdf,
    /// Bytes of page contents that the parser has decoded and keeps.
    kept: usize,
}

impl PdfPages {
    pub(super) fn open(bytes: Vec<u8>) -> Result<Self, ParseError> {
        Self::read(bytes.into())
    }

    fn read(bytes: PdfData) -> Result<Self, ParseError> {
        let pdf = Pdf::new(bytes).map_err(|error| match error {
            LoadPdfError::Decryption(DecryptionError::PasswordProtected) => {
                ParseError::new(ErrorKind::Encrypted, "the PDF opens with a password only; save it without one")
            }
            LoadPdfError::Decryption(DecryptionError::UnsupportedAlgorithm) => {
                ParseError::unsupported("PDF with encryption of an unknown kind")
            }
            LoadPdfError::Decryption(_) => ParseError::malformed("the PDF's encryption is broken"),
            LoadPdfError::Invalid => ParseError::malformed("this isn't a PDF, or it is cut off or damaged"),
        })?;
        Ok(PdfPages { pdf, kept: 0 })
    }
}

impl Pages for PdfPages {
    fn count(&self) -> u32 {
        u32::try_from(self.pdf.pages().len()).unwrap_or(u32::MAX)
    }

    fn page(&mut self, index: u32, dpi: f32) -> Result<Made, ParseError> {
        if self.kept > CONTENT_BYTES_MAX {
            *self = Self::read(self.pdf.data().clone())?;
        }
        let page = &self.pdf.pages()[index as usize];
        self.kept += page.page_stream().map_or(0, <[u8]>::len);
        if page.raw().contains_key(b"Contents".as_slice()) && page.page_stream().is_none() {
            return Err(ParseError::malformed(format!("page {}: its content can't be decoded", u64::from(index) + 1)));
        }
        let frame = Frame::of(page, dpi);
        let undecoded = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&undecoded);
        let settings = InterpreterSettings {
            warning_sink: Arc::new(move |warning| {
                if matches!(warning, InterpreterWarning::ImageDecodeFailure) {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }),
            ..InterpreterSettings::default()
        };
        let (glyphs, seen) = gather::gather(page, &frame, &settings);
        let words = lines::lines(&glyphs, frame.width, frame.height);
        drop(glyphs);
        if judge::is_good(&words, &seen, frame.height) && table::fits(&words) {
            return Ok(Made::Words { width: frame.width.into(), height: frame.height.into(), dpi: frame.dpi, words });
        }
        let raster = render::render(page, &frame, &settings);
        if undecoded.load(Ordering::Relaxed) > 0 && raster.pixels.iter().all(|sample| *sample == 255) {
            // White paper would read as an empty page, and nobody would know.
            let message =
                format!("page {}: its picture can't be decoded, and nothing else is on it", u64::from(index) + 1);
            return Err(ParseError::malformed(message));
        }
        Ok(Made::Pixels { raster, dpi: frame.dpi })
    }
}

/// How large a page becomes, and how its coordinates turn into pixels.
#[derive(Debug, Clone, Copy)]
struct Frame {
    width: u16,
    height: u16,
    dpi: f32,
    /// From the page's user space, y upwards, to pixels, y downwards.
    transform: Affine,
}

impl Frame {
    fn of(page: &Page<'_>, dpi: f32) -> Self {
        let (width, height) = page.render_dimensions();
        let (wide, tall, scale) = fitted(f64::from(width), f64::from(height), f64::from(dpi));
        let own = page.initial_transform(true).as_coeffs();
        let transform = Affine::scale(scale) * Affine::new(own);
        Frame { width: wide, height: tall, dpi: (scale * POINTS_PER_INCH) as f32, transform }
    }
}

/// Pixels across and down, and pixels per point: what `dpi` makes of a page, or less where that would be too much.
fn fitted(width: f64, height: f64, dpi: f64) -> (u16, u16, f64) {
    let side = |points: f64| if points.is_finite() { points.clamp(1.0, 1e9) } else { 1.0 };
    let (width, height) = (side(width), side(height));
    let by_side = f64::from(PAGE_SIDE_MAX) / width.max(height);
    let by_area = (PAGE_PIXELS_MAX as f64 / (width * height)).sqrt();
    let scale = (dpi / POINTS_PER_INCH).min(by_side).min(by_area);
    // Rounded down, so that neither bound is passed; a page keeps at least one pixel.
    let pixels = |points: f64| (points * scale + 1e-6).floor().clamp(1.0, f64::from(PAGE_SIDE_MAX)) as u16;
    (pixels(width), pixels(height), scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_keep_within_bounds() {
        let (wide, tall, scale) = fitted(595.0, 842.0, 200.0);
        assert_eq!((wide, tall), (1_652, 2_338));
        assert!((scale * 72.0 - 200.0).abs() < 1e-9);
        for (width, height) in
            [(1e6, 1e6), (1e6, 1.0), (1e30, 1e-30), (f64::NAN, 5.0), (f64::INFINITY, 1.0), (0.0, -3.0)]
        {
            let (wide, tall, scale) = fitted(width, height, 1_200.0);
            assert!(
                (1..=20_000).contains(&wide) && (1..=20_000).contains(&tall),
                "{width} × {height}: {wide} × {tall}"
            );
            assert!(u64::from(wide) * u64::from(tall) <= PAGE_PIXELS_MAX);
            assert!(scale.is_finite() && scale > 0.0);
        }
    }
}
