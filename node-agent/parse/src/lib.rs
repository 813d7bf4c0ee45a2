//! Documents to pixels and text: a [`Host`] in the node, and a child process that does the parsing within limits.
//!
//! Parsers of PDF and pictures meet files that were made to hurt them. None of them runs in the node: the child
//! ([`worker::main`]) has bounds on memory, processor time, files and descriptors, no privileges to gain, and a parent that
//! ends it at a deadline. What comes back is checked again ([`Host`]'s side never parses a document): pixels in a sealed
//! memory file whose size is asked of the kernel, words in a table whose every count, text and coordinate has a bound.
//! A crash costs the document, or the page, that caused it.
//!
//! `examples/look.rs` is a whole program on it.
//!
//! Everything here blocks; call it where blocking is allowed. A [`Document`] holds one child until it is dropped, and a
//! host has [`Limits::children_max`] of them: `open` waits for a free one up to [`Limits::wait`].
//!
//! What the child can't do anything about: it shares the node's user and file system. It is no defence against code that an
//! attacker runs inside it, it is one against documents that eat memory, loop, or crash.

mod channel;
mod error;
mod host;
pub mod kinds;
mod limits;
mod page;
mod table;
mod wire;
pub mod worker;

pub use error::{ErrorKind, ParseError};
pub use host::{Document, Host};
pub use kinds::{Kind, Verdict};
pub use limits::{Limits, PAGES_MAX};
pub use page::{Content, Line, Page, PageWords, Word};
