//! A large read in pieces: many commands fill one buffer, each its own part of it, and nothing is copied to join them.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;
use tokio::sync::oneshot;

use crate::export::ExportError;

/// Bytes of a piece. Targets answer several commands of this size sooner than one as large as all of them.
pub(crate) const PIECE: u32 = 256 * 1024;

/// Who waits for it.
pub(crate) type Answer = oneshot::Sender<Result<bytes::Bytes, ExportError>>;

struct Open {
    /// Taken when it is decided how the read ends.
    answer: Option<Answer>,
    pieces: Vec<Option<BytesMut>>,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Whole(Arc<Mutex<Open>>);

impl Whole {
    /// Cuts a buffer, emptied, with room for `length` bytes into pieces: where each begins, how long it is, and its buffer.
    pub(crate) fn cut(mut buffer: BytesMut, length: u32, answer: Answer) -> (Self, Vec<(u32, u32, BytesMut)>) {
        buffer.clear();
        buffer.reserve(length as usize);
        let mut cut = Vec::new();
        let mut start = 0;
        while start < length {
            let size = PIECE.min(length - start);
            let rest = if start + size < length { buffer.split_off(size as usize) } else { BytesMut::new() };
            cut.push((start, size, std::mem::replace(&mut buffer, rest)));
            start += size;
        }
        let pieces = cut.iter().map(|_| None).collect();
        (Self(Arc::new(Mutex::new(Open { answer: Some(answer), pieces }))), cut)
    }

    /// Whether nobody waits for it, or it has ended.
    pub(crate) fn abandoned(&self) -> bool {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.answer.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    /// A piece has failed, and with it the whole.
    pub(crate) fn fail(&self, error: ExportError) {
        let answer = self.0.lock().unwrap_or_else(PoisonError::into_inner).answer.take();
        if let Some(answer) = answer {
            let _ = answer.send(Err(error));
        }
    }

    /// A piece is there. With the last one: all of it, and who waits.
    pub(crate) fn arrived(&self, start: u32, data: BytesMut) -> Option<(BytesMut, Answer)> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *open.pieces.get_mut((start / PIECE) as usize)? = Some(data);
        if open.pieces.iter().any(Option::is_none) {
            return None;
        }
        let answer = open.answer.take()?;
        let mut pieces = std::mem::take(&mut open.pieces).into_iter().flatten();
        let mut whole = pieces.next()?;
        // Neighbours again: this moves two numbers. A piece that was read again elsewhere is copied.
        pieces.for_each(|piece| whole.unsplit(piece));
        Some((whole, answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_joined_in_their_order_without_a_copy() {
        let length = 2 * PIECE + 512;
        let buffer = BytesMut::with_capacity(length as usize);
        let place = buffer.as_ptr();
        let (answer, _answered) = oneshot::channel();
        let (whole, mut cut) = Whole::cut(buffer, length, answer);
        assert_eq!(
            cut.iter().map(|(start, size, _)| (*start, *size)).collect::<Vec<_>>(),
            [(0, PIECE), (PIECE, PIECE), (2 * PIECE, 512)]
        );
        cut.reverse();
        let mut joined = None;
        for (start, size, mut data) in cut {
            assert!(joined.is_none() && !whole.abandoned());
            data.resize(size as usize, u8::try_from(start / PIECE).unwrap());
            joined = whole.arrived(start, data);
        }
        let (data, _) = joined.expect("the last piece");
        assert_eq!((data.len(), data.as_ptr()), (length as usize, place));
        for (index, byte) in data.iter().enumerate() {
            assert_eq!(usize::from(*byte), index / PIECE as usize);
        }
        assert!(whole.abandoned(), "it has ended");
    }

    #[test]
    fn one_that_fails_ends_all() {
        let (answer, mut answered) = oneshot::channel();
        let (whole, mut cut) = Whole::cut(BytesMut::new(), 2 * PIECE, answer);
        whole.fail(ExportError::Broken("spoilt".to_owned()));
        assert!(matches!(answered.try_recv(), Ok(Err(ExportError::Broken(_)))));
        for (start, size, mut data) in cut.drain(..) {
            data.resize(size as usize, 0);
            assert!(whole.arrived(start, data).is_none());
        }
    }
}
