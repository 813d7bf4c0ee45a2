//! Courtesy among the models of a node: while a person is served by one, the others do batch work only now and then.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Batch work of a model goes on for a step this often while people are served by another: a person whose answer takes long
/// doesn't stop a job for good.
const STEP_EVERY: Duration = Duration::from_millis(200);

/// Who counts the people that are served on a node, over all its models.
#[derive(Debug, Default)]
pub struct Courtesy {
    people: Mutex<usize>,
    /// A person left, or a model has mail.
    news: Condvar,
}

impl Courtesy {
    /// A person's request comes.
    pub(super) fn enter(&self) {
        *self.lock() += 1;
    }

    /// It has ended.
    pub(super) fn leave(&self) {
        let mut people = self.lock();
        *people = people.saturating_sub(1);
        drop(people);
        self.news.notify_all();
    }

    /// A model has mail that it should look at.
    pub(super) fn mail(&self) {
        // The lock orders this after a look at the mailbox that found nothing.
        drop(self.lock());
        self.news.notify_all();
    }

    /// Waits while people are served by other models, for at most the time that is left until `last` is so long ago that a step is
    /// due. False if there is mail to look at first.
    pub(super) fn give_way(&self, last: Instant, mail: impl Fn() -> bool) -> bool {
        let mut people = self.lock();
        while *people > 0 {
            if mail() {
                return false;
            }
            let left = STEP_EVERY.saturating_sub(last.elapsed());
            if left.is_zero() {
                return true;
            }
            people = self.news.wait_timeout(people, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.people.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn nobody_waits_where_nobody_is_served() {
        let courtesy = Courtesy::default();
        assert!(courtesy.give_way(Instant::now(), || panic!("the mailbox is of no interest")));
    }

    #[test]
    fn a_step_is_due_after_a_while() {
        let courtesy = Courtesy::default();
        courtesy.enter();
        let Some(long_ago) = Instant::now().checked_sub(STEP_EVERY) else { return };
        assert!(courtesy.give_way(long_ago, || false));
    }

    #[test]
    fn mail_and_the_last_persons_leaving_end_the_wait() {
        let (courtesy, mail) = (Courtesy::default(), AtomicBool::new(false));
        courtesy.enter();
        courtesy.enter();
        // A step is due only far in the future.
        let last = Instant::now() + Duration::from_secs(3_600);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| courtesy.give_way(last, || mail.load(Ordering::SeqCst)));
            courtesy.leave();
            mail.store(true, Ordering::SeqCst);
            courtesy.mail();
            assert!(!waiting.join().unwrap(), "there is mail");
            mail.store(false, Ordering::SeqCst);
            let waiting = scope.spawn(|| courtesy.give_way(last, || mail.load(Ordering::SeqCst)));
            courtesy.leave();
            assert!(waiting.join().unwrap(), "nobody is served any more");
        });
    }
}
