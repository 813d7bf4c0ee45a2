//! Read-ahead: from the ranges that were asked for of a file to what is likely asked for next. Pure.

use std::collections::HashMap;

use crate::buffers::PIECE_BYTES;
use crate::cache::Version;

/// Files whose readers are remembered.
const FILES_MAX: usize = 256;
/// Readers of one file that are told apart: each goes its own way through it.
const READERS_MAX: usize = 16;
/// What is fetched ahead at first, and at most.
const AHEAD: (u64, u64) = (2 * PIECE_BYTES as u64, 4 << 20);

/// One who reads a file in ranges, one after another.
#[derive(Debug, Clone, Copy)]
struct Reader {
    /// Where the last range ended.
    end: u64,
    /// Up to where it was fetched ahead.
    fetched: u64,
    window: u64,
    used: u64,
}

/// What was asked for of each file.
#[derive(Debug, Default)]
pub struct Planner {
    files: HashMap<Version, Vec<Reader>>,
    clock: u64,
}

impl Planner {
    /// A range was asked for: what to fetch ahead of it, within the file. Nothing for who begins anew or jumps about; for
    /// who goes on where a range ended, twice as much each time up to 4 MiB.
    pub fn asked(&mut self, file: Version, start: u64, end: u64, size: u64) -> Option<(u64, u64)> {
        self.clock += 1;
        let used = self.clock;
        if self.files.len() >= FILES_MAX && !self.files.contains_key(&file) {
            let oldest = self.files.iter().min_by_key(|(_, readers)| readers.iter().map(|r| r.used).max());
            if let Some(oldest) = oldest.map(|(file, _)| *file) {
                self.files.remove(&oldest);
            }
        }
        let readers = self.files.entry(file).or_default();
        let Some(reader) = readers.iter_mut().find(|reader| reader.end == start) else {
            if readers.len() >= READERS_MAX
                && let Some(oldest) = (0..readers.len()).min_by_key(|at| readers[*at].used)
            {
                readers.swap_remove(oldest);
            }
            readers.push(Reader { end, fetched: end, window: AHEAD.0, used });
            return None;
        };
        let from = reader.fetched.max(end);
        let to = (end + reader.window).min(size);
        *reader = Reader { end, fetched: from.max(to), window: (reader.window * 2).min(AHEAD.1), used };
        (from < to).then_some((from, to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: u64 = PIECE_BYTES as u64;
    const FILE: Version = Version([1; 16]);

    #[test]
    fn who_goes_on_is_met_ever_further_ahead_and_never_twice() {
        let mut planner = Planner::default();
        let size = 100 * P;
        assert_eq!(planner.asked(FILE, 0, P, size), None, "who knows where this goes");
        let mut fetched = P;
        for at in 1..99 {
            if let Some((from, to)) = planner.asked(FILE, at * P, (at + 1) * P, size) {
                assert!(from >= fetched && to > from && to <= size, "{at}: {from} {to}");
                assert!(to - (at + 1) * P <= AHEAD.1);
                fetched = to;
            }
        }
        assert_eq!(fetched, size);
    }

    #[test]
    fn who_jumps_about_costs_nothing_more() {
        let mut planner = Planner::default();
        for at in [7, 3, 9, 1, 5, 30, 20] {
            assert_eq!(planner.asked(FILE, at * P, at * P + 100, 100 * P), None);
        }
    }

    #[test]
    fn readers_of_one_file_are_told_apart_and_bounded() {
        let mut planner = Planner::default();
        let (a, b) = (0, 50 * P);
        assert_eq!(planner.asked(FILE, a, a + P, 100 * P), None);
        assert_eq!(planner.asked(FILE, b, b + P, 100 * P), None);
        assert!(planner.asked(FILE, a + P, a + 2 * P, 100 * P).is_some());
        assert!(planner.asked(FILE, b + P, b + 2 * P, 100 * P).is_some());
        for n in 0..10_000u64 {
            planner.asked(Version([n as u8; 16]), n * 7, n * 7 + 1, u64::MAX);
        }
        assert!(planner.files.len() <= FILES_MAX && planner.files.values().all(|readers| readers.len() <= READERS_MAX));
    }
}
