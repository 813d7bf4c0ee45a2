//! Models in memory: loaded on demand within the budget, idle ones unloaded to make room, those in use never.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use ingle_daemon::past::phase;
use ingle_engine::{Engine, LoadOptions};
use ingle_proto::v1;
use ingle_proto::{Digest, ErrorCode, Problem};
use tokio::sync::Notify;
use tracing::Instrument as _;

use crate::error::Failure;
use crate::executor::{ModelHandle, Totals};
use crate::limits;
use crate::metrics::NodeMetrics;
use crate::slots::{Need, Refusal, Resident, admit, need};
use crate::weights::{Catalogue, Pin, ReadyModel};

/// How models are loaded here.
#[derive(Debug, Clone, Copy)]
pub struct LoadSettings {
    /// Compute threads.
    pub threads: usize,
    /// Tokens of context per request.
    pub context: u32,
    /// Requests in a model at once.
    pub slots: u32,
    /// Memory for models, in bytes.
    pub budget: u64,
}

struct Held {
    model: Arc<ReadyModel>,
    handle: Arc<ModelHandle>,
    /// Counted by those who use the model.
    users: Arc<()>,
    need: Need,
    last_used: u64,
    /// The same for people, Unix milliseconds.
    last_used_ms: i64,
    /// Its thread loads it again if it has to.
    _files: Pin,
}

impl Held {
    fn bytes(&self) -> u64 {
        self.need.total.max(self.handle.memory_bytes())
    }

    fn busy(&self) -> bool {
        Arc::strong_count(&self.users) > 1
    }
}

#[derive(Default)]
struct State {
    held: BTreeMap<String, Held>,
    clock: u64,
    /// What left memory, oldest first.
    evictions: VecDeque<v1::Eviction>,
    /// The threads of those that are being ended: one that stands still is waited for, and has to be noticed as well.
    ending: Vec<(String, Weak<ModelHandle>)>,
}

impl State {
    fn note(&mut self, held: &Held, made_room_for: &str, reason: String) {
        self.ending.retain(|(_, handle)| handle.strong_count() > 0);
        self.ending.push((held.model.name.clone(), Arc::downgrade(&held.handle)));
        let model = v1::ModelRef { name: held.model.name.clone(), digest: held.model.digest.to_wire() };
        self.evictions.push_back(v1::Eviction {
            model: Some(model),
            at_ms: ingle_daemon::clock::unix_ms(),
            bytes: held.bytes(),
            made_room_for: made_room_for.to_owned(),
            reason,
        });
        while self.evictions.len() > limits::EVICTIONS_KEPT {
            self.evictions.pop_front();
        }
    }
}

/// The models in memory.
pub struct Loaded {
    engine: Arc<dyn Engine>,
    catalogue: Arc<Catalogue>,
    settings: LoadSettings,
    totals: Arc<Totals>,
    metrics: NodeMetrics,
    state: Mutex<State>,
    /// One load at a time: two at once would both count the same free memory.
    loading: Arc<tokio::sync::Mutex<()>>,
    /// A model was loaded, unloaded or measured again.
    pub changed: Notify,
}

/// A model in use: it stays loaded while this lives.
#[derive(Clone)]
pub struct Lease {
    /// What it is and where its files lie.
    pub model: Arc<ReadyModel>,
    /// Its thread.
    pub handle: Arc<ModelHandle>,
    /// Time spent on loading it for this use; zero if it was there.
    pub load: Duration,
    _user: Arc<()>,
}

impl Loaded {
    /// None yet.
    #[must_use]
    pub fn new(
        engine: Arc<dyn Engine>,
        catalogue: Arc<Catalogue>,
        settings: LoadSettings,
        totals: Arc<Totals>,
        metrics: NodeMetrics,
    ) -> Self {
        Self {
            engine,
            catalogue,
            settings,
            totals,
            metrics,
            state: Mutex::default(),
            loading: Arc::default(),
            changed: Notify::new(),
        }
    }

    /// A model for use, loaded now if need be. With a digest, that very content.
    ///
    /// # Errors
    /// [`Failure`]: the model isn't seen, can't be used, doesn't fit, or has to wait for others.
    pub async fn acquire(self: &Arc<Self>, wanted: &v1::ModelRef) -> Result<Lease, Failure> {
        let digest = match wanted.digest.is_empty() {
            true => None,
            false => Some(Digest::from_wire("model.digest", &wanted.digest).map_err(Failure::input)?),
        };
        if let Some(lease) = self.held(&wanted.name, digest) {
            return Ok(lease);
        }
        // Its files first, as soon as work for it is placed here: copying them stands in no other model's way. From then on
        // they stay until it is unloaded.
        let (model, files, loading) = loop {
            // What is copied now is read in this span; where nothing is, it is short.
            let fetching = tracing::info_span!("fetch", model = %wanted.name);
            let (model, files) =
                self.catalogue.pinned(&wanted.name, digest).instrument(fetching).await.map_err(not_ready)?;
            let loading = Arc::clone(&self.loading).lock_owned().await;
            if let Some(lease) = self.held(&wanted.name, digest) {
                return Ok(lease);
            }
            // Another content may have taken the name while other models were loaded.
            if self.catalogue.is_current(&model) {
                break (model, files, loading);
            }
        };
        // Whoever asked may leave, but a load that has begun goes on: until it has ended and is counted, no other may begin.
        let loaded = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || {
            let lease = tokio::runtime::Handle::current().block_on(loaded.load(model, files));
            // Also after a failure: other models may have made room.
            loaded.note_change();
            drop(loading);
            lease
        });
        let loaded = task.await.unwrap_or_else(|error| {
            Err(Failure::model(ErrorCode::ModelUnusable, format!("loading `{}` failed: {error}", wanted.name)))
        });
        if let Ok(lease) = &loaded
            && !lease.load.is_zero()
        {
            let now = SystemTime::now();
            phase("load", now - lease.load, now, &[("model", &lease.model.name)]);
        }
        loaded
    }

    /// Makes room, loads, and counts it among the models in memory. Blocks for the time of the load.
    async fn load(&self, model: Arc<ReadyModel>, files: Pin) -> Result<Lease, Failure> {
        let need = need(&model.card, self.settings.context, self.settings.slots);
        self.make_room(&model.name, &need).await?;
        let begun = Instant::now();
        let handle = Arc::new(self.load_blocking(&model)?);
        let load = begun.elapsed();
        self.metrics.loads.inc();
        self.metrics.loaded_bytes.inc_by(model.card.weight_bytes);
        self.metrics.load_seconds.observe(load.as_secs_f64());
        tracing::info!(model = %model.name, bytes = handle.memory_bytes(), ?load, "model loaded");
        let users = Arc::new(());
        let lease = Lease { model: Arc::clone(&model), handle: Arc::clone(&handle), load, _user: Arc::clone(&users) };
        let mut state = self.lock();
        state.clock += 1;
        let last_used = state.clock;
        let last_used_ms = ingle_daemon::clock::unix_ms();
        let held = Held { handle, users, need, last_used, last_used_ms, _files: files, model };
        state.held.insert(held.model.name.clone(), held);
        Ok(lease)
    }

    fn held(&self, name: &str, digest: Option<Digest>) -> Option<Lease> {
        let mut state = self.lock();
        state.clock += 1;
        let now = state.clock;
        let held = state.held.get_mut(name)?;
        if held.handle.is_dead() || digest.is_some_and(|digest| digest != held.model.digest) {
            return None;
        }
        held.last_used = now;
        held.last_used_ms = ingle_daemon::clock::unix_ms();
        Some(Lease {
            model: Arc::clone(&held.model),
            handle: Arc::clone(&held.handle),
            load: Duration::ZERO,
            _user: Arc::clone(&held.users),
        })
    }

    async fn make_room(&self, name: &str, need: &Need) -> Result<(), Failure> {
        let budget = self.settings.budget;
        // An older content or a dead thread of the same name goes first, unless somebody still uses it.
        let stale = {
            let mut state = self.lock();
            if state.held.get(name).is_some_and(|held| held.handle.progress().abandoned) {
                // Its thread still has the memory, and the process is about to end.
                return Err(Failure::node(
                    ErrorCode::ShuttingDown,
                    format!("the engine of model `{name}` stands still, and this node starts anew"),
                    Duration::from_millis(100),
                ));
            }
            let goes = state.held.get(name).is_some_and(|held| held.handle.is_dead() || !held.busy());
            if !goes && state.held.contains_key(name) {
                return Err(Failure::node(
                    ErrorCode::Overloaded,
                    format!("an older content of model `{name}` is still in use"),
                    Duration::from_secs(2),
                ));
            }
            let stale = state.held.remove(name);
            if let Some(held) = &stale {
                let why = if held.handle.is_dead() { "its engine had ended" } else { "another content has its name" };
                state.note(held, name, why.to_owned());
            }
            stale
        };
        if let Some(held) = stale {
            held.handle.stop().await;
        }
        let gone: Vec<Held> = {
            let mut state = self.lock();
            let residents: BTreeMap<String, Resident> = state
                .held
                .iter()
                .map(|(name, held)| {
                    (name.clone(), Resident { bytes: held.bytes(), last_used: held.last_used, busy: held.busy() })
                })
                .collect();
            let reserved: u64 = residents.values().map(|resident| resident.bytes).sum();
            let evict = admit(&residents, need.total, budget).map_err(|refusal| match refusal {
                Refusal::Never => Failure::model(
                    ErrorCode::ModelDoesNotFit,
                    format!(
                        "model `{name}` needs {} bytes of memory and this node has {budget} for models",
                        need.total
                    ),
                ),
                Refusal::Busy => Failure::node(
                    ErrorCode::Overloaded,
                    format!(
                        "model `{name}` needs {} bytes; {reserved} of {budget} are taken by models in use",
                        need.total
                    ),
                    Duration::from_secs(2),
                ),
            })?;
            let gone: Vec<Held> = evict.iter().filter_map(|name| state.held.remove(name)).collect();
            for held in &gone {
                let words = format!(
                    "{} bytes were needed, {reserved} of {budget} were taken, and of those not in use it was the longest unused",
                    need.total
                );
                state.note(held, name, words);
            }
            gone
        };
        for held in gone {
            tracing::info!(model = %held.model.name, "model unloaded to make room");
            held.handle.stop().await;
        }
        Ok(())
    }

    fn load_blocking(&self, model: &ReadyModel) -> Result<ModelHandle, Failure> {
        let (engine, totals, metrics) = (Arc::clone(&self.engine), Arc::clone(&self.totals), self.metrics.clone());
        let options = LoadOptions {
            dir: model.dir.clone(),
            threads: self.settings.threads,
            context: self.settings.context,
            slots: self.settings.slots,
        };
        let loaded = ModelHandle::load(engine, options, totals, metrics);
        if self.catalogue.has_copies() {
            crate::weights::let_pages_go(&model.dir);
        }
        loaded.map_err(|error| {
            let code = match error {
                ingle_engine::EngineError::Memory { .. } => ErrorCode::ModelDoesNotFit,
                _ => ErrorCode::ModelUnusable,
            };
            Failure::model(code, format!("model `{}`: {error}", model.name))
        })
    }

    /// Unloads a model that nobody uses.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND` if it isn't loaded, `OVERLOADED` if it is in use.
    pub async fn unload(&self, name: &str) -> Result<u64, Problem> {
        let held = {
            let mut state = self.lock();
            match state.held.get(name) {
                None => {
                    return Err(Problem::new(ErrorCode::ModelNotFound, format!("model `{name}` isn't loaded here")));
                }
                Some(held) if held.busy() => {
                    return Err(Problem::new(ErrorCode::Overloaded, format!("model `{name}` is in use here"))
                        .retry_after(Duration::from_secs(2)));
                }
                Some(_) => {
                    let held = state.held.remove(name);
                    if let Some(held) = &held {
                        state.note(held, "", "it was asked to be unloaded".to_owned());
                    }
                    held
                }
            }
        };
        let Some(held) = held else { return Ok(0) };
        let bytes = held.bytes();
        held.handle.stop().await;
        tracing::info!(model = name, "model unloaded");
        self.note_change();
        Ok(bytes)
    }

    /// Ends all threads.
    pub async fn stop(&self) {
        let all = std::mem::take(&mut self.lock().held);
        for held in all.into_values() {
            held.handle.stop().await;
        }
    }

    /// Says that speeds were measured again.
    pub fn note_change(&self) {
        self.metrics.model_bytes.set(i64::try_from(self.reserved()).unwrap_or(i64::MAX));
        let (kv, slots) = self.lock().held.values().fold((0, 0), |(kv, slots), held| {
            (held.need.kv.saturating_add(kv), u64::from(held.handle.slots()).saturating_add(slots))
        });
        self.metrics.kv_reserved_bytes.set(i64::try_from(kv).unwrap_or(i64::MAX));
        self.metrics.slots.set(i64::try_from(slots).unwrap_or(i64::MAX));
        self.changed.notify_one();
    }

    /// Memory that loaded models take, in bytes.
    #[must_use]
    pub fn reserved(&self) -> u64 {
        self.lock().held.values().map(Held::bytes).sum()
    }

    /// What the coordinator is told.
    #[must_use]
    pub fn infos(&self) -> Vec<v1::LoadedModel> {
        let state = self.lock();
        let info = |held: &Held| {
            let rates = held.handle.rates();
            v1::LoadedModel {
                model: Some(v1::ModelRef { name: held.model.name.clone(), digest: held.model.digest.to_wire() }),
                memory_bytes: held.bytes(),
                slots: held.handle.slots(),
                free_slots: held.handle.free_slots(),
                prefill_tokens_per_second: rates.prefill,
                decode_tokens_per_second: rates.decode,
                document_bytes_per_second: rates.document_bytes,
                last_used_ms: held.last_used_ms,
                in_use: held.busy(),
            }
        };
        state.held.values().filter(|held| !held.handle.is_dead()).map(info).collect()
    }

    /// What left memory of late, oldest first.
    #[must_use]
    pub fn evictions(&self) -> Vec<v1::Eviction> {
        self.lock().evictions.iter().cloned().collect()
    }

    /// The threads of all models, those that were given up or are being ended too.
    #[must_use]
    pub fn executors(&self) -> Vec<(String, Arc<ModelHandle>)> {
        let state = self.lock();
        let held = state.held.iter().map(|(name, held)| (name.clone(), Arc::clone(&held.handle)));
        let ending = state.ending.iter().filter_map(|(name, handle)| Some((name.clone(), handle.upgrade()?)));
        held.chain(ending).collect()
    }

    /// What beats say of them.
    #[must_use]
    pub fn progress(&self) -> Vec<v1::ExecutorProgress> {
        let told = |(model, handle): (String, Arc<ModelHandle>)| {
            let progress = handle.progress();
            v1::ExecutorProgress {
                model,
                steps: progress.steps,
                inside: progress.inside,
                step_ms: progress.still_ms,
                abandoned: progress.abandoned,
            }
        };
        self.executors().into_iter().map(told).take(limits::MODELS_MAX).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What doesn't pass by itself is the model's on this node: it isn't seen, can't be used, or can't be read here.
fn not_ready(problem: Problem) -> Failure {
    let kind = if problem.retryable() { v1::FailureKind::Storage } else { v1::FailureKind::Model };
    Failure { kind, problem }
}
