//! A session that stands: commands within the target's window, each with a buffer of its own; pings; what ended.
//!
//! Whoever drives it sends what [`Session::output`] holds, hands in what comes ([`Session::take`], or straight into a
//! command's buffer: [`Session::direct`]), and looks at [`Session::event`] after that.

use std::collections::VecDeque;

use bytes::{Buf as _, BytesMut};

use crate::digest;
use crate::login::Agreed;
use crate::pdu::build::{self, Counted};
use crate::pdu::{self, Bhs, Ending, NO_TAG, Numbers};
use crate::receive::Receive;
use crate::scsi::{Cdb, Sense, status};

/// Most commands in flight.
pub const COMMANDS_MAX: usize = 1024;
/// Most bytes that one command may read.
pub const READ_MAX: u32 = 16 << 20;
/// From here on a command's data is read past our buffer of small things.
pub const LARGE: u32 = 32 * 1024;
/// Most bytes that wait to be sent: a target that pings without reading our answers gets no more of them.
const OUTPUT_MAX: usize = COMMANDS_MAX * 64 + 16 * 1024;
/// Set in the tags of pings.
const PING: u32 = 0x8000_0000;

/// Names a command while it is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag(pub(crate) u32);

impl Tag {
    /// Its place in a table of [`COMMANDS_MAX`]: no two commands in flight have the same.
    #[must_use]
    pub fn slot(self) -> usize {
        (self.0 & 0xffff) as usize
    }
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Well; with what it read, which may be less than it asked for.
    Done(BytesMut),
    /// Not well: the status, and what the unit says about it.
    Failed {
        /// SCSI status.
        status: u8,
        /// Why.
        sense: Option<Sense>,
    },
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A command ended.
    Ended(Tag, Outcome),
    /// Our ping was answered.
    Pong,
    /// The target wants the session to end.
    Leave,
}

/// Why a session can't go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A header that can't be.
    #[error(transparent)]
    Pdu(#[from] pdu::BadPdu),
    /// A digest that doesn't fit.
    #[error("the digest of {0} is wrong: it was spoilt on the way")]
    Digest(&'static str),
    /// More than it may be.
    #[error("{what} of {length} bytes, expected at most {most}")]
    TooLong {
        /// Of what.
        what: &'static str,
        /// Announced.
        length: usize,
        /// Allowed.
        most: usize,
    },
    /// A command that isn't in flight.
    #[error("an answer to a command {0:#010x} that isn't under way")]
    Unknown(u32),
    /// Data that isn't the next of its command.
    #[error("data at {offset} of a command that has {held} of {expected} bytes")]
    Misplaced {
        /// Where the target wants it.
        offset: u32,
        /// What is there.
        held: usize,
        /// What was asked for.
        expected: u32,
    },
    /// A PDU is missing, or is there twice.
    #[error("{what} number {found}, expected {expected}: something got lost")]
    Numbered {
        /// Of what.
        what: &'static str,
        /// As it came.
        found: u32,
        /// As it should be.
        expected: u32,
    },
    /// A PDU that has no place in a session like ours.
    #[error("{0}")]
    Unexpected(&'static str),
    /// The target can't take a PDU of ours.
    #[error("the target rejected a request: {0}")]
    Rejected(&'static str),
    /// The target failed to carry a command out at all.
    #[error("the target failed at a command (iSCSI response {0:#04x})")]
    TargetFailure(u8),
    /// It sends pings and doesn't read our answers.
    #[error("the target floods us with pings")]
    Flood,
}

/// A command in flight.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) tag: u32,
    /// What has come, from its beginning.
    pub(crate) data: BytesMut,
    pub(crate) expected: u32,
    /// Number of its next Data-In.
    pub(crate) data_sn: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    lun: [u8; 8],
    agreed: Agreed,
    cmd_sn: u32,
    max_cmd_sn: u32,
    exp_stat_sn: u32,
    pub(crate) commands: Vec<Option<Command>>,
    free: Vec<u16>,
    generation: u32,
    large: usize,
    /// Tag of the ping that has no answer yet.
    ping: Option<u32>,
    out: BytesMut,
    events: VecDeque<Event>,
    pub(crate) receive: Receive,
}

impl Session {
    /// As it was agreed, with at most `depth` commands in flight to the unit `lun`.
    #[must_use]
    pub fn new(agreed: Agreed, lun: [u8; 8], depth: usize) -> Self {
        let depth = u16::try_from(depth.clamp(1, COMMANDS_MAX)).expect("COMMANDS_MAX fits");
        Self {
            lun,
            cmd_sn: agreed.cmd_sn,
            max_cmd_sn: agreed.max_cmd_sn,
            exp_stat_sn: agreed.exp_stat_sn,
            commands: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            generation: 0,
            large: 0,
            ping: None,
            out: BytesMut::new(),
            events: VecDeque::new(),
            receive: Receive::new(agreed.header_digest, agreed.data_digest),
            agreed,
        }
    }

    /// Further commands go to another unit of the target.
    pub fn turn_to(&mut self, lun: [u8; 8]) {
        self.lun = lun;
    }

    /// Whether one more command may be sent: our table and the target's window have room.
    #[must_use]
    pub fn may_submit(&self) -> bool {
        !self.free.is_empty() && self.max_cmd_sn.wrapping_sub(self.cmd_sn) < 1 << 31
    }

    /// Commands in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.commands.len() - self.free.len()
    }

    /// Whether a command in flight reads much: then what comes next is best read in small pieces until its data begins.
    #[must_use]
    pub fn expects_large(&self) -> bool {
        self.large > 0
    }

    /// Sends a command that reads at most `expected` bytes, up to [`READ_MAX`], into `buffer`, which is emptied. `None`
    /// unless it [may be](Session::may_submit).
    pub fn submit(&mut self, cdb: &Cdb, expected: u32, mut buffer: BytesMut) -> Option<Tag> {
        if !self.may_submit() || expected > READ_MAX {
            return None;
        }
        buffer.clear();
        buffer.reserve(expected as usize);
        let slot = self.free.pop()?;
        // The upper half tells a late answer to an earlier command of the same slot from one to this.
        self.generation = (self.generation + 1) & 0x7fff;
        let tag = self.generation << 16 | u32::from(slot);
        self.commands[usize::from(slot)] = Some(Command { tag, data: buffer, expected, data_sn: 0 });
        self.large += usize::from(expected >= LARGE);
        let header = build::command(self.lun, cdb, expected, self.counted(tag));
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.send(&header);
        Some(Tag(tag))
    }

    /// Asks whether the target is there. Nothing if it was asked already.
    pub fn ping(&mut self) {
        if self.ping.is_some() {
            return;
        }
        self.generation = (self.generation + 1) & 0x7fff;
        let tag = PING | self.generation;
        self.ping = Some(tag);
        let header = build::ping(self.counted(tag));
        self.send(&header);
    }

    /// Says goodbye. Nobody waits for the answer.
    pub fn logout(&mut self) {
        let header = build::logout(self.counted(PING | 0x7fff_0000));
        self.send(&header);
    }

    fn counted(&self, tag: u32) -> Counted {
        Counted { tag, cmd_sn: self.cmd_sn, exp_stat_sn: self.exp_stat_sn }
    }

    fn send(&mut self, header: &Bhs) {
        self.out.extend_from_slice(header);
        if self.agreed.header_digest {
            self.out.extend_from_slice(&digest::of(header));
        }
    }

    /// What is to be sent.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        &self.out
    }

    /// So many bytes of it were.
    pub fn sent(&mut self, count: usize) {
        self.out.advance(count);
    }

    /// What happened next.
    pub fn event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Takes in where the target is. Numbers from a PDU that was overtaken change nothing.
    pub(crate) fn heard(&mut self, numbers: Numbers) {
        let newer = numbers.max_cmd_sn.wrapping_sub(self.max_cmd_sn);
        let sound = numbers.max_cmd_sn.wrapping_sub(numbers.exp_cmd_sn.wrapping_sub(1)) < 1 << 31;
        if sound && newer < 1 << 31 {
            self.max_cmd_sn = numbers.max_cmd_sn;
        }
    }

    /// Responses are numbered without gaps.
    pub(crate) fn counts(&mut self, numbers: Numbers) -> Result<(), Fault> {
        if numbers.stat_sn != self.exp_stat_sn {
            let (found, expected) = (numbers.stat_sn, self.exp_stat_sn);
            return Err(Fault::Numbered { what: "response", found, expected });
        }
        self.exp_stat_sn = self.exp_stat_sn.wrapping_add(1);
        Ok(())
    }

    /// The command of that tag, which must be in flight.
    pub(crate) fn command(&mut self, tag: u32) -> Result<&mut Command, Fault> {
        let command = self.commands.get_mut(Tag(tag).slot()).and_then(Option::as_mut);
        command.filter(|command| command.tag == tag).ok_or(Fault::Unknown(tag))
    }

    pub(crate) fn end(&mut self, tag: u32, ending: Ending, sense: Option<Sense>) -> Result<(), Fault> {
        self.command(tag)?;
        let slot = Tag(tag).slot();
        let command = self.commands[slot].take().expect("looked up above");
        self.free.push(u16::try_from(slot).expect("the table is smaller"));
        self.large -= usize::from(command.expected >= LARGE);
        let outcome = match ending.status {
            status::GOOD => Outcome::Done(command.data),
            status => Outcome::Failed { status, sense },
        };
        self.events.push_back(Event::Ended(Tag(tag), outcome));
        Ok(())
    }

    /// The answer to our ping, or a ping of the target's.
    pub(crate) fn nop(&mut self, tag: u32, transfer: u32, lun: [u8; 8], numbers: Numbers) -> Result<(), Fault> {
        if tag != NO_TAG {
            self.counts(numbers)?;
            if self.ping.take() != Some(tag) {
                return Err(Fault::Unknown(tag));
            }
            self.events.push_back(Event::Pong);
        } else if transfer != NO_TAG {
            if self.out.len() > OUTPUT_MAX {
                return Err(Fault::Flood);
            }
            let header = build::pong(lun, transfer, self.counted(NO_TAG));
            self.send(&header);
        }
        Ok(())
    }

    pub(crate) fn asked_to_leave(&mut self) {
        self.events.push_back(Event::Leave);
    }
}
