//! What was read a moment ago: kept for a bounded time in bounded room, and asked for once however many want it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::ExportError;

/// Something with the moment at which it was true.
type Held<V> = Option<(Instant, V)>;

struct Place<V> {
    /// Locked while it is being read: others wait for that rather than read it too.
    held: Arc<tokio::sync::Mutex<Held<V>>>,
    weight: usize,
    used: Instant,
}

/// See the module.
pub(crate) struct Aged<V> {
    age: Duration,
    /// Most weight that is kept.
    most: usize,
    places: Mutex<HashMap<u64, Place<V>>>,
}

impl<V: Clone> Aged<V> {
    pub(crate) fn new(age: Duration, most: usize) -> Self {
        Self { age, most, places: Mutex::default() }
    }

    /// What is kept under `key` if it isn't too old; otherwise what `read` makes of it and of what it was, with its weight.
    pub(crate) async fn get<F, R>(&self, key: u64, read: F) -> Result<V, ExportError>
    where
        F: FnOnce(Held<V>) -> R,
        R: Future<Output = Result<(V, usize), ExportError>>,
    {
        self.take(key, |at| at.elapsed() < self.age, read).await
    }

    /// The same, whatever the age: what was asked for at `moment` or after it. Who waits while it is read for somebody who
    /// came sooner shares the next read with all who wait too.
    pub(crate) async fn since<F, R>(&self, key: u64, moment: Instant, read: F) -> Result<V, ExportError>
    where
        F: FnOnce(Held<V>) -> R,
        R: Future<Output = Result<(V, usize), ExportError>>,
    {
        self.take(key, |at| at >= moment, read).await
    }

    async fn take<F, R>(&self, key: u64, believed: impl Fn(Instant) -> bool, read: F) -> Result<V, ExportError>
    where
        F: FnOnce(Held<V>) -> R,
        R: Future<Output = Result<(V, usize), ExportError>>,
    {
        let place = {
            let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let place = places.entry(key).or_insert_with(|| Place { held: Arc::default(), weight: 1, used: now });
            place.used = now;
            place.held.clone()
        };
        let mut held = place.lock().await;
        if let Some((at, value)) = held.as_ref()
            && believed(*at)
        {
            return Ok(value.clone());
        }
        let mut reading = Reading { aged: self, key, place: &place, done: false };
        // True when it was asked for, not when the answer came.
        let at = Instant::now();
        let (value, weight) = read(held.take()).await?;
        *held = Some((at, value.clone()));
        reading.done = true;
        drop(held);
        self.weigh(key, weight);
        Ok(value)
    }

    /// Believes what is kept under `key` no longer.
    pub(crate) fn forget(&self, key: u64) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    /// Notes how much it weighs, and drops what was not used for the longest time while all is too much.
    fn weigh(&self, key: u64, weight: usize) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = places.get_mut(&key) {
            place.weight = weight.max(1);
        }
        let mut total: usize = places.values().map(|place| place.weight).sum();
        if total <= self.most {
            return;
        }
        let mut by_use: Vec<(Instant, u64, usize)> =
            places.iter().map(|(key, place)| (place.used, *key, place.weight)).collect();
        by_use.sort_unstable();
        // Down to three quarters: the next ones don't sort all of it again.
        for (_, key, weight) in by_use {
            if total <= self.most / 4 * 3 {
                break;
            }
            places.remove(&key);
            total -= weight;
        }
    }
}

/// A read under way. If it fails, or nobody waits for it any more, its place goes: with nothing in it, it would lie there for
/// good.
struct Reading<'a, V> {
    aged: &'a Aged<V>,
    key: u64,
    place: &'a Arc<tokio::sync::Mutex<Held<V>>>,
    done: bool,
}

impl<V> Drop for Reading<'_, V> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut places = self.aged.places.lock().unwrap_or_else(PoisonError::into_inner);
        // Unless somebody else has begun another under that key.
        if places.get(&self.key).is_some_and(|place| Arc::ptr_eq(&place.held, self.place)) {
            places.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn once_for_all_until_it_is_old() {
        for (age, expected) in [(Duration::from_secs(3600), 1), (Duration::ZERO, 20)] {
            let aged: Aged<usize> = Aged::new(age, 100);
            let reads = AtomicUsize::new(0);
            let get = || {
                aged.get(7, |_| async {
                    tokio::task::yield_now().await;
                    Ok((reads.fetch_add(1, Ordering::Relaxed), 1))
                })
            };
            let many = futures::future::join_all((0..20).map(|_| get())).await;
            assert!(many.iter().all(Result::is_ok), "{many:?}");
            assert_eq!(reads.load(Ordering::Relaxed), expected, "believed for {age:?}");
        }
        let aged: Aged<usize> = Aged::new(Duration::from_secs(3600), 100);
        let failed = aged.get(8, |_| async { Err(ExportError::Broken("spoilt".to_owned())) }).await;
        assert!(failed.is_err());
        assert_eq!(aged.places.lock().unwrap().len(), 0, "nor is its place");
        let never = aged.get(8, |_| std::future::pending::<Result<(usize, usize), ExportError>>());
        assert!(tokio::time::timeout(Duration::from_millis(1), never).await.is_err());
        assert_eq!(aged.places.lock().unwrap().len(), 0, "nor that of one that nobody waits for");
        assert_eq!(aged.get(8, |_| async { Ok((9, 1)) }).await, Ok(9), "a failure isn't kept");
    }

    #[tokio::test]
    async fn no_more_than_there_is_room_for() {
        let aged: Aged<u64> = Aged::new(Duration::from_secs(3600), 8);
        for key in 0..100 {
            aged.get(key, |_| async { Ok((key, 2)) }).await.unwrap();
            assert!(aged.places.lock().unwrap().len() <= 5);
        }
        assert_eq!(aged.get(99, |_| async { Ok((0, 1)) }).await, Ok(99), "the newest stays");
    }

    #[tokio::test]
    async fn whoever_asks_later_is_told_what_was_read_later() {
        let aged: Aged<usize> = Aged::new(Duration::from_secs(3600), 100);
        let reads = AtomicUsize::new(0);
        let since = |moment| {
            aged.since(7, moment, |_| async {
                tokio::task::yield_now().await;
                Ok((reads.fetch_add(1, Ordering::Relaxed), 1))
            })
        };
        let first = Instant::now();
        assert_eq!(since(first).await, Ok(0));
        assert_eq!(since(first).await, Ok(0), "read since");
        // Before the clock has gone on, nobody is later.
        tokio::time::sleep(Duration::from_millis(2)).await;
        let second = Instant::now();
        let many = futures::future::join_all((0..20).map(|_| since(second))).await;
        assert!(many.iter().all(|value| *value == Ok(1)), "one read for all: {many:?}");
        aged.forget(7);
        assert_eq!(since(first).await, Ok(2));
    }
}
