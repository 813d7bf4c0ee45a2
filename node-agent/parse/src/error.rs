//! Why a document or a page could not be had.

/// What went wrong, for a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ErrorKind {
    /// It isn't what it says it is, or it is broken.
    Malformed,
    /// It opens with a password only.
    Encrypted,
    /// We don't read this; the name of what it is or uses.
    Unsupported(String),
    /// It is larger than the limits allow: bytes, pages, pixels.
    TooLarge,
    /// It took longer than the limits allow, on the wall or of a processor.
    TimedOut,
    /// It needed more memory than the limits allow.
    OutOfMemory,
    /// The child ended while it worked on it.
    Crashed {
        /// Number of the signal; 0 where it ended by itself.
        signal: i32,
    },
    /// Not the document's fault: no child could be started, none was free in time, or the disk failed. Trying again may help.
    Unavailable,
}

/// What an empty file is called.
pub(crate) const EMPTY: &str = "empty file";

/// Why a document or a page could not be had, with a sentence for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ParseError {
    /// What went wrong, for a program.
    pub kind: ErrorKind,
    /// What went wrong, for a person: names the thing, what was expected, what to do.
    pub message: String,
}

impl ParseError {
    /// Whether the document is at fault, rather than the machine.
    #[must_use]
    pub fn blames_document(&self) -> bool {
        self.kind != ErrorKind::Unavailable
    }

    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        ParseError { kind, message: message.into() }
    }

    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Malformed, message)
    }

    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::TooLarge, message)
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    /// `what` names the format or the feature: "SVG drawing".
    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        let what = what.into();
        let message = match what.as_str() {
            EMPTY => format!("{EMPTY}: there is nothing to read in it"),
            _ => format!("{what}: not read here; convert it to PDF, PNG or TIFF"),
        };
        Self::new(ErrorKind::Unsupported(what), message)
    }
}
