//! Large buffers that are used again once their reader is done with them: fresh ones cost a page fault per 4 KiB, which
//! takes as long as the reading.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Smaller ones are the allocator's business.
const LARGE: usize = 64 * 1024;
/// Most bytes that are lent and remembered.
const LENT_MAX: usize = 48 << 20;
/// How many of those lent longest are looked at for one that has come back.
const LOOK_MAX: usize = 8;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    lent: VecDeque<Bytes>,
    bytes: usize,
}

impl Buffers {
    /// One with room for `length` bytes.
    pub(crate) fn take(&mut self, length: u32) -> BytesMut {
        let length = length as usize;
        if length >= LARGE {
            for _ in 0..LOOK_MAX.min(self.lent.len()) {
                let Some(oldest) = self.lent.pop_front() else { break };
                // Others are of another size, or still read from.
                if oldest.len() != length || !oldest.is_unique() {
                    self.lent.push_back(oldest);
                    continue;
                }
                self.bytes -= length;
                if let Ok(buffer) = oldest.try_into_mut() {
                    return buffer;
                }
            }
        }
        BytesMut::with_capacity(length)
    }

    /// Hands a full one to its reader, and remembers it.
    pub(crate) fn lend(&mut self, buffer: BytesMut) -> Bytes {
        let bytes = buffer.freeze();
        if bytes.len() >= LARGE {
            self.lent.push_back(bytes.clone());
            self.bytes += bytes.len();
            while self.bytes > LENT_MAX {
                let Some(oldest) = self.lent.pop_front() else { break };
                self.bytes -= oldest.len();
            }
        }
        bytes
    }

    /// Nobody reads now: nothing is held for later.
    pub(crate) fn rest(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_back_is_used_again() {
        let mut buffers = Buffers::default();
        let filled = |buffers: &mut Buffers| {
            let mut buffer = buffers.take(100_000);
            buffer.clear();
            buffer.resize(100_000, 7);
            let place = buffer.as_ptr();
            (buffers.lend(buffer), place)
        };
        let (held, first) = filled(&mut buffers);
        let (other, second) = filled(&mut buffers);
        assert_ne!(first, second, "the first one is still read from");
        drop(held);
        let (_again, third) = filled(&mut buffers);
        assert_eq!(third, first);
        assert_eq!(other[..], [7; 100_000]);
        for _ in 0..1000 {
            let (_bytes, _) = filled(&mut buffers);
        }
        assert!(buffers.bytes <= LENT_MAX && buffers.lent.len() < 5);
        buffers.rest();
        assert_eq!(buffers.bytes, 0);
    }
}
