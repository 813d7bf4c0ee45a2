//! SCSI as far as reading needs it: commands, their answers, and sense data in words.

use std::fmt;

/// A command block, filled with zeros to the 16 bytes that a PDU holds.
pub type Cdb = [u8; 16];
/// Most bytes of sense data.
pub const SENSE_MAX: usize = 252;

/// Status bytes.
pub mod status {
    /// Done.
    pub const GOOD: u8 = 0x00;
    /// See the sense data.
    pub const CHECK_CONDITION: u8 = 0x02;
    /// Later.
    pub const BUSY: u8 = 0x08;
    /// Somebody else has reserved it.
    pub const RESERVATION_CONFLICT: u8 = 0x18;
    /// Too many commands: later.
    pub const TASK_SET_FULL: u8 = 0x28;
}

/// A logical unit's number as eight bytes: as one byte below 256, as flat space above.
///
/// Numbers above 16383 have no such form; [`crate::scsi::LUN_MAX`] is the last one.
#[must_use]
pub fn lun(number: u16) -> [u8; 8] {
    let [high, low] = number.min(LUN_MAX).to_be_bytes();
    let first = if high == 0 { 0 } else { 0x40 | high };
    [first, low, 0, 0, 0, 0, 0, 0]
}

/// The last number that [`lun`] can say.
pub const LUN_MAX: u16 = 0x3fff;

/// TEST UNIT READY.
#[must_use]
pub fn test_unit_ready() -> Cdb {
    [0; 16]
}

/// INQUIRY, the standard page, of at most `length` bytes.
#[must_use]
pub fn inquiry(length: u16) -> Cdb {
    let mut cdb = [0; 16];
    cdb[0] = 0x12;
    cdb[3..5].copy_from_slice(&length.to_be_bytes());
    cdb
}

/// INQUIRY of the page that says how much one command may read (0xb0).
#[must_use]
pub fn inquiry_limits(length: u16) -> Cdb {
    let mut cdb = inquiry(length);
    (cdb[1], cdb[2]) = (1, 0xb0);
    cdb
}

/// Most blocks that one command may read, if the unit says so.
#[must_use]
pub fn most_blocks(answer: &[u8]) -> Option<u32> {
    if *answer.get(1)? != 0xb0 {
        return None;
    }
    let most = u32::from_be_bytes(answer.get(8..12)?.try_into().expect("four bytes"));
    (most != 0).then_some(most)
}

/// READ CAPACITY(16).
#[must_use]
pub fn read_capacity(length: u32) -> Cdb {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (0x9e, 0x10);
    cdb[10..14].copy_from_slice(&length.to_be_bytes());
    cdb
}

/// READ(16).
#[must_use]
pub fn read(block: u64, blocks: u32) -> Cdb {
    let mut cdb = [0; 16];
    cdb[0] = 0x88;
    cdb[2..10].copy_from_slice(&block.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// REPORT LUNS.
#[must_use]
pub fn report_luns(length: u32) -> Cdb {
    let mut cdb = [0; 16];
    cdb[0] = 0xa0;
    cdb[6..10].copy_from_slice(&length.to_be_bytes());
    cdb
}

/// An answer that can't be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the answer to {command} {why}")]
pub struct BadAnswer {
    /// The command.
    pub command: &'static str,
    /// What is wrong.
    pub why: String,
}

fn bad(command: &'static str, why: impl Into<String>) -> BadAnswer {
    BadAnswer { command, why: why.into() }
}

/// How big a unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Number of blocks.
    pub blocks: u64,
    /// Bytes of a block.
    pub block_size: u32,
}

impl Capacity {
    /// Bytes of the unit.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.blocks * u64::from(self.block_size)
    }

    /// Reads the answer to READ CAPACITY(16).
    ///
    /// # Errors
    /// Too short, blocks that aren't a power of two from 512 bytes to 64 KiB, or more bytes than 64 bits count.
    pub fn read(answer: &[u8]) -> Result<Self, BadAnswer> {
        const COMMAND: &str = "READ CAPACITY(16)";
        let (Some(last), Some(size)) = (answer.first_chunk::<8>(), answer.get(8..12)) else {
            return Err(bad(COMMAND, format!("has {} bytes, expected 12 at least", answer.len())));
        };
        let last = u64::from_be_bytes(*last);
        let block_size = u32::from_be_bytes(size.try_into().expect("four bytes"));
        if !block_size.is_power_of_two() || !(512..=65_536).contains(&block_size) {
            return Err(bad(COMMAND, format!("says blocks of {block_size} bytes, expected a power of two from 512")));
        }
        let blocks = last.checked_add(1).filter(|blocks| blocks.checked_mul(u64::from(block_size)).is_some());
        let blocks = blocks.ok_or_else(|| bad(COMMAND, format!("says a last block of {last}, which can't be")))?;
        Ok(Self { blocks, block_size })
    }
}

/// What a unit says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inquiry {
    /// Nothing is there if this isn't 0.
    pub qualifier: u8,
    /// 0: a disk.
    pub device_type: u8,
    /// Vendor and product.
    pub name: String,
}

impl Inquiry {
    /// Reads the answer to INQUIRY.
    ///
    /// # Errors
    /// Too short.
    pub fn read(answer: &[u8]) -> Result<Self, BadAnswer> {
        let first = *answer.first().ok_or_else(|| bad("INQUIRY", "is empty"))?;
        let words = answer.get(8..answer.len().min(32)).unwrap_or_default();
        let name: String =
            words.iter().map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { ' ' }).collect();
        let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
        Ok(Self { qualifier: first >> 5, device_type: first & 0x1f, name })
    }

    /// What kind of device it is, for people.
    #[must_use]
    pub fn device(&self) -> &'static str {
        match (self.qualifier, self.device_type) {
            (1.., _) => "nothing",
            (_, 0x00) => "a disk",
            (_, 0x01) => "a tape",
            (_, 0x05) => "a CD or DVD drive",
            (_, 0x0c) => "a storage array controller",
            (_, 0x0d) => "an enclosure",
            _ => "no disk",
        }
    }
}

/// Reads the answer to REPORT LUNS: the numbers that [`lun`] can say.
///
/// # Errors
/// Too short.
pub fn luns(answer: &[u8]) -> Result<Vec<u16>, BadAnswer> {
    let length = answer.first_chunk::<4>().ok_or_else(|| bad("REPORT LUNS", "has no length"))?;
    let said = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    let list = answer.get(8..).unwrap_or_default();
    let number = |entry: &[u8]| match entry[0] >> 6 {
        0 => u16::from(entry[1]),
        _ => u16::from_be_bytes([entry[0] & 0x3f, entry[1]]),
    };
    Ok(list[..list.len().min(said)].chunks_exact(8).map(number).collect())
}

/// Why a command failed, as the unit says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sense {
    /// What kind of failure.
    pub key: u8,
    /// Additional sense code and its qualifier.
    pub code: (u8, u8),
}

impl Sense {
    /// UNIT ATTENTION: something changed since the last command; the next one is carried out.
    pub const UNIT_ATTENTION: u8 = 0x06;

    /// Reads sense data, fixed or with descriptors.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? & 0x7f {
            0x70 | 0x71 => Some(Self {
                key: bytes.get(2)? & 0x0f,
                // Older units leave these away.
                code: (bytes.get(12).copied().unwrap_or(0), bytes.get(13).copied().unwrap_or(0)),
            }),
            0x72 | 0x73 => Some(Self { key: bytes.get(1)? & 0x0f, code: (*bytes.get(2)?, *bytes.get(3)?) }),
            _ => None,
        }
    }

    /// Whether the same command may succeed if it is sent again: at once, or a little later.
    #[must_use]
    pub fn passing(self) -> bool {
        // Not ready, but becoming so; an aborted command; a unit attention.
        matches!((self.key, self.code), (0x02, (0x04, 0x01)) | (0x0b | Self::UNIT_ATTENTION, _))
    }

    /// Whether the unit isn't there.
    #[must_use]
    pub fn no_such_unit(self) -> bool {
        self.code == (0x25, 0x00)
    }

    fn key_name(self) -> &'static str {
        match self.key {
            0x00 => "NO SENSE",
            0x01 => "RECOVERED ERROR",
            0x02 => "NOT READY",
            0x03 => "MEDIUM ERROR",
            0x04 => "HARDWARE ERROR",
            0x05 => "ILLEGAL REQUEST",
            0x06 => "UNIT ATTENTION",
            0x07 => "DATA PROTECT",
            0x08 => "BLANK CHECK",
            0x0a => "COPY ABORTED",
            0x0b => "ABORTED COMMAND",
            0x0d => "VOLUME OVERFLOW",
            0x0e => "MISCOMPARE",
            _ => "sense key reserved",
        }
    }

    fn code_name(self) -> Option<&'static str> {
        Some(match self.code {
            (0x04, 0x00) => "not ready, cause not reportable",
            (0x04, 0x01) => "becoming ready",
            (0x04, 0x02) => "an initializing command is required",
            (0x04, 0x03) => "manual intervention is required",
            (0x04, 0x0a) => "asymmetric access state transition",
            (0x04, 0x0b) => "target port in standby",
            (0x04, 0x0c) => "target port unavailable",
            (0x08, _) => "communication with the unit failed",
            (0x10, _) => "ID, CRC or ECC error",
            (0x11, _) => "unrecovered read error",
            (0x20, 0x00) => "invalid command",
            (0x21, 0x00) => "block address out of range",
            (0x24, 0x00) => "invalid field in the command",
            (0x25, 0x00) => "logical unit not supported",
            (0x28, 0x00) => "the medium may have changed",
            (0x29, _) => "power on or reset",
            (0x2a, 0x01) => "mode parameters changed",
            (0x2a, 0x09) => "the capacity changed",
            (0x2f, _) => "commands cleared by another initiator",
            (0x3a, _) => "no medium",
            (0x3f, 0x03) => "inquiry data changed",
            (0x3f, 0x0e) => "reported units changed",
            (0x44, _) => "internal failure of the target",
            (0x47, _) => "parity or CRC error on the way",
            (0x4e, 0x00) => "overlapped commands",
            _ => return None,
        })
    }
}

impl fmt::Display for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.key_name())?;
        if let Some(name) = self.code_name() {
            write!(f, ", {name}")?;
        }
        write!(f, " ({:02x}/{:02x}/{:02x})", self.key, self.code.0, self.code.1)
    }
}

/// What a status byte is called.
#[must_use]
pub fn status_name(status: u8) -> &'static str {
    match status {
        status::GOOD => "GOOD",
        status::CHECK_CONDITION => "CHECK CONDITION",
        0x04 => "CONDITION MET",
        status::BUSY => "BUSY",
        status::RESERVATION_CONFLICT => "RESERVATION CONFLICT",
        status::TASK_SET_FULL => "TASK SET FULL",
        0x30 => "ACA ACTIVE",
        0x40 => "TASK ABORTED",
        _ => "a status that isn't in the standard",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_are_numbered() {
        assert_eq!(lun(0), [0; 8]);
        assert_eq!(lun(255)[..2], [0, 255]);
        assert_eq!(lun(256)[..2], [0x41, 0]);
        let mut answer = vec![0, 0, 0, 24, 0, 0, 0, 0];
        for number in [0, 1, 700] {
            answer.extend(lun(number));
        }
        assert_eq!(luns(&answer).unwrap(), [0, 1, 700]);
        answer[3] = 200;
        assert_eq!(luns(&answer).unwrap(), [0, 1, 700], "no more than there is");
        assert!(luns(&[0, 0]).is_err());
    }

    #[test]
    fn capacities_are_checked() {
        let answer = |last: u64, size: u32| [&last.to_be_bytes()[..], &size.to_be_bytes(), &[0; 20]].concat();
        assert_eq!(Capacity::read(&answer(99, 4096)), Ok(Capacity { blocks: 100, block_size: 4096 }));
        for (last, size) in [(u64::MAX, 512), (u64::MAX / 512, 512), (9, 0), (9, 520), (9, 1 << 20)] {
            Capacity::read(&answer(last, size)).expect_err("impossible");
        }
        Capacity::read(&[0; 11]).expect_err("short");
    }

    #[test]
    fn sense_is_said_in_words() {
        let mut fixed = [0; 18];
        (fixed[0], fixed[2], fixed[12], fixed[13]) = (0x70, 0x06, 0x29, 0x00);
        let sense = Sense::read(&fixed).unwrap();
        assert_eq!(sense.to_string(), "UNIT ATTENTION, power on or reset (06/29/00)");
        assert!(sense.passing());
        let sense = Sense::read(&[0x72, 0x05, 0x25, 0x00]).unwrap();
        assert!(sense.no_such_unit() && !sense.passing());
        assert_eq!(Sense::read(&[0x70, 0, 0x03]).unwrap().to_string(), "MEDIUM ERROR (03/00/00)");
        assert_eq!(Sense::read(&[0x72, 0x05]), None);
        assert_eq!(Sense::read(&[]), None);
    }

    #[test]
    fn what_is_no_disk_says_so() {
        let mut answer = [0; 36];
        answer[8..24].copy_from_slice(b"IET     VIRTUAL-");
        answer[24..32].copy_from_slice(b"DISK   \x01");
        let disk = Inquiry::read(&answer).unwrap();
        assert_eq!((disk.device(), disk.name.as_str()), ("a disk", "IET VIRTUAL-DISK"));
        answer[0] = 0x0c;
        assert_eq!(Inquiry::read(&answer).unwrap().device(), "a storage array controller");
        answer[0] = 0x7f;
        assert_eq!(Inquiry::read(&answer[..1]).unwrap().device(), "nothing");
        Inquiry::read(&[]).expect_err("empty");
    }

    proptest! {
        #[test]
        fn no_answer_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (Capacity::read(&bytes), Inquiry::read(&bytes), luns(&bytes));
            if let Some(sense) = Sense::read(&bytes) {
                prop_assert!(!sense.to_string().is_empty());
            }
        }
    }
}
