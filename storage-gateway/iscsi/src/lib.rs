//! An iSCSI initiator (RFC 7143) without I/O: whoever has a connection hands bytes in and takes bytes and events out.
//!
//! Read-only, one connection per session, error recovery level 0: what breaks is recovered by a new session, in which
//! the caller asks for its reads again.
//!
//! - `pdu`: headers. `digest`: CRC32C. `text`: keys and values. `scsi`: commands, answers, sense.
//! - `login` and `chap`: from a connection to a session. `discovery`: which targets a portal has.
//! - `session`: many commands in flight; `receive`: what the next bytes from the target are, and whose.
//!
//! Nothing that a target announces is believed: no length beyond what was asked for or negotiated is allocated or taken,
//! data goes to the end of its own command's buffer only, and every exchange has a bound.

pub mod chap;
pub mod digest;
pub mod discovery;
pub mod login;
pub mod pdu;
mod receive;
pub mod scsi;
pub mod session;
pub mod text;

pub use login::{Agreed, Login, LoginError, Wish};
pub use session::{Event, Fault, Outcome, Session, Tag};
