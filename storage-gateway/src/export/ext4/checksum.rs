//! CRC32C as ext4 keeps it: the running value as it is, without the last inversion.

/// Goes on from `seed` over `bytes`.
pub(crate) fn of(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}
