//! A generation's frames as its reader gets them.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use ingle_proto::{Problem, v1};
use tokio::sync::mpsc;
use tonic::Status;

use super::Calls;
use crate::core::CallId;

/// Why the frames end, if not by their end.
pub(super) type Last = Arc<Mutex<Option<Problem>>>;

/// Where a reader's frames come from.
pub(super) struct Source {
    pub(super) frames: mpsc::Receiver<v1::GenerateResponse>,
    pub(super) last: Last,
}

pub(super) fn end(last: &Last, problem: Problem) {
    *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem);
}

/// Frames, then the problem if there is one. Dropping it tells that the reader left.
pub struct Frames {
    calls: Calls,
    call: CallId,
    reader: u64,
    source: Source,
}

impl Frames {
    pub(super) fn new(calls: Calls, call: CallId, reader: u64, source: Source) -> Self {
        Self { calls, call, reader, source }
    }
}

impl futures::Stream for Frames {
    type Item = Result<v1::GenerateResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(frame) = ready!(self.source.frames.poll_recv(cx)) {
            return Poll::Ready(Some(Ok(frame)));
        }
        let last = self.source.last.lock().unwrap_or_else(PoisonError::into_inner).take();
        Poll::Ready(last.map(|problem| Err(problem.into())))
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.calls.reader_left(self.call, self.reader);
    }
}
