//! A page of a PDF as pixels on white paper.

use hayro::hayro_interpret::InterpreterSettings;
use hayro::hayro_syntax::page::Page;
use hayro::vello_cpu::color::palette::css::WHITE;
use hayro::vello_cpu::{Pixmap, RasterizerSettings, RenderContext, Resources, TargetInit};
use hayro::{RenderCache, RenderSettings, render_into};

use super::Frame;
use crate::worker::raster::Raster;

/// Draws the page. Grey where it has no colour.
pub(super) fn render(page: &Page<'_>, frame: &Frame, settings: &InterpreterSettings) -> Raster {
    let mut context = RenderContext::new(frame.width, frame.height);
    // A cache for this page alone: the renderer's never forgets, and a long document would fill the memory.
    let cache = RenderCache::new();
    render_into(page, &cache, settings, &RenderSettings::default(), &mut context, frame.transform);
    context.flush();
    let mut paper = Pixmap::new(frame.width, frame.height);
    let onto_white = RasterizerSettings { target_init: TargetInit::Clear(WHITE), ..RasterizerSettings::default() };
    context.render_with(&mut paper, &mut Resources::default(), onto_white);
    drop(context);
    // White paper is opaque, so that alpha is 255 everywhere.
    let (pixels, _) = paper.data_as_u8_slice().as_chunks::<4>();
    let (width, height) = (frame.width.into(), frame.height.into());
    if pixels.iter().all(|[r, g, b, _]| r == g && g == b) {
        Raster { width, height, channels: 1, pixels: pixels.iter().map(|pixel| pixel[0]).collect() }
    } else {
        let mut colours = Vec::with_capacity(pixels.len() * 3);
        pixels.iter().for_each(|pixel| colours.extend_from_slice(&pixel[..3]));
        Raster { width, height, channels: 3, pixels: colours }
    }
}
