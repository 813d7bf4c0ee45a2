//! Where the OCR networks stand on this machine: `cargo run --release --example ocr_speed -- FOLDER [THREADS [ROUNDS]]`.
//!
//! FOLDER holds the ONNX files. Prints the median and the least time of a page's detection (1056 × 736) and of a line's
//! recognition (48 × 768, alone and four at once), and how long each layer takes at least. The benches compare with peers.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ingle_engine::EngineError;
use ingle_engine_candle::ocr::{Detector, Recogniser};

/// Longer than any run.
const WHOLE: Duration = Duration::from_secs(600);

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("FOLDER is missing")?);
    let threads = arguments.next().map_or(Ok(2), |text| text.parse())?;
    let rounds = arguments.next().map_or(Ok(20), |text| text.parse())?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let read = |name: &str| std::fs::read(dir.join(name));
    let detector = Detector::load(&read("ch_PP-OCRv4_det_infer.onnx")?, "detector")?;
    let recogniser = Recogniser::load(&read("ch_PP-OCRv4_rec_infer.onnx")?, "recogniser")?;
    // Waves, with the range of normalised pixels.
    let input = |length: usize| -> Vec<f32> { (0..length).map(|at| (at as f32 * 0.37).sin() * 1.5).collect() };

    pool.install(|| {
        let page = input(1056 * 736 * 3);
        measure("detection of 1056 × 736", rounds, || {
            let mut run = detector.start(&page, 1056, 736)?;
            run.step(WHOLE);
            Ok(())
        })?;
        profile(rounds, |tell| {
            detector.start(&page, 1056, 736)?.profile(tell);
            Ok(())
        })?;
        for lines in [1, 4] {
            let batch = input(lines * 48 * 768 * 3);
            measure(&format!("recognition of {lines} × 768"), rounds, || {
                let mut run = recogniser.start(&batch, lines, 768)?;
                run.step(WHOLE);
                Ok(())
            })?;
            profile(rounds, |tell| {
                recogniser.start(&batch, lines, 768)?.profile(tell);
                Ok(())
            })?;
        }
        Ok(())
    })
}

fn measure(
    what: &str,
    rounds: usize,
    mut run: impl FnMut() -> Result<(), EngineError>,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut times = Vec::new();
    for _ in 0..rounds.max(1) {
        let begun = Instant::now();
        run()?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    println!("{what}: median {:.1} ms, least {:.1} ms", times[times.len() / 2], times[0]);
    Ok(())
}

/// A run that tells its layers' names and times.
type Tell<'a> = &'a mut dyn FnMut(&str, Duration);

fn profile(
    rounds: usize,
    run: impl Fn(Tell<'_>) -> Result<(), EngineError>,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut least: Vec<(String, Duration)> = Vec::new();
    for _ in 0..rounds.max(1) {
        let mut layer = 0;
        run(&mut |name, time| {
            match least.get_mut(layer) {
                Some((_, known)) => *known = time.min(*known),
                None => least.push((name.into(), time)),
            }
            layer += 1;
        })?;
    }
    for (name, time) in &least {
        println!("  {:8.3} ms  {name}", time.as_secs_f64() * 1e3);
    }
    let total: Duration = least.iter().map(|(_, time)| *time).sum();
    println!("  {:8.3} ms  least of all layers", total.as_secs_f64() * 1e3);
    Ok(())
}
