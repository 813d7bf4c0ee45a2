//! What runs in the child process, and nowhere else: it sets its own limits, then serves its standard input.
//!
//! Standard input is one end of a socket pair; the other is the parent's. One document is open at a time. A panic in a
//! parser becomes an answer and then the child's end, since nothing is known of what it left behind.

mod confine;
mod fax;
mod jpeg2000;
mod orientation;
mod pdf;
mod picture;
mod raster;
mod resolution;
mod tiff;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use crate::channel;
use crate::error::ParseError;
use crate::kinds::Kind;
use crate::limits::{Limits, PAGES_MAX, STACK_BYTES, VARIABLE};
use crate::page::PageWords;
use crate::table;
use crate::wire::{Reply, Request, VERSION};
use raster::Raster;

/// A page as the child made it.
enum Made {
    Pixels { raster: Raster, dpi: f32 },
    Words { width: u32, height: u32, dpi: f32, words: PageWords },
}

/// A document that is open in the child.
trait Pages {
    /// How many it has; at least one.
    fn count(&self) -> u32;
    /// Page `index`, below [`Pages::count`].
    fn page(&mut self, index: u32, dpi: f32) -> Result<Made, ParseError>;
}

/// Bytes of a document that are read at a time.
const READ_BYTES: u64 = 1 << 20;

/// Where a panic's message waits for the one who caught it.
static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

/// Serves documents on standard input until its other end is closed. Never returns: the process ends with status 0 then, and
/// with 70 where it could not confine itself, 71 where the protocol broke.
pub fn main() -> ! {
    std::process::exit(run())
}

fn run() -> i32 {
    let variable = std::env::var(VARIABLE).ok();
    let limits = Limits::in_child(variable.as_deref());
    if let Err(error) = confine::confine(&limits) {
        complain(&format!("can't confine itself: {error}"));
        return 70;
    }
    std::panic::set_hook(Box::new(|panic| {
        let said = panic.payload_as_str().unwrap_or("something without words");
        let place = panic.location().map(|at| format!(" ({}:{})", at.file(), at.line())).unwrap_or_default();
        let message: String = said.chars().take(200).chain(place.chars()).collect();
        *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = message;
    }));
    let worker = std::thread::Builder::new().name("parse".into()).stack_size(STACK_BYTES).spawn(move || {
        confine::no_more_threads()?;
        let socket = io::stdin().as_fd().try_clone_to_owned()?;
        serve(&socket, &limits)
    });
    match worker.map(std::thread::JoinHandle::join) {
        Ok(Ok(Ok(()))) => 0,
        Ok(Ok(Err(error))) | Err(error) => {
            complain(&format!("parsing ended: {error}"));
            71
        }
        Ok(Err(_)) => 71,
    }
}

fn complain(message: &str) {
    // Nobody may be left to read it.
    let _ = writeln!(io::stderr(), "{message}");
}

fn serve(socket: &OwnedFd, limits: &Limits) -> io::Result<()> {
    let broken = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    channel::send(socket, &Reply::Ready { version: VERSION }.pack(), None)?;
    let mut open: Option<Box<dyn Pages>> = None;
    while let Some(received) = channel::receive(socket)? {
        let request = Request::unpack(&received.packet).ok_or_else(|| broken("a request that isn't one"))?;
        confine::allow_processor(limits.cpu_s)?;
        let failed = match request {
            Request::Open { kind, bytes } => {
                open = None;
                let file = channel::document(received.file, bytes).map_err(broken)?;
                confine::allow_memory(limits, bytes)?;
                match caught(|| opened(kind, &file, bytes)) {
                    Ok(document) => {
                        let pages = document.count();
                        open = Some(document);
                        channel::send(socket, &Reply::Opened { pages }.pack(), None)?;
                        continue;
                    }
                    Err(failed) => failed,
                }
            }
            Request::Page { index, dpi } => {
                let document = open.as_mut().ok_or_else(|| broken("a page of no document"))?;
                if index >= document.count() {
                    return Err(broken("a page beyond the last"));
                }
                match caught(|| document.page(index, dpi)) {
                    Ok(made) => {
                        give(socket, made)?;
                        continue;
                    }
                    Err(failed) => failed,
                }
            }
            Request::Close => {
                open = None;
                continue;
            }
        };
        let (error, last) = failed;
        channel::send(socket, &Reply::Failed { error, last }.pack(), None)?;
        if last {
            // What the panic left is never looked at again, not even to free it.
            std::mem::forget(open);
            return Ok(());
        }
    }
    Ok(())
}

/// Runs a parser. The flag tells that it panicked, and that nothing it touched can be trusted.
fn caught<T>(parse: impl FnOnce() -> Result<T, ParseError>) -> Result<T, (ParseError, bool)> {
    match catch_unwind(AssertUnwindSafe(parse)) {
        Ok(outcome) => outcome.map_err(|error| (error, false)),
        Err(_) => {
            let said = LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner).clone();
            Err((ParseError::malformed(format!("the parser gave up on it: {said}")), true))
        }
    }
}

fn opened(kind: Kind, file: &File, bytes: u64) -> Result<Box<dyn Pages>, ParseError> {
    let mut document = Vec::new();
    let no_room =
        || ParseError::new(crate::ErrorKind::OutOfMemory, "the document alone is larger than the memory limit");
    document.try_reserve_exact(usize::try_from(bytes).map_err(|_| no_room())?).map_err(|_| no_room())?;
    // A piece at a time: each is still in the processor's cache when it is filled.
    while (document.len() as u64) < bytes {
        let at = document.len();
        document.resize(at + (bytes - at as u64).min(READ_BYTES) as usize, 0);
        file.read_exact_at(&mut document[at..], at as u64).map_err(|error| {
            ParseError::unavailable(format!("the node's copy of the document can't be read: {error}"))
        })?;
    }
    let cut_off = kind == Kind::Pdf && !ends_as_pdf(&document);
    let pages: Box<dyn Pages> = match kind {
        Kind::Pdf => Box::new(pdf::PdfPages::open(document)?),
        Kind::Tiff => Box::new(tiff::TiffPages::open(document)?),
        Kind::Jpeg2000 => Box::new(jpeg2000::Jpeg2000Page::open(document)?),
        kind => Box::new(picture::Picture::open(kind, document)?),
    };
    match pages.count() {
        0 if cut_off => {
            Err(ParseError::malformed("the PDF is cut off or damaged: its end is missing, and no page can be found"))
        }
        0 if kind == Kind::Pdf => {
            Err(ParseError::malformed("the PDF is damaged, or empty: no page can be found in it"))
        }
        0 => Err(ParseError::malformed(format!("the {} has no pages", kind.name()))),
        count if count > PAGES_MAX => {
            Err(ParseError::too_large(format!("the {} has {count} pages, at most {PAGES_MAX} are read", kind.name())))
        }
        _ => Ok(pages),
    }
}

/// Whether a PDF has its end, which stands in the last kilobyte: what was cut off on its way hasn't.
fn ends_as_pdf(document: &[u8]) -> bool {
    const END: &[u8] = b"%%EOF";
    let tail = &document[document.len().saturating_sub(1024)..];
    tail.windows(END.len()).any(|window| window == END)
}

fn give(socket: &OwnedFd, made: Made) -> io::Result<()> {
    let (reply, bytes) = match made {
        Made::Pixels { raster, dpi } => {
            let Raster { width, height, channels, pixels } = raster;
            (Reply::Pixels { width, height, dpi, channels }, pixels)
        }
        Made::Words { width, height, dpi, words } => {
            let table = table::write(&words);
            (Reply::Words { width, height, dpi, bytes: table.len() as u32 }, table)
        }
    };
    let file = channel::sealed("page", |file| file.write_all(&bytes))?;
    channel::send(socket, &reply.pack(), Some(file.as_fd()))
}
