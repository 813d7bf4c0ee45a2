//! The gRPC contract `ingle.v1` and the validated domain types: all that our daemons share about each other. Keep it slim.

pub mod choice;
pub mod code;
pub mod epoch;
pub mod error;
pub mod extent;
pub mod id;
pub mod job;
pub mod prompt;
pub mod storage;

/// Generated from `proto/ingle/v1/*.proto`; the comments there are the manual.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("ingle.v1");
}

/// The compiled descriptors of `ingle.v1`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ingle.v1.bin"));

pub use code::ErrorCode;
pub use epoch::Epoch;
pub use error::{Problem, status};
pub use id::{JobId, NodeId};
pub use storage::{Digest, ObjectPath};

/// Largest piece of data in one message, in bytes.
pub const CHUNK_BYTES: usize = 1 << 20;

/// Largest gRPC message we take, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
