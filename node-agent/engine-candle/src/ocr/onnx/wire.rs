//! The protocol buffers wire format: fields one after the other, each with its number and kind.

use super::{INTS_MAX, OnnxError};

pub(super) fn bad<T>(problem: impl Into<String>) -> Result<T, OnnxError> {
    Err(OnnxError(problem.into()))
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(&'a [u8]),
    Fixed32([u8; 4]),
}

impl Value<'_> {
    /// Adds a repeated field of whole numbers, packed or single.
    pub(super) fn whole_numbers(self, to: &mut Vec<i64>) -> Result<(), OnnxError> {
        match self {
            Self::Varint(value) => to.push(value.cast_signed()),
            Self::Bytes(mut bytes) => {
                while !bytes.is_empty() && to.len() <= INTS_MAX {
                    to.push(varint(&mut bytes, "packed numbers")?.cast_signed());
                }
            }
            _ => return bad("has whole numbers in a field of another kind"),
        }
        if to.len() > INTS_MAX {
            return bad(format!("has a list of more than {INTS_MAX} whole numbers"));
        }
        Ok(())
    }

    /// Adds a repeated field of floats, packed or single.
    pub(super) fn floats(self, to: &mut Vec<f32>) -> Result<(), OnnxError> {
        match self {
            Self::Fixed32(bytes) => to.push(f32::from_le_bytes(bytes)),
            Self::Bytes(bytes) => {
                let (whole, rest) = bytes.as_chunks::<4>();
                if !rest.is_empty() {
                    return bad(format!("has {} bytes of packed floats, which is no multiple of 4", bytes.len()));
                }
                to.extend(whole.iter().map(|bytes| f32::from_le_bytes(*bytes)));
            }
            _ => return bad("has floats in a field of another kind"),
        }
        Ok(())
    }
}

/// The fields of one message; ends after the first error.
pub(super) struct Fields<'a> {
    left: &'a [u8],
    /// Which message, for errors.
    what: &'static str,
}

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { left: bytes, what }
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), OnnxError> {
        let key = varint(&mut self.left, self.what)?;
        let value = match key & 7 {
            0 => Value::Varint(varint(&mut self.left, self.what)?),
            1 => Value::Fixed64(self.array()?),
            2 => {
                let length = varint(&mut self.left, self.what)?;
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Fixed32(self.array()?),
            kind => return bad(format!("has a field of unknown kind {kind} in {}: is it an ONNX file?", self.what)),
        };
        Ok((key >> 3, value))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], OnnxError> {
        let Some((taken, left)) = self.left.split_at_checked(length) else {
            return bad(format!("ends inside {}: {length} bytes needed, {} are left", self.what, self.left.len()));
        };
        self.left = left;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], OnnxError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), OnnxError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.left = &[];
        }
        Some(field)
    }
}

/// A number in groups of 7 bits, at most 10 bytes.
fn varint(left: &mut &[u8], what: &str) -> Result<u64, OnnxError> {
    let mut value = 0u64;
    for place in 0..10 {
        let Some((byte, rest)) = left.split_first() else {
            return bad(format!("ends inside {what}, within a number"));
        };
        *left = rest;
        let bits = u64::from(byte & 0x7f);
        // The tenth byte holds the last bit.
        if place == 9 && bits > 1 {
            break;
        }
        value |= bits << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    bad(format!("has a number of more than 64 bits in {what}"))
}
