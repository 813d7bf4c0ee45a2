//! Which models leave the cache so that another fits. Pure.

use ingle_proto::Digest;

/// A cached model, as eviction sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kept {
    /// Which.
    pub(super) digest: Digest,
    /// Its size.
    pub(super) bytes: u64,
    /// Greater is later.
    pub(super) last_used: i64,
    /// It must stay.
    pub(super) pinned: bool,
}

/// Which models go so that `need` more bytes fit: least recently used first, no more than needed; `None` if it can't be.
#[must_use]
pub(super) fn evict(entries: &[Kept], need: u64, bytes_max: u64) -> Option<Vec<Digest>> {
    let mut held: u64 = entries.iter().map(|entry| entry.bytes).sum();
    let mut order: Vec<&Kept> = entries.iter().filter(|entry| !entry.pinned).collect();
    order.sort_by_key(|entry| (entry.last_used, entry.digest));
    let mut gone = Vec::new();
    for entry in order {
        if held.saturating_add(need) <= bytes_max {
            break;
        }
        held -= entry.bytes;
        gone.push(entry.digest);
    }
    (held.saturating_add(need) <= bytes_max).then_some(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eviction_takes_the_oldest_and_no_pinned_ones() {
        let kept = |n: u8, bytes, last_used, pinned| Kept { digest: Digest([n; 32]), bytes, last_used, pinned };
        let entries = [kept(1, 40, 3, false), kept(2, 40, 1, true), kept(3, 10, 2, false)];
        assert_eq!(evict(&entries, 10, 100), Some(vec![]));
        assert_eq!(evict(&entries, 15, 100), Some(vec![Digest([3; 32])]));
        assert_eq!(evict(&entries, 30, 100), Some(vec![Digest([3; 32]), Digest([1; 32])]));
        assert_eq!(evict(&entries, 61, 100), None);
        assert_eq!(evict(&[], 101, 100), None);
    }
}
