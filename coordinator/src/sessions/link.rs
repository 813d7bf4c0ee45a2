//! What outlives a node's stream: where to send, who waits for a command, what was sent and not heard of again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use ingle_proto::v1::{self, work_request::Message};
use ingle_proto::{ErrorCode, Problem};
use tokio::sync::{mpsc, oneshot};

use super::lock;

/// Messages that wait for one node.
pub(super) const OUTGOING_MAX: usize = 256;
/// Commands that wait for one node's answer.
const COMMANDS_MAX: usize = 64;
/// Attempts remembered as sent.
const SENT_MAX: usize = 4_096;

#[derive(Default)]
pub(super) struct Link {
    state: Mutex<State>,
    /// Held while the driver is told of a stream's begin or end, so that it hears of them in the order in which they were.
    pub(super) order: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    /// The stream's, while there is one; numbered, so that a stream that ends late closes only itself.
    outgoing: Option<(u64, mpsc::Sender<v1::WorkRequest>)>,
    streams: u64,
    requests: u64,
    commands: BTreeMap<u64, oneshot::Sender<v1::CommandDone>>,
    incarnation: String,
    sent: BTreeSet<u64>,
}

impl Link {
    /// A stream is there. Answers its number, and the attempts sent to the same process earlier that it never got.
    pub(super) fn attach(
        &self,
        outgoing: mpsc::Sender<v1::WorkRequest>,
        incarnation: &str,
        running: &[u64],
    ) -> (u64, Vec<u64>) {
        let mut state = lock(&self.state);
        let sent = std::mem::take(&mut state.sent);
        let lost = if state.incarnation == incarnation {
            sent.into_iter().filter(|attempt| !running.contains(attempt)).collect()
        } else {
            Vec::new()
        };
        state.incarnation = incarnation.to_owned();
        state.sent.extend(running);
        state.streams += 1;
        state.outgoing = Some((state.streams, outgoing));
        (state.streams, lost)
    }

    /// That stream broke. False if another took its place before.
    pub(super) fn detach(&self, stream: u64) -> bool {
        let mut state = lock(&self.state);
        if state.outgoing.as_ref().is_none_or(|(number, _)| *number != stream) {
            return false;
        }
        state.outgoing = None;
        // Whoever waits learns that no answer will come.
        state.commands.clear();
        true
    }

    pub(super) fn open(&self) -> bool {
        lock(&self.state).outgoing.is_some()
    }

    pub(super) fn send(&self, message: Message) -> Result<(), Problem> {
        let mut state = lock(&self.state);
        let attempt = match &message {
            Message::Assign(assign) => assign.token.as_ref().map(|token| token.attempt),
            _ => None,
        };
        let refused = |words: &str| Problem::new(ErrorCode::Overloaded, words).retry_after(Duration::from_secs(1));
        let Some((_, outgoing)) = &state.outgoing else {
            return Err(refused("the node has no stream to this coordinator now"));
        };
        outgoing
            .try_send(v1::WorkRequest { message: Some(message) })
            .map_err(|_| refused("the node doesn't take its messages as fast as they come"))?;
        if let Some(attempt) = attempt {
            state.sent.insert(attempt);
            if state.sent.len() > SENT_MAX {
                state.sent.pop_first();
            }
        }
        Ok(())
    }

    /// An attempt's end was heard of.
    pub(super) fn ended(&self, attempt: u64) {
        lock(&self.state).sent.remove(&attempt);
    }

    pub(super) fn expect_answer(&self) -> Result<(u64, oneshot::Receiver<v1::CommandDone>), Problem> {
        let mut state = lock(&self.state);
        if state.commands.len() >= COMMANDS_MAX {
            let words = format!("{COMMANDS_MAX} commands wait for this node already");
            return Err(Problem::new(ErrorCode::Overloaded, words).retry_after(Duration::from_secs(5)));
        }
        state.requests += 1;
        let (sender, answer) = oneshot::channel();
        let request = state.requests;
        state.commands.insert(request, sender);
        Ok((request, answer))
    }

    pub(super) fn answer(&self, done: v1::CommandDone) {
        let waiting = lock(&self.state).commands.remove(&done.request);
        if let Some(waiting) = waiting {
            // Whoever asked may have left.
            let _ = waiting.send(done);
        }
    }
}

/// Takes a command's place away when its caller leaves.
pub(super) struct Forget<'a>(pub(super) &'a Link, pub(super) u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).commands.remove(&self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assign(attempt: u64) -> Message {
        let token = v1::AttemptToken { attempt, ..Default::default() };
        Message::Assign(v1::Assign { token: Some(token), ..Default::default() })
    }

    #[test]
    fn what_a_broken_stream_lost_is_known_at_the_next() {
        let link = Link::default();
        assert_eq!(link.send(assign(1)).unwrap_err().code, ErrorCode::Overloaded, "no stream yet");
        let (sender, _kept) = mpsc::channel(8);
        let (first, lost) = link.attach(sender.clone(), "i", &[]);
        assert!(lost.is_empty());
        for attempt in 1..=3 {
            link.send(assign(attempt)).unwrap();
        }
        link.ended(2);
        assert!(link.detach(first));
        assert!(!link.open());
        let (second, lost) = link.attach(sender.clone(), "i", &[3]);
        assert_eq!(lost, [1], "2 has ended, 3 runs");
        assert!(!link.detach(first), "an old stream's end doesn't end the new one");
        assert!(link.open());
        assert!(link.detach(second));
        let (_, lost) = link.attach(sender, "another process", &[]);
        assert!(lost.is_empty(), "what an ended process had is not ours to tell");
    }

    #[test]
    fn a_full_queue_refuses() {
        let link = Link::default();
        let (sender, _kept) = mpsc::channel(1);
        link.attach(sender, "i", &[]);
        link.send(assign(1)).unwrap();
        assert_eq!(link.send(assign(2)).unwrap_err().code, ErrorCode::Overloaded);
    }
}
