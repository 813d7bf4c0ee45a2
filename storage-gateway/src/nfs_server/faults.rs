//! Faults on purpose, for tests: seeded ones that strike now and then, and switches for what lasts until it is mended.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nfs3_types::nfs3::{NFS_PROGRAM, nfsstat3};
use tokio::sync::watch;

/// How often each thing goes wrong: about once in so many calls that it can strike, never if 0. Two of a kind are at least half
/// as many calls apart, so that a client which must ride them out can.
#[derive(Debug, Clone, Default)]
pub struct NfsFaults {
    /// Of the random generator.
    pub seed: u64,
    /// The handle means nothing any more.
    pub stale: u32,
    /// A READ gives a third of what it could.
    pub short_reads: u32,
    /// What was written and not committed may be lost.
    pub verifier_changes: u32,
    /// A cookie of a listing isn't good any more.
    pub bad_cookies: u32,
    /// The connection breaks, before the call is carried out or after.
    pub disconnects: u32,
    /// The answer is late.
    pub delays: u32,
    /// By at most so much.
    pub delay_max: Duration,
}

/// What goes on until somebody mends it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trouble {
    /// Nothing is answered; what was asked meanwhile is done and answered when it is over.
    pub hung: bool,
    /// Every answer takes so much longer.
    pub slow: Duration,
    /// Nothing more fits.
    pub full: Option<Full>,
    /// The file system takes no change.
    pub read_only: bool,
    /// READ announces other lengths than it sends.
    pub wrong_lengths: bool,
    /// READ sends other bytes than there are.
    pub corrupt: bool,
}

/// What is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// `NFS3ERR_NOSPC`.
    Space,
    /// `NFS3ERR_DQUOT`.
    Quota,
}

/// What strikes now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Stale,
    ShortRead,
    VerifierChange,
    BadCookie,
    Disconnect,
    Delay,
}

const FAULTS: usize = 6;

#[derive(Debug)]
struct Dice {
    random: fastrand::Rng,
    /// Calls until each strikes next; 0 where that isn't drawn yet.
    left: [u32; FAULTS],
    struck: [u64; FAULTS],
}

/// What is done with a connection on which a call came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Answered,
    CutBefore,
    CutAfter,
}

/// A server's faults; clones of the handle share them, also over restarts of the server.
#[derive(Debug)]
pub struct Faults {
    plan: NfsFaults,
    dice: Mutex<Dice>,
    trouble: watch::Sender<Trouble>,
    slowed: AtomicU64,
}

impl Default for Faults {
    fn default() -> Self {
        Self::of(NfsFaults::default())
    }
}

impl Faults {
    /// As planned, and no trouble yet.
    #[must_use]
    pub fn new(plan: NfsFaults) -> Arc<Self> {
        Arc::new(Self::of(plan))
    }

    fn of(plan: NfsFaults) -> Self {
        let dice = Dice { random: fastrand::Rng::with_seed(plan.seed), left: [0; FAULTS], struck: [0; FAULTS] };
        let trouble = watch::Sender::new(Trouble::default());
        Self { plan, dice: Mutex::new(dice), trouble, slowed: AtomicU64::new(0) }
    }

    /// Changes what lasts, from now on.
    pub fn set(&self, change: impl FnOnce(&mut Trouble)) {
        self.trouble.send_modify(change);
    }

    /// How many faults have struck so far: stale handles, short reads, verifier changes, bad cookies, disconnects, delays.
    #[must_use]
    pub fn struck(&self) -> [u64; FAULTS] {
        self.dice().struck
    }

    /// How many calls were answered later because of [`Trouble::slow`].
    #[must_use]
    pub fn slowed(&self) -> u64 {
        self.slowed.load(Ordering::Relaxed)
    }

    fn dice(&self) -> MutexGuard<'_, Dice> {
        self.dice.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Trouble {
        self.trouble.borrow().clone()
    }

    /// Whether it strikes this call.
    pub(super) fn strikes(&self, fault: Fault) -> bool {
        let (at, every) = match fault {
            Fault::Stale => (0, self.plan.stale),
            Fault::ShortRead => (1, self.plan.short_reads),
            Fault::VerifierChange => (2, self.plan.verifier_changes),
            Fault::BadCookie => (3, self.plan.bad_cookies),
            Fault::Disconnect => (4, self.plan.disconnects),
            Fault::Delay => (5, self.plan.delays),
        };
        if every == 0 {
            return false;
        }
        let mut dice = self.dice();
        if dice.left[at] == 0 {
            dice.left[at] = dice.random.u32(every.div_ceil(2)..=every + every / 2);
        }
        dice.left[at] -= 1;
        let strikes = dice.left[at] == 0;
        dice.struck[at] += u64::from(strikes);
        strikes
    }

    /// Waits as long as the call has to, and says what becomes of its connection.
    pub(super) async fn before(&self) -> Fate {
        let mut trouble = self.trouble.subscribe();
        // The sender is ours: it lives as long as we do.
        let _ = trouble.wait_for(|trouble| !trouble.hung).await;
        let mut wait = self.now().slow;
        self.slowed.fetch_add(u64::from(!wait.is_zero()), Ordering::Relaxed);
        if self.strikes(Fault::Delay) {
            wait += self.plan.delay_max.mul_f64(self.dice().random.f64());
        }
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        match self.strikes(Fault::Disconnect) {
            false => Fate::Answered,
            true if self.dice().random.bool() => Fate::CutBefore,
            true => Fate::CutAfter,
        }
    }

    /// What the file system's trouble answers to a procedure.
    pub(super) fn refuses(&self, procedure: NFS_PROGRAM) -> Option<nfsstat3> {
        let fills = matches!(
            procedure,
            NFS_PROGRAM::NFSPROC3_WRITE
                | NFS_PROGRAM::NFSPROC3_CREATE
                | NFS_PROGRAM::NFSPROC3_MKDIR
                | NFS_PROGRAM::NFSPROC3_LINK
        );
        match self.trouble.borrow().full {
            Some(Full::Space) if fills => Some(nfsstat3::NFS3ERR_NOSPC),
            Some(Full::Quota) if fills => Some(nfsstat3::NFS3ERR_DQUOT),
            _ if procedure != NFS_PROGRAM::NFSPROC3_NULL && self.strikes(Fault::Stale) => Some(nfsstat3::NFS3ERR_STALE),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_strikes_the_same_and_never_twice_in_a_row() {
        let strikes = |seed| {
            let faults = Faults::new(NfsFaults { seed, stale: 20, ..NfsFaults::default() });
            let all: Vec<usize> = (0..2000).filter(|_| faults.strikes(Fault::Stale)).collect();
            assert_eq!(faults.struck(), [all.len() as u64, 0, 0, 0, 0, 0]);
            assert!(all.windows(2).all(|pair| (10..=30).contains(&(pair[1] - pair[0]))), "{all:?}");
            assert!((70..200).contains(&all.len()), "about one in twenty: {}", all.len());
            all
        };
        assert_eq!(strikes(1), strikes(1));
        assert_ne!(strikes(1), strikes(2));
        let never = Faults::default();
        assert!((0..100).all(|_| !never.strikes(Fault::Delay)));
    }
}
