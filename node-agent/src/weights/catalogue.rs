//! The models this node sees: listed on request, read in the background, known by digest and card once they are here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use ingle_engine::{Engine, ModelCard, Task};
use ingle_proto::storage::Object;
use ingle_proto::v1;
use ingle_proto::{Digest, ErrorCode, Problem};
use tokio::sync::Notify;

use super::cache::Cache;
use super::fetch::Progress;
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
    Not,
    Ready(Arc<ReadyModel>),
    Problem(Option<Digest>, String),
}

struct Entry {
    folder: Folder,
    known: Mutex<Known>,
    /// One reader at a time.
    reading: tokio::sync::Mutex<()>,
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
    pub changed: Notify,
    /// Models in use: the cache must keep them.
    pinned: Mutex<Vec<Digest>>,
    /// Copies under way, by model.
    copies: Mutex<BTreeMap<String, Arc<Progress>>>,
}

/// A copy under way, until dropped.
struct Fetching<'a> {
    catalogue: &'a Catalogue,
    model: String,
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        self.catalogue.copies.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.model);
        self.catalogue.changed.notify_one();
    }
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
        Self {
            root,
            engine,
            cache,
            gateways,
            gateway: Mutex::new(fixed_gateway.clone()),
            fixed_gateway,
            context,
            entries: Mutex::default(),
            wanted: Notify::new(),
            changed: Notify::new(),
            pinned: Mutex::default(),
            copies: Mutex::default(),
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
        let mut pause =
            ingle_daemon::backoff::Backoff::new(limits::STORAGE_PAUSE_FIRST * 5, limits::STORAGE_PAUSE_MAX * 5);
        loop {
            match self.refresh().await {
                Ok(()) => {
                    pause.reset();
                    self.read_all().await;
                    self.wanted.notified().await;
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
                _ => Arc::new(Entry { folder, known: Mutex::new(Known::Not), reading: tokio::sync::Mutex::default() }),
            };
            entries.insert(entry.folder.name.clone(), entry);
        }
        let same = before.len() == entries.len()
            && before.iter().all(|(name, entry)| entries.get(name).is_some_and(|now| Arc::ptr_eq(now, entry)));
        drop(entries);
        if !same {
            self.changed.notify_one();
        }
        Ok(())
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

    /// Reads every model that isn't known yet, one after another, smallest first.
    async fn read_all(&self) {
        let mut entries: Vec<Arc<Entry>> =
            self.entries.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        entries.sort_by_key(|entry| entry.folder.bytes());
        for entry in entries {
            // One that was here and made room for others comes again when it is used.
            if matches!(*entry.known.lock().unwrap_or_else(PoisonError::into_inner), Known::Ready(_)) {
                continue;
            }
            if let Err(problem) = self.read(&entry).await
                && problem.retryable()
            {
                tracing::info!(model = %entry.folder.name, reason = %problem, "a model can't be read now; trying again");
                self.refresh_soon();
                tokio::time::sleep(limits::STORAGE_PAUSE_MAX).await;
            }
        }
    }

    /// A model by name, read now if it isn't here. With a digest, that very content.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`, `MODEL_UNUSABLE`, or what storage said.
    pub async fn ready(&self, name: &str, digest: Option<Digest>) -> Result<Arc<ReadyModel>, Problem> {
        let mut listed_again = false;
        loop {
            let entry = self.entries.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
            let outcome = match entry {
                Some(entry) => self.read(&entry).await,
                None => Err(Problem::new(ErrorCode::ModelNotFound, format!("this node sees no model `{name}`"))),
            };
            let wrong = match (&outcome, digest) {
                (Ok(model), Some(wanted)) => model.digest != wanted,
                (Ok(_), None) => false,
                (Err(problem), _) => problem.code == ErrorCode::ModelNotFound,
            };
            if !wrong {
                return outcome;
            }
            if !listed_again {
                listed_again = true;
                self.refresh().await?;
                continue;
            }
            return outcome.and_then(|model| {
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

    async fn read(&self, entry: &Entry) -> Result<Arc<ReadyModel>, Problem> {
        let _reading = entry.reading.lock().await;
        let known = entry.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match known {
            Known::Ready(model) if self.still_here(&model) => return Ok(model),
            Known::Problem(_, reason) => return Err(Problem::new(ErrorCode::ModelUnusable, reason)),
            _ => {}
        }
        let (digest, dir) = match self.bring(entry).await {
            Ok(brought) => brought,
            Err(problem) if problem.retryable() || problem.code == ErrorCode::ObjectNotFound => return Err(problem),
            Err(problem) => return Err(self.unusable(entry, None, &problem.message)),
        };
        let (engine, at) = (Arc::clone(&self.engine), dir.clone());
        let inspected = tokio::task::spawn_blocking(move || engine.inspect(&at)).await;
        let card = match inspected {
            Ok(Ok(card)) => card,
            Ok(Err(error)) => return Err(self.unusable(entry, Some(digest), &error.to_string())),
            Err(_) => return Err(self.unusable(entry, Some(digest), "the engine panicked over its headers")),
        };
        let model = Arc::new(ReadyModel { name: entry.folder.name.clone(), digest, dir, card });
        *entry.known.lock().unwrap_or_else(PoisonError::into_inner) = Known::Ready(Arc::clone(&model));
        tracing::info!(model = %model.name, digest = ?model.digest, "a model is here");
        self.changed.notify_one();
        Ok(model)
    }

    fn unusable(&self, entry: &Entry, digest: Option<Digest>, reason: &str) -> Problem {
        *entry.known.lock().unwrap_or_else(PoisonError::into_inner) = Known::Problem(digest, reason.to_owned());
        self.changed.notify_one();
        Problem::new(ErrorCode::ModelUnusable, format!("model `{}`: {reason}", entry.folder.name))
    }

    fn still_here(&self, model: &ReadyModel) -> bool {
        match &self.root {
            Some(ModelsRoot::Object(_)) => self.cache.get(&model.digest).is_some(),
            _ => true,
        }
    }

    /// Makes a model's files lie in a local directory; answers its digest.
    async fn bring(&self, entry: &Entry) -> Result<(Digest, PathBuf), Problem> {
        let folder = &entry.folder;
        match &self.root {
            Some(ModelsRoot::Directory(root)) => {
                let dir = root.join(&folder.path);
                let origin = format!("file://{}", dir.display());
                if let Some(digest) = self.cache.known(&origin, &folder.files) {
                    return Ok((digest, dir));
                }
                let (files, at) = (folder.files.clone(), dir.clone());
                let hashed = tokio::task::spawn_blocking(move || {
                    files
                        .iter()
                        .map(|stamp| fetch::hash_local(&at.join(&stamp.name), stamp))
                        .collect::<Result<Vec<_>, _>>()
                })
                .await
                .map_err(|error| Problem::new(ErrorCode::Internal, format!("hashing panicked: {error}")))?;
                let digest = model_digest(&hashed?);
                self.cache.remember(&origin, &folder.files, digest);
                Ok((digest, dir))
            }
            Some(ModelsRoot::Object(root)) => self.copy(root, folder).await,
            None => Err(Problem::new(ErrorCode::ModelNotFound, "no location of models is configured")),
        }
    }

    async fn copy(&self, root: &Object, folder: &Folder) -> Result<(Digest, PathBuf), Problem> {
        let base = Object { export: root.export.clone(), path: root.path.join(folder.path.as_bytes())? };
        let origin = base.to_string();
        if let Some(digest) = self.cache.known(&origin, &folder.files)
            && let Some(dir) = self.cache.get(&digest)
        {
            if self.verified(&dir, folder, digest).await {
                return Ok((digest, dir));
            }
            tracing::warn!(model = %folder.name, "cached files are damaged; reading them again");
            self.cache.drop_damaged(&digest);
        }
        if folder.bytes() > self.cache.bytes_max() {
            return Err(Problem::new(
                ErrorCode::ModelDoesNotFit,
                format!("its {} bytes are more than cache_bytes_max = {}", folder.bytes(), self.cache.bytes_max()),
            ));
        }
        let gateway = self.gateway("")?;
        let made = self.cache.incoming();
        let progress = Progress::begin(folder.bytes());
        let fetching = self.fetching(&folder.name, &progress);
        let copied = self.copy_files(&gateway, &base, folder, &made, &progress).await;
        drop(fetching);
        let files = match copied {
            Ok(files) => files,
            Err(problem) => {
                let _ = tokio::fs::remove_dir_all(&made).await;
                return Err(problem);
            }
        };
        let digest = model_digest(&files);
        let (cache, bytes) = (Arc::clone(&self.cache), folder.bytes());
        let pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let dir = fetch::blocking(move || cache.put(&made, &digest, bytes, &pinned)).await?;
        self.cache.remember(&origin, &folder.files, digest);
        Ok((digest, dir))
    }

    async fn copy_files(
        &self,
        gateway: &Gateway,
        base: &Object,
        folder: &Folder,
        made: &std::path::Path,
        progress: &Progress,
    ) -> Result<Vec<super::FileDigest>, Problem> {
        let mut files = Vec::new();
        for stamp in &folder.files {
            let object = Object { export: base.export.clone(), path: base.path.join(stamp.name.as_bytes())? };
            let target = made.join(&stamp.name);
            if let Some(parent) = target.parent().map(std::path::Path::to_owned) {
                fetch::blocking(move || std::fs::create_dir_all(parent)).await?;
            }
            files.push(fetch::file(gateway, &v1::ObjectRef::from(&object), stamp, &target, progress).await?);
        }
        Ok(files)
    }

    /// Whether cached files still are what their digest says: disks rot, and people clean up.
    async fn verified(&self, dir: &std::path::Path, folder: &Folder, digest: Digest) -> bool {
        let (dir, files) = (dir.to_owned(), folder.files.clone());
        let hashed = tokio::task::spawn_blocking(move || {
            let hash = |stamp: &FileStamp| {
                let (digest, size) = super::hash::file(&dir.join(&stamp.name)).ok()?;
                Some(super::FileDigest { name: stamp.name.clone(), size, digest })
            };
            files.iter().map(hash).collect::<Option<Vec<_>>>()
        })
        .await;
        matches!(hashed, Ok(Some(files)) if model_digest(&files) == digest)
    }

    fn fetching(&self, model: &str, progress: &Arc<Progress>) -> Fetching<'_> {
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        copies.insert(model.to_owned(), Arc::clone(progress));
        self.changed.notify_one();
        Fetching { catalogue: self, model: model.to_owned() }
    }

    /// Whether models are copies of this node's own: a directory of the machine may be read by others too.
    #[must_use]
    pub fn has_copies(&self) -> bool {
        matches!(self.root, Some(ModelsRoot::Object(_)))
    }

    /// Whether a model's files are on their way here.
    #[must_use]
    pub fn is_fetching(&self) -> bool {
        !self.copies.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn fetch_of(&self, model: &str) -> Option<v1::ModelFetch> {
        let copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        let (bytes, bytes_total, bytes_per_second) = copies.get(model)?.told();
        Some(v1::ModelFetch { bytes, bytes_total, bytes_per_second })
    }

    /// Models in use now; the cache keeps them.
    pub fn pin(&self, digests: Vec<Digest>) {
        *self.pinned.lock().unwrap_or_else(PoisonError::into_inner) = digests;
    }

    /// What the coordinator is told: every model whose headers are known, those that can't be used with the reason, and
    /// those whose files are on their way.
    #[must_use]
    pub fn infos(&self) -> Vec<v1::ModelInfo> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries
            .values()
            .filter_map(|entry| match &*entry.known.lock().unwrap_or_else(PoisonError::into_inner) {
                Known::Not => self.fetch_of(&entry.folder.name).map(|fetch| v1::ModelInfo {
                    model: Some(v1::ModelRef { name: entry.folder.name.clone(), ..Default::default() }),
                    weight_bytes: entry.folder.bytes(),
                    fetch: Some(fetch),
                    ..Default::default()
                }),
                Known::Ready(model) => Some(info(model, self.context)),
                Known::Problem(digest, problem) => Some(v1::ModelInfo {
                    model: Some(v1::ModelRef {
                        name: entry.folder.name.clone(),
                        digest: digest.map(Digest::to_wire).unwrap_or_default(),
                    }),
                    weight_bytes: entry.folder.bytes(),
                    problem: problem.clone(),
                    ..Default::default()
                }),
            })
            .collect()
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
