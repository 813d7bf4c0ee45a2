//! The processes that parse documents: a few for batches, a few for calls, so that a person's page doesn't wait for a folder.

use std::path::PathBuf;
use std::sync::Arc;

use ingle_parse::{Document, ErrorKind, Host, Limits, ParseError};
use ingle_proto::{ErrorCode, Problem};

use crate::error::Failure;
use crate::limits;
use crate::spool::Spooled;

/// First argument of the process that parses: this program again.
pub const PARSE_WORKER: &str = "parse-worker";

/// Hosts of such processes; none is started before the first document.
pub struct Parsers {
    /// For documents of jobs.
    pub batch: Parser,
    /// For documents of calls.
    pub calls: Parser,
}

impl Parsers {
    /// `program` with [`PARSE_WORKER`] as its argument must come to [`ingle_parse::worker::main`] at once. At most
    /// `batch_max` documents of jobs are open at a time, of at most `document_bytes_max` each.
    #[must_use]
    pub fn new(program: PathBuf, batch_max: u32, document_bytes_max: u64) -> Self {
        let host = |children_max| {
            let limits = Limits { children_max, wait: limits::PARSER_WAIT, document_bytes_max, ..Limits::default() };
            Parser(Arc::new(Host::new(program.clone(), vec![PARSE_WORKER.into()], limits)))
        };
        Self { batch: host(batch_max.max(1)), calls: host(limits::PARSERS_FOR_CALLS) }
    }
}

/// Opens documents in processes of its own. Clones share them.
#[derive(Clone)]
pub struct Parser(Arc<Host>);

/// Where a document's bytes are.
#[derive(Debug, Clone)]
pub enum Bytes {
    /// A text, or what a person sent.
    Memory(Vec<u8>),
    /// A document with pages.
    Disk(Spooled),
}

/// Why a document isn't open.
#[derive(Debug)]
pub enum NotOpen {
    /// It is at fault itself.
    Document(Problem),
    /// We are.
    Ours(Failure),
}

impl Parser {
    /// Opens a document.
    ///
    /// # Errors
    /// [`NotOpen`].
    pub async fn open(&self, bytes: Bytes, name: String) -> Result<Document, NotOpen> {
        let host = Arc::clone(&self.0);
        let opened = tokio::task::spawn_blocking(move || match bytes {
            Bytes::Memory(bytes) => host.open(&bytes, &name),
            Bytes::Disk(spooled) => host.open_file(spooled.file(), &name),
        })
        .await;
        let document = opened.map_err(|error| {
            NotOpen::Ours(Failure::item(ErrorCode::Internal, format!("opening the document panicked: {error}")))
        })?;
        let document = document.map_err(|error| match problem(&error) {
            Ok(problem) => NotOpen::Document(problem),
            Err(failure) => NotOpen::Ours(failure),
        })?;
        if document.pages() > limits::DOCUMENT_PAGES_MAX {
            return Err(NotOpen::Document(Problem::new(
                ErrorCode::TooLarge,
                format!("{} pages, at most {} of a document are read", document.pages(), limits::DOCUMENT_PAGES_MAX),
            )));
        }
        Ok(document)
    }
}

/// What parsing says of a document or page in the terms of the wire.
///
/// # Errors
/// [`Failure`] where this node is at fault, not the document.
pub fn problem(error: &ParseError) -> Result<Problem, Failure> {
    let code = match error.kind {
        ErrorKind::Malformed | ErrorKind::Encrypted | ErrorKind::Crashed { .. } => ErrorCode::DocumentMalformed,
        ErrorKind::Unsupported(_) => ErrorCode::DocumentKind,
        ErrorKind::TooLarge | ErrorKind::TimedOut | ErrorKind::OutOfMemory => ErrorCode::TooLarge,
        ErrorKind::Unavailable => {
            return Err(Failure::node(ErrorCode::Overloaded, error.message.clone(), limits::PARSER_RETRY));
        }
    };
    Ok(Problem::new(code, error.message.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blame_goes_where_it_belongs() {
        let error = |kind| ParseError { kind, message: "as it happens".into() };
        for (kind, code) in [
            (ErrorKind::Malformed, ErrorCode::DocumentMalformed),
            (ErrorKind::Encrypted, ErrorCode::DocumentMalformed),
            (ErrorKind::Crashed { signal: 11 }, ErrorCode::DocumentMalformed),
            (ErrorKind::Unsupported("HEIC picture".into()), ErrorCode::DocumentKind),
            (ErrorKind::TooLarge, ErrorCode::TooLarge),
            (ErrorKind::TimedOut, ErrorCode::TooLarge),
            (ErrorKind::OutOfMemory, ErrorCode::TooLarge),
        ] {
            assert_eq!(problem(&error(kind)).unwrap().code, code);
        }
        let failure = problem(&error(ErrorKind::Unavailable)).unwrap_err();
        assert!(failure.retryable() && failure.kind == ingle_proto::v1::FailureKind::Node);
    }
}
