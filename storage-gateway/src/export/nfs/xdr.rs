//! Reading XDR from bytes that a stranger sent: lengths are checked before anything is allocated, data isn't copied.
//!
//! `nfs3_types` unpacks an opaque by allocating whatever length it announces. So only types without lengths of their own
//! (attributes, times, enums) are left to it here; handles, names and data are taken as slices of the record.

use bytes::{Buf as _, Bytes};
use nfs3_types::xdr_codec::{Pack, Unpack};

/// What is wrong with the bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed XDR: {0}")]
pub(crate) struct Malformed(pub(crate) String);

/// Takes values off the front of a record.
#[derive(Debug, Clone)]
pub(crate) struct Reader {
    rest: Bytes,
}

impl Reader {
    /// Reads from the start of `bytes`.
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self { rest: bytes }
    }

    /// What has not been read.
    pub(crate) fn rest(&self) -> &Bytes {
        &self.rest
    }

    /// A value of a type that holds no length: it can't allocate.
    pub(crate) fn take<T: Unpack>(&mut self) -> Result<T, Malformed> {
        let mut input: &[u8] = &self.rest;
        let (value, _) = T::unpack(&mut input).map_err(|error| Malformed(error.to_string()))?;
        let read = self.rest.len() - input.len();
        self.rest.advance(read);
        Ok(value)
    }

    /// An unsigned integer of 32 bits.
    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.take()
    }

    /// Variable-length opaque data of at most `max` bytes, as a slice of the record.
    pub(crate) fn opaque(&mut self, max: usize) -> Result<Bytes, Malformed> {
        let length = self.u32()? as usize;
        if length > max {
            return Err(Malformed(format!("{length} bytes where at most {max} may be")));
        }
        let padded = length.next_multiple_of(4);
        if padded > self.rest.len() {
            return Err(Malformed(format!("{length} bytes announced, {} left", self.rest.len())));
        }
        let mut data = self.rest.split_to(padded);
        data.truncate(length);
        Ok(data)
    }

    /// An array of at most `max` integers.
    pub(crate) fn integers(&mut self, max: usize) -> Result<Vec<u32>, Malformed> {
        let length = self.u32()? as usize;
        if length > max {
            return Err(Malformed(format!("an array of {length} where at most {max} may be")));
        }
        (0..length).map(|_| self.u32()).collect()
    }

    /// An optional value: XDR's boolean, then perhaps `read`.
    pub(crate) fn optional<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Malformed> {
        if self.take::<bool>()? { read(self).map(Some) } else { Ok(None) }
    }

    /// Nothing may be left over.
    pub(crate) fn end(&self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed(format!("{} bytes too many", self.rest.len()))) }
    }
}

/// Appends a value to `out`.
pub(crate) fn put(out: &mut Vec<u8>, value: &impl Pack) {
    out.reserve(value.packed_size());
    value.pack(out).expect("a Vec takes all bytes, and nothing of ours is over 4 GiB");
}

#[cfg(test)]
mod tests {
    use nfs3_types::nfs3::ftype3;

    use super::*;

    #[test]
    fn announced_lengths_are_not_believed() {
        for bytes in [&[0xff, 0xff, 0xff, 0xff][..], &[0, 0, 0, 9, 1, 2, 3, 4], &[0, 0, 0, 3, 1, 2, 3], &[0, 0]] {
            let mut reader = Reader::new(Bytes::copy_from_slice(bytes));
            assert!(reader.opaque(1 << 20).is_err(), "{bytes:?}");
        }
        let mut reader = Reader::new(Bytes::from_static(&[0xff, 0xff, 0xff, 0xff]));
        assert!(reader.integers(16).is_err());
    }

    #[test]
    fn opaque_skips_its_padding() {
        let mut reader = Reader::new(Bytes::from_static(&[0, 0, 0, 5, 1, 2, 3, 4, 5, 0, 0, 0, 0, 0, 0, 7]));
        assert_eq!(reader.opaque(5).unwrap(), &[1, 2, 3, 4, 5][..]);
        assert_eq!(reader.u32().unwrap(), 7);
        reader.end().unwrap();
    }

    #[test]
    fn unknown_enum_values_are_errors() {
        assert!(Reader::new(Bytes::from_static(&[0, 0, 0, 99])).take::<ftype3>().is_err());
        assert!(Reader::new(Bytes::from_static(&[0, 0, 0, 2])).optional(|r| r.u32()).is_err());
    }
}
