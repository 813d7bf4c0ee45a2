//! What a target would send, built by hand.

use ingle_iscsi::digest;
use ingle_iscsi::pdu::{Bhs, HEADER, padding};

/// A header: its first two bytes, the length of its data, and words at places.
pub(crate) fn header(first: u8, flags: u8, data: usize, words: &[(usize, u32)]) -> Bhs {
    let mut header = [0; HEADER];
    (header[0], header[1]) = (first, flags);
    header[5..8].copy_from_slice(&u32::try_from(data).expect("short").to_be_bytes()[1..]);
    for (at, word) in words {
        header[*at..*at + 4].copy_from_slice(&word.to_be_bytes());
    }
    header
}

/// Header, data, padding, and digests where they are turned on.
pub(crate) fn pdu(header: &Bhs, data: &[u8], digests: bool) -> Vec<u8> {
    let mut out = header.to_vec();
    if digests {
        out.extend(digest::of(header));
    }
    if !data.is_empty() {
        let from = out.len();
        out.extend_from_slice(data);
        out.resize(out.len() + padding(data.len()), 0);
        if digests {
            let digest = digest::of(&out[from..]);
            out.extend(digest);
        }
    }
    out
}

/// A login answer: flags, numbers, status, text.
pub(crate) fn login(flags: u8, stat_sn: u32, tsih: u16, status: (u8, u8), text: &str) -> (Bhs, Vec<u8>) {
    let text = text.replace('\n', "\0").into_bytes();
    let mut header = header(0x23, flags, text.len(), &[(16, 1), (24, stat_sn), (28, 1), (32, 33)]);
    header[14..16].copy_from_slice(&tsih.to_be_bytes());
    (header[36], header[37]) = status;
    (header, text)
}

/// What the initiator sent in a login: flags and text.
pub(crate) fn sent(request: &[u8]) -> (u8, String) {
    assert_eq!(request[0], 0x43, "a login request, at once");
    let length = usize::from(request[6]) << 8 | usize::from(request[7]);
    assert_eq!(request.len(), HEADER + length + padding(length));
    (request[1], String::from_utf8(request[HEADER..HEADER + length].to_vec()).expect("text").replace('\0', "\n"))
}
