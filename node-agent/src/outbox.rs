//! What the coordinator must hear: a bounded log that outlives the stream, so that a new stream goes on where the old one broke.
//!
//! Results of batches are kept until a stream took them, and a while longer, for that stream may have been dead already;
//! frames and answers to calls are kept while their attempt runs and for a minute after they were made, so that another
//! leader can take a stream up; progress is told only while somebody listens.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use ingle_proto::v1::{self, work_response::Message};
use prost::Message as _;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::limits;

/// How long a message matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Until a stream took it.
    UntilTaken,
    /// For a minute.
    AMinute,
    /// Only for the stream there is.
    Now,
}

struct Entry {
    sequence: u64,
    attempt: u64,
    keep: Keep,
    message: Message,
    bytes: usize,
    made: Instant,
    taken: Option<Instant>,
}

#[derive(Default)]
struct Log {
    entries: VecDeque<Entry>,
    next: u64,
    bytes: usize,
    /// The stream that listens, counted from 1.
    stream: u64,
    listening: bool,
}

/// The log.
#[derive(Default)]
pub struct Outbox {
    log: Mutex<Log>,
    news: Notify,
}

/// One stream's place in the log.
#[derive(Debug)]
pub struct Cursor {
    stream: u64,
    next: u64,
}

impl Outbox {
    /// Adds a message.
    pub fn push(&self, attempt: u64, keep: Keep, message: Message) {
        let mut log = self.lock();
        if keep == Keep::Now && !log.listening {
            return;
        }
        let bytes = v1::WorkResponse { message: Some(message.clone()) }.encoded_len();
        let (sequence, made) = (log.next, Instant::now());
        log.next += 1;
        log.bytes += bytes;
        log.entries.push_back(Entry { sequence, attempt, keep, message, bytes, made, taken: None });
        while log.bytes > limits::OUTBOX_BYTES_MAX {
            let Some(oldest) = log.entries.iter().position(|entry| entry.keep != Keep::UntilTaken) else { break };
            if let Some(entry) = log.entries.remove(oldest) {
                log.bytes -= entry.bytes;
            }
        }
        drop(log);
        self.news.notify_waiters();
    }

    /// A new stream listens; it hears everything that is still kept. The one before hears nothing more.
    pub fn attach(&self) -> Cursor {
        let mut log = self.lock();
        log.stream += 1;
        log.listening = true;
        let next = log.entries.front().map_or(log.next, |entry| entry.sequence);
        let cursor = Cursor { stream: log.stream, next };
        drop(log);
        self.news.notify_waiters();
        cursor
    }

    /// The stream broke.
    pub fn detach(&self, cursor: &Cursor) {
        let mut log = self.lock();
        if log.stream == cursor.stream {
            log.listening = false;
            let log = &mut *log;
            let bytes = &mut log.bytes;
            log.entries.retain(|entry| {
                let stays = entry.keep != Keep::Now;
                *bytes -= if stays { 0 } else { entry.bytes };
                stays
            });
        }
    }

    /// The next message for a stream; `None` once another stream has taken its place.
    pub async fn next(&self, cursor: &mut Cursor) -> Option<Message> {
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            // Listens from here on, so that nothing pushed between the look and the wait is missed.
            news.as_mut().enable();
            {
                let mut log = self.lock();
                if log.stream != cursor.stream {
                    return None;
                }
                let at = log.entries.partition_point(|entry| entry.sequence < cursor.next);
                if let Some(entry) = log.entries.get_mut(at) {
                    cursor.next = entry.sequence + 1;
                    entry.taken.get_or_insert_with(Instant::now);
                    let message = entry.message.clone();
                    if entry.keep == Keep::Now
                        && let Some(entry) = log.entries.remove(at)
                    {
                        log.bytes -= entry.bytes;
                    }
                    return Some(message);
                }
            }
            news.await;
        }
    }

    /// Drops what nobody will need any more; of attempts that run everything may be needed.
    pub fn expire(&self, now: Instant, runs: impl Fn(u64) -> bool) {
        let mut log = self.lock();
        let log = &mut *log;
        let bytes = &mut log.bytes;
        log.entries.retain(|entry| {
            let stays = match entry.keep {
                Keep::UntilTaken => {
                    entry.taken.is_none_or(|taken| now.saturating_duration_since(taken) < limits::RESULTS_KEPT)
                }
                Keep::AMinute => now.saturating_duration_since(entry.made) < limits::FRAMES_KEPT || runs(entry.attempt),
                Keep::Now => true,
            };
            *bytes -= if stays { 0 } else { entry.bytes };
            stays
        });
    }

    /// Drops everything of an attempt that was cancelled.
    pub fn forget(&self, attempt: u64) {
        let mut log = self.lock();
        let log = &mut *log;
        let bytes = &mut log.bytes;
        log.entries.retain(|entry| {
            let stays = entry.attempt != attempt;
            *bytes -= if stays { 0 } else { entry.bytes };
            stays
        });
    }

    /// Tokens of attempts that have ended and whose end may not have been heard: results still kept, and last frames that
    /// no stream took, or took only a while ago.
    #[must_use]
    pub fn results(&self) -> Vec<v1::AttemptToken> {
        let fresh = |entry: &Entry| entry.taken.is_none_or(|taken| taken.elapsed() < limits::RESULTS_KEPT);
        let token = |entry: &Entry| match &entry.message {
            Message::Complete(complete) => complete.token.clone(),
            Message::Failed(failed) => failed.token.clone(),
            Message::Embed(done) => done.token.clone(),
            Message::Frame(frame) if is_last(frame) && fresh(entry) => {
                Some(v1::AttemptToken { attempt: frame.attempt, ..Default::default() })
            }
            _ => None,
        };
        self.lock().entries.iter().filter_map(token).collect()
    }

    /// Whether a result of a batch waits for a stream.
    #[must_use]
    pub fn untaken(&self) -> bool {
        self.lock().entries.iter().any(|entry| entry.taken.is_none() && entry.keep != Keep::Now)
    }

    /// Whether a stream listens.
    #[must_use]
    pub fn listening(&self) -> bool {
        self.lock().listening
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_last(frame: &v1::GenerateFrame) -> bool {
    let frame = frame.frame.as_ref().and_then(|frame| frame.frame.as_ref());
    matches!(frame, Some(v1::generate_response::Frame::Finished(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(attempt: u64) -> Message {
        let token = v1::AttemptToken { attempt, ..Default::default() };
        Message::Complete(v1::Complete { token: Some(token), ..Default::default() })
    }

    fn frame(attempt: u64) -> Message {
        Message::Frame(v1::GenerateFrame { attempt, ..Default::default() })
    }

    fn last_frame(attempt: u64) -> Message {
        let frame = Some(v1::generate_response::Frame::Finished(v1::GenerateFinished::default()));
        let frame = Some(v1::GenerateResponse { frame, ..Default::default() });
        Message::Frame(v1::GenerateFrame { attempt, frame, ..Default::default() })
    }

    async fn take(outbox: &Outbox, cursor: &mut Cursor, count: usize) -> Vec<Message> {
        let mut got = Vec::new();
        for _ in 0..count {
            got.push(outbox.next(cursor).await.expect("a message"));
        }
        got
    }

    #[tokio::test]
    async fn a_new_stream_hears_what_the_old_one_may_have_lost() {
        let outbox = Outbox::default();
        outbox.push(1, Keep::UntilTaken, complete(1));
        outbox.push(9, Keep::Now, Message::Progress(v1::Progress::default()));
        let mut first = outbox.attach();
        outbox.push(2, Keep::AMinute, frame(2));
        assert_eq!(take(&outbox, &mut first, 2).await, [complete(1), frame(2)], "progress had no listener");
        let mut second = outbox.attach();
        assert_eq!(outbox.next(&mut first).await, None, "replaced");
        assert_eq!(take(&outbox, &mut second, 2).await, [complete(1), frame(2)]);
        outbox.detach(&first);
        assert!(outbox.listening(), "an old stream's end doesn't end the new one");
        outbox.detach(&second);

        outbox.expire(Instant::now() + limits::RESULTS_KEPT, |_| false);
        let mut third = outbox.attach();
        assert_eq!(take(&outbox, &mut third, 1).await, [frame(2)], "the result was taken long ago");
        outbox.expire(Instant::now() + limits::FRAMES_KEPT, |attempt| attempt == 2);
        let mut fourth = outbox.attach();
        assert_eq!(take(&outbox, &mut fourth, 1).await, [frame(2)], "its attempt runs");
        outbox.expire(Instant::now() + limits::FRAMES_KEPT, |_| false);
        outbox.push(3, Keep::UntilTaken, complete(3));
        assert_eq!(take(&outbox, &mut fourth, 1).await, [complete(3)]);
    }

    #[tokio::test]
    async fn results_nobody_took_wait_for_ever_and_the_cancelled_are_forgotten() {
        let outbox = Outbox::default();
        outbox.push(1, Keep::UntilTaken, complete(1));
        outbox.push(2, Keep::UntilTaken, complete(2));
        outbox.expire(Instant::now() + limits::FRAMES_KEPT * 100, |_| false);

        outbox.forget(1);
        assert_eq!(outbox.results().len(), 1);
        assert!(outbox.untaken());
        outbox.push(3, Keep::AMinute, frame(3));
        assert_eq!(outbox.results().len(), 1, "a stream in the middle is running, not ended");
        outbox.push(3, Keep::AMinute, last_frame(3));
        assert_eq!(outbox.results().iter().map(|token| token.attempt).collect::<Vec<_>>(), [2, 3]);
        let mut stream = outbox.attach();
        assert_eq!(take(&outbox, &mut stream, 3).await, [complete(2), frame(3), last_frame(3)]);
        assert!(!outbox.untaken());
    }

    #[test]
    fn past_the_bound_frames_go_and_results_stay() {
        let outbox = Outbox::default();
        outbox.push(1, Keep::UntilTaken, complete(1));
        let big = |_| {
            let response = v1::GenerateResponse { resume_token: "x".repeat(1 << 20), frame: None };
            Message::Frame(v1::GenerateFrame { attempt: 2, frame: Some(response), ..Default::default() })
        };
        for message in (0..100).map(big) {
            outbox.push(2, Keep::AMinute, message);
        }
        let log = outbox.lock();
        assert!(log.bytes <= limits::OUTBOX_BYTES_MAX && log.entries.len() > 50);
        assert_eq!(log.entries.front().map(|entry| entry.attempt), Some(1));
    }
}
