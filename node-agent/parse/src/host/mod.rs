//! The parent's side: a bounded number of children, each lent to one document at a time.

mod child;
mod document;
mod keeper;
mod pool;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

pub use document::Document;

use crate::channel;
use crate::error::{ErrorKind, ParseError};
use crate::kinds::{self, Verdict};
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
        let kind = match kinds::look(bytes, name_hint) {
            Verdict::Parse(kind) => kind,
            Verdict::Text => {
                let kind = ErrorKind::Unsupported("plain text".into());
                return Err(ParseError::new(kind, "plain text needs no parsing: read it as it is"));
            }
            Verdict::Unsupported(what) => return Err(ParseError::unsupported(what)),
        };
        let most = self.pool.limits().document_bytes_max;
        if bytes.len() as u64 > most {
            let message = format!("the document has {} bytes, at most {most} are read", bytes.len());
            return Err(ParseError::too_large(message));
        }
        let memory = channel::sealed("document", |file| file.write_all(bytes))
            .map_err(|error| ParseError::unavailable(format!("no memory file for the document: {error}")))?;
        Document::open(Arc::clone(&self.pool), kind, memory, bytes.len() as u64)
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
