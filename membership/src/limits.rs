//! Every bound of the seam, with its unit in its name.

use std::time::Duration;

use bytes::Bytes;

use crate::seam::MembershipError;

/// Longest key, in bytes; the shortest is 1.
pub const KEY_BYTES_MAX: usize = 1024;
/// Largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 64 << 10;
/// Shortest lease: etcd grants none below it.
pub const TTL_MIN: Duration = Duration::from_secs(2);
/// Longest lease.
pub const TTL_MAX: Duration = Duration::from_secs(3600);
/// How long any call may take unless its caller says otherwise.
pub const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// Keys that the in-process registry holds.
pub const KEYS_MAX: usize = 65_536;
/// Keys and values that the in-process registry holds, in bytes: a list of all of them fits one gRPC message.
pub const TOTAL_BYTES_MAX: usize = 3 << 20;
/// What a key costs beside its bytes, towards [`TOTAL_BYTES_MAX`].
pub const ENTRY_OVERHEAD_BYTES: usize = 64;
/// Leases that the in-process registry grants at once.
pub const LEASES_MAX: usize = 16_384;
/// Changes that the in-process registry remembers for watchers that lag.
pub const HISTORY_EVENTS_MAX: usize = 4096;
/// The values among them, in bytes.
pub const HISTORY_BYTES_MAX: usize = 8 << 20;
/// Watches that the served registry carries at once.
pub const WATCHERS_MAX: usize = 1024;
/// How often a quiet watch says that it is alive.
pub const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// Silence after which a watch over the network counts as broken: four times [`PROGRESS_INTERVAL`].
pub const WATCH_SILENCE_MAX: Duration = Duration::from_secs(20);

/// Checks a key.
///
/// # Errors
/// [`MembershipError::Invalid`] with the bound.
pub fn check_key(key: &Bytes) -> Result<(), MembershipError> {
    if (1..=KEY_BYTES_MAX).contains(&key.len()) {
        return Ok(());
    }
    Err(MembershipError::invalid("key", format!("is {} bytes long; expected 1 to {KEY_BYTES_MAX}", key.len())))
}

/// Checks a prefix: a key, or nothing for every key.
///
/// # Errors
/// [`MembershipError::Invalid`] with the bound.
pub fn check_prefix(prefix: &Bytes) -> Result<(), MembershipError> {
    if prefix.len() <= KEY_BYTES_MAX {
        return Ok(());
    }
    Err(MembershipError::invalid("prefix", format!("is {} bytes long; expected at most {KEY_BYTES_MAX}", prefix.len())))
}

/// Checks a value.
///
/// # Errors
/// [`MembershipError::Invalid`] with the bound.
pub fn check_value(value: &Bytes) -> Result<(), MembershipError> {
    if value.len() <= VALUE_BYTES_MAX {
        return Ok(());
    }
    Err(MembershipError::invalid("value", format!("is {} bytes long; expected at most {VALUE_BYTES_MAX}", value.len())))
}

/// Checks a lease's length.
///
/// # Errors
/// [`MembershipError::Invalid`] with the bounds.
pub fn check_ttl(ttl: Duration) -> Result<(), MembershipError> {
    if (TTL_MIN..=TTL_MAX).contains(&ttl) {
        return Ok(());
    }
    Err(MembershipError::invalid("ttl_ms", format!("is {ttl:?}; expected {TTL_MIN:?} to {TTL_MAX:?}")))
}
