//! The loop of a model's thread: take mail, let requests in, step, hand out what came of it.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use ingle_engine::{Engine, EngineError, LoadOptions, Model, Output, Step};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use super::hall::{Guest, Hall};
use super::moves::Moves;
use super::{Command, Shared};
use crate::limits;
use crate::metrics::NodeMetrics;

/// Runs an engine's code; a panic becomes an error.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "without a message".to_owned());
        Err(EngineError::Compute(format!("the engine panicked: {text}")))
    })
}

pub(super) fn run(
    model: Box<dyn Model>,
    engine: &dyn Engine,
    options: &LoadOptions,
    mut commands: mpsc::Receiver<Command>,
    shared: &Arc<Shared>,
) {
    let mut hall = Hall::default();
    let mut model = model;
    let mut share = Share { metrics: &shared.metrics, requests: 0, kv_bytes: 0 };
    let mut stepped = Instant::now();
    while take_mail(&mut hall, &mut model, &mut commands, shared) {
        let entered = shared.moves.within(|| let_in(&mut hall, model.as_mut(), &shared.moves));
        // Giving way is waiting on purpose: no sign of an engine that stands still.
        if entered.is_ok()
            && hall.only_batch_inside()
            && !shared.totals.courtesy.give_way(stepped, || !commands.is_empty() || commands.is_closed())
        {
            continue;
        }
        stepped = Instant::now();
        let worked = entered.and_then(|()| shared.moves.within(|| step(&mut hall, model.as_mut(), shared)));
        if let Err(error) = worked {
            tracing::warn!(reason = %error, "a model failed; loading it again");
            shared.metrics.model_restarts.inc();
            hall.fail_inside(&error);
            // What a failed model's own clean-up does is of no interest any more.
            let _ = guarded(|| {
                drop(model);
                Ok(())
            });
            match guarded(|| engine.load(options)) {
                Ok(again) => model = again,
                Err(error) => {
                    tracing::warn!(reason = %error, "the model can't be loaded again");
                    hall.fail_all(&error);
                    close(&mut commands, &error);
                    return;
                }
            }
        }
        share.set(hall.inside.len(), hall.tokens_held().saturating_mul(model.card().kv_bytes_per_token));
        shared.free_slots.store(u64::from(model.free_slots()), Ordering::Relaxed);
        shared.memory_bytes.store(model.memory_bytes(), Ordering::Relaxed);
    }
    let error = EngineError::Compute("the model was unloaded".into());
    hall.fail_all(&error);
    close(&mut commands, &error);
}

/// What one model adds to gauges that all models share; taken off when its thread ends.
struct Share<'a> {
    metrics: &'a NodeMetrics,
    requests: i64,
    kv_bytes: i64,
}

impl Share<'_> {
    fn set(&mut self, requests: usize, kv_bytes: u64) {
        let requests = i64::try_from(requests).unwrap_or(i64::MAX);
        let kv_bytes = i64::try_from(kv_bytes).unwrap_or(i64::MAX);
        self.metrics.requests.inc_by(requests - self.requests);
        self.metrics.kv_bytes.inc_by(kv_bytes - self.kv_bytes);
        (self.requests, self.kv_bytes) = (requests, kv_bytes);
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.set(0, 0);
    }
}

/// Takes all commands there are; waits for one if there is nothing to do. False: the thread should end.
fn take_mail(
    hall: &mut Hall,
    model: &mut Box<dyn Model>,
    commands: &mut mpsc::Receiver<Command>,
    shared: &Shared,
) -> bool {
    loop {
        let command = if hall.is_empty() {
            match commands.blocking_recv() {
                Some(command) => command,
                None => return false,
            }
        } else {
            match commands.try_recv() {
                Ok(command) => command,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return false,
            }
        };
        match command {
            Command::Join(join) => {
                let (id, guest) = Guest::new(join);
                if hall.waiting() < limits::WAITING_REQUESTS {
                    hall.enqueue(id, guest);
                } else {
                    guest.reader.fail(EngineError::Full { slots: model.free_slots() });
                }
            }
            Command::Wake => {}
            Command::Stop => return false,
        }
    }
    // Only now: who left may have stood further back in the mailbox.
    dismiss(hall, model.as_mut(), shared);
    shared.metrics.waiting.set(i64::try_from(hall.waiting()).unwrap_or(i64::MAX));
    true
}

/// Takes out whose tickets were dropped.
fn dismiss(hall: &mut Hall, model: &mut dyn Model, shared: &Shared) {
    let leaving = std::mem::take(&mut *shared.leaving.lock().unwrap_or_else(PoisonError::into_inner));
    for id in leaving {
        if hall.leave(id) {
            shared.moves.within(|| model.leave(id));
        }
    }
}

/// Lets waiting requests into the model while there are slots; for an interactive one a batch request makes room.
fn let_in(hall: &mut Hall, model: &mut dyn Model, moves: &Moves) -> Result<(), EngineError> {
    while hall.waiting() > 0 {
        if model.free_slots() == 0 {
            let room = hall.interactive_waits().then(|| hall.make_room()).flatten();
            match room {
                Some(id) => model.leave(id),
                None => return Ok(()),
            }
        }
        let Some((id, guest, request)) = hall.next() else { return Ok(()) };
        moves.enters(id);
        let joined = std::panic::catch_unwind(AssertUnwindSafe(|| model.join(id, guest.class, request)));
        match joined {
            Ok(Ok(())) => hall.enter(id, guest),
            Ok(Err(EngineError::Full { .. })) => {
                // It said it had a slot; wait for the next step rather than ask for ever.
                moves.refused(id);
                hall.put_back(id, guest);
                return Ok(());
            }
            Ok(Err(error)) => {
                moves.refused(id);
                guest.reader.fail(error);
            }
            Err(_) => {
                let error = EngineError::Compute("the engine panicked as the request entered".into());
                guest.reader.fail(error.clone());
                return Err(error);
            }
        }
    }
    Ok(())
}

fn step(hall: &mut Hall, model: &mut dyn Model, shared: &Shared) -> Result<(), EngineError> {
    if hall.inside.is_empty() {
        return Ok(());
    }
    shared.moves.step(hall.inside.keys());
    let mut out = Vec::new();
    let begun = Instant::now();
    let stepped = guarded(|| model.step(&mut out));
    let spent = begun.elapsed();
    let us = u64::try_from(spent.as_micros()).unwrap_or(u64::MAX);
    shared.totals.steps.fetch_add(1, Ordering::Relaxed);
    shared.totals.busy_us.fetch_add(us, Ordering::Relaxed);
    shared.metrics.steps.inc();
    shared.metrics.step_seconds.observe(spent.as_secs_f64());
    shared.metrics.step_requests.observe(hall.inside.len() as f64);
    let share = us / hall.inside.len() as u64;
    for guest in hall.inside.values() {
        guest.reader.shared.busy_us.fetch_add(share, Ordering::Relaxed);
    }
    let stepped = stepped?;
    for output in out {
        if let Output::Done { id, prompt_tokens, timings, .. } = &output {
            let (said, since_entry) = hall.said(*id);
            shared.metrics.tokens_in.inc_by(u64::from(*prompt_tokens));
            shared.metrics.tokens_out.inc_by(u64::from(said));
            let mut rates = shared.rates.lock().unwrap_or_else(PoisonError::into_inner);
            rates.request(*prompt_tokens, since_entry, *timings);
        }
        if let Some(gone) = hall.route(output) {
            model.leave(gone);
        }
    }
    if stepped == Step::Idle && !hall.inside.is_empty() {
        return Err(EngineError::Compute("the model forgot requests that had joined".into()));
    }
    Ok(())
}

/// Answers what is still in the mailbox.
fn close(commands: &mut mpsc::Receiver<Command>, error: &EngineError) {
    commands.close();
    while let Ok(command) = commands.try_recv() {
        if let Command::Join(join) = command {
            join.reader.fail(error.clone());
        }
    }
}
