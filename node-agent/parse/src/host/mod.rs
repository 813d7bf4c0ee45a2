//! The parent's side: a bounded number of children, each lent to one document at a time.

mod child;
mod document;
mod keeper;
mod pool;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

pub use document::Document;
use rustix::fs::{OFlags, fcntl_getfl};

use crate::channel;
use crate::error::{ErrorKind, ParseError};
use crate::kinds::{self, HEAD_BYTES, Kind, Verdict};
use crate::limits::Limits;
use pool::Pool;

/// Opens documents in child processes.
///
/// Blocking, and shared freely: every method takes `&self`. Children are started when they are needed, kept for many
/// documents, replaced after [`Limits::documents_per_child`], and ended with the host and its documents: by the host, and by
/// the kernel should the host's process die.
#[derive(Debug)]
pub struct Host {
    pool: Arc<Pool>,
}

impl Host {
    /// A host whose children run `program` with `args`, which must come to [`crate::worker::main`] at once.
    /// Nothing is started before the first document. Numbers of `limits` are taken into their ranges.
    #[must_use]
    pub fn new(program: PathBuf, args: Vec<OsString>, limits: Limits) -> Self {
        Host { pool: Arc::new(Pool::new(program, args, limits.bounded())) }
    }

    /// Opens a document: tells what it is from its first bytes (`name_hint`, a file's name, only helps to name what isn't
    /// read here), and counts its pages. Blocks until a child is free, then at most [`Limits::open`].
    ///
    /// # Errors
    /// [`ParseError`] says what is wrong with it, or that no child could be had.
    pub fn open(&self, bytes: &[u8], name_hint: &str) -> Result<Document, ParseError> {
        let kind = self.kind(bytes, bytes.len() as u64, name_hint)?;
        let memory = channel::sealed("document", |file| file.write_all(bytes))
            .map_err(|error| ParseError::unavailable(format!("no memory file for the document: {error}")))?;
        Document::open(Arc::clone(&self.pool), kind, Arc::new(memory), bytes.len() as u64)
    }

    /// As [`Host::open`] for a document in a file, of which only the first bytes are read here. The child gets the very
    /// descriptor: it must be open for reading alone, and nobody may change the file while the document is open.
    ///
    /// # Errors
    /// As [`Host::open`]; `Unavailable` for a descriptor that can be written through, or that can't be read.
    pub fn open_file(&self, file: Arc<File>, name_hint: &str) -> Result<Document, ParseError> {
        let unusable =
            |error: io::Error| ParseError::unavailable(format!("the document's file can't be used: {error}"));
        if fcntl_getfl(&file).map_err(io::Error::from).map_err(unusable)? & OFlags::ACCMODE != OFlags::RDONLY {
            return Err(ParseError::unavailable("the document's file is open for writing: open it for reading alone"));
        }
        let bytes = file.metadata().map_err(unusable)?.len();
        let mut head = vec![0; bytes.min(HEAD_BYTES as u64) as usize];
        file.read_exact_at(&mut head, 0).map_err(unusable)?;
        let kind = self.kind(&head, bytes, name_hint)?;
        Document::open(Arc::clone(&self.pool), kind, file, bytes)
    }

    /// What a document is that begins so and has so many bytes, if it can be opened.
    fn kind(&self, head: &[u8], bytes: u64, name_hint: &str) -> Result<Kind, ParseError> {
        let kind = match kinds::look(head, name_hint) {
            Verdict::Parse(kind) => kind,
            Verdict::Text => {
                let kind = ErrorKind::Unsupported("plain text".into());
                return Err(ParseError::new(kind, "plain text needs no parsing: read it as it is"));
            }
            Verdict::Unsupported(what) => return Err(ParseError::unsupported(what)),
        };
        let most = self.pool.limits().document_bytes_max;
        if bytes > most {
            let message = format!("the document has {bytes} bytes, at most {most} are read");
            return Err(ParseError::too_large(message));
        }
        Ok(kind)
    }

    /// The limits in use.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        self.pool.limits()
    }

    /// Children alive now.
    #[must_use]
    pub fn children(&self) -> u32 {
        self.pool.alive()
    }
}
