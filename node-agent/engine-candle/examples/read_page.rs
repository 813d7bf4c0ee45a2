//! Reads pages: `cargo run --release --example read_page -- MODEL_FOLDER OUTPUT_FOLDER THREADS PAGE.png…`.
//!
//! Writes NAME.txt, NAME.json (turn; lines with text, confidence, corners, block) and NAME.seconds for each page, as
//! `benches/ocr/quality.py --results` takes them, and says how long it took and how long the longest step was.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ingle_engine::{
    Class, Engine, LoadOptions, Model, OcrRequest, Output, PageImage, PageText, Request, RequestId, Step,
};
use ingle_engine_candle::CandleEngine;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("MODEL_FOLDER is missing")?);
    let out = PathBuf::from(arguments.next().ok_or("OUTPUT_FOLDER is missing")?);
    let threads: usize = arguments.next().ok_or("THREADS is missing")?.parse()?;
    std::fs::create_dir_all(&out)?;
    let begun = Instant::now();
    let mut model = CandleEngine::new(threads).load(&LoadOptions { dir, threads, context: 1, slots: 1 })?;
    println!("{:?}\nloaded in {:.2} s", model.card(), begun.elapsed().as_secs_f64());
    let (mut pages, mut total, mut longest) = (0u32, Duration::ZERO, Duration::ZERO);
    for path in arguments {
        let image = open(Path::new(&path))?;
        let begun = Instant::now();
        let (page, step) = read(model.as_mut(), image)?;
        let spent = begun.elapsed();
        (pages, total, longest) = (pages + 1, total + spent, longest.max(step));
        let name = Path::new(&path).file_stem().ok_or("a page needs a name")?.to_string_lossy().into_owned();
        std::fs::write(out.join(format!("{name}.txt")), page.plain())?;
        std::fs::write(out.join(format!("{name}.json")), json(&page)?)?;
        std::fs::write(out.join(format!("{name}.seconds")), spent.as_secs_f64().to_string())?;
        println!("{name}: turn {}, {} lines, {:.2} s", page.turn, page.lines.len(), spent.as_secs_f64());
    }
    let each = total.as_secs_f64() / f64::from(pages.max(1));
    println!("{pages} pages, {each:.2} s each, longest step {:.0} ms", longest.as_secs_f64() * 1000.0);
    Ok(())
}

fn open(path: &Path) -> Result<PageImage, Box<dyn Error>> {
    let image = image::open(path)?;
    let (width, height) = (image.width(), image.height());
    let grey = !image.color().has_color();
    let pixels = if grey { image.into_luma8().into_raw() } else { image.into_rgb8().into_raw() };
    Ok(PageImage { width, height, channels: if grey { 1 } else { 3 }, pixels: pixels.into() })
}

/// The page's text, and how long its longest step took.
fn read(model: &mut dyn Model, page: PageImage) -> Result<(PageText, Duration), Box<dyn Error>> {
    model.join(RequestId(0), Class::Batch, Request::Ocr(OcrRequest { page }))?;
    let (mut out, mut longest) = (Vec::new(), Duration::ZERO);
    loop {
        let begun = Instant::now();
        let step = model.step(&mut out)?;
        longest = longest.max(begun.elapsed());
        if step == Step::Idle {
            break;
        }
    }
    for output in out {
        match output {
            Output::Page { page, .. } => return Ok((page, longest)),
            Output::Failed { error, .. } => return Err(error.into()),
            _ => {}
        }
    }
    Err("the model said nothing".into())
}

fn json(page: &PageText) -> serde_json::Result<String> {
    let line = |line: &ingle_engine::TextLine| {
        serde_json::json!({
            "text": line.text, "confidence": line.confidence, "corners": line.corners, "block": line.block,
        })
    };
    let lines: Vec<serde_json::Value> = page.lines.iter().map(line).collect();
    serde_json::to_string_pretty(&serde_json::json!({ "turn": page.turn, "lines": lines }))
}
