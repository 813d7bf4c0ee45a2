//! From bytes to text: UTF-8, UTF-16 with a byte order mark, or Windows-1252 if it looks like text at all.

/// A document's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// As UTF-8.
    pub text: String,
    /// Where the text begins in the file: 3 after a UTF-8 byte order mark, else 0. Offsets in the text plus this are
    /// offsets in the file, if the file is UTF-8; for other encodings they are offsets in the text.
    pub base: u64,
}

/// Windows-1252 from 0x80 to 0x9F; the five gaps stay control characters, as browsers read them.
const HIGH_CONTROLS: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}', '‘', '’',
    '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];
/// Of this many bytes one may be a control character in what we take for text.
const BYTES_PER_CONTROL: usize = 200;

/// Reads bytes as text.
///
/// # Errors
/// Why they aren't text.
pub fn decode(bytes: Vec<u8>) -> Result<Text, String> {
    if let Some(rest) = bytes.strip_prefix(b"\xFF\xFE") {
        return utf16(rest, u16::from_le_bytes, "little");
    }
    if let Some(rest) = bytes.strip_prefix(b"\xFE\xFF") {
        return utf16(rest, u16::from_be_bytes, "big");
    }
    if let Some(rest) = bytes.strip_prefix(b"\xEF\xBB\xBF") {
        return Ok(Text { text: unicode(rest.to_vec())?, base: 3 });
    }
    Ok(Text { text: unicode(bytes)?, base: 0 })
}

fn unicode(bytes: Vec<u8>) -> Result<String, String> {
    if let Some(at) = bytes.iter().position(|byte| *byte == 0) {
        return Err(format!("not text: a NUL byte at offset {at}"));
    }
    let controls = bytes.iter().filter(|byte| is_control(**byte)).count();
    if controls * BYTES_PER_CONTROL > bytes.len() && controls > 2 {
        return Err(format!("not text: {controls} control characters in {} bytes", bytes.len()));
    }
    let bytes = match String::from_utf8(bytes) {
        Ok(text) => return Ok(text),
        Err(error) => error.into_bytes(),
    };
    // A UTF-8 file with a few broken places (cut in a character, say) is still a UTF-8 file.
    let (mut broken, mut whole) = (0usize, 0usize);
    for chunk in bytes.utf8_chunks() {
        whole += chunk.valid().chars().filter(|c| !c.is_ascii()).count();
        broken += usize::from(!chunk.invalid().is_empty());
    }
    if whole > 2 * broken {
        return Ok(String::from_utf8_lossy(&bytes).into_owned());
    }
    Ok(bytes.iter().map(|byte| windows_1252(*byte)).collect())
}

fn windows_1252(byte: u8) -> char {
    match byte {
        0x80..=0x9F => HIGH_CONTROLS[usize::from(byte - 0x80)],
        _ => char::from(byte),
    }
}

/// Tab, line feed, form feed, carriage return and escape occur in texts.
fn is_control(byte: u8) -> bool {
    matches!(byte, 0..=8 | 0x0B | 0x0E..=0x1A | 0x1C..=0x1F | 0x7F)
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16, order: &str) -> Result<Text, String> {
    if bytes.len() % 2 == 1 {
        return Err(format!("not text: UTF-16 ({order} endian) of an odd number of bytes"));
    }
    let units = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
    let text: String = char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
    if text.contains('\0') {
        return Err("not text: a NUL character in UTF-16".to_owned());
    }
    Ok(Text { text, base: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_told_apart() {
        let check = |bytes: &[u8], text: &str, base: u64| {
            assert_eq!(decode(bytes.to_vec()), Ok(Text { text: text.into(), base }), "{bytes:?}");
        };
        check(b"", "", 0);
        check("Grüße €".as_bytes(), "Grüße €", 0);
        check(b"\xEF\xBB\xBFhi", "hi", 3);
        check(b"\xFF\xFEh\0i\0", "hi", 0);
        check(b"\xFE\xFF\0h\0i", "hi", 0);
        check(b"caf\xE9 \x80 \x93x\x94", "café € “x”", 0);
        check(b"plain\ttext\r\n\x0c", "plain\ttext\r\n\x0c", 0);
    }

    #[test]
    fn a_broken_place_does_not_spoil_a_utf8_file() {
        let mut bytes = "äöüß".repeat(20).into_bytes();
        bytes.pop();
        let text = decode(bytes).unwrap().text;
        assert!(text.starts_with("äöüß") && text.ends_with('\u{FFFD}'), "{text}");
    }

    #[test]
    fn binary_is_refused_with_the_reason() {
        for bytes in
            [&b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"[..], b"a\0b", b"\x01\x02\x03\x04\x05", b"\xFF\xFEh", b"\xFF\xFE\0\0"]
        {
            let reason = decode(bytes.to_vec()).unwrap_err();
            assert!(reason.starts_with("not text: "), "{reason}");
        }
        let noise: Vec<u8> = (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 | 1).collect();
        assert!(decode(noise).is_err());
    }
}
