//! CRC32C as iSCSI sends it: over a header, or over data with its padding.

/// Bytes of a digest.
pub const DIGEST: usize = 4;

/// A digest that is being computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digest(u32);

impl Digest {
    /// Takes more bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0 = crc32c::crc32c_append(self.0, bytes);
    }

    /// As it goes over the wire.
    #[must_use]
    pub fn wire(self) -> [u8; DIGEST] {
        self.0.to_le_bytes()
    }
}

/// The digest of these bytes.
#[must_use]
pub fn of(bytes: &[u8]) -> [u8; DIGEST] {
    let mut digest = Digest::default();
    digest.update(bytes);
    digest.wire()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7143, appendix A.4.
    #[test]
    fn examples_of_the_standard() {
        assert_eq!(of(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(of(&[0xff; 32]), [0x43, 0xab, 0xa8, 0x62]);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(of(&rising), [0x4e, 0x79, 0xdd, 0x46]);
        let mut in_parts = Digest::default();
        rising.chunks(5).for_each(|part| in_parts.update(part));
        assert_eq!(in_parts.wire(), of(&rising));
        let read = [
            0x01, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x14, 0, 0, 0, 0, 0, 0x04, 0, 0, 0, 0, 0x14, 0, 0, 0,
            0x18, 0x28, 0, 0, 0, 0, 0, 0, 0, 0x02, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(of(&read), [0x56, 0x3a, 0x96, 0xd9]);
    }
}
