//! Reading a file: who may, which version, then its pieces in order: from the cache, from a fetch that is under way, or from
//! the NAS, a few ahead.
//!
//! A reader gets one version of a file or an error, never a mixture: pieces are kept by version, each READ tells the
//! attributes after it, and where a protocol doesn't, they are asked for before the last piece is handed out.

pub mod ahead;
pub mod flight;

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::{FutureExt as _, Stream, StreamExt as _, TryStreamExt as _};
use ingle_daemon::{OnFailure, Tasks};
use ingle_proto::{ErrorCode, ObjectPath, Problem};
use tokio::sync::Semaphore;

use crate::buffers::PIECE_BYTES;
use crate::cache::{Cache, Key, Version};
use crate::export::{Attr, Export, ExportError};
use crate::limits::{AHEAD_IN_FLIGHT, READ_AHEAD_PIECES};
use ahead::Planner;
use flight::{Flights, apart};

/// A file that changed this shortly before it was read may change again within one tick of the NAS's clock, and look the
/// same: its pieces aren't kept. Covers file systems that count in two seconds (FAT), and clocks that differ a little.
const RACY_NS: i64 = 5_000_000_000;
/// A range that is shorter than this part of a piece is read as it is, and not kept.
const SHORT_BYTES: u64 = PIECE_BYTES as u64 / 16;

/// One version of a file that a user may read.
pub struct Document {
    /// As this user sees it.
    pub export: Arc<dyn Export>,
    /// The export's name.
    pub name: String,
    /// Where it lies.
    pub path: ObjectPath,
    /// For people.
    pub shown: String,
    /// As it was opened.
    pub attr: Attr,
    /// Which version that is.
    pub version: Version,
    /// Its pieces may be kept.
    cached: bool,
    /// It will be wanted again.
    lasting: bool,
}

fn changed(document: &Document, what: &str) -> Problem {
    let words = format!("{}: {what} while it was read; read it again", document.shown);
    Problem::new(ErrorCode::ObjectChanged, words)
}

/// Reads for everybody: they share the cache and what is under way. Clones are one reader.
#[derive(Clone)]
pub struct Reader {
    cache: Cache,
    flights: Flights,
    planner: Arc<Mutex<Planner>>,
    ahead: Arc<Semaphore>,
    tasks: Tasks,
}

impl Reader {
    /// Over a cache; what is fetched ahead runs among `tasks`.
    #[must_use]
    pub fn new(cache: Cache, tasks: Tasks) -> Self {
        let ahead = Arc::new(Semaphore::new(AHEAD_IN_FLIGHT));
        Self { cache, flights: Flights::default(), planner: Arc::default(), ahead, tasks }
    }

    /// Asks the NAS whether the export's user may read the file, and which version it is.
    ///
    /// # Errors
    /// Those of the export.
    pub async fn open(
        &self,
        name: &str,
        export: Arc<dyn Export>,
        path: ObjectPath,
        shown: String,
        lasting: bool,
    ) -> Result<Document, ExportError> {
        let attr = export.readable(&path).await?;
        let version = Version::of(name, path.as_bytes(), &attr);
        let now_ns = ingle_daemon::clock::unix_ms().saturating_mul(1_000_000);
        let settled = attr.mtime_ns.max(attr.ctime_ns) < now_ns.saturating_sub(RACY_NS);
        let cached = export.remote() && settled;
        Ok(Document { export, name: name.to_owned(), path, shown, attr, version, cached, lasting })
    }

    /// The bytes `start .. end` in order, in pieces of at most 256 KiB. `end` is within the file.
    pub fn pieces(
        &self,
        document: &Arc<Document>,
        start: u64,
        end: u64,
    ) -> impl Stream<Item = Result<Bytes, Problem>> + Send + 'static {
        let size = document.attr.size;
        let whole = start == 0 && end == size;
        let cached = document.cached && (whole || end - start >= SHORT_BYTES);
        if cached && !whole {
            self.fetch_ahead(document, start, end);
        }
        let first = start - start % PIECE_BYTES as u64;
        let (reader, document) = (self.clone(), Arc::clone(document));
        futures::stream::iter((first..end).step_by(PIECE_BYTES))
            .map(move |at| {
                let (reader, document) = (reader.clone(), Arc::clone(&document));
                let piece_end = (at + PIECE_BYTES as u64).min(size);
                let (from, to) = (start.max(at), end.min(piece_end));
                async move {
                    if cached {
                        let piece = reader.piece(&document, at / PIECE_BYTES as u64).await?;
                        return Ok((piece.slice((from - at) as usize..(to - at) as usize), None));
                    }
                    let of = Arc::clone(&document);
                    let fetched = apart(async move { fetch(&of, from, to).await }).await;
                    let (data, told) = fetched.map_err(|error| reworded(&document, error))?;
                    Ok((data, (!told && to == end).then_some(document)))
                }
            })
            .buffered(READ_AHEAD_PIECES)
            .and_then(|(data, look)| async move {
                // Where reads tell no attributes, the last piece waits until all are there and the file was looked at.
                if let Some(document) = look {
                    unchanged(&document).await.map_err(|error| reworded(&document, error))?;
                }
                Ok(data)
            })
    }

    /// Drops what is kept of a version: its bytes turned out not to be what they should.
    pub async fn forget(&self, document: &Document) {
        for piece in 0..document.attr.size.div_ceil(PIECE_BYTES as u64) {
            self.cache.forget(Key { file: document.version.0, piece }).await;
        }
    }

    /// A whole piece, from wherever it comes soonest.
    async fn piece(&self, document: &Arc<Document>, piece: u64) -> Result<Bytes, Problem> {
        let key = Key { file: document.version.0, piece };
        if let Some(found) = self.cache.get(key).await {
            return Ok(found);
        }
        let begin = || {
            let (cache, document) = (self.cache.clone(), Arc::clone(document));
            async move {
                let start = piece * PIECE_BYTES as u64;
                let end = (start + PIECE_BYTES as u64).min(document.attr.size);
                let (data, told) = fetch(&document, start, end).await?;
                if !told {
                    unchanged(&document).await?;
                }
                cache.put(key, &data, document.lasting).await;
                Ok(data)
            }
            .boxed()
        };
        let (fetching, joined) = self.flights.join(key, begin);
        match fetching.await {
            // What another user may not read, this one may.
            Err(error) if joined && !error.retryable() => apart(begin()).await,
            other => other,
        }
        .map_err(|error| reworded(document, error))
    }

    fn fetch_ahead(&self, document: &Arc<Document>, start: u64, end: u64) {
        let planned = {
            let mut planner = self.planner.lock().unwrap_or_else(PoisonError::into_inner);
            planner.asked(document.version, start, end, document.attr.size)
        };
        let Some((from, to)) = planned else { return };
        for piece in from / PIECE_BYTES as u64..to.div_ceil(PIECE_BYTES as u64) {
            if self.cache.holds(&Key { file: document.version.0, piece }) {
                continue;
            }
            // When so much is on its way ahead, more would only stand in the way of what is asked for.
            let Ok(turn) = Arc::clone(&self.ahead).try_acquire_owned() else { return };
            let (reader, document) = (self.clone(), Arc::clone(document));
            self.tasks.spawn("read-ahead", OnFailure::Log, async move {
                let _turn = turn;
                // Who asks for it will be told what is wrong.
                let _ = reader.piece(&document, piece).await;
                Ok::<_, std::convert::Infallible>(())
            });
        }
    }
}

/// Reads a range of one version of a file. Also whether the read told the file's attributes, which are that version's then.
async fn fetch(document: &Document, start: u64, end: u64) -> Result<(Bytes, bool), ExportError> {
    let length = u32::try_from(end - start).expect("a piece has at most 256 KiB");
    let (data, attr) = document.export.read_with_attr(&document.path, start, length).await?;
    if attr.as_ref().is_some_and(|attr| !attr.same_version(&document.attr)) || data.len() as u64 != end - start {
        return Err(ExportError::Changed(document.shown.clone()));
    }
    Ok((data, attr.is_some()))
}

/// The file is still the version that was opened.
async fn unchanged(document: &Document) -> Result<(), ExportError> {
    match document.export.stat(&document.path).await? {
        attr if attr.same_version(&document.attr) => Ok(()),
        _ => Err(ExportError::Changed(document.shown.clone())),
    }
}

fn reworded(document: &Document, error: ExportError) -> Problem {
    match error {
        ExportError::NotFound(_) => changed(document, "it was removed"),
        other => other.into(),
    }
}
