//! Refuses a load before the kernel kills: what the system says is available, less a reserve.

use ingle_engine::EngineError;

/// Left alone for everything else on the machine.
const RESERVE_BYTES: u64 = 128 << 20;

/// # Errors
/// [`EngineError::Memory`] if fewer than `needed` bytes are available. Where the system doesn't say, it is tried.
pub(crate) fn require(needed: u64) -> Result<(), EngineError> {
    let Some(available) = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text)) else {
        return Ok(());
    };
    let available = available.saturating_sub(RESERVE_BYTES);
    if needed <= available { Ok(()) } else { Err(EngineError::Memory { needed, available }) }
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_line_is_read() {
        assert_eq!(available("MemTotal:  9 kB\nMemAvailable:   2048 kB\nBuffers: 1 kB\n"), Some(2048 * 1024));
        assert_eq!(available("nothing"), None);
    }

    #[test]
    fn what_no_machine_has_is_refused() {
        assert!(matches!(require(u64::MAX), Err(EngineError::Memory { needed: u64::MAX, .. })));
        assert!(require(0).is_ok());
    }
}
