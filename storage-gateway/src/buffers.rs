//! Buffers for bytes on their way through: taken from a small store, and back in it when the last reader lets go.
//!
//! Fresh ones of this size come from the system page by page, each page cleared first: at gigabytes per second that
//! costs more than the copying does.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

/// Bytes that are read from an export in one piece: they stay in a processor's second cache.
pub const PIECE_BYTES: usize = 256 << 10;
/// Capacity of a kept buffer: a piece and the headers around it.
pub const KEPT_CAPACITY: usize = PIECE_BYTES + (4 << 10);
/// What is smaller comes from the allocator, which is quick at it.
const SMALL: usize = 32 << 10;
/// Buffers kept at most: 16 MiB.
const KEPT_MAX: usize = 64;

/// The process's store. Memory belongs to the process, not to one export: so there is one.
static STORE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// An empty buffer with room for `capacity` bytes.
#[must_use]
pub fn take(capacity: usize) -> Vec<u8> {
    if !(SMALL..=KEPT_CAPACITY).contains(&capacity) {
        return Vec::with_capacity(capacity);
    }
    let kept = STORE.lock().unwrap_or_else(PoisonError::into_inner).pop();
    kept.unwrap_or_else(|| Vec::with_capacity(KEPT_CAPACITY))
}

/// What was filled, to be shared and sliced without copying; its memory comes back by itself.
#[must_use]
pub fn share(filled: Vec<u8>) -> Bytes {
    if filled.capacity() == KEPT_CAPACITY { Bytes::from_owner(Kept(filled)) } else { Bytes::from(filled) }
}

struct Kept(Vec<u8>);

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut back = std::mem::take(&mut self.0);
        back.clear();
        let mut store = STORE.lock().unwrap_or_else(PoisonError::into_inner);
        if store.len() < KEPT_MAX {
            store.push(back);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_empty_with_the_last_slice() {
        let mut buffer = take(PIECE_BYTES);
        assert!(buffer.is_empty() && buffer.capacity() >= PIECE_BYTES);
        buffer.extend_from_slice(b"some bytes");
        let shared = share(buffer);
        let slice = shared.slice(5..);
        drop(shared);
        assert_eq!(slice, &b"bytes"[..]);
        drop(slice);
        // Other tests of this process take and give back too: whichever comes, it is empty.
        assert!((0..KEPT_MAX + 1).map(|_| take(PIECE_BYTES)).all(|buffer| buffer.is_empty()));
    }

    #[test]
    fn a_buffer_that_was_let_go_is_used_again() {
        // Other tests take from the store too, but hold far fewer buffers than it keeps.
        let held: Vec<Vec<u8>> = (0..KEPT_MAX).map(|_| take(PIECE_BYTES)).collect();
        let places: std::collections::HashSet<usize> = held.iter().map(|buffer| buffer.as_ptr() as usize).collect();
        drop(held.into_iter().map(share).collect::<Vec<_>>());
        let again: Vec<Vec<u8>> = (0..KEPT_MAX).map(|_| take(PIECE_BYTES)).collect();
        let known = again.iter().filter(|buffer| places.contains(&(buffer.as_ptr() as usize))).count();
        assert!(known > KEPT_MAX / 2, "{known} of {KEPT_MAX} came back");
    }

    #[test]
    fn the_store_is_bounded() {
        let many: Vec<Bytes> = (0..2 * KEPT_MAX).map(|_| share(take(PIECE_BYTES))).collect();
        drop(many);
        assert!(STORE.lock().expect("no test panics holding it").len() <= KEPT_MAX);
        assert_eq!(take(100).capacity(), 100);
    }
}
