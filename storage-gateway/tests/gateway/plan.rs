//! A wrapper that stops at a chosen call, as a crash would, and lets a person act before a chosen call.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use ingle_gateway::export::{Abilities, Attr, Entry, Export, ExportError, Replace};
use ingle_proto::ObjectPath;

use crate::share::Share;

/// How the last call before the crash ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It was never done.
    NotDone,
    /// It was done, and nobody was told.
    ReplyLost,
}

type Act = Box<dyn FnOnce(&dyn Share) + Send>;

#[derive(Default)]
struct Counters {
    calls: u64,
    changes: u64,
    crash: Option<(u64, Ending)>,
    dead: bool,
    acts: Vec<(u64, Act)>,
}

/// What is to happen, shared by all exports of one gateway.
#[derive(Clone, Default)]
pub(crate) struct Plan(Arc<Mutex<Counters>>);

impl Plan {
    /// Stops at the `nth` changing call from now.
    pub(crate) fn crash_at(&self, nth: u64, ending: Ending) {
        let mut counters = self.0.lock().unwrap();
        counters.crash = Some((counters.changes + nth, ending));
    }

    /// Acts before the `nth` call from now.
    pub(crate) fn act_at(&self, nth: u64, act: impl FnOnce(&dyn Share) + Send + 'static) {
        let mut counters = self.0.lock().unwrap();
        let at = counters.calls + nth;
        counters.acts.push((at, Box::new(act)));
    }

    pub(crate) fn crashed(&self) -> bool {
        self.0.lock().unwrap().dead
    }

    /// Whether everybody has acted.
    pub(crate) fn acted(&self) -> bool {
        self.0.lock().unwrap().acts.is_empty()
    }
}

/// See the module.
pub(crate) struct Planned {
    pub(crate) inner: Arc<dyn Export>,
    /// Whom people act on: the export with the place.
    pub(crate) people_at: Arc<dyn Share>,
    pub(crate) plan: Plan,
}

fn dead() -> ExportError {
    ExportError::Unavailable("crashed".into())
}

impl Planned {
    /// `uncloseable`: the one gap of exports without links, between a look at a placeholder and the RENAME over it.
    fn before(&self, uncloseable: bool) -> Result<(), ExportError> {
        let acts = {
            let mut counters = self.plan.0.lock().unwrap();
            if counters.dead {
                return Err(dead());
            }
            let now = counters.calls;
            counters.calls += 1;
            if uncloseable {
                // They act one call later.
                for (at, _) in &mut counters.acts {
                    *at = (*at).max(now + 1);
                }
            }
            let (due, later) = std::mem::take(&mut counters.acts).into_iter().partition(|(at, _)| *at <= now);
            counters.acts = later;
            due
        };
        for (_, act) in acts as Vec<(u64, Act)> {
            act(&*self.people_at);
        }
        Ok(())
    }

    async fn change<T>(
        &self,
        uncloseable: bool,
        work: impl Future<Output = Result<T, ExportError>>,
    ) -> Result<T, ExportError> {
        self.before(uncloseable)?;
        let ending = {
            let mut counters = self.plan.0.lock().unwrap();
            let now = counters.changes;
            counters.changes += 1;
            match counters.crash {
                Some((at, ending)) if at == now => {
                    counters.dead = true;
                    Some(ending)
                }
                _ => None,
            }
        };
        match ending {
            None => work.await,
            Some(Ending::NotDone) => Err(dead()),
            Some(Ending::ReplyLost) => {
                let _ = work.await;
                Err(dead())
            }
        }
    }
}

#[async_trait]
impl Export for Planned {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn abilities(&self) -> Result<Abilities, ExportError> {
        self.inner.abilities().await
    }

    async fn stat(&self, path: &ObjectPath) -> Result<Attr, ExportError> {
        self.before(false)?;
        self.inner.stat(path).await
    }

    async fn list(&self, path: &ObjectPath, limit: usize) -> Result<Vec<Entry>, ExportError> {
        self.before(false)?;
        self.inner.list(path, limit).await
    }

    async fn read_at(&self, path: &ObjectPath, offset: u64, length: u32) -> Result<Bytes, ExportError> {
        self.before(false)?;
        self.inner.read_at(path, offset, length).await
    }

    async fn create(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.change(false, self.inner.create(path)).await
    }

    async fn write_at(&self, path: &ObjectPath, offset: u64, data: Bytes) -> Result<(), ExportError> {
        self.change(false, self.inner.write_at(path, offset, data)).await
    }

    async fn commit(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.change(false, self.inner.commit(path)).await
    }

    async fn link(&self, from: &ObjectPath, to: &ObjectPath) -> Result<(), ExportError> {
        self.change(false, self.inner.link(from, to)).await
    }

    async fn rename(&self, from: &ObjectPath, to: &ObjectPath, replace: Replace) -> Result<(), ExportError> {
        self.change(replace == Replace::Anything, self.inner.rename(from, to, replace)).await
    }

    async fn remove(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.change(false, self.inner.remove(path)).await
    }

    async fn make_directory(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.change(false, self.inner.make_directory(path)).await
    }

    async fn remove_directory(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.change(false, self.inner.remove_directory(path)).await
    }
}
