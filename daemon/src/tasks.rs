//! Tasks that have a name, an owner, and a stated consequence of failing.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tracing::Instrument as _;

use crate::{BoxError, Shutdown};

/// What a task's failure (an error or a panic) does to the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// The process can't do its job without it: begin shutdown, end with 1.
    Shutdown,
    /// Say so and go on.
    Log,
}

#[derive(Default)]
struct Inner {
    next: AtomicU64,
    /// The handle is missing for the moment between filing a task and starting it.
    running: Mutex<BTreeMap<u64, (&'static str, Option<AbortHandle>)>>,
    failed: Mutex<Option<String>>,
    ended: Notify,
}

/// Owns every task of a daemon. Clones share the same tasks.
#[derive(Clone)]
pub struct Tasks {
    inner: Arc<Inner>,
    shutdown: Shutdown,
}

impl Tasks {
    /// Tasks that may begin `shutdown` when they fail.
    #[must_use]
    pub fn new(shutdown: Shutdown) -> Self {
        Self { inner: Arc::default(), shutdown }
    }

    /// The token that tasks watch.
    #[must_use]
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// Starts a task on the current runtime. It ends by returning; a panic counts as a failure.
    pub fn spawn<F, E>(&self, name: &'static str, on_failure: OnFailure, work: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let (inner, shutdown) = (Arc::clone(&self.inner), self.shutdown.clone());
        let guard = Gone { id, inner: Arc::clone(&self.inner) };
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner).insert(id, (name, None));
        #[allow(clippy::disallowed_methods, reason = "this is the one place that owns what it spawns")]
        let handle = tokio::spawn(
            async move {
                let _guard = guard;
                let outcome = AssertUnwindSafe(work).catch_unwind().await;
                let reason = match outcome {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => describe(&*error.into()),
                    Err(panic) => format!("panicked: {}", panic_text(&*panic)),
                };
                match on_failure {
                    OnFailure::Log => tracing::warn!(task = name, %reason, "task failed; going on without it"),
                    OnFailure::Shutdown => {
                        tracing::error!(task = name, %reason, "task failed; stopping");
                        let mut failed = inner.failed.lock().unwrap_or_else(PoisonError::into_inner);
                        failed.get_or_insert_with(|| format!("{name}: {reason}"));
                        drop(failed);
                        shutdown.begin();
                    }
                }
            }
            .in_current_span(),
        );
        let mut running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, filed)) = running.get_mut(&id) {
            *filed = Some(handle.abort_handle());
        }
    }

    /// The first failure that ends the process, if any.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.inner.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Names of the tasks that run now.
    #[must_use]
    pub fn running(&self) -> Vec<&'static str> {
        let running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.values().map(|(name, _)| *name).collect()
    }

    /// Begins shutdown and waits for every task to return; those still there at the deadline are dropped where they
    /// wait, and named in the answer.
    pub async fn shutdown_all(&self, deadline: Duration) -> Vec<&'static str> {
        self.shutdown.begin();
        let wait = async {
            loop {
                let ended = self.inner.ended.notified();
                if self.running().is_empty() {
                    return;
                }
                ended.await;
            }
        };
        if tokio::time::timeout(deadline, wait).await.is_ok() {
            return Vec::new();
        }
        let running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        running
            .values()
            .map(|(name, handle)| {
                if let Some(handle) = handle {
                    handle.abort();
                }
                *name
            })
            .collect()
    }
}

/// Takes the task off the list however it ends.
struct Gone {
    id: u64,
    inner: Arc<Inner>,
}

impl Drop for Gone {
    fn drop(&mut self) {
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        self.inner.ended.notify_waiters();
    }
}

/// An error with its causes, in one line.
#[must_use]
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The words of a panic.
#[must_use]
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no words".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tasks() -> Tasks {
        Tasks::new(Shutdown::new())
    }

    #[tokio::test]
    async fn a_panic_is_a_failure_with_a_name() {
        let tasks = tasks();
        tasks.spawn("fragile", OnFailure::Shutdown, async {
            if tokio::task::yield_now().now_or_never().is_none() {
                panic!("of glass");
            }
            Ok::<(), BoxError>(())
        });
        tasks.shutdown().wait().await;
        assert_eq!(tasks.shutdown_all(Duration::from_secs(5)).await, Vec::<&str>::new());
        assert_eq!(tasks.failure().as_deref(), Some("fragile: panicked: of glass"));
    }

    #[tokio::test]
    async fn a_logged_failure_leaves_the_rest_running() {
        let tasks = tasks();
        tasks.spawn("optional", OnFailure::Log, async { Err::<(), _>(std::io::Error::other("gone")) });
        let stop = tasks.shutdown().wait();
        tasks.spawn("steady", OnFailure::Shutdown, async move {
            stop.await;
            Ok::<(), BoxError>(())
        });
        while tasks.running() != ["steady"] {
            tokio::task::yield_now().await;
        }
        assert!(!tasks.shutdown().begun());
        assert!(tasks.failure().is_none());
        assert!(tasks.shutdown_all(Duration::from_secs(5)).await.is_empty());
        assert!(tasks.running().is_empty());
    }

    #[tokio::test]
    async fn what_does_not_end_is_named() {
        let tasks = tasks();
        tasks.spawn("deaf", OnFailure::Log, futures::future::pending::<Result<(), BoxError>>());
        assert_eq!(tasks.shutdown_all(Duration::from_millis(20)).await, ["deaf"]);
        while !tasks.running().is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn causes_are_told_once() {
        let inner = std::io::Error::other("disk on fire");
        let outer = crate::config::ConfigError::invalid("x", &inner);
        assert_eq!(describe(&outer), "settings: `x`: disk on fire");
    }
}
