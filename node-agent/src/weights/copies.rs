//! Copies of models into the cache: one at a time of each, and one that has begun goes on, whoever still waits for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use futures::future::Shared;
use ingle_proto::storage::Object;
use ingle_proto::v1;
use ingle_proto::{Digest, ErrorCode, Problem};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::cache::{Cache, Pin};
use super::fetch::{self, Progress};
use super::folders::{FileStamp, Folder};
use super::{FileDigest, hash, model_digest};
use crate::storage::Gateway;

/// A model's files on this machine.
#[derive(Debug, Clone)]
pub(super) struct Files {
    /// The model's identity.
    pub(super) digest: Digest,
    /// Where they lie.
    pub(super) dir: PathBuf,
    /// Keeps them there.
    pub(super) pin: Pin,
}

/// Ends with the copy. Only those who wait hold what came of it.
type Ended = Shared<oneshot::Receiver<Result<Files, Problem>>>;

struct UnderWay {
    folder: Folder,
    /// Once bytes come.
    progress: Option<Arc<Progress>>,
    ended: Ended,
}

struct Inner {
    cache: Arc<Cache>,
    /// What is under way has changed.
    changed: Arc<Notify>,
    /// By model.
    under_way: Mutex<BTreeMap<String, UnderWay>>,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, UnderWay>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The copies under way. They end when this is dropped.
pub(super) struct Copies {
    inner: Arc<Inner>,
    tasks: Mutex<JoinSet<()>>,
}

impl Copies {
    /// None yet. `changed` hears of every beginning and end.
    pub(super) fn new(cache: Arc<Cache>, changed: Arc<Notify>) -> Self {
        let inner = Inner { cache, changed, under_way: Mutex::default() };
        Self { inner: Arc::new(inner), tasks: Mutex::default() }
    }

    /// A model's files in the cache, copied from `base` now if need be. Who drops this stops waiting, and no more.
    ///
    /// # Errors
    /// `MODEL_DOES_NOT_FIT` if the cache is too small, `OVERLOADED` if it has no room now; what the gateway or the local disk
    /// said.
    pub(super) async fn bring(&self, gateway: &Gateway, base: &Object, folder: &Folder) -> Result<Files, Problem> {
        loop {
            let (ended, this_one) = self.join(gateway, base, folder);
            let outcome = ended.await;
            // One of an older listing ends first: both would be the same model's.
            if this_one {
                return outcome.unwrap_or_else(|_| Err(Problem::new(ErrorCode::Internal, "copying it broke off")));
            }
        }
    }

    /// Joins the copy under way of this model, or begins one. Says whether it is of this very listing.
    fn join(&self, gateway: &Gateway, base: &Object, folder: &Folder) -> (Ended, bool) {
        let mut under_way = self.inner.lock();
        if let Some(other) = under_way.get(&folder.name) {
            return (other.ended.clone(), other.folder == *folder);
        }
        let (told, ended) = oneshot::channel();
        let ended = ended.shared();
        let copy = UnderWay { folder: folder.clone(), progress: None, ended: ended.clone() };
        under_way.insert(folder.name.clone(), copy);
        drop(under_way);
        let (gateway, base, folder) = (gateway.clone(), base.clone(), folder.clone());
        let copying = Copying { inner: Arc::clone(&self.inner), gateway, base, folder };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        let work = async move {
            let outcome = copying.run().await;
            // Nobody who hears of its end finds it still under way.
            drop(copying);
            let _nobody_waits = told.send(outcome);
        };
        // In the trace of whoever wanted it first: there its reads explain the waiting.
        tasks.spawn(work.in_current_span());
        (ended, true)
    }

    /// Whether bytes of any model are coming.
    pub(super) fn any(&self) -> bool {
        self.inner.lock().values().any(|copy| copy.progress.is_some())
    }

    /// How far a model's copy has come, if its bytes are coming.
    pub(super) fn fetch_of(&self, model: &str) -> Option<v1::ModelFetch> {
        let under_way = self.inner.lock();
        let (bytes, bytes_total, bytes_per_second) = under_way.get(model)?.progress.as_ref()?.told();
        Some(v1::ModelFetch { bytes, bytes_total, bytes_per_second })
    }
}

/// One copy; under way until it is dropped.
struct Copying {
    inner: Arc<Inner>,
    gateway: Gateway,
    base: Object,
    folder: Folder,
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.inner.lock().remove(&self.folder.name);
        self.inner.changed.notify_one();
    }
}

impl Copying {
    async fn run(&self) -> Result<Files, Problem> {
        if let Some(files) = self.cached().await? {
            return Ok(files);
        }
        let (bytes, bytes_max) = (self.folder.bytes(), self.inner.cache.bytes_max());
        if bytes > bytes_max {
            return Err(Problem::new(
                ErrorCode::ModelDoesNotFit,
                format!("its {bytes} bytes are more than cache_bytes_max = {bytes_max}"),
            ));
        }
        // Room first: what is kept and what is on its way never exceed the bound together.
        let cache = Arc::clone(&self.inner.cache);
        let incoming = fetch::blocking(move || cache.reserve(bytes)).await?;
        let progress = Progress::begin(bytes);
        if let Some(copy) = self.inner.lock().get_mut(&self.folder.name) {
            copy.progress = Some(Arc::clone(&progress));
        }
        self.inner.changed.notify_one();
        let read = self.read(incoming.dir(), &progress).await;
        let files = match read {
            Ok(files) => files,
            Err(problem) => {
                let _ = tokio::task::spawn_blocking(move || drop(incoming)).await;
                return Err(problem);
            }
        };
        let digest = model_digest(&files);
        let (cache, origin, stamps) = (Arc::clone(&self.inner.cache), self.base.to_string(), self.folder.files.clone());
        let (dir, pin) = fetch::blocking(move || {
            let kept = incoming.keep(digest)?;
            cache.remember(&origin, &stamps, digest);
            Ok(kept)
        })
        .await?;
        Ok(Files { digest, dir, pin })
    }

    /// Files that an earlier copy of this listing left, if they still are what they were.
    async fn cached(&self) -> Result<Option<Files>, Problem> {
        let cache = &self.inner.cache;
        let Some(digest) = cache.known(&self.base.to_string(), &self.folder.files) else { return Ok(None) };
        let Some((dir, pin)) = cache.pin(digest) else { return Ok(None) };
        if verified(&dir, &self.folder, digest).await {
            return Ok(Some(Files { digest, dir, pin }));
        }
        tracing::warn!(model = %self.folder.name, "cached files are damaged; reading them again");
        let cache = Arc::clone(cache);
        fetch::blocking(move || {
            cache.drop_damaged(&digest);
            Ok(None)
        })
        .await
    }

    async fn read(&self, made: &Path, progress: &Progress) -> Result<Vec<FileDigest>, Problem> {
        let mut files = Vec::new();
        for stamp in &self.folder.files {
            let path = self.base.path.join(stamp.name.as_bytes())?;
            let object = v1::ObjectRef::from(&Object { export: self.base.export.clone(), path });
            let target = made.join(&stamp.name);
            if let Some(parent) = target.parent().map(Path::to_owned) {
                fetch::blocking(move || std::fs::create_dir_all(parent)).await?;
            }
            files.push(fetch::file(&self.gateway, &object, stamp, &target, progress).await?);
        }
        Ok(files)
    }
}

/// Whether cached files still are what their digest says: disks rot, and people clean up.
async fn verified(dir: &Path, folder: &Folder, digest: Digest) -> bool {
    let (dir, files) = (dir.to_owned(), folder.files.clone());
    let hashed = tokio::task::spawn_blocking(move || {
        let hash = |stamp: &FileStamp| {
            let (digest, size) = hash::file(&dir.join(&stamp.name)).ok()?;
            Some(FileDigest { name: stamp.name.clone(), size, digest })
        };
        files.iter().map(hash).collect::<Option<Vec<_>>>()
    })
    .await;
    matches!(hashed, Ok(Some(files)) if model_digest(&files) == digest)
}
