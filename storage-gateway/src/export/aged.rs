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
        let held = {
            let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let place = places.entry(key).or_insert_with(|| Place { held: Arc::default(), weight: 0, used: now });
            place.used = now;
            place.held.clone()
        };
        let mut held = held.lock().await;
        if let Some((at, value)) = held.as_ref()
            && at.elapsed() < self.age
        {
            return Ok(value.clone());
        }
        // True when it was asked for, not when the answer came.
        let at = Instant::now();
        let (value, weight) = read(held.take()).await?;
        *held = Some((at, value.clone()));
        drop(held);
        self.weigh(key, weight);
        Ok(value)
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
}
