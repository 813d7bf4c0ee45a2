//! Admission of reads: the NAS is the bottleneck, so reads open and bytes in memory are bounded per export, a bounded
//! number waits its turn for a bounded time, and the rest is told when to come back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ingle_proto::{ErrorCode, Problem};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::buffers::PIECE_BYTES;
use crate::limits::{Limits, READ_AHEAD_PIECES, READ_WAIT};

struct Gate {
    reads: Arc<Semaphore>,
    mib: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// See the module.
pub struct Admission {
    limits: Limits,
    wait: Duration,
    gates: Mutex<BTreeMap<String, Arc<Gate>>>,
}

/// Leave to read; given back when dropped.
pub struct Admitted {
    _read: OwnedSemaphorePermit,
    _mib: OwnedSemaphorePermit,
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Admission {
    /// With these caps.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self { limits: limits.clone(), wait: READ_WAIT, gates: Mutex::default() }
    }

    /// Waits for another time than usual.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    fn gate(&self, export: &str) -> Arc<Gate> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        let gate = gates.entry(export.to_owned()).or_insert_with(|| {
            Arc::new(Gate {
                reads: Arc::new(Semaphore::new(self.limits.reads_max)),
                mib: Arc::new(Semaphore::new(self.limits.read_mib_max)),
                waiting: AtomicUsize::new(0),
            })
        });
        Arc::clone(gate)
    }

    /// Waits for leave to read `bytes` from an export.
    ///
    /// # Errors
    /// `OVERLOADED` with when to come back.
    pub async fn enter(&self, export: &str, bytes: u64) -> Result<Admitted, Problem> {
        let gate = self.gate(export);
        let overloaded = |what: &str| {
            Problem::new(ErrorCode::Overloaded, format!("export {export:?} is busy: {what}; try again"))
                .retry_after(Duration::from_secs(1))
        };
        if gate.waiting.fetch_add(1, Ordering::Relaxed) >= self.limits.reads_waiting_max {
            gate.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(overloaded("too many reads wait"));
        }
        let _waiting = Waiting(&gate.waiting);
        // What a read holds at most: the pieces asked for ahead and a few on their way out.
        let pieces = bytes.div_ceil(PIECE_BYTES as u64).min(READ_AHEAD_PIECES as u64 + 4);
        let mib = u32::try_from((pieces * PIECE_BYTES as u64).div_ceil(1 << 20)).unwrap_or(1).max(1);
        let mib = mib.min(u32::try_from(self.limits.read_mib_max).unwrap_or(u32::MAX));
        let both = async {
            let read = Arc::clone(&gate.reads).acquire_owned().await.ok()?;
            let mib = Arc::clone(&gate.mib).acquire_many_owned(mib).await.ok()?;
            Some(Admitted { _read: read, _mib: mib })
        };
        match tokio::time::timeout(self.wait, both).await {
            Ok(Some(admitted)) => Ok(admitted),
            Ok(None) => Err(crate::publish::lost("the read")),
            Err(_) => Err(overloaded("all reads are taken")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn past_the_bound_a_read_is_told_when_to_come_back() {
        let limits = Limits { reads_max: 2, reads_waiting_max: 1, ..Limits::default() };
        let admission = Arc::new(Admission::new(&limits).wait(Duration::from_millis(50)));
        let first = admission.enter("a", 1).await.unwrap();
        let _second = admission.enter("a", 1).await.unwrap();
        // Another export has its own gate.
        let _other = admission.enter("b", 1).await.unwrap();
        let problem = admission.enter("a", 1).await.err().expect("full");
        assert_eq!(problem.code, ErrorCode::Overloaded);
        assert!(problem.retry_after.is_some());
        drop(first);
        assert!(admission.enter("a", u64::MAX).await.is_ok());
    }

    #[tokio::test]
    async fn a_read_larger_than_the_budget_gets_all_of_it() {
        let limits = Limits { read_mib_max: 2, ..Limits::default() };
        let admission = Admission::new(&limits).wait(Duration::from_millis(50));
        let all = admission.enter("a", 1 << 40).await.unwrap();
        assert!(admission.enter("a", 1).await.is_err());
        drop(all);
        assert!(admission.enter("a", 1).await.is_ok());
    }
}
