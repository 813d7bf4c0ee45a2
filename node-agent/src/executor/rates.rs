//! Speeds as they were measured, smoothed: what the coordinator predicts finish times from.

use std::time::Duration;

use ingle_engine::Timings;

/// Weight of the newest measure.
const NEWEST: f64 = 0.25;
/// Shorter work says little about speed.
const SHORTEST: Duration = Duration::from_micros(200);

/// Speeds of one model here; 0 until it has worked.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rates {
    /// Tokens read per second.
    pub prefill: f64,
    /// Tokens written per second, of one request.
    pub decode: f64,
    /// Bytes of documents per second.
    pub document_bytes: f64,
}

impl Rates {
    /// A request ended.
    pub fn request(&mut self, read: u32, written: u32, timings: Timings) {
        blend(&mut self.prefill, f64::from(read), timings.prefill);
        blend(&mut self.decode, f64::from(written), timings.decode);
    }

    /// A batch ended.
    pub fn documents(&mut self, bytes: u64, busy_us: u64) {
        blend(&mut self.document_bytes, bytes as f64, Duration::from_micros(busy_us));
    }
}

fn blend(rate: &mut f64, amount: f64, spent: Duration) {
    if amount <= 0.0 || spent < SHORTEST {
        return;
    }
    let now = amount / spent.as_secs_f64();
    *rate = if *rate == 0.0 { now } else { *rate * (1.0 - NEWEST) + now * NEWEST };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_smoothed_and_tiny_work_is_ignored() {
        let mut rates = Rates::default();
        let timings = |ms| Timings { prefill: Duration::from_millis(ms), decode: Duration::ZERO };
        rates.request(100, 0, timings(100));
        assert!((rates.prefill - 1000.0).abs() < 1e-6);
        rates.request(100, 0, timings(50));
        assert!((rates.prefill - 1250.0).abs() < 1e-6);
        rates.request(100, 5, timings(0));
        assert!((rates.prefill - 1250.0).abs() < 1e-6);
        assert_eq!(rates.decode, 0.0);
        rates.documents(1 << 20, 1_000_000);
        assert!((rates.document_bytes - f64::from(1 << 20)).abs() < 1e-6);
    }
}
