//! Ours on the same mix: the coordinator's own core, driven in virtual time as its driver drives it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use ingle_coordinator::core::event::CallId;
use ingle_coordinator::core::{Attached, Core, Effect, Event, Now, Work};
use ingle_coordinator::limits;
use ingle_proto::{Epoch, NodeId, v1};

use super::mix::{Call, MODEL_BYTES, Machine, PARAMETERS};
use super::office::Office;

/// Between two beats of a machine, milliseconds.
const BEAT_MS: f64 = 1_000.0;
/// A call that is refused is made again after this where no time was named, milliseconds.
const AGAIN_MS: f64 = 1_000.0;

fn id(machine: usize) -> anyhow::Result<NodeId> {
    NodeId::parse(&format!("n-{machine}")).map_err(|problem| anyhow::anyhow!("{problem}"))
}

/// What comes when, besides ends of calls.
#[derive(Debug, Clone, Copy)]
enum Coming {
    Call(usize),
    Beats,
    Tick,
}

struct Run<'a> {
    core: Core,
    office: Office,
    calls: &'a [Call],
    /// By microseconds and a number of its own, so that nothing is lost where two come at once.
    coming: BTreeMap<(u64, u64), Coming>,
    next: u64,
    now: f64,
    took: Vec<Option<f64>>,
}

fn micros(ms: f64) -> u64 {
    (ms * 1e3) as u64
}

/// Milliseconds from its coming to its end, of each call.
///
/// # Errors
/// The core gave a call up for good, or one didn't end.
pub(crate) fn run(machines: &[Machine], calls: &[Call]) -> anyhow::Result<Vec<f64>> {
    let core = Core::load(Epoch { generation: 1, revision: 1 }, moment(0.0), []).map_err(anyhow::Error::msg)?;
    let (office, took) = (Office::new(machines), vec![None; calls.len()]);
    let mut run = Run { core, office, calls, coming: BTreeMap::new(), next: 0, now: 0.0, took };
    for (number, machine) in machines.iter().enumerate() {
        run.step(Event::NodeAttached(Box::new(attached(id(number)?, machine))))?;
    }
    for (number, call) in calls.iter().enumerate() {
        run.later(call.at, Coming::Call(number));
    }
    run.later(0.0, Coming::Beats);
    run.later(0.0, Coming::Tick);
    while run.took.contains(&None) {
        run.go_on(machines.len())?;
    }
    Ok(run.took.into_iter().flatten().collect())
}

fn moment(ms: f64) -> Now {
    let ms = ms as u64;
    Now { mono_ms: 1_000 + ms, unix_ms: 1_700_000_000_000 + i64::try_from(ms).unwrap_or(0) }
}

/// What a machine tells of itself once its model has worked.
fn attached(node: NodeId, machine: &Machine) -> Attached {
    let model = v1::ModelRef { name: "words".into(), digest: vec![7; 32].into() };
    let (read, write) = machine.speed();
    Attached {
        node,
        incarnation: "first".into(),
        name: String::new(),
        address: String::new(),
        version: String::new(),
        capacity: machine.capacity(),
        models: vec![v1::ModelInfo {
            model: Some(model.clone()),
            kind: v1::JobKind::Generate.into(),
            parameters: PARAMETERS,
            weight_bytes: MODEL_BYTES,
            bytes_per_token: MODEL_BYTES,
            context: 8_192,
            ..Default::default()
        }],
        loaded: vec![v1::LoadedModel {
            model: Some(model),
            slots: machine.slots,
            prefill_tokens_per_second: read,
            decode_tokens_per_second: write,
            ..Default::default()
        }],
        running: Vec::new(),
        adopted: Vec::new(),
    }
}

impl Run<'_> {
    fn later(&mut self, at: f64, what: Coming) {
        self.next += 1;
        self.coming.insert((micros(at), self.next), what);
    }

    fn go_on(&mut self, machines: usize) -> anyhow::Result<()> {
        let coming = self.coming.first_key_value().map(|((at, _), _)| *at as f64 / 1e3);
        let coming = coming.context("beats go on for ever")?.max(self.now);
        let at = self.office.next_end().map_or(coming, |ends| ends.min(coming));
        self.now = at;
        for ended in self.office.advance(at) {
            self.took[ended] = Some(at - self.calls[ended].at);
            self.step(Event::CallEnded { call: CallId(ended as u64) })?;
        }
        if coming > at {
            return Ok(());
        }
        let Some((_, what)) = self.coming.pop_first() else { return Ok(()) };
        match what {
            Coming::Call(number) => {
                let call = self.calls[number];
                self.step(Event::Call {
                    call: CallId(number as u64),
                    kind: v1::JobKind::Generate,
                    model: "words".into(),
                    bytes: call.bytes,
                    max_tokens: call.max_tokens,
                })?;
            }
            Coming::Beats => {
                for machine in 0..machines {
                    let busy_ms = self.now as u64;
                    self.step(Event::Beat { node: id(machine)?, incarnation: "first".into(), busy_ms })?;
                }
                self.later(at + BEAT_MS, Coming::Beats);
            }
            Coming::Tick => {
                self.step(Event::Tick)?;
                self.later(at + limits::TICK_MS as f64, Coming::Tick);
            }
        }
        Ok(())
    }

    fn step(&mut self, event: Event) -> anyhow::Result<()> {
        for effect in self.core.step(moment(self.now), event).effects {
            match effect {
                Effect::Dispatch { node, work: Work::Call { call: CallId(call) }, .. } => {
                    let machine: usize = node.as_str().trim_start_matches("n-").parse()?;
                    let number = usize::try_from(call)?;
                    self.office.give(machine, number, &self.calls[number]);
                }
                Effect::CallFailed { call: CallId(call), problem } => {
                    // Told to come back later: the person's time goes on.
                    anyhow::ensure!(problem.retryable(), "call {call} is refused for good: {problem}");
                    let wait = problem.retry_after.map_or(AGAIN_MS, |wait: Duration| wait.as_secs_f64() * 1e3);
                    self.later(self.now + wait.max(1.0), Coming::Call(usize::try_from(call)?));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::mix;
    use super::*;

    #[test]
    fn every_call_ends_and_the_same_mix_ends_the_same() {
        let machines = mix::machines(3);
        let calls = &mix::calls(3, &machines)[..300];
        let took = run(&machines, calls).unwrap();
        assert!(took.len() == calls.len() && took.iter().all(|took| *took > 0.0));
        assert_eq!(took, run(&machines, calls).unwrap());
    }
}
