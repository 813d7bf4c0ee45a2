//! The threads that models compute with, and whose turn it is.

use std::sync::{Condvar, Mutex, PoisonError};

/// Threads that several models share. Their steps take turns, in the order in which they asked: a step then has all threads, and none
/// of them waits for a thread that another model holds.
pub(crate) struct Pool {
    threads: rayon::ThreadPool,
    tickets: Mutex<Tickets>,
    next: Condvar,
}

#[derive(Default)]
struct Tickets {
    given: u64,
    done: u64,
}

/// The right to use the threads of a pool now; all of them are ours.
pub(crate) struct Turn<'a>(&'a Pool);

impl Pool {
    /// Starts so many threads.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn new(threads: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("compute-{index}"))
            .build()?;
        Ok(Self { threads, tickets: Mutex::default(), next: Condvar::new() })
    }

    /// Threads.
    pub(crate) fn size(&self) -> usize {
        self.threads.current_num_threads()
    }

    /// Waits for the turn, then works on the threads. Not to be called on one of them.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce(&Turn<'_>) -> T + Send) -> T {
        let mut tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = tickets.given;
        tickets.given += 1;
        while tickets.done != ours {
            tickets = self.next.wait(tickets).unwrap_or_else(PoisonError::into_inner);
        }
        drop(tickets);
        let turn = Turn(self);
        self.threads.install(|| work(&turn))
    }
}

impl Turn<'_> {
    /// Threads of the pool.
    pub(crate) fn threads(&self) -> usize {
        self.0.size()
    }

    /// Runs `work` on each thread of the pool, which gets its number; what each gave, in their order.
    pub(crate) fn on_each<T: Send>(&self, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
        self.0.threads.broadcast(|context| work(context.index()))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.tickets.lock().unwrap_or_else(PoisonError::into_inner).done += 1;
        self.0.next.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn turns_are_taken_one_at_a_time_and_in_order() {
        let pool = Pool::new(2).unwrap();
        let (inside, order) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            pool.run(|_| {
                for model in 0..5 {
                    let (pool, inside, order) = (&pool, &inside, &order);
                    scope.spawn(move || {
                        pool.run(|_| {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two at once");
                            order.lock().unwrap().push(model);
                            inside.fetch_sub(1, Ordering::SeqCst);
                        });
                    });
                    // The next asks once this one has its ticket: the turn that we are in was the first.
                    while pool.tickets.lock().unwrap().given < model + 2 {
                        std::thread::yield_now();
                    }
                }
            });
        });
        assert_eq!(order.into_inner().unwrap(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_turn_that_fails_ends() {
        let pool = Pool::new(1).unwrap();
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.run(|_| panic!("on purpose"))));
        assert!(failed.is_err());
        assert_eq!(pool.run(|_| 7), 7);
    }
}
