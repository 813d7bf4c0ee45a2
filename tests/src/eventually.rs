//! Waiting for what must come true, with one bound for all tests: `INGLE_TEST_PATIENCE` multiplies it on slow machines.

use std::future::Future;
use std::time::{Duration, Instant};

/// How long one thing may take before a test gives up, unless the environment says otherwise.
const USUAL: Duration = Duration::from_secs(60);
/// First pause between two looks.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// How long one thing may take.
#[must_use]
pub fn patience() -> Duration {
    let factor = std::env::var("INGLE_TEST_PATIENCE").ok().and_then(|text| text.parse::<f64>().ok());
    USUAL.mul_f64(factor.filter(|factor| (0.1..=100.0).contains(factor)).unwrap_or(1.0))
}

/// Looks until there is something to see, and answers it.
///
/// # Panics
/// Nothing came within [`patience`]: says what was waited for, and what was seen last.
pub async fn eventually<T, F>(what: &str, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let begun = Instant::now();
    let mut pause = PAUSE_FIRST;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(seen) if begun.elapsed() > patience() => panic!("waited {:?} for {what}: {seen}", begun.elapsed()),
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// The outcome of something that must end in time.
///
/// # Panics
/// It didn't.
pub async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(patience(), work).await {
        Ok(done) => done,
        Err(_) => panic!("{what} didn't end within {:?}", patience()),
    }
}
