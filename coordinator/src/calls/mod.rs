//! Interactive calls: what was asked, who waits, how far each stream came, so that another node can go on with it.

mod once;
mod reader;
mod stream;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ingle_daemon::{OnFailure, Tasks, trace};
use ingle_proto::v1::{self, assign};
use ingle_proto::{Epoch, ErrorCode, Problem};
use tokio::sync::oneshot;

use crate::core::{Adopted, CallId, Event};
use crate::driver::Handle;
use crate::limits;

use once::{Answered, Once};
pub use reader::Frames;
use stream::{Stream, Taken};

/// Longest a call may take.
const CALL_WITHIN: Duration = Duration::from_millis(limits::CALL_WITHIN_MS);
/// How long a stream's frames are kept after its end.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// Ended streams kept at once.
const KEPT_MAX: usize = 256;
/// How long a stream goes on without a reader.
const RESUME_WITHIN: Duration = Duration::from_secs(5);
/// How long one that another leader began waits for its reader.
const ADOPTED_FOR: Duration = Duration::from_secs(60);
/// How long after we began to lead nodes may come with streams that are asked for; and how often we look.
const REATTACH_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Tokens that a generation is expected to produce if it names no bound; only placement goes by it.
const EXPECTED_TOKENS: u32 = 512;

/// All calls. Clones share them.
#[derive(Clone)]
pub struct Calls(Arc<Inner>);

struct Inner {
    handle: Handle,
    tasks: Tasks,
    next: AtomicU64,
    /// When we began to lead.
    began: Instant,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// Answered with one message.
    once: BTreeMap<CallId, Once>,
    streams: BTreeMap<CallId, Stream>,
    /// Which call an attempt is for; only current ones.
    attempts: BTreeMap<u64, CallId>,
    /// Streams that were taken up from leaders before us: each once.
    adopted: BTreeSet<CallId>,
}

impl Table {
    /// Forgets streams that nobody can resume any more.
    fn expire(&mut self, now: Instant) {
        self.streams.retain(|_, stream| stream.ended.is_none_or(|ended| now.duration_since(ended) < KEPT_FOR));
        let mut ended: Vec<(Instant, CallId)> =
            self.streams.iter().filter_map(|(id, stream)| Some((stream.ended?, *id))).collect();
        if ended.len() > KEPT_MAX {
            ended.sort_unstable();
            for (_, id) in &ended[..ended.len() - KEPT_MAX] {
                self.streams.remove(id);
            }
        }
    }
}

impl Calls {
    /// Without calls yet.
    #[must_use]
    pub fn new(handle: Handle, tasks: Tasks) -> Self {
        // Numbers don't begin at 1: a resume token of an earlier leader must not name a call of this one.
        let next = AtomicU64::new(fastrand::u64(1 << 32..1 << 52));
        Self(Arc::new(Inner { handle, tasks, next, began: Instant::now(), table: Mutex::default() }))
    }

    /// Owns what is spawned for calls.
    #[must_use]
    pub fn tasks(&self) -> &Tasks {
        &self.0.tasks
    }

    /// Embeds texts; the request is validated.
    ///
    /// # Errors
    /// What the core or the node said; `DEADLINE`.
    pub async fn embed(&self, request: v1::EmbedRequest) -> Result<v1::EmbedResponse, Problem> {
        let bytes = request.texts.iter().map(|text| text.len() as u64).sum();
        let (kind, model) = (v1::JobKind::Embed, request.model.clone());
        match self.once(kind, model, bytes, assign::Work::Embed(request)).await? {
            Answered::Embed(response) => Ok(response),
            Answered::Ocr(_) => Err(once::other_answer()),
        }
    }

    /// Reads the pages of a document whose parts are blobs already.
    ///
    /// # Errors
    /// What the core or the node said; `DEADLINE`.
    pub async fn ocr(&self, model: String, work: v1::OcrWork) -> Result<v1::OcrResponse, Problem> {
        let bytes = work.parts.iter().map(|part| part.size).sum();
        match self.once(v1::JobKind::Ocr, model, bytes, assign::Work::Ocr(work)).await? {
            Answered::Ocr(response) => Ok(response),
            Answered::Embed(_) => Err(once::other_answer()),
        }
    }

    async fn once(
        &self,
        kind: v1::JobKind,
        model: String,
        bytes: u64,
        work: assign::Work,
    ) -> Result<Answered, Problem> {
        let call = self.next_id();
        let (once, answer) = Once::new(work, trace::current_traceparent().unwrap_or_default());
        self.lock().once.insert(call, once);
        let _gone = Gone(self, call);
        self.0.handle.send(Event::Call { call, kind, model, bytes, max_tokens: 0 }).await?;
        match tokio::time::timeout(CALL_WITHIN, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Problem::new(ErrorCode::Internal, "the call was forgotten; please report this")),
            Err(_) => Err(too_long()),
        }
    }

    /// Begins a generation; the request is validated.
    ///
    /// # Errors
    /// `SHUTTING_DOWN`. What the core or a node says comes as the last item of the frames.
    pub async fn generate(&self, mut request: v1::GenerateRequest) -> Result<Frames, Problem> {
        let id = self.next_id();
        let sampling = request.sampling.get_or_insert_default();
        let seed = *sampling.seed.get_or_insert_with(|| fastrand::u64(..));
        let bytes = prompt_bytes(&request);
        let event = Event::Call {
            call: id,
            kind: v1::JobKind::Generate,
            model: request.model.clone(),
            bytes,
            max_tokens: request.max_tokens.unwrap_or(EXPECTED_TOKENS),
        };
        let traceparent = trace::current_traceparent().unwrap_or_default();
        let (mut stream, ended) = Stream::new(id, request, seed, traceparent);
        let (reader, frames) = stream.reader(0)?;
        {
            let mut table = self.lock();
            table.expire(Instant::now());
            table.streams.insert(id, stream);
        }
        let frames = Frames::new(self.clone(), id, reader, frames);
        self.bound(id, ended);
        self.0.handle.send(event).await?;
        Ok(frames)
    }

    /// Ends a stream that takes too long.
    fn bound(&self, id: CallId, ended: oneshot::Receiver<()>) {
        let calls = self.clone();
        self.0.tasks.spawn("call deadline", OnFailure::Log, async move {
            tokio::select! {
                _ = ended => {}
                () = calls.0.tasks.shutdown().wait() => {}
                () = tokio::time::sleep(CALL_WITHIN) => if calls.give_up(id, &too_long()) {
                    calls.0.handle.send(Event::CallGone { call: id }).await?;
                }
            }
            Ok::<(), Problem>(())
        });
    }

    /// Takes up streams that a node has of leaders before us. What is known here, or was once, is left alone.
    #[must_use]
    pub fn adopt(&self, streams: Vec<v1::RunningStream>, epoch: Epoch) -> Vec<Adopted> {
        let mut adopted = Vec::new();
        for v1::RunningStream { token, call, work } in streams {
            let (Some(token), Some(work)) = (token, work) else { continue };
            let (id, attempt) = (CallId(call), token.attempt);
            let ours = token.epoch.is_some_and(|born| Epoch::from(born) >= epoch);
            let mut table = self.lock();
            if ours || call == 0 || table.streams.contains_key(&id) || !table.adopted.insert(id) {
                continue;
            }
            let (stream, ended) = Stream::adopted(id, attempt, work);
            let (model, bytes, max_tokens) = stream.size();
            table.streams.insert(id, stream);
            table.attempts.insert(attempt, id);
            drop(table);
            tracing::info!(call, attempt, "a stream of another leader is taken up");
            self.bound(id, ended);
            self.wait_for_reader(id, 0, ADOPTED_FOR);
            let max_tokens = max_tokens.unwrap_or(EXPECTED_TOKENS);
            adopted.push(Adopted { call: id, attempt, model, bytes, max_tokens });
        }
        adopted
    }

    /// Goes on after the frame that the token came with. A reader that is still there loses its place.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for what is no token; `STREAM_GONE` if the stream or the frames after it are no longer kept.
    pub async fn resume(&self, token: &str) -> Result<Frames, Problem> {
        let bad = || Problem::invalid("resume_token", "expected the token of a frame that was received");
        let (call, index) = token.split_once('.').ok_or_else(bad)?;
        let id = CallId(call.parse().map_err(|_| bad())?);
        let index: u64 = index.parse().map_err(|_| bad())?;
        loop {
            if let Some(frames) = self.read_on(id, index.saturating_add(1))? {
                return Ok(frames);
            }
            // The node that has it may not have come to a new leader yet, or its first frames.
            if self.0.began.elapsed() > REATTACH_WITHIN {
                let words = "the stream is no longer kept; send the request again";
                return Err(Problem::new(ErrorCode::StreamGone, words));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// A stream's frames from number `from` on; none if it isn't here, or hasn't come so far again.
    fn read_on(&self, id: CallId, from: u64) -> Result<Option<Frames>, Problem> {
        let mut table = self.lock();
        table.expire(Instant::now());
        let catching_up = table.adopted.contains(&id) && self.0.began.elapsed() <= REATTACH_WITHIN;
        let Some(stream) = table.streams.get_mut(&id).filter(|stream| !catching_up || stream.next >= from) else {
            return Ok(None);
        };
        let (reader, frames) = stream.reader(from)?;
        drop(table);
        Ok(Some(Frames::new(self.clone(), id, reader, frames)))
    }

    /// What a node is to be sent for a call, and the trace context it belongs to; from now on only this attempt is
    /// listened to. `None` if the caller has left.
    #[must_use]
    pub fn dispatch(&self, call: CallId, attempt: u64) -> Option<(assign::Work, String)> {
        let mut table = self.lock();
        let table = &mut *table;
        let (before, work) = if let Some(once) = table.once.get_mut(&call) {
            once.dispatch(attempt)
        } else {
            let stream = table.streams.get_mut(&call).filter(|stream| stream.ended.is_none())?;
            let (before, work) = stream.dispatch(attempt);
            (before, (assign::Work::Generate(work), stream.traceparent.clone()))
        };
        if let Some(before) = before {
            table.attempts.remove(&before);
        }
        table.attempts.insert(attempt, call);
        Some(work)
    }

    /// A node has embedded a call's texts.
    ///
    /// # Errors
    /// `SHUTTING_DOWN`.
    pub async fn embedded(&self, done: v1::EmbedDone) -> Result<(), Problem> {
        self.answered(done.token, done.response.map(Answered::Embed)).await
    }

    /// A node has read a call's pages.
    ///
    /// # Errors
    /// `SHUTTING_DOWN`.
    pub async fn read(&self, done: v1::OcrDone) -> Result<(), Problem> {
        self.answered(done.token, done.response.map(Answered::Ocr)).await
    }

    async fn answered(&self, token: Option<v1::AttemptToken>, answer: Option<Answered>) -> Result<(), Problem> {
        let Some(attempt) = token.map(|token| token.attempt) else { return Ok(()) };
        let Some((call, once)) = self.take_once(attempt) else { return Ok(()) };
        once.answer(answer);
        self.0.handle.send(Event::CallEnded { call }).await
    }

    fn take_once(&self, attempt: u64) -> Option<(CallId, Once)> {
        let mut table = self.lock();
        let call = *table.attempts.get(&attempt)?;
        let once = table.once.remove(&call)?;
        table.attempts.remove(&attempt);
        Some((call, once))
    }

    /// A node has produced a frame.
    ///
    /// # Errors
    /// `SHUTTING_DOWN`.
    pub async fn frame(&self, frame: v1::GenerateFrame) -> Result<(), Problem> {
        let taken = self.take_frame(frame);
        match taken {
            Some((call, Taken::Finished)) => self.0.handle.send(Event::CallEnded { call }).await,
            Some((call, Taken::TooSlow | Taken::Lost)) => self.0.handle.send(Event::CallGone { call }).await,
            Some((_, Taken::Goes)) | None => Ok(()),
        }
    }

    fn take_frame(&self, frame: v1::GenerateFrame) -> Option<(CallId, Taken)> {
        let mut table = self.lock();
        let table = &mut *table;
        // Frames of an attempt that was replaced, or of a call that ended, find nothing here.
        let call = *table.attempts.get(&frame.attempt)?;
        let attempt = frame.attempt;
        let taken = table.streams.get_mut(&call)?.take(frame);
        match taken {
            Taken::Goes => {}
            Taken::Finished => drop(table.attempts.remove(&attempt)),
            Taken::TooSlow | Taken::Lost => {
                table.attempts.remove(&attempt);
                table.streams.remove(&call);
            }
        }
        Some((call, taken))
    }

    /// The core can't have a call served.
    pub fn failed(&self, call: CallId, problem: &Problem) {
        self.give_up(call, problem);
    }

    /// Ends a call with a problem. False if there is none, or it has ended.
    fn give_up(&self, call: CallId, problem: &Problem) -> bool {
        let mut table = self.lock();
        if let Some(once) = table.once.remove(&call) {
            once.attempt.and_then(|attempt| table.attempts.remove(&attempt));
            once.fail(problem.clone());
            return true;
        }
        if table.streams.get(&call).is_none_or(|stream| stream.ended.is_some()) {
            return false;
        }
        let Some(mut stream) = table.streams.remove(&call) else { return false };
        stream.attempt.and_then(|attempt| table.attempts.remove(&attempt));
        stream.fail(problem.clone());
        true
    }

    /// A stream's reader left. It may come back for a while.
    fn reader_left(&self, call: CallId, reader: u64) {
        self.wait_for_reader(call, reader, RESUME_WITHIN);
    }

    /// Ends a stream that nobody comes to read after its reader of that number.
    fn wait_for_reader(&self, call: CallId, reader: u64, within: Duration) {
        let abandoned = move |calls: &Self| {
            calls.lock().streams.get(&call).is_some_and(|stream| stream.ended.is_none() && stream.readers == reader)
        };
        if !abandoned(self) {
            return;
        }
        let calls = self.clone();
        self.0.tasks.spawn("call without reader", OnFailure::Log, async move {
            tokio::select! {
                () = tokio::time::sleep(within) => {}
                () = calls.0.tasks.shutdown().wait() => return Ok(()),
            }
            let words = "its reader left";
            if abandoned(&calls) && calls.give_up(call, &Problem::new(ErrorCode::Cancelled, words)) {
                calls.0.handle.send(Event::CallGone { call }).await?;
            }
            Ok::<(), Problem>(())
        });
    }

    fn next_id(&self) -> CallId {
        CallId(self.0.next.fetch_add(1, Ordering::Relaxed))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the core when whoever waits for an answer leaves.
struct Gone<'a>(&'a Calls, CallId);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        let (calls, call) = (self.0.clone(), self.1);
        let gone = calls.give_up(call, &Problem::new(ErrorCode::Cancelled, "the caller left"));
        if gone {
            let tasks = calls.0.tasks.clone();
            tasks.spawn(
                "call gone",
                OnFailure::Log,
                async move { calls.0.handle.send(Event::CallGone { call }).await },
            );
        }
    }
}

/// Bytes of text that a model is told.
fn prompt_bytes(request: &v1::GenerateRequest) -> u64 {
    let text = |part: &v1::ContentPart| match &part.part {
        Some(v1::content_part::Part::Text(text)) => text.len() as u64,
        _ => 0,
    };
    request.messages.iter().flat_map(|message| &message.content).map(text).sum()
}

fn too_long() -> Problem {
    Problem::new(ErrorCode::Deadline, format!("the call took over {CALL_WITHIN:?}"))
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
