//! The clocks we go by: wall time for people, boot time (it counts sleep) for leases and deadlines.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since 1970, by the wall clock; 0 if it stands before that.
#[must_use]
pub fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Time since the machine booted, sleep included (`CLOCK_BOOTTIME`): never goes back.
#[must_use]
pub fn boottime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_move_forward() {
        let (wall, boot) = (unix_ms(), boottime());
        std::thread::sleep(Duration::from_millis(5));
        assert!(wall > 1_600_000_000_000);
        assert!(boottime() >= boot + Duration::from_millis(5));
    }
}
