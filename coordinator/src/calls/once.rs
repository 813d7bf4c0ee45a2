//! A call that is answered with one message: what is asked of a node, and who waits.

use std::time::Instant;

use ingle_proto::v1::{self, assign};
use ingle_proto::{ErrorCode, Problem};
use tokio::sync::oneshot;

use super::micros;

/// What a node answered.
#[derive(Debug)]
pub(super) enum Answered {
    /// Vectors.
    Embed(v1::EmbedResponse),
    /// Pages.
    Ocr(v1::OcrResponse),
}

type Answer = Result<Answered, Problem>;

/// See the module.
pub(super) struct Once {
    work: assign::Work,
    /// The attempt that is listened to.
    pub(super) attempt: Option<u64>,
    reply: oneshot::Sender<Answer>,
    since: Instant,
    queue_us: Option<u64>,
    traceparent: String,
}

impl Once {
    pub(super) fn new(work: assign::Work, traceparent: String) -> (Self, oneshot::Receiver<Answer>) {
        let (reply, answer) = oneshot::channel();
        (Self { work, attempt: None, reply, since: Instant::now(), queue_us: None, traceparent }, answer)
    }

    /// What another attempt is sent, and its trace context; and the attempt it replaces.
    pub(super) fn dispatch(&mut self, attempt: u64) -> (Option<u64>, (assign::Work, String)) {
        let since = self.since;
        self.queue_us.get_or_insert_with(|| micros(since));
        (self.attempt.replace(attempt), (self.work.clone(), self.traceparent.clone()))
    }

    /// Hands the node's answer to whoever waits.
    pub(super) fn answer(self, answer: Option<Answered>) {
        let mut answer =
            answer.ok_or_else(|| Problem::new(ErrorCode::ComputeFailed, "the node answered without a response"));
        if let Ok(answered) = &mut answer {
            let timings = match answered {
                Answered::Embed(response) => response.timings.get_or_insert_default(),
                Answered::Ocr(response) => response.timings.get_or_insert_default(),
            };
            timings.queue_us = self.queue_us.unwrap_or(0);
        }
        // The caller may have left this moment.
        let _ = self.reply.send(answer);
    }

    /// Tells whoever waits that there will be no answer.
    pub(super) fn fail(self, problem: Problem) {
        let _ = self.reply.send(Err(problem));
    }
}

/// A node that answers something else than was asked is of another version, or broken.
pub(super) fn other_answer() -> Problem {
    Problem::new(ErrorCode::ComputeFailed, "the node answered something else than was asked")
}
