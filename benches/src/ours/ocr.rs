//! Reading pages with our engine alone.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use ingle_engine::{OcrRequest, Output, PageImage, Request, Task};

use super::Alone;

/// Our reader.
pub(crate) struct Reader(Alone);

impl Reader {
    /// Loads it.
    pub(crate) fn load(models: &Path, threads: usize) -> anyhow::Result<Self> {
        Ok(Self(Alone::load(models, Task::Ocr, threads, 1)?))
    }

    /// Reads all pages from their files, one after another.
    pub(crate) fn read(&mut self, pages: &[PathBuf]) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        for path in pages {
            let page = decode(path).with_context(|| path.display().to_string())?;
            let mut lines = 0;
            self.0.run(Request::Ocr(OcrRequest { page }), |output| {
                if let Output::Page { page, .. } = output {
                    lines = page.lines.len();
                }
            })?;
            anyhow::ensure!(lines > 0, "{}: nothing was read", path.display());
        }
        Ok(begun.elapsed())
    }
}

/// Pages of the generator: 8 bits, grey or RGB.
fn decode(path: &Path) -> anyhow::Result<PageImage> {
    let mut reader = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(path)?)).read_info()?;
    let mut pixels = vec![0; reader.output_buffer_size().context("a page of a size that fits")?];
    let info = reader.next_frame(&mut pixels)?;
    let channels = match (info.color_type, info.bit_depth) {
        (png::ColorType::Grayscale, png::BitDepth::Eight) => 1,
        (png::ColorType::Rgb, png::BitDepth::Eight) => 3,
        other => anyhow::bail!("8-bit grey or RGB expected, found {other:?}"),
    };
    pixels.truncate(info.buffer_size());
    Ok(PageImage { width: info.width, height: info.height, channels, pixels: pixels.into() })
}
