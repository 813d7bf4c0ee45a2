//! Whether a document has been still for long enough to be taken. Pure.
//!
//! Its age is by the NAS's own clock where that is known. A time stamp alone never decides for ever: one that lies in the future,
//! or that a clock we can't ask made, is outlived by seeing the document unchanged for as long, by our own clock.

use std::collections::BTreeMap;

use super::digest::{Mark, found_mark, name_mark};
use super::walk::Found;
use crate::limits::CLOCK_SKEW;

/// How a look tells young documents from settled ones.
#[derive(Debug, Clone, Copy)]
pub struct Settle {
    /// How long a document must be still, milliseconds; 0 takes everything.
    pub settle_ms: i64,
    /// When the look began by our clock, Unix milliseconds.
    pub begun_ms: i64,
    /// How far the NAS's clock lies ahead of ours, milliseconds, if it could be asked.
    pub ahead_ms: Option<i64>,
}

/// Since when documents are seen as they are, by name.
pub type Waiting = BTreeMap<Mark, (Mark, i64)>;

impl Settle {
    /// Why a document is not taken yet, if so; notes it in `now`. `before` is what the look before noted.
    pub fn waits(&self, found: &Found, before: &Waiting, now: &mut Waiting) -> Option<String> {
        if self.settle_ms == 0 {
            return None;
        }
        let stamp_ms = found.mtime_ns.max(found.ctime_ns) / 1_000_000;
        let age_ms = self.begun_ms.saturating_add(self.ahead_ms.unwrap_or_default()).saturating_sub(stamp_ms);
        let margin = if self.ahead_ms.is_some() { 0 } else { CLOCK_SKEW.as_millis() as i64 };
        if age_ms >= self.settle_ms.saturating_add(margin) {
            return None;
        }
        let (name, mark) = (name_mark(&found.name), found_mark(found, 0));
        let since = match before.get(&name) {
            // Our own clock may have gone back: then it begins anew.
            Some((seen, since)) if *seen == mark && *since <= self.begun_ms => *since,
            _ => self.begun_ms,
        };
        if self.begun_ms - since >= self.settle_ms {
            return None;
        }
        now.insert(name, (mark, since));
        Some(format!(
            "changed less than {} s ago and may still be written; it is taken once it has been still for that long",
            self.settle_ms / 1000
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000_000;

    fn found(age_ms: i64) -> Found {
        Found { name: b"a.md".to_vec(), size: 3, ctime_ns: (NOW - age_ms) * 1_000_000, ..Found::default() }
    }

    /// Looks at the same moments after the first; whether it was taken at each.
    fn looks(ahead_ms: Option<i64>, at: &[i64], document: impl Fn(i64) -> Found) -> Vec<bool> {
        let mut waiting = Waiting::new();
        at.iter()
            .map(|after| {
                let settle = Settle { settle_ms: 10_000, begun_ms: NOW + after, ahead_ms };
                let mut now = Waiting::new();
                let taken = settle.waits(&document(*after), &waiting, &mut now).is_none();
                waiting = now;
                taken
            })
            .collect()
    }

    #[test]
    fn a_document_is_taken_when_it_is_old_enough_by_the_clock_of_the_nas() {
        assert_eq!(looks(Some(0), &[0], |_| found(10_000)), [true]);
        assert_eq!(looks(Some(0), &[0, 5_000, 9_999, 10_001], |_| found(0)), [false, false, false, true]);
        // The NAS lives an hour ago, and an hour ahead: written just now is young all the same.
        for ahead in [-3_600_000, 3_600_000] {
            assert_eq!(looks(Some(ahead), &[0], |_| found(-ahead)), [false], "{ahead}");
            assert_eq!(looks(Some(ahead), &[0], |_| found(10_000 - ahead)), [true], "{ahead}");
        }
    }

    #[test]
    fn a_clock_that_can_not_be_asked_is_trusted_only_from_afar() {
        assert_eq!(looks(None, &[0], |_| found(70_000)), [true]);
        // A minute behind ours at most: then only what was seen to be still counts.
        assert_eq!(looks(None, &[0, 5_000, 10_000], |_| found(60_000)), [false, false, true]);
    }

    #[test]
    fn a_time_in_the_future_does_not_wait_for_ever() {
        assert_eq!(looks(Some(0), &[0, 5_000, 10_000], |_| found(-86_400_000)), [false, false, true]);
        assert_eq!(looks(None, &[0, 5_000, 10_000], |_| found(-86_400_000)), [false, false, true]);
    }

    #[test]
    fn what_grows_between_looks_is_still_being_written() {
        let growing = |after: i64| Found { size: after.cast_unsigned(), ..found(-86_400_000) };
        assert_eq!(looks(Some(0), &[0, 10_000, 20_000, 30_000], growing), [false; 4]);
        let touched = |after: i64| found(-86_400_000 - after);
        assert_eq!(looks(Some(0), &[0, 10_000, 20_000, 30_000], touched), [false; 4]);
        // Our clock went back: from then on it counts anew.
        assert_eq!(looks(None, &[0, -50_000, -45_000, -40_000], |_| found(-86_400_000)), [false, false, false, true]);
    }

    #[test]
    fn without_a_settle_time_everything_is_taken() {
        let settle = Settle { settle_ms: 0, begun_ms: NOW, ahead_ms: None };
        let mut now = Waiting::new();
        assert!(settle.waits(&found(-86_400_000), &Waiting::new(), &mut now).is_none() && now.is_empty());
    }
}
