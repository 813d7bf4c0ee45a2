//! What every store of members must do: one suite that each implementation runs, the doubles too.
//!
//! Each function works below a prefix of its own, so that several may run against one store, and panics with what was
//! expected. Leases end by the real clock here, so the suite takes some seconds.

mod exact;
mod faults;

use bytes::Bytes;

pub use exact::exact;
pub use faults::{converges, leases_hold};

/// A key below `scope`.
fn key(scope: &str, name: &str) -> Bytes {
    Bytes::from(format!("{scope}{name}"))
}

fn text(value: &str) -> Bytes {
    Bytes::copy_from_slice(value.as_bytes())
}
