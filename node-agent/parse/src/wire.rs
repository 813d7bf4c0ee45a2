//! Packets between parent and child: one byte that names the packet, then fields of fixed size, little-endian.
//!
//! A packet is at most [`PACKET_MAX`] bytes and one message of a `SOCK_SEQPACKET` socket, so that the kernel keeps their
//! borders. Whatever is larger (the document, pixels, words) travels beside it as a sealed memory file.

use crate::error::{ErrorKind, ParseError};
use crate::kinds::Kind;
use crate::limits::{DPI_MAX, DPI_MIN, MESSAGE_MAX, PACKET_MAX};

/// Both sides speak the same: a child of another build is refused when it says that it is ready.
pub(crate) const VERSION: u32 = 1;

/// What the parent asks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Request {
    /// Open the document in the memory file beside this packet.
    Open { kind: Kind, bytes: u64 },
    /// Give a page of the open document.
    Page { index: u32, dpi: f32 },
    /// Forget the open document. Has no reply.
    Close,
}

/// What the child answers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reply {
    /// It has set its limits and waits.
    Ready { version: u32 },
    /// The document is open.
    Opened { pages: u32 },
    /// A page's pixels, in the memory file beside this packet.
    Pixels { width: u32, height: u32, dpi: f32, channels: u8 },
    /// A page's words, as a table in the memory file beside this packet.
    Words { width: u32, height: u32, dpi: f32, bytes: u32 },
    /// It could not. `last` when the child ends after this packet.
    Failed { error: ParseError, last: bool },
}

impl Request {
    pub(crate) fn pack(self) -> Vec<u8> {
        match self {
            Request::Open { kind, bytes } => Pack::new(1).u8(kind.number()).u64(bytes).done(),
            Request::Page { index, dpi } => Pack::new(2).u32(index).f32(dpi).done(),
            Request::Close => Pack::new(3).done(),
        }
    }

    pub(crate) fn unpack(packet: &[u8]) -> Option<Self> {
        let mut fields = Unpack(packet);
        let request = match fields.u8()? {
            1 => Request::Open { kind: Kind::from_number(fields.u8()?)?, bytes: fields.u64()? },
            2 => Request::Page { index: fields.u32()?, dpi: fields.f32(DPI_MIN, DPI_MAX)? },
            3 => Request::Close,
            _ => return None,
        };
        fields.0.is_empty().then_some(request)
    }
}

impl Reply {
    pub(crate) fn pack(&self) -> Vec<u8> {
        match self {
            Reply::Ready { version } => Pack::new(10).u32(*version).done(),
            Reply::Opened { pages } => Pack::new(11).u32(*pages).done(),
            Reply::Pixels { width, height, dpi, channels } => {
                Pack::new(12).u32(*width).u32(*height).f32(*dpi).u8(*channels).done()
            }
            Reply::Words { width, height, dpi, bytes } => {
                Pack::new(13).u32(*width).u32(*height).f32(*dpi).u32(*bytes).done()
            }
            Reply::Failed { error, last } => {
                let (number, what) = match &error.kind {
                    ErrorKind::Malformed => (0, ""),
                    ErrorKind::Encrypted => (1, ""),
                    ErrorKind::Unsupported(what) => (2, what.as_str()),
                    ErrorKind::TooLarge => (3, ""),
                    ErrorKind::OutOfMemory => (4, ""),
                    ErrorKind::Unavailable => (5, ""),
                    // A child doesn't judge these: they are the parent's to find.
                    ErrorKind::TimedOut | ErrorKind::Crashed { .. } => (0, ""),
                };
                Pack::new(14)
                    .u8(number)
                    .u8(u8::from(*last))
                    .text(what, MESSAGE_MAX / 4)
                    .text(&error.message, MESSAGE_MAX)
                    .done()
            }
        }
    }

    /// Reads a packet that may have been made to hurt. `None` for anything but a well-formed reply.
    pub(crate) fn unpack(packet: &[u8]) -> Option<Self> {
        if packet.len() > PACKET_MAX {
            return None;
        }
        let mut fields = Unpack(packet);
        let reply = match fields.u8()? {
            10 => Reply::Ready { version: fields.u32()? },
            11 => Reply::Opened { pages: fields.u32()? },
            12 => Reply::Pixels {
                width: fields.u32()?,
                height: fields.u32()?,
                dpi: fields.f32(0.0, DPI_CEILING)?,
                channels: fields.u8()?,
            },
            13 => Reply::Words {
                width: fields.u32()?,
                height: fields.u32()?,
                dpi: fields.f32(0.0, DPI_CEILING)?,
                bytes: fields.u32()?,
            },
            14 => {
                let number = fields.u8()?;
                let last = fields.u8()? != 0;
                let what = fields.text(MESSAGE_MAX / 4)?;
                let message = fields.text(MESSAGE_MAX)?;
                let kind = match number {
                    0 => ErrorKind::Malformed,
                    1 => ErrorKind::Encrypted,
                    2 => ErrorKind::Unsupported(what),
                    3 => ErrorKind::TooLarge,
                    4 => ErrorKind::OutOfMemory,
                    5 => ErrorKind::Unavailable,
                    _ => return None,
                };
                Reply::Failed { error: ParseError { kind, message }, last }
            }
            _ => return None,
        };
        fields.0.is_empty().then_some(reply)
    }
}

/// No plausible resolution of a picture is above it.
const DPI_CEILING: f32 = 10_000.0;

struct Pack(Vec<u8>);

impl Pack {
    fn new(number: u8) -> Self {
        Pack(vec![number])
    }

    fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn f32(self, value: f32) -> Self {
        self.u32(value.to_bits())
    }

    /// Length in two bytes, then UTF-8, cut at `most` bytes and at a character's border.
    fn text(mut self, text: &str, most: usize) -> Self {
        let mut end = text.len().min(most);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.0.extend((end as u16).to_le_bytes());
        self.0.extend(&text.as_bytes()[..end]);
        self
    }

    fn done(self) -> Vec<u8> {
        self.0
    }
}

/// Takes fields from the front of what is left.
pub(crate) struct Unpack<'a>(pub(crate) &'a [u8]);

impl<'a> Unpack<'a> {
    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.0.split_at_checked(count)?;
        self.0 = left;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        Some(self.bytes(1)?[0])
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.bytes(2)?.try_into().ok()?))
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(8)?.try_into().ok()?))
    }

    /// A finite number within its range.
    pub(crate) fn f32(&mut self, least: f32, most: f32) -> Option<f32> {
        let value = f32::from_bits(self.u32()?);
        (least..=most).contains(&value).then_some(value)
    }

    /// UTF-8 without controls: it will stand in a log line and on a terminal.
    fn text(&mut self, most: usize) -> Option<String> {
        let length = usize::from(self.u16()?);
        if length > most {
            return None;
        }
        let text = std::str::from_utf8(self.bytes(length)?).ok()?;
        Some(text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_back() {
        for request in [
            Request::Open { kind: Kind::Tiff, bytes: u64::MAX },
            Request::Page { index: 7, dpi: 200.0 },
            Request::Close,
        ] {
            assert_eq!(Request::unpack(&request.pack()), Some(request));
        }
        for reply in [
            Reply::Ready { version: VERSION },
            Reply::Opened { pages: 3 },
            Reply::Pixels { width: 1, height: 2, dpi: 0.0, channels: 3 },
            Reply::Words { width: 1, height: 2, dpi: 72.5, bytes: 9 },
            Reply::Failed { error: ParseError::unsupported("old JPEG"), last: false },
            Reply::Failed { error: ParseError::unavailable("EIO"), last: false },
            Reply::Failed { error: ParseError::malformed("x".repeat(MESSAGE_MAX)), last: true },
        ] {
            let packet = reply.pack();
            assert!(packet.len() <= PACKET_MAX);
            assert_eq!(Reply::unpack(&packet), Some(reply));
        }
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let error = ParseError::malformed("é".repeat(MESSAGE_MAX));
        let Some(Reply::Failed { error, .. }) = Reply::unpack(&Reply::Failed { error, last: false }.pack()) else {
            panic!("a failure comes back");
        };
        assert_eq!(error.message.len(), MESSAGE_MAX);
    }

    #[test]
    fn hostile_packets_are_refused() {
        let good = Reply::Pixels { width: 1, height: 2, dpi: 100.0, channels: 3 }.pack();
        assert!(Reply::unpack(&good).is_some());
        for cut in 0..good.len() {
            assert_eq!(Reply::unpack(&good[..cut]), None, "cut at {cut}");
        }
        let longer = [good.as_slice(), &[0]].concat();
        assert_eq!(Reply::unpack(&longer), None, "something after the end");
        for dpi in [f32::NAN, f32::INFINITY, -1.0, 1e9] {
            assert_eq!(Reply::unpack(&Reply::Words { width: 1, height: 1, dpi, bytes: 0 }.pack()), None, "{dpi}");
        }
        assert_eq!(Reply::unpack(&[99]), None);
        assert_eq!(Reply::unpack(&[14, 77, 0, 0, 0, 0, 0]), None, "an unknown kind");
        assert_eq!(Reply::unpack(&[14, 0, 0, 0xff, 0xff, 0, 0]), None, "a text longer than its bound");
        assert_eq!(Reply::unpack(&[14, 0, 0, 0, 0, 2, 0, 0xff, 0xfe]), None, "not UTF-8");
        let Some(Reply::Failed { error, .. }) = Reply::unpack(&[14, 0, 0, 0, 0, 3, 0, b'a', 0x1b, b'b']) else {
            panic!("controls are replaced, not refused");
        };
        assert_eq!(error.message, "a b");
        for dpi in [f32::NAN, 0.0, 1e6] {
            assert_eq!(Request::unpack(&Request::Page { index: 0, dpi }.pack()), None);
        }
    }
}
