//! Documents of OCR calls while they are read: their parts lie in the state export and leave it with the call.
//!
//! Parts are named by their digest, so that equal parts of two calls are one file: it goes with the last call that needs it.
//! What a coordinator that died leaves behind goes by its age (the gateway's sweeper).

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use ingle_daemon::{OnFailure, Tasks};
use ingle_proto::{Digest, Problem, v1};
use tokio::sync::Mutex;

use crate::gateway::Gateway;

/// Parts whose digests begin alike wait for each other, so that none is removed while it is kept again.
const STRIPES: usize = 64;

/// Calls that need a part, by digest.
type Needed = HashMap<Digest, usize>;

/// Parts of documents of all calls.
pub(super) struct Documents {
    gateway: Gateway,
    tasks: Tasks,
    stripes: [Mutex<Needed>; STRIPES],
}

/// Parts of one call's document. They are removed when it is dropped.
pub(super) struct Document {
    all: Arc<Documents>,
    parts: Vec<v1::BlobRef>,
}

impl Documents {
    pub(super) fn new(gateway: Gateway, tasks: Tasks) -> Self {
        Self { gateway, tasks, stripes: std::array::from_fn(|_| Mutex::default()) }
    }

    fn stripe(&self, digest: Digest) -> &Mutex<Needed> {
        &self.stripes[usize::from(digest.0[0]) % STRIPES]
    }

    /// One of those who need a part needs it no more. A part that can't be removed is no longer counted either: the sweeper takes it.
    async fn forget(&self, part: v1::BlobRef) -> Result<(), Problem> {
        let digest = Digest::from_wire("digest", &part.digest)?;
        let mut needed = self.stripe(digest).lock().await;
        let left = needed.get(&digest).copied().unwrap_or(1) - 1;
        if left > 0 {
            needed.insert(digest, left);
            return Ok(());
        }
        needed.remove(&digest);
        // Still under the lock: nobody keeps it anew before it is gone.
        self.gateway.forget_part(part).await
    }
}

impl Document {
    pub(super) fn new(all: &Arc<Documents>) -> Self {
        Self { all: Arc::clone(all), parts: Vec::new() }
    }

    /// Keeps the next part.
    pub(super) async fn keep(&mut self, bytes: Bytes) -> Result<(), Problem> {
        let digest = Digest::of(&bytes);
        let mut needed = self.all.stripe(digest).lock().await;
        let part = self.all.gateway.put_part(bytes).await?;
        *needed.entry(digest).or_default() += 1;
        self.parts.push(part);
        Ok(())
    }

    /// All parts in order.
    pub(super) fn parts(&self) -> &[v1::BlobRef] {
        &self.parts
    }
}

impl Drop for Document {
    fn drop(&mut self) {
        let (all, parts) = (Arc::clone(&self.all), std::mem::take(&mut self.parts));
        if parts.is_empty() {
            return;
        }
        self.all.tasks.spawn("forget a document", OnFailure::Log, async move {
            for part in parts {
                if let Err(problem) = all.forget(part).await {
                    tracing::debug!(%problem, "a part of a call's document stays until it is swept");
                }
            }
            Ok::<_, std::convert::Infallible>(())
        });
    }
}
