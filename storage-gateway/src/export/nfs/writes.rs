//! Write verifiers of files being written: a server that restarted between a WRITE and its COMMIT is found out.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ingle_proto::ObjectPath;
use nfs3_types::nfs3::writeverf3;

/// Files being written at once.
const FILES_MAX: usize = 65_536;
/// When there are more, those nobody touched for so long are given up.
const ABANDONED: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, Copy)]
struct Written {
    first: writeverf3,
    changed: bool,
    touched: Instant,
}

/// The verifier of each file's first WRITE since its last COMMIT.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    files: HashMap<ObjectPath, Written>,
}

impl Writes {
    /// A WRITE was answered with `verifier`. False: too many files are being written, and this one can't be watched.
    pub(crate) fn wrote(&mut self, path: &ObjectPath, verifier: writeverf3, now: Instant) -> bool {
        if let Some(written) = self.files.get_mut(path) {
            written.changed |= written.first != verifier;
            written.touched = now;
            return true;
        }
        if self.files.len() >= FILES_MAX {
            self.files.retain(|_, written| now.saturating_duration_since(written.touched) < ABANDONED);
        }
        if self.files.len() >= FILES_MAX {
            return false;
        }
        self.files.insert(path.clone(), Written { first: verifier, changed: false, touched: now });
        true
    }

    /// A COMMIT was answered with `verifier`: whether all that was written since the last one is durable.
    pub(crate) fn committed(&mut self, path: &ObjectPath, verifier: writeverf3) -> bool {
        self.files.remove(path).is_none_or(|written| !written.changed && written.first == verifier)
    }

    /// The name is another file's now, or nobody's.
    pub(crate) fn forget(&mut self, path: &ObjectPath) {
        self.files.remove(path);
    }

    /// The file has another name now.
    pub(crate) fn renamed(&mut self, from: &ObjectPath, to: &ObjectPath) {
        match self.files.remove(from) {
            Some(written) => self.files.insert(to.clone(), written),
            None => self.files.remove(to),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: writeverf3 = writeverf3([1; 8]);
    const B: writeverf3 = writeverf3([2; 8]);

    #[test]
    fn a_restart_between_is_seen_once() {
        let (mut writes, now) = (Writes::default(), Instant::now());
        let path = ObjectPath::new("f").expect("a valid path");
        assert!(writes.committed(&path, A), "nothing was written");
        assert!(writes.wrote(&path, A, now));
        assert!(writes.committed(&path, A));
        // Restarted before the commit.
        assert!(writes.wrote(&path, A, now));
        assert!(!writes.committed(&path, B));
        // Written again, all is well.
        assert!(writes.wrote(&path, B, now));
        assert!(writes.committed(&path, B));
        // Restarted between two writes, and once more so that the commit's verifier is the first one's.
        assert!(writes.wrote(&path, A, now) && writes.wrote(&path, B, now));
        assert!(!writes.committed(&path, A));
    }

    #[test]
    fn bounded_without_forgetting_what_is_fresh() {
        let (mut writes, start) = (Writes::default(), Instant::now());
        let path = |i: usize| ObjectPath::new(format!("f{i}")).expect("a valid path");
        for i in 0..FILES_MAX {
            assert!(writes.wrote(&path(i), A, start));
        }
        assert!(!writes.wrote(&path(FILES_MAX), A, start));
        assert!(writes.wrote(&path(FILES_MAX), A, start + ABANDONED));
        assert_eq!(writes.files.len(), 1);
    }
}
