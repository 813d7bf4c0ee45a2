//! Which entries stay: S3-FIFO, pure. A pass over an archive goes through a small queue and leaves what is asked for again alone.
//!
//! Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP 2023.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher as _, Hash, RandomState};

/// Part of the capacity that new entries go through: a tenth.
const SMALL_SHARE: u64 = 10;
/// How often an entry is counted as asked for at most.
const ASKED_MAX: u8 = 3;
/// Names of entries that went are remembered for as many as are held, and at least so many.
const GHOSTS_MIN: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queue {
    Small,
    Main,
}

#[derive(Debug)]
struct Held<V> {
    value: V,
    bytes: u64,
    asked: u8,
    queue: Queue,
    /// Tells its place in the queue from that of an earlier entry of the same key.
    turn: u64,
}

/// See the module. Holds at most `capacity` bytes.
#[derive(Debug)]
pub struct S3Fifo<K, V> {
    capacity: u64,
    held: HashMap<K, Held<V>>,
    small: VecDeque<(K, u64)>,
    main: VecDeque<(K, u64)>,
    small_bytes: u64,
    main_bytes: u64,
    ghosts: VecDeque<u64>,
    ghost_set: HashSet<u64>,
    hasher: RandomState,
    turn: u64,
}

impl<K: Hash + Eq + Clone, V> S3Fifo<K, V> {
    /// Empty.
    #[must_use]
    pub fn new(capacity: u64) -> Self {
        Self {
            capacity,
            held: HashMap::new(),
            small: VecDeque::new(),
            main: VecDeque::new(),
            small_bytes: 0,
            main_bytes: 0,
            ghosts: VecDeque::new(),
            ghost_set: HashSet::new(),
            hasher: RandomState::new(),
            turn: 0,
        }
    }

    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.small_bytes + self.main_bytes
    }

    /// Entries held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether a key is held; it doesn't count as asked for.
    #[must_use]
    pub fn contains(&self, key: &K) -> bool {
        self.held.contains_key(key)
    }

    /// Keys held, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.held.keys()
    }

    /// What a key holds; it counts as asked for.
    pub fn get(&mut self, key: &K) -> Option<&V> {
        let held = self.held.get_mut(key)?;
        held.asked = (held.asked + 1).min(ASKED_MAX);
        Some(&held.value)
    }

    /// Takes an entry in and answers what had to go for it, which may be the entry itself if it is larger than everything.
    /// `lasting`: it is known to be asked for again.
    pub fn insert(&mut self, key: K, value: V, bytes: u64, lasting: bool) -> Vec<(K, V)> {
        let mut gone = Vec::new();
        if bytes > self.capacity {
            return vec![(key, value)];
        }
        self.remove(&key);
        while self.bytes() + bytes > self.capacity {
            gone.extend(self.evict());
        }
        let seen = self.ghost_set.contains(&self.hasher.hash_one(&key));
        let queue = if lasting || seen { Queue::Main } else { Queue::Small };
        self.turn += 1;
        let turn = self.turn;
        self.held.insert(key.clone(), Held { value, bytes, asked: 0, queue, turn });
        self.push(queue, key, turn, bytes);
        gone
    }

    /// Drops an entry.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let held = self.held.remove(key)?;
        // Its place in the queue is passed over when it comes up.
        match held.queue {
            Queue::Small => self.small_bytes -= held.bytes,
            Queue::Main => self.main_bytes -= held.bytes,
        }
        Some(held.value)
    }

    fn push(&mut self, queue: Queue, key: K, turn: u64, bytes: u64) {
        match queue {
            Queue::Small => {
                self.small.push_back((key, turn));
                self.small_bytes += bytes;
            }
            Queue::Main => {
                self.main.push_back((key, turn));
                self.main_bytes += bytes;
            }
        }
    }

    /// Makes one step towards room: the entry that went, if one did.
    fn evict(&mut self) -> Option<(K, V)> {
        let from_small = self.small_bytes * SMALL_SHARE >= self.capacity || self.main_bytes == 0;
        let queue = if from_small { &mut self.small } else { &mut self.main };
        let (key, turn) = queue.pop_front()?;
        let held = self.held.get_mut(&key).filter(|held| held.turn == turn)?;
        let (bytes, stays) = (held.bytes, held.asked > u8::from(from_small));
        if stays {
            held.asked = if from_small { 0 } else { held.asked - 1 };
            held.queue = Queue::Main;
            *(if from_small { &mut self.small_bytes } else { &mut self.main_bytes }) -= bytes;
            self.push(Queue::Main, key, turn, bytes);
            return None;
        }
        if from_small {
            self.remember(&key);
        }
        self.remove(&key).map(|value| (key, value))
    }

    fn remember(&mut self, key: &K) {
        let hash = self.hasher.hash_one(key);
        if self.ghost_set.insert(hash) {
            self.ghosts.push_back(hash);
        }
        while self.ghosts.len() > self.held.len().max(GHOSTS_MIN) {
            if let Some(oldest) = self.ghosts.pop_front() {
                self.ghost_set.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(cache: &mut S3Fifo<u32, u32>, key: u32) -> bool {
        if cache.get(&key).is_some() {
            return true;
        }
        cache.insert(key, key, 1, false);
        false
    }

    #[test]
    fn a_pass_over_the_archive_leaves_what_is_hot() {
        let mut cache = S3Fifo::new(100);
        for _ in 0..4 {
            for key in 0..50 {
                read(&mut cache, key);
            }
        }
        for key in 1000..11_000 {
            read(&mut cache, key);
        }
        let hot = (0..50).filter(|key| cache.contains(key)).count();
        assert!(hot >= 45, "{hot} of 50 hot entries are left");
        // The same pass through a queue that knows only recency would have left none.
    }

    #[test]
    fn what_lasts_stays_though_nobody_asked_again_yet() {
        let mut cache = S3Fifo::new(100);
        for key in 0..50 {
            cache.insert(key, key, 1, true);
        }
        for key in 1000..2000 {
            read(&mut cache, key);
        }
        assert_eq!((0..50).filter(|key| cache.contains(key)).count(), 50);
    }

    #[test]
    fn one_that_is_too_big_is_handed_back() {
        let mut cache = S3Fifo::new(10);
        cache.insert(1, (), 4, false);
        assert_eq!(cache.insert(2, (), 11, false), [(2, ())]);
        assert!(cache.contains(&1));
    }

    proptest! {
        #[test]
        fn bounded_and_counted(steps in prop::collection::vec((0u32..40, 0u8..4, 1u64..9), 1..400)) {
            let mut cache = S3Fifo::new(32);
            for (key, what, bytes) in steps {
                match what {
                    0 => drop(cache.remove(&key)),
                    1 => drop(cache.get(&key).copied()),
                    _ => {
                        let gone = cache.insert(key, bytes, bytes, what == 3);
                        prop_assert!(gone.iter().all(|(gone, _)| !cache.contains(gone)));
                        prop_assert!(cache.contains(&key));
                    }
                }
                prop_assert!(cache.bytes() <= 32);
                prop_assert_eq!(cache.bytes(), cache.held.values().map(|held| held.bytes).sum::<u64>());
                prop_assert!(cache.ghosts.len() <= 64);
                prop_assert_eq!(cache.ghosts.len(), cache.ghost_set.len());
            }
        }
    }
}
