//! All threads of a pool in step: each does its share of a phase, and all meet before the next.
//!
//! A token takes a few hundred phases of microseconds. Waking a sleeping thread for each takes longer than the phase itself, so a team
//! is called together once per token and waits awake in between.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use crate::pool::Turn;

/// Looks at the phase before a waiting thread lets others have its core: some ten microseconds.
const LOOKS: u32 = 300;

/// Where the threads of a team meet.
struct Meeting {
    size: usize,
    arrived: AtomicUsize,
    phase: AtomicUsize,
    broken: AtomicBool,
}

/// One thread of a team.
pub(super) struct Member<'a> {
    meeting: &'a Meeting,
    /// Which one it is.
    pub(super) index: usize,
}

/// Runs `work` on all threads of the pool at the same time; what each gave, in their order. It takes a turn: two teams on one pool would
/// each wait for threads that the other holds.
pub(super) fn together<T: Send>(turn: &Turn<'_>, work: impl Fn(&Member<'_>) -> T + Sync) -> Vec<T> {
    let meeting = Meeting {
        size: turn.threads(),
        arrived: AtomicUsize::new(0),
        phase: AtomicUsize::new(0),
        broken: AtomicBool::new(false),
    };
    turn.on_each(|index| work(&Member { meeting: &meeting, index }))
}

impl Member<'_> {
    /// Its share of `count` things that lie side by side.
    pub(super) fn share(&self, count: usize) -> std::ops::Range<usize> {
        let size = self.meeting.size;
        count * self.index / size..count * (self.index + 1) / size
    }

    /// Waits until all have come here. What each wrote before is seen by all afterwards.
    ///
    /// # Panics
    /// Another thread of the team did.
    pub(super) fn meet(&self) {
        let Meeting { size, arrived, phase, broken } = self.meeting;
        let now = phase.load(Ordering::Acquire);
        if arrived.fetch_add(1, Ordering::AcqRel) + 1 == *size {
            arrived.store(0, Ordering::Relaxed);
            phase.store(now.wrapping_add(1), Ordering::Release);
            return;
        }
        let mut looks = 0;
        while phase.load(Ordering::Acquire) == now {
            assert!(!broken.load(Ordering::Relaxed), "another thread of the team failed");
            looks += 1;
            if looks < LOOKS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.meeting.broken.store(true, Ordering::Relaxed);
        }
    }
}

/// Floats that each thread of a team writes a part of and all read, with a meeting in between.
#[derive(Debug, Default)]
pub(super) struct Shared(Vec<AtomicU32>);

impl Shared {
    /// So many zeros.
    pub(super) fn new(length: usize) -> Self {
        Self((0..length).map(|_| AtomicU32::default()).collect())
    }

    /// Writes values from a place on.
    pub(super) fn put(&self, from: usize, values: &[f32]) {
        for (place, value) in self.0[from..].iter().zip(values) {
            place.store(value.to_bits(), Ordering::Relaxed);
        }
    }

    /// Reads all.
    pub(super) fn get(&self, out: &mut Vec<f32>) {
        out.clear();
        out.extend(self.0.iter().map(|place| f32::from_bits(place.load(Ordering::Relaxed))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Pool;

    #[test]
    fn what_one_writes_all_see_after_the_meeting() {
        for threads in [1, 2, 3, 7] {
            let (even, odd) = (Shared::new(100), Shared::new(100));
            let sums = Pool::new(threads).unwrap().run(|turn| {
                together(turn, |member| {
                    let mut all = vec![0.0; 100];
                    for round in 0..500 {
                        let shared = if round % 2 == 0 { &even } else { &odd };
                        let share = member.share(100);
                        let mine: Vec<f32> = all[share.clone()].iter().map(|value| value + 1.0).collect();
                        shared.put(share.start, &mine);
                        member.meet();
                        shared.get(&mut all);
                        assert!(all.iter().all(|value| *value == (round + 1) as f32), "{all:?}");
                    }
                    all.iter().sum::<f32>()
                })
            });
            assert_eq!(sums, vec![50_000.0; threads]);
        }
    }

    #[test]
    fn shares_cover_everything_once() {
        for (threads, count) in [(1, 5), (4, 3), (3, 10), (7, 0)] {
            let shares = Pool::new(threads).unwrap().run(|turn| together(turn, |member| member.share(count)));
            assert_eq!(shares.into_iter().flatten().collect::<Vec<_>>(), (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn nobody_waits_for_one_that_failed() {
        let pool = Pool::new(3).unwrap();
        let failing = || {
            pool.run(|turn| {
                together(turn, |member| {
                    assert!(member.index != 1, "on purpose");
                    member.meet();
                })
            })
        };
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(failing)).is_err());
        assert_eq!(pool.run(|turn| together(turn, |member| member.index)), [0, 1, 2]);
    }
}
