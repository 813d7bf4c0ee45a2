//! Parses files as a node would and says what came of each page: `cargo run -p ingle-parse --example look -- FILE…`.
//!
//! `--text` prints a page's own words, `--dpi N` asks for another resolution than 200, `--pages N` for other than the first
//! four pages of each file, `--pgm DIR` writes pixels as PGM or PPM files. The program is its own child, as the node is.

#![expect(clippy::print_stdout, reason = "what it prints is what it is for")]

use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ingle_parse::{Content, Host, Limits};

fn main() -> Result<(), Box<dyn Error>> {
    if std::env::args_os().nth(1).is_some_and(|first| first == "parse-worker") {
        ingle_parse::worker::main();
    }
    let (mut text, mut dpi, mut pages_max, mut pgm) = (false, 200.0, 4, None);
    let mut files: Vec<OsString> = Vec::new();
    let mut args = std::env::args_os().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or("a value is missing").map(|value| value.to_string_lossy().into_owned());
        match arg.to_str() {
            Some("--text") => text = true,
            Some("--dpi") => dpi = value()?.parse()?,
            Some("--pages") => pages_max = value()?.parse()?,
            Some("--pgm") => pgm = Some(PathBuf::from(value()?)),
            _ => files.push(arg),
        }
    }
    let host = Host::new("/proc/self/exe".into(), vec!["parse-worker".into()], Limits::default());
    for file in files {
        let path = Path::new(&file);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let start = Instant::now();
        let mut document = match host.open(&std::fs::read(path)?, &name) {
            Ok(document) => document,
            Err(error) => {
                println!("{name}\t-\t{:?}\t{error}", error.kind);
                continue;
            }
        };
        let opened = start.elapsed().as_millis();
        println!("{name}\topen\t{}\t{} pages in {opened} ms", document.kind().name(), document.pages());
        for index in 0..document.pages().min(pages_max) {
            let start = Instant::now();
            let outcome = document.page(index, dpi);
            let took = start.elapsed().as_millis();
            match outcome {
                Err(error) => println!("{name}\t{index}\t{:?}\t{error} ({took} ms)", error.kind),
                Ok(page) => match page.content {
                    Content::Text(words) => {
                        let plain = words.plain();
                        println!("{name}\t{index}\ttext\t{} characters in {took} ms", plain.chars().count());
                        if text {
                            println!("{plain}");
                        }
                    }
                    Content::Pixels(image) => {
                        let (wide, tall, channels) = (image.width, image.height, image.channels);
                        println!("{name}\t{index}\tpixels\t{wide} × {tall} × {channels} at {} in {took} ms", page.dpi);
                        if let Some(folder) = &pgm {
                            let kind = if channels == 1 { "P5" } else { "P6" };
                            let head = format!("{kind}\n{wide} {tall}\n255\n");
                            let bytes = [head.as_bytes(), &image.pixels].concat();
                            std::fs::write(folder.join(format!("{name}-{index}.pnm")), bytes)?;
                        }
                    }
                },
            }
        }
    }
    Ok(())
}
