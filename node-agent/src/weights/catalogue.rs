//! The models this node sees: listed on request, read in the background, known by digest and card once they are here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ingle_daemon::backoff::Backoff;
use ingle_engine::{Engine, ModelCard, Task};
use ingle_proto::storage::Object;
use ingle_proto::v1;
use ingle_proto::{Digest, ErrorCode, Problem};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::cache::{Cache, Pin};
use super::copies::{Copies, Files};
use super::folders::{FileStamp, Folder, find, walk};
use super::{fetch, model_digest};
use crate::config::ModelsRoot;
use crate::limits;
use crate::storage::{Gateway, Gateways};

/// A model whose files are here.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadyModel {
    /// What it is called.
    pub name: String,
    /// Its identity.
    pub digest: Digest,
    /// Where its files lie.
    pub dir: PathBuf,
    /// What its headers say.
    pub card: ModelCard,
}

#[derive(Debug, Clone)]
enum Known {
    /// Listed, and not read yet.
    Not,
    /// It couldn't be read, and is tried again then.
    Later(Problem, Instant),
    Ready(Arc<ReadyModel>),
    /// Its content can't be used.
    Problem(Option<Digest>, String),
}

struct Entry {
    folder: Folder,
    known: Mutex<Known>,
    /// One reader at a time, with the pause before its next try.
    reading: tokio::sync::Mutex<Backoff>,
}

impl Entry {
    fn new(folder: Folder) -> Self {
        let pause = Backoff::new(limits::STORAGE_PAUSE_MAX, limits::STORAGE_PAUSE_MAX * 10);
        Self { folder, known: Mutex::new(Known::Not), reading: tokio::sync::Mutex::new(pause) }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A problem that names the model.
    fn said(&self, problem: Problem) -> Problem {
        let message = format!("model `{}`: {}", self.folder.name, problem.message);
        Problem { message, ..problem }
    }
}

/// The models' location as this node sees it.
pub struct Catalogue {
    root: Option<ModelsRoot>,
    engine: Arc<dyn Engine>,
    cache: Arc<Cache>,
    gateways: Gateways,
    fixed_gateway: Option<String>,
    /// Tokens that this node gives a sequence at most.
    context: u32,
    gateway: Mutex<Option<String>>,
    entries: Mutex<BTreeMap<String, Arc<Entry>>>,
    /// Somebody wants a fresh listing.
    wanted: Notify,
    /// What is known has changed.
    pub changed: Arc<Notify>,
    copies: Copies,
}

impl Catalogue {
    /// Knows nothing yet; [`Catalogue::run`] does the work.
    #[must_use]
    pub fn new(
        root: Option<ModelsRoot>,
        engine: Arc<dyn Engine>,
        cache: Arc<Cache>,
        gateways: Gateways,
        fixed_gateway: Option<String>,
        context: u32,
    ) -> Self {
        let changed = Arc::new(Notify::new());
        Self {
            root,
            engine,
            copies: Copies::new(Arc::clone(&cache), Arc::clone(&changed)),
            cache,
            gateways,
            gateway: Mutex::new(fixed_gateway.clone()),
            fixed_gateway,
            context,
            entries: Mutex::default(),
            wanted: Notify::new(),
            changed,
        }
    }

    /// The gateway that a coordinator named; ours, if we have one, goes before it.
    pub fn use_gateway(&self, endpoint: &str) {
        if self.fixed_gateway.is_none() && !endpoint.is_empty() {
            *self.gateway.lock().unwrap_or_else(PoisonError::into_inner) = Some(endpoint.to_owned());
        }
        self.refresh_soon();
    }

    /// Which gateway to read from: the one given, else ours.
    ///
    /// # Errors
    /// `STORAGE_UNAVAILABLE` if nobody named one yet.
    pub fn gateway(&self, endpoint: &str) -> Result<Gateway, Problem> {
        let named = self.gateway.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let chosen = match (&self.fixed_gateway, endpoint) {
            (Some(fixed), _) => Some(fixed.clone()),
            (None, "") => named,
            (None, endpoint) => Some(endpoint.to_owned()),
        };
        let chosen = chosen.ok_or_else(|| {
            Problem::new(ErrorCode::StorageUnavailable, "no gateway is known yet: the coordinator has to name one")
        })?;
        self.gateways.get(&chosen)
    }

    /// Asks for a fresh listing in the background.
    pub fn refresh_soon(&self) {
        self.wanted.notify_one();
    }

    /// Lists when asked and reads what it finds, until dropped.
    pub async fn run(&self) {
        let mut pause = Backoff::new(limits::STORAGE_PAUSE_FIRST * 5, limits::STORAGE_PAUSE_MAX * 5);
        loop {
            match self.refresh().await {
                Ok(()) => {
                    pause.reset();
                    let again = self.read_all().await;
                    tokio::select! {
                        () = self.wanted.notified() => {}
                        () = until(again) => {}
                    }
                }
                Err(problem) => {
                    let wait = pause.next_random();
                    if self.root.is_some() {
                        tracing::info!(reason = %problem, ?wait, "models can't be listed yet");
                    }
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = self.wanted.notified() => {}
                    }
                }
            }
        }
    }

    /// Lists the location anew. What didn't change stays known.
    ///
    /// # Errors
    /// What the gateway or the system said.
    pub async fn refresh(&self) -> Result<(), Problem> {
        self.list_anew().await?;
        Ok(())
    }

    /// As [`Catalogue::refresh`]. Says whether anything is another than before.
    async fn list_anew(&self) -> Result<bool, Problem> {
        let (files, root_name) = match &self.root {
            None => (Vec::new(), String::new()),
            Some(ModelsRoot::Directory(root)) => {
                let path = root.clone();
                let listed = fetch::blocking(move || walk(&path)).await.map_err(|problem| {
                    Problem::new(ErrorCode::ObjectNotFound, format!("models {}: {}", root.display(), problem.message))
                })?;
                (listed, root.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default())
            }
            Some(ModelsRoot::Object(root)) => {
                let name = if root.path.is_root() { root.export.as_bytes() } else { root.path.file_name() };
                (self.list(root).await?, String::from_utf8_lossy(name).into_owned())
            }
        };
        let folders = find(&files, &root_name, |names| self.engine.files(names));
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *entries);
        for folder in folders {
            let entry = match before.get(&folder.name) {
                Some(entry) if entry.folder == folder => Arc::clone(entry),
                _ => Arc::new(Entry::new(folder)),
            };
            entries.insert(entry.folder.name.clone(), entry);
        }
        let same = before.len() == entries.len()
            && before.iter().all(|(name, entry)| entries.get(name).is_some_and(|now| Arc::ptr_eq(now, entry)));
        drop(entries);
        if !same {
            self.changed.notify_one();
        }
        Ok(!same)
    }

    async fn list(&self, root: &Object) -> Result<Vec<FileStamp>, Problem> {
        let gateway = self.gateway("")?;
        let mut files = Vec::new();
        let mut open = vec![(root.clone(), String::new(), 0usize)];
        let mut left = limits::MODELS_ENTRIES;
        while let Some((directory, prefix, depth)) = open.pop() {
            let entries = gateway.list(&v1::ObjectRef::from(&directory), limits::MODELS_ENTRIES).await?;
            for entry in entries {
                left = left.saturating_sub(1);
                if left == 0 {
                    return Ok(files);
                }
                let (Ok(name), Some(attributes)) = (String::from_utf8(entry.name.to_vec()), entry.attributes) else {
                    continue;
                };
                // A name is one component; anything else is not a name.
                let Ok(path) = directory.path.join(name.as_bytes()) else { continue };
                if name.starts_with('.') || name.contains('/') || name.is_empty() {
                    continue;
                }
                let below = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
                match attributes.kind() {
                    v1::ObjectKind::Directory if depth <= limits::MODELS_DEPTH => {
                        open.push((Object { export: directory.export.clone(), path }, below, depth + 1));
                    }
                    v1::ObjectKind::File => {
                        files.push(FileStamp { name: below, size: attributes.size, mtime_ns: attributes.mtime_ns });
                    }
                    _ => {}
                }
            }
        }
        files.sort();
        Ok(files)
    }

    /// Reads every model that isn't known yet, one after another, smallest first. Says when those that couldn't be read are
    /// due again.
    async fn read_all(&self) -> Option<Instant> {
        let mut entries: Vec<Arc<Entry>> =
            self.entries.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        entries.sort_by_key(|entry| entry.folder.bytes());
        for entry in &entries {
            let due = match &*entry.known() {
                Known::Not => true,
                Known::Later(_, at) => *at <= Instant::now(),
                // One that was here and made room for others comes again when it is used.
                Known::Ready(_) | Known::Problem(..) => false,
            };
            if due
                && let Err(problem) = self.read(entry, false).await
                && problem.code != ErrorCode::ModelUnusable
            {
                tracing::info!(model = %entry.folder.name, reason = %problem, "a model can't be read now; trying again");
            }
        }
        let again = |entry: &Arc<Entry>| match &*entry.known() {
            Known::Later(_, at) => Some(*at),
            _ => None,
        };
        entries.iter().filter_map(again).min()
    }

    /// A model by name, read now if it isn't here. With a digest, that very content.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`, `MODEL_UNUSABLE`, `OVERLOADED` if the cache has no room for it now, or what storage said.
    pub async fn ready(&self, name: &str, digest: Option<Digest>) -> Result<Arc<ReadyModel>, Problem> {
        self.pinned(name, digest).await.map(|(model, _)| model)
    }

    /// As [`Catalogue::ready`]; its files stay here while the pin lives.
    pub(crate) async fn pinned(&self, name: &str, digest: Option<Digest>) -> Result<(Arc<ReadyModel>, Pin), Problem> {
        let mut listed_again = false;
        loop {
            let entry = self.entries.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
            let outcome = match entry {
                Some(entry) => self.read(&entry, true).await,
                None => Err(Problem::new(ErrorCode::ModelNotFound, format!("this node sees no model `{name}`"))),
            };
            let outdated = match (&outcome, digest) {
                (Ok((model, _)), Some(wanted)) => model.digest != wanted,
                (Ok(_), None) => false,
                (Err(problem), _) => matches!(
                    problem.code,
                    ErrorCode::ModelNotFound | ErrorCode::ObjectNotFound | ErrorCode::ObjectChanged
                ),
            };
            if !outdated {
                return outcome;
            }
            if !listed_again {
                listed_again = true;
                if self.list_anew().await? {
                    // Others that are new are read in the background.
                    self.refresh_soon();
                }
                continue;
            }
            return outcome.and_then(|(model, _)| {
                Err(Problem::new(
                    ErrorCode::ModelNotFound,
                    format!(
                        "model `{name}` is {} here and {} was asked for: its files changed; submit the job again",
                        model.digest.hex(),
                        digest.unwrap_or(model.digest).hex()
                    ),
                ))
            });
        }
    }

    /// Whether a model is what its name stands for now.
    pub(crate) fn is_current(&self, model: &Arc<ReadyModel>) -> bool {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get(&model.name);
        entry.is_some_and(|entry| matches!(&*entry.known(), Known::Ready(now) if Arc::ptr_eq(now, model)))
    }

    /// `asked` is for work that waits: what may pass is then tried before its time.
    async fn read(&self, entry: &Entry, asked: bool) -> Result<(Arc<ReadyModel>, Pin), Problem> {
        let mut pause = entry.reading.lock().await;
        let known = entry.known().clone();
        match known {
            Known::Ready(model) => {
                if let Some(pin) = self.still_here(&model) {
                    return Ok((model, pin));
                }
            }
            Known::Problem(_, reason) => return Err(entry.said(Problem::new(ErrorCode::ModelUnusable, reason))),
            Known::Later(problem, at) if Instant::now() < at && !(asked && problem.retryable()) => {
                return Err(entry.said(problem));
            }
            Known::Not | Known::Later(..) => {}
        }
        let Files { digest, dir, pin } = match self.bring(entry).await {
            Ok(files) => files,
            Err(problem) if problem.code == ErrorCode::ModelDoesNotFit => {
                return Err(self.unusable(entry, None, &problem.message));
            }
            Err(problem) => {
                if asked {
                    self.refresh_soon();
                }
                return Err(self.later(entry, problem, pause.next_random()));
            }
        };
        pause.reset();
        let (engine, at) = (Arc::clone(&self.engine), dir.clone());
        let inspected = tokio::task::spawn_blocking(move || engine.inspect(&at)).await;
        let card = match inspected {
            Ok(Ok(card)) => card,
            Ok(Err(error)) => return Err(self.unusable(entry, Some(digest), &error.to_string())),
            Err(_) => return Err(self.unusable(entry, Some(digest), "the engine panicked over its headers")),
        };
        let model = Arc::new(ReadyModel { name: entry.folder.name.clone(), digest, dir, card });
        *entry.known() = Known::Ready(Arc::clone(&model));
        tracing::info!(model = %model.name, digest = ?model.digest, "a model is here");
        self.changed.notify_one();
        Ok((model, pin))
    }

    fn later(&self, entry: &Entry, problem: Problem, wait: Duration) -> Problem {
        *entry.known() = Known::Later(problem.clone(), Instant::now() + wait);
        self.changed.notify_one();
        entry.said(problem)
    }

    fn unusable(&self, entry: &Entry, digest: Option<Digest>, reason: &str) -> Problem {
        *entry.known() = Known::Problem(digest, reason.to_owned());
        self.changed.notify_one();
        entry.said(Problem::new(ErrorCode::ModelUnusable, reason))
    }

    /// Keeps a model's files here; `None` if they made room for others.
    fn still_here(&self, model: &ReadyModel) -> Option<Pin> {
        match &self.root {
            Some(ModelsRoot::Object(_)) => self.cache.pin(model.digest).map(|(_, pin)| pin),
            _ => Some(Pin::default()),
        }
    }

    /// Makes a model's files lie in a local directory.
    async fn bring(&self, entry: &Entry) -> Result<Files, Problem> {
        let folder = &entry.folder;
        match &self.root {
            Some(ModelsRoot::Directory(root)) => {
                let dir = root.join(&folder.path);
                let origin = format!("file://{}", dir.display());
                let (cache, files, at) = (Arc::clone(&self.cache), folder.files.clone(), dir.clone());
                let read = tokio::task::spawn_blocking(move || {
                    if let Some(digest) = cache.known(&origin, &files) {
                        return Ok(digest);
                    }
                    let hash = |stamp: &FileStamp| fetch::hash_local(&at.join(&stamp.name), stamp);
                    let digest = model_digest(&files.iter().map(hash).collect::<Result<Vec<_>, Problem>>()?);
                    cache.remember(&origin, &files, digest);
                    Ok::<_, Problem>(digest)
                });
                let digest = read
                    .await
                    .map_err(|error| Problem::new(ErrorCode::Internal, format!("hashing panicked: {error}")))??;
                Ok(Files { digest, dir, pin: Pin::default() })
            }
            Some(ModelsRoot::Object(root)) => {
                let base = Object { export: root.export.clone(), path: root.path.join(folder.path.as_bytes())? };
                self.copies.bring(&self.gateway("")?, &base, folder).await
            }
            None => Err(Problem::new(ErrorCode::ModelNotFound, "no location of models is configured")),
        }
    }

    /// Whether models are copies of this node's own: a directory of the machine may be read by others too.
    #[must_use]
    pub fn has_copies(&self) -> bool {
        matches!(self.root, Some(ModelsRoot::Object(_)))
    }

    /// Whether a model's files are on their way here.
    #[must_use]
    pub fn is_fetching(&self) -> bool {
        self.copies.any()
    }

    /// What the coordinator is told: every model whose headers are known, those that can't be used with the reason, and
    /// those that are on their way or will be, by name alone.
    #[must_use]
    pub fn infos(&self) -> Vec<v1::ModelInfo> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.values().map(|entry| self.told(entry)).collect()
    }

    fn told(&self, entry: &Entry) -> v1::ModelInfo {
        let fetch = self.copies.fetch_of(&entry.folder.name);
        let (digest, problem) = match &*entry.known() {
            Known::Ready(model) if fetch.is_none() => return info(model, self.context),
            Known::Problem(digest, problem) => (*digest, problem.clone()),
            // What passes by itself is nobody's concern but ours.
            Known::Later(problem, _) if fetch.is_none() && !problem.retryable() => (None, problem.message.clone()),
            Known::Not | Known::Later(..) | Known::Ready(_) => (None, String::new()),
        };
        let digest = digest.map(Digest::to_wire).unwrap_or_default();
        v1::ModelInfo {
            model: Some(v1::ModelRef { name: entry.folder.name.clone(), digest }),
            weight_bytes: entry.folder.bytes(),
            fetch: fetch.filter(|_| problem.is_empty()),
            problem,
            ..Default::default()
        }
    }
}

/// Sleeps until then, or without end.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// What the node can do with a model.
fn info(model: &ReadyModel, context: u32) -> v1::ModelInfo {
    let card = &model.card;
    let kind = match card.task {
        Task::Embed => v1::JobKind::Embed,
        Task::Generate => v1::JobKind::Generate,
        Task::Ocr => v1::JobKind::Ocr,
    };
    v1::ModelInfo {
        model: Some(v1::ModelRef { name: model.name.clone(), digest: model.digest.to_wire() }),
        kind: kind.into(),
        architecture: card.architecture.clone(),
        quantisation: card.quantisation.clone(),
        parameters: card.parameters,
        weight_bytes: card.weight_bytes,
        bytes_per_token: card.bytes_per_token,
        kv_bytes_per_token: card.kv_bytes_per_token,
        context: card.context.min(context),
        dimensions: card.dimensions,
        layers: card.layers,
        width: card.width,
        problem: String::new(),
        fetch: None,
    }
}
