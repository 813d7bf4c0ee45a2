//! Room for what goes on at once: so much in all, and of that so much on one export, so that one which hangs holds up nothing on
//! the others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// See the module.
pub(super) struct Room {
    all_max: usize,
    each_max: usize,
    taken: Mutex<Taken>,
    left: Notify,
}

#[derive(Default)]
struct Taken {
    all: usize,
    /// None of them is 0.
    exports: BTreeMap<String, usize>,
}

/// A place on some exports, until it is dropped.
pub(super) struct Place<'a> {
    room: &'a Room,
    exports: BTreeSet<String>,
}

impl Room {
    pub(super) fn new(all_max: usize, each_max: usize) -> Self {
        Self { all_max, each_max, taken: Mutex::default(), left: Notify::new() }
    }

    /// Waits for a place on all of these exports at once: who waits for one of them holds none of the others.
    pub(super) async fn enter(&self, exports: BTreeSet<String>) -> Place<'_> {
        loop {
            // Before the look: a place that is left meanwhile is heard of.
            let left = self.left.notified();
            if self.take(&exports) {
                return Place { room: self, exports };
            }
            left.await;
        }
    }

    fn take(&self, exports: &BTreeSet<String>) -> bool {
        let mut taken = self.lock();
        let full = |export: &String| taken.exports.get(export).is_some_and(|count| *count >= self.each_max);
        if taken.all >= self.all_max || exports.iter().any(full) {
            return false;
        }
        taken.all += 1;
        for export in exports {
            *taken.exports.entry(export.clone()).or_default() += 1;
        }
        true
    }

    /// Counts are whole whoever panicked: nothing between their changes can.
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut taken = self.room.lock();
        taken.all -= 1;
        for export in &self.exports {
            if let Some(count) = taken.exports.get_mut(export) {
                *count -= 1;
            }
        }
        taken.exports.retain(|_, count| *count > 0);
        drop(taken);
        self.room.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn on(exports: &[&str]) -> BTreeSet<String> {
        exports.iter().map(|export| (*export).to_owned()).collect()
    }

    #[test]
    fn an_export_that_hangs_holds_up_nothing_on_the_others() {
        let room = Room::new(4, 2);
        let enter = |exports: &[&str]| room.enter(on(exports)).now_or_never();
        let hanging = [enter(&["bad"]), enter(&["bad", "good"])];
        assert!(hanging.iter().all(Option::is_some));
        assert!(enter(&["bad"]).is_none() && enter(&["bad", "good"]).is_none(), "it has its share");
        // Those that waited in vain hold nothing.
        let healthy = [enter(&["good"]), enter(&["other"])];
        assert!(healthy.iter().all(Option::is_some));
        assert!(enter(&["third"]).is_none(), "four in all");
        drop(healthy);
        drop(hanging);
        let taken = room.lock();
        assert!(taken.all == 0 && taken.exports.is_empty());
    }

    #[tokio::test]
    async fn who_waits_is_let_in_when_another_leaves() {
        let room = Room::new(8, 1);
        let first = room.enter(on(&["a"])).await;
        let mut second = Box::pin(room.enter(on(&["a", "b"])));
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        drop(second.await);
        assert!(room.enter(on(&["b"])).now_or_never().is_some(), "nothing is left behind");
    }
}
