//! One OS thread per loaded model with a bounded mailbox: requests enter between two steps, interactive before batch.
//!
//! While a person is served by one model, the others of the node do batch work only now and then (`courtesy.rs`).
//!
//! A panic or an error of the model fails what is in it, not the agent: the thread loads the model again and goes on.

mod courtesy;
mod hall;
mod moves;
mod rates;
mod thread;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ingle_engine::{
    Class, Engine, EngineError, Finish, LoadOptions, Model, ModelCard, Request, RequestId, Timings, Tokens,
};
use tokio::sync::{mpsc, watch};

use crate::limits;
use crate::metrics::NodeMetrics;
pub use courtesy::Courtesy;
use moves::Moves;
pub use moves::Progress;
pub use rates::Rates;

/// What a request hands back, in order; `Done` is last.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// One text's vector.
    Embedding {
        /// Which text.
        index: u32,
        /// The vector.
        vector: Vec<f32>,
        /// Tokens of it.
        tokens: u32,
        /// It was cut.
        truncated: bool,
    },
    /// What stands on a page.
    Page(ingle_engine::PageText),
    /// The prompt as the model sees it.
    Prompt(Vec<u32>),
    /// One token.
    Token {
        /// Position among the emitted, from 0.
        index: u32,
        /// Its id.
        token: u32,
        /// Byte offset of `text`.
        text_offset: u64,
        /// Text decided by now.
        text: String,
        /// The chosen one, then alternatives.
        logprobs: Vec<ingle_engine::TokenLogprob>,
    },
    /// The end.
    Done {
        /// Why.
        finish: Finish,
        /// Text left open.
        text: String,
        /// Its offset.
        text_offset: u64,
        /// Tokens read.
        prompt_tokens: u32,
        /// Tokens emitted in all.
        output_tokens: u32,
        /// Time spent here.
        timings: Timings,
    },
}

/// Work done since the process started, over all models: what beats show.
#[derive(Debug, Default)]
pub struct Totals {
    /// Engine steps.
    pub steps: AtomicU64,
    /// Microseconds spent in them.
    pub busy_us: AtomicU64,
    /// People who are served now, by any model.
    pub courtesy: Courtesy,
}

enum Command {
    Join(Join),
    /// Somebody left: look at the list.
    Wake,
    Stop,
}

struct Join {
    id: RequestId,
    class: Class,
    request: Request,
    reader: Reader,
}

/// The thread's end of a request.
struct Reader {
    events: mpsc::Sender<Event>,
    shared: Arc<TicketShared>,
}

#[derive(Default)]
struct TicketShared {
    /// Why it ended without `Done`.
    end: Mutex<Option<EngineError>>,
    /// Its share of the model's time, in microseconds.
    busy_us: AtomicU64,
}

impl Reader {
    /// Whether the reader still takes part. A full channel is a reader that doesn't: it must not hold up the others.
    fn send(&self, event: Event) -> bool {
        match self.events.try_send(event) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.fail(EngineError::Compute("its reader fell too far behind and it was dropped".into()));
                false
            }
        }
    }

    fn fail(&self, error: EngineError) {
        self.shared.end.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

/// What the thread and its handle share.
struct Shared {
    leaving: Mutex<Vec<RequestId>>,
    free_slots: AtomicU64,
    memory_bytes: AtomicU64,
    dead: AtomicBool,
    rates: Mutex<Rates>,
    totals: Arc<Totals>,
    metrics: NodeMetrics,
    moves: Moves,
}

/// A loaded model. Dropping the last handle and ticket ends its thread.
pub struct ModelHandle {
    card: ModelCard,
    tokens: Arc<dyn Tokens>,
    context: u32,
    slots: u32,
    mailbox: mpsc::Sender<Command>,
    next_id: AtomicU64,
    shared: Arc<Shared>,
    ended: watch::Receiver<bool>,
}

impl ModelHandle {
    /// Loads a model and starts its thread. Blocks for the time of the load.
    ///
    /// # Errors
    /// What the engine said; [`EngineError::Compute`] if it panicked.
    pub fn load(
        engine: Arc<dyn Engine>,
        options: LoadOptions,
        totals: Arc<Totals>,
        metrics: NodeMetrics,
    ) -> Result<Self, EngineError> {
        let model = thread::guarded(|| engine.load(&options))?;
        let card = model.card().clone();
        let shared = Arc::new(Shared {
            leaving: Mutex::default(),
            free_slots: AtomicU64::new(u64::from(model.free_slots())),
            memory_bytes: AtomicU64::new(model.memory_bytes()),
            dead: AtomicBool::new(false),
            rates: Mutex::default(),
            totals,
            metrics,
            moves: Moves::default(),
        });
        let (mailbox, commands) = mpsc::channel(limits::MAILBOX_COMMANDS);
        let (ended_tx, ended) = watch::channel(false);
        let tokens = model.tokens();
        let (context, slots) = (options.context.min(card.context), model.free_slots());
        start(model, engine, options, commands, Arc::clone(&shared), ended_tx)?;
        Ok(Self { card, tokens, context, slots, mailbox, next_id: AtomicU64::new(1), shared, ended })
    }

    /// What the model is.
    #[must_use]
    pub fn card(&self) -> &ModelCard {
        &self.card
    }

    /// Its tokenizer.
    #[must_use]
    pub fn tokens(&self) -> &Arc<dyn Tokens> {
        &self.tokens
    }

    /// Tokens of context that one request has.
    #[must_use]
    pub fn context(&self) -> u32 {
        self.context
    }

    /// Requests in the model at once.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Requests that may enter before one leaves.
    #[must_use]
    pub fn free_slots(&self) -> u32 {
        u32::try_from(self.shared.free_slots.load(Ordering::Relaxed)).unwrap_or(u32::MAX)
    }

    /// Memory it takes, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.shared.memory_bytes.load(Ordering::Relaxed)
    }

    /// Speeds measured so far.
    #[must_use]
    pub fn rates(&self) -> Rates {
        *self.shared.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a batch's speed over documents.
    pub fn measured_documents(&self, bytes: u64, busy_us: u64) {
        self.shared.rates.lock().unwrap_or_else(PoisonError::into_inner).documents(bytes, busy_us);
    }

    /// Its thread has ended: load it anew.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.shared.dead.load(Ordering::Acquire)
    }

    /// How far its thread has come.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.shared.moves.progress()
    }

    /// Its thread has been in the same piece of the engine's code for so long; zero: it moves.
    pub fn saw_still(&self, still: Duration) {
        self.shared.moves.saw_still(still);
    }

    /// Gives the thread up, for it can't be ended from outside: whatever was with it fails now, and the model counts as dead.
    pub fn abandon(&self) {
        self.shared.dead.store(true, Ordering::Release);
        self.shared.moves.abandon();
    }

    /// Asks the thread to end and waits until the model's memory is free. What is in the model fails. One that was given up is
    /// not waited for.
    pub async fn stop(&self) {
        let ended = async {
            let _ = self.mailbox.send(Command::Stop).await;
            self.shared.totals.courtesy.mail();
            let mut ended = self.ended.clone();
            // An error means that the thread is gone, which is what we wait for.
            let _ = ended.wait_for(|ended| *ended).await;
        };
        tokio::select! {
            () = ended => {}
            () = self.shared.moves.abandoned.cancelled() => {}
        }
    }

    /// Hands a request to the model. It waits there until a slot is free.
    ///
    /// # Errors
    /// [`EngineError::Compute`] if the model's thread has ended, [`EngineError::Stalled`] if it was given up.
    pub async fn submit(&self, class: Class, request: Request) -> Result<Ticket, EngineError> {
        let id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let capacity = match &request {
            Request::Embed(request) => request.texts.len() + 8,
            Request::Ocr(_) => 8,
            Request::Generate(_) => limits::UNREAD_EVENTS,
        };
        let (events, received) = mpsc::channel(capacity);
        let shared = Arc::new(TicketShared::default());
        let reader = Reader { events, shared: Arc::clone(&shared) };
        if class == Class::Interactive {
            self.shared.totals.courtesy.enter();
        }
        let (owner, mailbox) = (Arc::clone(&self.shared), self.mailbox.clone());
        let ticket = Ticket { id, class, events: received, shared, owner, mailbox };
        tokio::select! {
            biased;
            () = self.shared.moves.abandoned.cancelled() => return Err(self.shared.moves.stalled(id)),
            sent = self.mailbox.send(Command::Join(Join { id, class, request, reader })) => {
                sent.map_err(|_| EngineError::Compute("the model's thread has ended".into()))?;
            }
        }
        self.shared.totals.courtesy.mail();
        Ok(ticket)
    }
}

/// Says that the thread has ended, however it did: also when a panic of the engine's ends it.
struct Ending(Arc<Shared>, watch::Sender<bool>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.dead.store(true, Ordering::Release);
        let _ = self.1.send(true);
    }
}

fn start(
    model: Box<dyn Model>,
    engine: Arc<dyn Engine>,
    options: LoadOptions,
    commands: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    ended: watch::Sender<bool>,
) -> Result<(), EngineError> {
    std::thread::Builder::new()
        .name("model".into())
        .spawn(move || {
            // First, so that it is dropped last: by then the model's memory is free.
            let _ending = Ending(Arc::clone(&shared), ended);
            thread::run(model, engine.as_ref(), &options, commands, &shared);
        })
        .map(|_| ())
        .map_err(|error| EngineError::Compute(format!("no thread for the model: {error}")))
}

/// A request in a model. Dropping it takes the request out.
pub struct Ticket {
    id: RequestId,
    class: Class,
    events: mpsc::Receiver<Event>,
    shared: Arc<TicketShared>,
    owner: Arc<Shared>,
    mailbox: mpsc::Sender<Command>,
}

impl Ticket {
    /// The next event.
    ///
    /// # Errors
    /// Why the request ended without [`Event::Done`].
    pub async fn next(&mut self) -> Result<Event, EngineError> {
        let event = tokio::select! {
            // What it said before comes first.
            biased;
            event = self.events.recv() => event,
            () = self.owner.moves.abandoned.cancelled() => return Err(self.owner.moves.stalled(self.id)),
        };
        match event {
            Some(event) => Ok(event),
            None => Err(self
                .shared
                .end
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
                .unwrap_or_else(|| EngineError::Compute("the model's thread has ended".into()))),
        }
    }

    /// Its share of the model's time so far, in microseconds.
    #[must_use]
    pub fn busy_us(&self) -> u64 {
        self.shared.busy_us.load(Ordering::Relaxed)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.owner.leaving.lock().unwrap_or_else(PoisonError::into_inner).push(self.id);
        // A full mailbox wakes the thread as well.
        let _ = self.mailbox.try_send(Command::Wake);
        let courtesy = &self.owner.totals.courtesy;
        match self.class {
            Class::Interactive => courtesy.leave(),
            Class::Batch => courtesy.mail(),
        }
    }
}

#[cfg(test)]
mod tests;
