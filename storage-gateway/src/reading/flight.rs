//! Single flight: who wants a piece that is being fetched waits for that fetch.
//!
//! A fetch runs on a task of its own: it holds calls to the NAS and locks of an export, which must not stay taken because
//! whoever asked takes nothing at the moment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use crate::cache::Key;
use crate::export::ExportError;

/// What a fetch comes to.
type Outcome = Result<Bytes, ExportError>;
type Fetch = BoxFuture<'static, Outcome>;

/// Fetches that nobody waits for any more are forgotten when there are this many.
const SWEPT_AT: usize = 1024;

/// Runs work on a task that ends with the answer: nobody who waits has to drive it, and nobody who leaves keeps it going.
#[allow(clippy::disallowed_methods, reason = "the handle owns the task, and ends it when dropped")]
pub(super) fn apart<T: Send + 'static>(
    work: impl Future<Output = Result<T, ExportError>> + Send + 'static,
) -> impl Future<Output = Result<T, ExportError>> + Send + 'static {
    let task = AbortOnDropHandle::new(tokio::spawn(work.in_current_span()));
    async move { task.await.unwrap_or_else(|error| Err(ExportError::Unavailable(format!("a read ended: {error}")))) }
}

/// Fetches under way. Clones share them.
#[derive(Clone, Default)]
pub struct Flights {
    under_way: Arc<Mutex<HashMap<Key, WeakShared<Fetch>>>>,
}

impl Flights {
    /// Joins the fetch of a piece, or begins it. It goes on while anybody waits for it.
    /// Answers whether it was joined, too: then the failure may be another user's.
    pub fn join(&self, key: Key, fetch: impl FnOnce() -> Fetch) -> (Shared<Fetch>, bool) {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = under_way.get(&key).and_then(WeakShared::upgrade)
            && shared.peek().is_none()
        {
            return (shared, true);
        }
        if under_way.len() >= SWEPT_AT {
            under_way.retain(|_, fetch| fetch.upgrade().is_some_and(|fetch| fetch.peek().is_none()));
        }
        let shared = apart(fetch()).boxed().shared();
        if let Some(weak) = shared.downgrade() {
            under_way.insert(key, weak);
        }
        (shared, false)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn many_who_want_a_piece_make_one_fetch() {
        let (flights, fetched) = (Flights::default(), Arc::new(AtomicUsize::new(0)));
        let key = Key { file: [1; 16], piece: 0 };
        let ask = || {
            let counted = Arc::clone(&fetched);
            flights.join(key, move || {
                async move {
                    counted.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Ok(Bytes::from_static(b"piece"))
                }
                .boxed()
            })
        };
        // The first leaves before it is there: those who joined go on with it.
        let (leaving, _) = ask();
        let leaves = tokio::time::timeout(Duration::from_millis(1), leaving);
        let (waiting, joined): (Vec<_>, Vec<_>) = (0..50).map(|_| ask()).unzip();
        assert!(leaves.await.is_err());
        assert!(joined.iter().all(|joined| *joined));
        for outcome in futures::future::join_all(waiting).await {
            assert_eq!(outcome, Ok(Bytes::from_static(b"piece")));
        }
        assert_eq!(fetched.load(Ordering::Relaxed), 1);
        assert_eq!(ask().0.await, Ok(Bytes::from_static(b"piece")));
        assert_eq!(fetched.load(Ordering::Relaxed), 2, "one that ended is not joined: caching is not its business");
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_forgotten() {
        let flights = Flights::default();
        for piece in 0..5000 {
            let _ = flights.join(Key { file: [1; 16], piece }, || futures::future::pending().boxed());
        }
        assert!(flights.under_way.lock().expect("no panic").len() <= SWEPT_AT);
    }
}
