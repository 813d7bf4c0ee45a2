//! Headers of PDUs (RFC 7143, section 11): those we send are built, those a target sends are read, field by field.

/// Bytes of a basic header segment.
pub const HEADER: usize = 48;
/// The command tag that names no command.
pub const NO_TAG: u32 = 0xffff_ffff;

/// A basic header segment.
pub type Bhs = [u8; HEADER];

/// What a target sends (the lower six bits of a header's first byte).
pub mod opcode {
    /// NOP-In: a ping, or the answer to ours.
    pub const NOP_IN: u8 = 0x20;
    /// How a command ended.
    pub const SCSI_RESPONSE: u8 = 0x21;
    /// The next step of a login.
    pub const LOGIN_RESPONSE: u8 = 0x23;
    /// Keys and values.
    pub const TEXT_RESPONSE: u8 = 0x24;
    /// Bytes that a command reads.
    pub const DATA_IN: u8 = 0x25;
    /// The session's end, as we asked.
    pub const LOGOUT_RESPONSE: u8 = 0x26;
    /// An event that nobody asked for.
    pub const ASYNC: u8 = 0x32;
    /// A PDU of ours that the target can't take.
    pub const REJECT: u8 = 0x3f;
}

/// A PDU that no target may send.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPdu {
    /// Nothing that a target sends to an initiator of reads.
    #[error("opcode {0:#04x} isn't one that a target answers reads with")]
    Opcode(u8),
    /// Responses have no additional headers.
    #[error("a response with {0} bytes of additional headers")]
    AdditionalHeader(usize),
}

/// Numbers by which a target says where it is and how far we may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers {
    /// Of this response, counted per connection.
    pub stat_sn: u32,
    /// The next command that the target expects.
    pub exp_cmd_sn: u32,
    /// The last command that it takes.
    pub max_cmd_sn: u32,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// SCSI status.
    pub status: u8,
    /// Bytes that were asked for and didn't come.
    pub underflow: Option<u32>,
    /// Bytes that would have come if more had been asked for.
    pub overflow: Option<u32>,
}

/// What a header says, without what only its data segment tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// See [`opcode::NOP_IN`]. `command` is [`NO_TAG`] for a ping of the target's; `transfer` asks for an answer then.
    NopIn {
        /// Of the NOP-Out that this answers.
        tag: u32,
        /// What our answer must carry; [`NO_TAG`] if none is wanted.
        transfer: u32,
        /// Copied into our answer.
        lun: [u8; 8],
    },
    /// See [`opcode::SCSI_RESPONSE`].
    ScsiResponse {
        /// Whose.
        tag: u32,
        /// iSCSI service response: 0 if the target carried the command out.
        response: u8,
        /// How it ended.
        ending: Ending,
    },
    /// See [`opcode::DATA_IN`].
    DataIn {
        /// Whose.
        tag: u32,
        /// Where in the command's buffer.
        offset: u32,
        /// The how many-th of its command.
        data_sn: u32,
        /// Set in the last one of a command that ended well: then no response follows.
        ending: Option<Ending>,
    },
    /// See [`opcode::LOGIN_RESPONSE`].
    Login(LoginAnswer),
    /// See [`opcode::TEXT_RESPONSE`].
    Text {
        /// Whose.
        tag: u32,
        /// Nothing follows.
        last: bool,
        /// What the request for more must carry.
        transfer: u32,
    },
    /// See [`opcode::LOGOUT_RESPONSE`].
    Logout,
    /// See [`opcode::ASYNC`].
    Async {
        /// What happened: 0 a SCSI event, 1 asks for logout, 2 drops the connection, 3 drops all, 4 renegotiation.
        event: u8,
    },
    /// See [`opcode::REJECT`].
    Reject {
        /// Why.
        reason: u8,
    },
}

/// The header of a login response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoginAnswer {
    /// The target goes to the next stage.
    pub transit: bool,
    /// More text of this answer follows.
    pub goes_on: bool,
    /// Where we are.
    pub stage: u8,
    /// Where we go, with `transit`.
    pub next: u8,
    /// The session's handle at the target.
    pub tsih: u16,
    /// Of the login.
    pub tag: u32,
    /// Class, detail.
    pub status: (u8, u8),
}

/// A header that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the data segment, without padding.
    pub data: usize,
    /// Numbers; of a Data-In without a status only those of commands count.
    pub numbers: Numbers,
    /// What it is.
    pub kind: Kind,
}

fn word(header: &Bhs, at: usize) -> u32 {
    u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes of 48"))
}

/// Bytes of a header's data segment, without padding.
#[must_use]
pub fn data_length(header: &Bhs) -> usize {
    usize::from(header[5]) << 16 | usize::from(header[6]) << 8 | usize::from(header[7])
}

/// Bytes that follow a segment up to the next multiple of four.
#[must_use]
pub fn padding(length: usize) -> usize {
    length.wrapping_neg() % 4
}

/// Reads what a target sent.
///
/// # Errors
/// No target may send that.
pub fn read(header: &Bhs) -> Result<Header, BadPdu> {
    let additional = usize::from(header[4]) * 4;
    if additional != 0 {
        return Err(BadPdu::AdditionalHeader(additional));
    }
    let flags = header[1];
    let tag = word(header, 16);
    let ending = |under: bool, over: bool| Ending {
        status: header[3],
        underflow: under.then(|| word(header, 44)),
        overflow: over.then(|| word(header, 44)),
    };
    let residuals = || ending(flags & 0x02 != 0, flags & 0x04 != 0);
    let kind = match header[0] & 0x3f {
        opcode::NOP_IN => {
            Kind::NopIn { tag, transfer: word(header, 20), lun: header[8..16].try_into().expect("eight bytes of 48") }
        }
        opcode::SCSI_RESPONSE => Kind::ScsiResponse { tag, response: header[2], ending: residuals() },
        opcode::DATA_IN => Kind::DataIn {
            tag,
            offset: word(header, 40),
            data_sn: word(header, 36),
            ending: (flags & 0x01 != 0).then(residuals),
        },
        opcode::LOGIN_RESPONSE => Kind::Login(LoginAnswer {
            transit: flags & 0x80 != 0,
            goes_on: flags & 0x40 != 0,
            stage: flags >> 2 & 3,
            next: flags & 3,
            tsih: u16::from_be_bytes([header[14], header[15]]),
            tag,
            status: (header[36], header[37]),
        }),
        opcode::TEXT_RESPONSE => {
            // F set and C clear: all of it.
            Kind::Text { tag, last: flags & 0xc0 == 0x80, transfer: word(header, 20) }
        }
        opcode::LOGOUT_RESPONSE => Kind::Logout,
        opcode::ASYNC => Kind::Async { event: header[36] },
        opcode::REJECT => Kind::Reject { reason: header[2] },
        other => return Err(BadPdu::Opcode(other)),
    };
    let numbers = Numbers { stat_sn: word(header, 24), exp_cmd_sn: word(header, 28), max_cmd_sn: word(header, 32) };
    Ok(Header { data: data_length(header), numbers, kind })
}

/// What a Reject's reason means.
#[must_use]
pub fn reject_reason(reason: u8) -> &'static str {
    match reason {
        0x02 => "data digest error",
        0x03 => "SNACK reject",
        0x04 => "protocol error",
        0x05 => "command not supported",
        0x06 => "too many immediate commands",
        0x07 => "command in progress",
        0x08 => "invalid data acknowledgement",
        0x09 => "invalid PDU field",
        0x0a => "out of resources",
        0x0b => "negotiation reset",
        0x0c => "waiting for logout",
        _ => "unknown reason",
    }
}

fn begin(first: u8, flags: u8, data: usize) -> Bhs {
    let mut header = [0; HEADER];
    (header[0], header[1]) = (first, flags);
    let length = u32::try_from(data).expect("our own segments are small").to_be_bytes();
    header[5..8].copy_from_slice(&length[1..]);
    header
}

fn put(header: &mut Bhs, at: usize, value: u32) {
    header[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// What we send: each with the numbers that it carries.
pub mod build {
    use super::{Bhs, NO_TAG, begin, put};

    /// Numbers of a request.
    #[derive(Debug, Clone, Copy)]
    pub struct Counted {
        /// Ours.
        pub tag: u32,
        /// Of the command, or of the next one where this is sent at once.
        pub cmd_sn: u32,
        /// The next response that we expect.
        pub exp_stat_sn: u32,
    }

    fn count(header: &mut Bhs, counted: Counted) {
        put(header, 16, counted.tag);
        put(header, 24, counted.cmd_sn);
        put(header, 28, counted.exp_stat_sn);
    }

    /// A command that reads at most `expected` bytes (0: none).
    #[must_use]
    pub fn command(lun: [u8; 8], cdb: &[u8; 16], expected: u32, counted: Counted) -> Bhs {
        // Final, read, simple queueing: the target may reorder, reads don't mind.
        let read = if expected == 0 { 0 } else { 0x40 };
        let mut header = begin(0x01, 0x80 | read | 0x01, 0);
        header[8..16].copy_from_slice(&lun);
        count(&mut header, counted);
        put(&mut header, 20, expected);
        header[32..48].copy_from_slice(cdb);
        header
    }

    /// A ping that wants an answer.
    #[must_use]
    pub fn ping(counted: Counted) -> Bhs {
        let mut header = begin(0x40, 0x80, 0);
        count(&mut header, counted);
        put(&mut header, 20, NO_TAG);
        header
    }

    /// The answer to a ping of the target's.
    #[must_use]
    pub fn pong(lun: [u8; 8], transfer: u32, counted: Counted) -> Bhs {
        let mut header = begin(0x40, 0x80, 0);
        header[8..16].copy_from_slice(&lun);
        count(&mut header, counted);
        put(&mut header, 20, transfer);
        header
    }

    /// A step of a login.
    #[must_use]
    pub fn login(flags: u8, isid: [u8; 6], tsih: u16, data: usize, counted: Counted) -> Bhs {
        let mut header = begin(0x43, flags, data);
        header[8..14].copy_from_slice(&isid);
        header[14..16].copy_from_slice(&tsih.to_be_bytes());
        count(&mut header, counted);
        header
    }

    /// A request for text; `transfer` is what an unfinished answer asked us to carry.
    #[must_use]
    pub fn text(data: usize, transfer: u32, counted: Counted) -> Bhs {
        let mut header = begin(0x44, 0x80, data);
        count(&mut header, counted);
        put(&mut header, 20, transfer);
        header
    }

    /// The session's end.
    #[must_use]
    pub fn logout(counted: Counted) -> Bhs {
        let mut header = begin(0x46, 0x80, 0);
        count(&mut header, counted);
        header
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::build::Counted;
    use super::*;

    const COUNTED: Counted = Counted { tag: 0x0102_0304, cmd_sn: 0x1112_1314, exp_stat_sn: 0x2122_2324 };

    #[test]
    fn a_read_command_is_laid_out_as_the_standard_says() {
        let cdb = crate::scsi::read(0x1_0000_0002, 8);
        let header = build::command(crate::scsi::lun(1), &cdb, 4096, COUNTED);
        assert_eq!(header[..8], [0x01, 0xc1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(header[8..16], [0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(header[16..32], [1, 2, 3, 4, 0, 0, 0x10, 0, 0x11, 0x12, 0x13, 0x14, 0x21, 0x22, 0x23, 0x24]);
        assert_eq!(header[32..], [0x88, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 8, 0, 0]);
        assert_eq!(build::command(crate::scsi::lun(0), &cdb, 0, COUNTED)[1], 0x81, "nothing to read");
    }

    #[test]
    fn pings_go_at_once_and_logins_say_where_they_are() {
        let ping = build::ping(COUNTED);
        assert_eq!((ping[0], &ping[20..24]), (0x40, [0xff; 4].as_slice()));
        let login = build::login(0x87, [0x80, 1, 2, 3, 0, 0], 0, 300, COUNTED);
        assert_eq!(login[..16], [0x43, 0x87, 0, 0, 0, 0, 1, 44, 0x80, 1, 2, 3, 0, 0, 0, 0]);
    }

    #[test]
    fn a_data_in_is_read_with_and_without_a_status() {
        let mut header = [0; HEADER];
        header[0] = opcode::DATA_IN;
        header[1] = 0x80;
        header[5..8].copy_from_slice(&[0, 2, 1]);
        header[16..20].copy_from_slice(&7_u32.to_be_bytes());
        header[36..44].copy_from_slice(&[0, 0, 0, 3, 0, 0, 16, 0]);
        let expected = Kind::DataIn { tag: 7, offset: 4096, data_sn: 3, ending: None };
        assert_eq!(read(&header).map(|header| (header.data, header.kind)), Ok((513, expected)));
        header[1] = 0x83;
        header[47] = 9;
        let Kind::DataIn { ending: Some(ending), .. } = read(&header).unwrap().kind else { panic!("a status") };
        assert_eq!(ending, Ending { status: 0, underflow: Some(9), overflow: None });
    }

    #[test]
    fn what_no_target_may_send_is_named() {
        let mut header = [0; HEADER];
        for first in [0x00, 0x01, 0x31, 0x22, 0x3e] {
            header[0] = first;
            assert_eq!(read(&header), Err(BadPdu::Opcode(first)));
        }
        (header[0], header[4]) = (opcode::DATA_IN, 2);
        assert_eq!(read(&header), Err(BadPdu::AdditionalHeader(8)));
        assert_eq!([0, 1, 2, 3, 4].map(padding), [0, 3, 2, 1, 0]);
    }

    proptest! {
        #[test]
        fn any_header_is_read_or_refused(bytes in proptest::array::uniform32(any::<u8>()), rest in proptest::array::uniform16(any::<u8>())) {
            let mut header = [0; HEADER];
            header[..32].copy_from_slice(&bytes);
            header[32..].copy_from_slice(&rest);
            if let Ok(read) = read(&header) {
                prop_assert!(read.data < 1 << 24);
                prop_assert_eq!(header[4], 0);
            }
        }
    }
}
