//! `key=value` pairs, each ended by NUL, as login and text PDUs carry them.

use std::fmt::Write as _;

/// Most bytes of text that one exchange may bring, over all its PDUs.
pub const TEXT_MAX: usize = 64 * 1024;
/// Longest key (RFC 7143, section 6.1).
const KEY_MAX: usize = 63;

/// What can't be read as text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the text of the target can't be read: {0}")]
pub struct BadText(pub &'static str);

/// Reads pairs, in their order.
///
/// # Errors
/// Something between two NULs is no pair, isn't UTF-8 (names may be, values are ASCII otherwise), or has an impossible key.
pub fn pairs(bytes: &[u8]) -> Result<Vec<(&str, &str)>, BadText> {
    if bytes.len() > TEXT_MAX {
        return Err(BadText("more than 64 KiB of it"));
    }
    let mut found = Vec::new();
    for item in bytes.split(|byte| *byte == 0).filter(|item| !item.is_empty()) {
        let item = std::str::from_utf8(item).map_err(|_| BadText("it isn't UTF-8"))?;
        let (key, value) = item.split_once('=').ok_or(BadText("a key without a value"))?;
        if key.is_empty() || key.len() > KEY_MAX {
            return Err(BadText("a key of impossible length"));
        }
        found.push((key, value));
    }
    Ok(found)
}

/// Text that is being written.
#[derive(Debug, Default)]
pub struct Pairs(Vec<u8>);

impl Pairs {
    /// Appends a pair.
    pub fn put(&mut self, key: &str, value: &str) {
        self.0.extend_from_slice(key.as_bytes());
        self.0.push(b'=');
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
    }

    /// As bytes of a data segment.
    #[must_use]
    pub fn bytes(self) -> Vec<u8> {
        self.0
    }
}

/// A binary value as text.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(2 + 2 * bytes.len());
    out.push_str("0x");
    for byte in bytes {
        write!(out, "{byte:02x}").expect("a String takes what is written");
    }
    out
}

/// A binary value of at most `most` bytes, in hexadecimal (`0x`) or base 64 (`0b`).
#[must_use]
pub fn binary(text: &str, most: usize) -> Option<Vec<u8>> {
    let out = match text.get(..2)? {
        "0x" | "0X" => from_hex(&text.as_bytes()[2..], most)?,
        "0b" | "0B" => from_base64(&text.as_bytes()[2..], most)?,
        _ => return None,
    };
    (out.len() <= most).then_some(out)
}

fn from_hex(digits: &[u8], most: usize) -> Option<Vec<u8>> {
    if digits.len() > 2 * most {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok());
    // An odd number of digits leaves out a leading zero.
    let (odd, rest) = digits.split_at(digits.len() % 2);
    let mut out = Vec::with_capacity(digits.len().div_ceil(2));
    for byte in odd {
        out.push(digit(*byte)?);
    }
    for pair in rest.chunks_exact(2) {
        out.push(digit(pair[0])? << 4 | digit(pair[1])?);
    }
    Some(out)
}

fn from_base64(symbols: &[u8], most: usize) -> Option<Vec<u8>> {
    if symbols.len() > most * 2 + 4 {
        return None;
    }
    let (mut out, mut held, mut bits) = (Vec::new(), 0_u32, 0);
    let end = symbols.iter().position(|byte| *byte == b'=').unwrap_or(symbols.len());
    if symbols[end..].iter().any(|byte| *byte != b'=') {
        return None;
    }
    for byte in &symbols[..end] {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        held = (held << 6 | u32::from(value)) & 0xffff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((held >> bits & 0xff) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read_and_written() {
        let mut text = Pairs::default();
        text.put("HeaderDigest", "CRC32C,None");
        text.put("X-com.example", "a=b");
        let bytes = text.bytes();
        assert_eq!(bytes, b"HeaderDigest=CRC32C,None\0X-com.example=a=b\0");
        assert_eq!(pairs(&bytes).unwrap(), [("HeaderDigest", "CRC32C,None"), ("X-com.example", "a=b")]);
        assert_eq!(pairs(b"\0\0").unwrap(), []);
        for bad in [b"nothing".as_slice(), b"=x", b"a=\xff", &[b'k'; 80], &vec![0; TEXT_MAX + 1]] {
            assert!(pairs(bad).is_err());
        }
    }

    #[test]
    fn binary_values_are_read_within_bounds() {
        assert_eq!(binary("0x0aFF", 8), Some(vec![10, 255]));
        assert_eq!(binary("0xaff", 8), Some(vec![10, 255]));
        assert_eq!(binary("0bTWFu", 8), Some(b"Man".to_vec()));
        assert_eq!(binary("0bTWE=", 8), Some(b"Ma".to_vec()));
        assert_eq!(binary(&hex(&[1, 2, 254]), 3), Some(vec![1, 2, 254]));
        for bad in ["", "0", "12", "0xzz", "0b!!", "0bTW=E", "0x112233445566778899", "é"] {
            assert_eq!(binary(bad, 8), None, "{bad}");
        }
    }
}
