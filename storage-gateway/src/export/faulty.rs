//! Seeded faults around any export: calls that fail, replies that get lost, delays, files that seem to have shrunk.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ingle_proto::ObjectPath;

use super::{Abilities, Attr, Entry, Export, ExportError, Replace};

/// What goes wrong, and how often: chances from 0 to 1, drawn anew for each call.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Of the random generator: the same seed and the same order of calls meet the same faults.
    pub seed: u64,
    /// The call isn't made, and fails as [`ExportError::Unavailable`].
    pub refused: f64,
    /// The call is made, and fails as [`ExportError::Unavailable`] all the same: its reply was lost.
    pub lost: f64,
    /// A read gives fewer bytes than there are, as of a file that shrank.
    pub truncated: f64,
    /// The call takes longer.
    pub delayed: f64,
    /// By at most so much.
    pub delay_max: Duration,
}

/// An export that something is wrong with.
pub struct Faulty {
    inner: Arc<dyn Export>,
    faults: Faults,
    random: Mutex<fastrand::Rng>,
}

/// What is drawn for one call.
struct Draw {
    refused: bool,
    lost: bool,
    /// Of the bytes read, this part is kept.
    kept: Option<f64>,
    delay: Duration,
}

impl Faulty {
    /// Puts faults around an export.
    #[must_use]
    pub fn new(inner: Arc<dyn Export>, faults: Faults) -> Self {
        let random = Mutex::new(fastrand::Rng::with_seed(faults.seed));
        Self { inner, faults, random }
    }

    /// Always draws the same number of times, so that one fault's chance doesn't shift another's.
    fn draw(&self) -> Draw {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let [refused, lost, truncated, kept, delayed, delay] = std::array::from_fn(|_| random.f64());
        Draw {
            refused: refused < self.faults.refused,
            lost: lost < self.faults.lost,
            kept: (truncated < self.faults.truncated).then_some(kept),
            delay: if delayed < self.faults.delayed { self.faults.delay_max.mul_f64(delay) } else { Duration::ZERO },
        }
    }

    /// Makes a call, or seems to, or seems not to.
    async fn call<T>(
        &self,
        path: &ObjectPath,
        made: impl Future<Output = Result<T, ExportError>> + Send,
    ) -> Result<(T, Draw), ExportError> {
        let draw = self.draw();
        if !draw.delay.is_zero() {
            tokio::time::sleep(draw.delay).await;
        }
        let fault = |what: &str| ExportError::Unavailable(format!("{}: {what} (injected)", path.display()));
        if draw.refused {
            return Err(fault("no connection"));
        }
        let answer = made.await;
        if draw.lost {
            return Err(fault("the reply was lost"));
        }
        answer.map(|value| (value, draw))
    }
}

#[async_trait]
impl Export for Faulty {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn abilities(&self) -> Result<Abilities, ExportError> {
        Ok(self.call(&ObjectPath::root(), self.inner.abilities()).await?.0)
    }

    async fn stat(&self, path: &ObjectPath) -> Result<Attr, ExportError> {
        Ok(self.call(path, self.inner.stat(path)).await?.0)
    }

    async fn list(&self, path: &ObjectPath, limit: usize) -> Result<Vec<Entry>, ExportError> {
        Ok(self.call(path, self.inner.list(path, limit)).await?.0)
    }

    async fn read_at(&self, path: &ObjectPath, offset: u64, length: u32) -> Result<Bytes, ExportError> {
        let (data, draw) = self.call(path, self.inner.read_at(path, offset, length)).await?;
        let Some(kept) = draw.kept else { return Ok(data) };
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let length = (data.len() as f64 * kept) as usize;
        Ok(data.slice(..length.min(data.len())))
    }

    async fn create(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.call(path, self.inner.create(path)).await.map(drop)
    }

    async fn write_at(&self, path: &ObjectPath, offset: u64, data: Bytes) -> Result<(), ExportError> {
        self.call(path, self.inner.write_at(path, offset, data)).await.map(drop)
    }

    async fn write_back(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.call(path, self.inner.write_back(path)).await.map(drop)
    }

    async fn commit(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.call(path, self.inner.commit(path)).await.map(drop)
    }

    async fn link(&self, from: &ObjectPath, to: &ObjectPath) -> Result<(), ExportError> {
        self.call(to, self.inner.link(from, to)).await.map(drop)
    }

    async fn rename(&self, from: &ObjectPath, to: &ObjectPath, replace: Replace) -> Result<(), ExportError> {
        self.call(to, self.inner.rename(from, to, replace)).await.map(drop)
    }

    async fn remove(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.call(path, self.inner.remove(path)).await.map(drop)
    }

    async fn make_directory(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.call(path, self.inner.make_directory(path)).await.map(drop)
    }

    async fn remove_directory(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.call(path, self.inner.remove_directory(path)).await.map(drop)
    }
}
