//! What the next bytes from the target are: a header, a command's data, a small segment, or padding and a digest.

use bytes::buf::Limit;
use bytes::{BufMut as _, BytesMut};

use crate::digest::{self, DIGEST, Digest};
use crate::login::RECEIVE_MAX;
use crate::pdu::{self, Bhs, Ending, HEADER, Header, Kind};
use crate::scsi::{Sense, status};
use crate::session::{Fault, Session};

/// Most bytes of a segment that is no command's data: sense, a rejected header, an event.
const SEGMENT_MAX: usize = 4096;

/// Where in the stream we are.
#[derive(Debug)]
pub(crate) struct Receive {
    header_digest: bool,
    data_digest: bool,
    at: At,
}

#[derive(Debug)]
enum At {
    /// A header with its digest, of which so much is there.
    Header([u8; HEADER + DIGEST], usize),
    /// Data of a command.
    Payload(Payload),
    /// Padding and digest after it.
    Tail(Payload, Small),
    /// A segment that we read ourselves, with padding and digest.
    Segment(Header, Vec<u8>, usize),
}

#[derive(Debug, Clone, Copy)]
struct Payload {
    tag: u32,
    left: usize,
    padding: usize,
    digest: Digest,
    ending: Option<Ending>,
    header: Header,
}

/// Up to three bytes of padding and a digest.
#[derive(Debug, Clone, Copy)]
struct Small {
    held: [u8; 3 + DIGEST],
    filled: usize,
}

const START: At = At::Header([0; HEADER + DIGEST], 0);

impl Receive {
    pub(crate) fn new(header_digest: bool, data_digest: bool) -> Self {
        Self { header_digest, data_digest, at: START }
    }
}

impl Session {
    /// Takes bytes as they came, all of them.
    ///
    /// # Errors
    /// The session can't go on.
    pub fn take(&mut self, mut input: &[u8]) -> Result<(), Fault> {
        while !input.is_empty() {
            match &mut self.receive.at {
                At::Header(held, filled) => {
                    let whole = if self.receive.header_digest { HEADER + DIGEST } else { HEADER };
                    let count = input.len().min(whole - *filled);
                    held[*filled..*filled + count].copy_from_slice(&input[..count]);
                    *filled += count;
                    input = &input[count..];
                    if *filled == whole {
                        let held = *held;
                        self.header(&held)?;
                    }
                }
                At::Payload(payload) => {
                    let (tag, count) = (payload.tag, input.len().min(payload.left));
                    self.command(tag)?.data.extend_from_slice(&input[..count]);
                    input = &input[count..];
                    self.placed(count)?;
                }
                At::Tail(payload, small) => {
                    let whole = payload.padding + if self.receive.data_digest { DIGEST } else { 0 };
                    let count = input.len().min(whole - small.filled);
                    small.held[small.filled..small.filled + count].copy_from_slice(&input[..count]);
                    small.filled += count;
                    input = &input[count..];
                    if small.filled == whole {
                        let (payload, small) = (*payload, *small);
                        self.tail(payload, &small.held[..whole])?;
                    }
                }
                At::Segment(_, held, whole) => {
                    let count = input.len().min(*whole - held.len());
                    held.extend_from_slice(&input[..count]);
                    input = &input[count..];
                    if held.len() == *whole
                        && let At::Segment(header, held, _) = std::mem::replace(&mut self.receive.at, START)
                    {
                        self.segment(&header, &held)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// If the next bytes are a command's data: the place for them, as long as they are. What was put there is told to
    /// [`Session::placed`].
    pub fn direct(&mut self) -> Option<Limit<&mut BytesMut>> {
        let At::Payload(Payload { tag, left, .. }) = self.receive.at else { return None };
        let command = self.command(tag).ok()?;
        Some((&mut command.data).limit(left))
    }

    /// So many bytes were put where [`Session::direct`] said.
    ///
    /// # Errors
    /// The session can't go on.
    pub fn placed(&mut self, count: usize) -> Result<(), Fault> {
        let data_digest = self.receive.data_digest;
        let At::Payload(mut payload) = self.receive.at else {
            return Err(Fault::Unexpected("data that isn't a command's"));
        };
        payload.left = payload.left.checked_sub(count).ok_or(Fault::Unexpected("more data than announced"))?;
        if data_digest {
            let data = &self.command(payload.tag)?.data;
            payload.digest.update(&data[data.len() - count..]);
        }
        self.receive.at = At::Payload(payload);
        if payload.left == 0 {
            if payload.padding > 0 || data_digest {
                self.receive.at = At::Tail(payload, Small { held: [0; 3 + DIGEST], filled: 0 });
            } else {
                self.arrived(payload)?;
            }
        }
        Ok(())
    }

    fn header(&mut self, held: &[u8; HEADER + DIGEST]) -> Result<(), Fault> {
        let bhs: &Bhs = held.first_chunk().expect("a header and more");
        if self.receive.header_digest && digest::of(bhs) != held[HEADER..] {
            return Err(Fault::Digest("a header"));
        }
        let header = pdu::read(bhs)?;
        self.receive.at = START;
        if let Kind::DataIn { tag, offset, data_sn, ending } = header.kind {
            return self.data_in(header, tag, offset, data_sn, ending);
        }
        if header.data > SEGMENT_MAX {
            return Err(Fault::TooLong { what: "a segment", length: header.data, most: SEGMENT_MAX });
        }
        if header.data == 0 {
            return self.segment(&header, &[]);
        }
        let digest = if self.receive.data_digest { DIGEST } else { 0 };
        let whole = header.data + pdu::padding(header.data) + digest;
        self.receive.at = At::Segment(header, Vec::with_capacity(whole), whole);
        Ok(())
    }

    /// Everything is checked before a byte of it is taken: whose it is, that it follows what is there, and that it fits.
    fn data_in(
        &mut self,
        header: Header,
        tag: u32,
        offset: u32,
        data_sn: u32,
        ending: Option<Ending>,
    ) -> Result<(), Fault> {
        let most = RECEIVE_MAX as usize;
        if header.data > most {
            return Err(Fault::TooLong { what: "data", length: header.data, most });
        }
        let command = self.command(tag)?;
        if data_sn != command.data_sn {
            return Err(Fault::Numbered { what: "data", found: data_sn, expected: command.data_sn });
        }
        let (held, expected) = (command.data.len(), command.expected);
        if offset as usize != held || held + header.data > expected as usize {
            return Err(Fault::Misplaced { offset, held, expected });
        }
        if ending.is_some_and(|ending| ending.status != status::GOOD) {
            return Err(Fault::Unexpected("data with the status of a failure"));
        }
        command.data_sn = command.data_sn.wrapping_add(1);
        let padding = pdu::padding(header.data);
        let payload = Payload { tag, left: header.data, padding, digest: Digest::default(), ending, header };
        if header.data == 0 {
            return self.arrived(payload);
        }
        self.receive.at = At::Payload(payload);
        Ok(())
    }

    fn tail(&mut self, mut payload: Payload, tail: &[u8]) -> Result<(), Fault> {
        let (padding, digest) = tail.split_at(payload.padding);
        payload.digest.update(padding);
        if self.receive.data_digest && payload.digest.wire() != digest {
            return Err(Fault::Digest("data"));
        }
        self.arrived(payload)
    }

    fn arrived(&mut self, payload: Payload) -> Result<(), Fault> {
        self.receive.at = START;
        self.heard(payload.header.numbers);
        if let Some(ending) = payload.ending {
            self.counts(payload.header.numbers)?;
            self.end(payload.tag, ending, None)?;
        }
        Ok(())
    }

    /// A PDU that is no data, whole.
    fn segment(&mut self, header: &Header, held: &[u8]) -> Result<(), Fault> {
        if self.receive.data_digest && !held.is_empty() {
            let (data, digest) = held.split_at(held.len() - DIGEST);
            if digest::of(data) != digest {
                return Err(Fault::Digest("a segment"));
            }
        }
        let data = &held[..header.data.min(held.len())];
        self.heard(header.numbers);
        match header.kind {
            Kind::NopIn { tag, transfer, lun } => self.nop(tag, transfer, lun, header.numbers),
            Kind::ScsiResponse { tag, response, ending } => {
                self.counts(header.numbers)?;
                if response != 0 {
                    self.command(tag)?;
                    return Err(Fault::TargetFailure(response));
                }
                self.end(tag, ending, sense(data))
            }
            Kind::Async { event } => {
                self.counts(header.numbers)?;
                if matches!(event, 1..=3) {
                    self.asked_to_leave();
                }
                Ok(())
            }
            Kind::Reject { reason } => Err(Fault::Rejected(pdu::reject_reason(reason))),
            Kind::Logout => {
                self.asked_to_leave();
                Ok(())
            }
            Kind::Login(_) => Err(Fault::Unexpected("an answer to a login in a session that stands")),
            Kind::Text { .. } => Err(Fault::Unexpected("text that nobody asked for")),
            Kind::DataIn { .. } => unreachable!("data has its own way, above"),
        }
    }
}

/// Sense data has its length before it.
fn sense(segment: &[u8]) -> Option<Sense> {
    let (length, rest) = segment.split_first_chunk::<2>()?;
    let length = usize::from(u16::from_be_bytes(*length));
    Sense::read(&rest[..rest.len().min(length).min(crate::scsi::SENSE_MAX)])
}
