//! How a node takes its leave: asked by a signal or by the coordinator, it says so, is let go, says goodbye and is answered.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ingle_proto::v1::{self, work_response::Message};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Where it stands.
#[derive(Default)]
pub(crate) struct Leaving {
    /// Until when it wants to have ended; set once it leaves.
    until: OnceLock<Instant>,
    /// The leader there is now answers; an older one doesn't know how.
    answered: AtomicBool,
    /// The coordinator waits for nothing here any more.
    gone: CancellationToken,
    farewell: AtomicBool,
}

impl Leaving {
    /// From now on nothing new is taken. Only the first time counts.
    pub(crate) fn begin(&self, within: Duration) {
        self.until.get_or_init(|| Instant::now() + within);
    }

    pub(crate) fn begun(&self) -> bool {
        self.until.get().is_some()
    }

    /// What a leader is told of it; `None` while it stays.
    pub(crate) fn message(&self) -> Option<Message> {
        let left = self.until.get()?.saturating_duration_since(Instant::now());
        let within_ms = i64::try_from(left.as_millis()).unwrap_or(i64::MAX);
        Some(Message::Leaving(v1::Leaving { within_ms }))
    }

    /// A leader has come that answers, or doesn't.
    pub(crate) fn led(&self, answers: bool) {
        self.answered.store(answers, Ordering::Release);
    }

    pub(crate) fn answered(&self) -> bool {
        self.answered.load(Ordering::Acquire)
    }

    /// Whether a leader that will say so has not let it go yet.
    pub(crate) fn waits(&self) -> bool {
        self.answered() && !self.gone.is_cancelled()
    }

    /// The coordinator lets it go, or asks it to.
    pub(crate) fn let_go(&self) {
        self.gone.cancel();
    }

    /// Ends once the coordinator has asked it to go.
    pub(crate) async fn asked(&self) {
        self.gone.cancelled().await;
    }

    pub(crate) fn hear_farewell(&self) {
        self.farewell.store(true, Ordering::Release);
    }

    pub(crate) fn farewell(&self) -> bool {
        self.farewell.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_waits_only_for_a_leader_that_answers() {
        let within_ms = |leaving: &Leaving| match leaving.message() {
            Some(Message::Leaving(leaving)) => leaving.within_ms,
            other => panic!("{other:?}"),
        };
        let leaving = Leaving::default();
        assert!(leaving.message().is_none() && !leaving.waits());
        leaving.begin(Duration::from_secs(25));
        assert!(!leaving.waits(), "an older leader never lets it go");
        leaving.led(true);
        assert!(leaving.waits());
        leaving.begin(Duration::from_secs(99));
        assert!((0..=25_000).contains(&within_ms(&leaving)), "only the first time counts");
        leaving.let_go();
        leaving.asked().await;
        assert!(!leaving.waits() && !leaving.farewell());
        leaving.hear_farewell();
        assert!(leaving.farewell());
    }
}
