//! What of a request's time went where: waiting for a slot, reading the prompt, writing tokens; told as spans and metrics.

use std::time::{Duration, Instant, SystemTime};

use ingle_daemon::past::phase;
use ingle_engine::Class;

use crate::executor::Event;
use crate::metrics::NodeMetrics;

/// Watches the events of one request. What it saw is told when it is dropped, in the span it is dropped in.
pub(super) struct Phases<'a> {
    metrics: &'a NodeMetrics,
    /// A person waits, and nothing of the answer has been seen before.
    felt: bool,
    person: bool,
    /// Before this node heard of it, in a queue.
    queued: Duration,
    /// When it came to this node.
    came: Instant,
    submitted: SystemTime,
    entered: Option<SystemTime>,
    first: Option<SystemTime>,
    last: Option<Instant>,
    tokens: u32,
    done: bool,
}

impl<'a> Phases<'a> {
    /// A request that came to this node at `came`, waited for `queued` before that, and enters the model's mailbox now.
    /// One that is `resumed` has shown its caller tokens before.
    pub(super) fn begin(
        metrics: &'a NodeMetrics,
        class: Class,
        queued: Duration,
        came: Instant,
        resumed: bool,
    ) -> Self {
        let person = class == Class::Interactive;
        Self {
            metrics,
            felt: person && !resumed,
            person,
            queued,
            came,
            submitted: SystemTime::now(),
            entered: None,
            first: None,
            last: None,
            tokens: 0,
            done: false,
        }
    }

    /// The model said something.
    pub(super) fn see(&mut self, event: &Event) {
        match event {
            Event::Prompt(_) => {
                self.entered.get_or_insert_with(SystemTime::now);
            }
            Event::Token { .. } => {
                let now = Instant::now();
                self.tokens = self.tokens.saturating_add(1);
                if self.first.is_none() {
                    self.first = Some(SystemTime::now());
                    if self.felt {
                        let since = self.queued + now.duration_since(self.came);
                        self.metrics.first_token_seconds.observe(since.as_secs_f64());
                    }
                } else if let Some(last) = self.last.filter(|_| self.person) {
                    self.metrics.inter_token_seconds.observe(now.duration_since(last).as_secs_f64());
                }
                self.last = Some(now);
            }
            Event::Done { .. } => self.done = true,
            Event::Embedding { .. } | Event::Page(_) => {}
        }
    }
}

impl Drop for Phases<'_> {
    fn drop(&mut self) {
        let now = SystemTime::now();
        phase("wait", self.submitted, self.entered.unwrap_or(now), &[]);
        if let Some(entered) = self.entered {
            phase("prefill", entered, self.first.unwrap_or(now), &[]);
        }
        if let Some(first) = self.first {
            let (outputs, whole) = (self.tokens.to_string(), if self.done { "yes" } else { "no" });
            phase("decode", first, now, &[("outputs", &outputs), ("whole", whole)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ingle_daemon::metrics::Metrics;
    use ingle_engine::{Finish, Timings};

    fn token(index: u32) -> Event {
        Event::Token { index, token: 1, text_offset: 0, text: "a".into(), logprobs: Vec::new() }
    }

    fn counts(metrics: &Metrics) -> (u64, u64) {
        let text = metrics.text();
        let count = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("ingle_{name}_count ")));
            line.map_or(0, |count| count.parse().expect("a number"))
        };
        (count("node_time_to_first_token_seconds"), count("node_inter_token_seconds"))
    }

    fn run(class: Class, resumed: bool) -> (u64, u64) {
        let metrics = Metrics::new("ingle-test");
        let node = NodeMetrics::new(&metrics);
        let mut phases = Phases::begin(&node, class, Duration::from_secs(1), Instant::now(), resumed);
        phases.see(&Event::Prompt(vec![1, 2]));
        for index in 0..4 {
            phases.see(&token(index));
        }
        let (finish, timings) = (Finish::Stop, Timings::default());
        let done = Event::Done { finish, text: "".into(), text_offset: 0, prompt_tokens: 2, output_tokens: 4, timings };
        phases.see(&done);
        drop(phases);
        counts(&metrics)
    }

    #[test]
    fn what_a_person_feels_is_counted_once() {
        assert_eq!(run(Class::Interactive, false), (1, 3));
        assert_eq!(run(Class::Interactive, true), (0, 3), "a stream that moved has shown its first token before");
        assert_eq!(run(Class::Batch, false), (0, 0), "nobody waits for a batch's tokens");
    }
}
