//! Which targets a portal offers: SendTargets (RFC 7143, appendix C) in a session of its own.

use crate::login::Agreed;
use crate::pdu::build::{self, Counted};
use crate::pdu::{self, Bhs, Kind, NO_TAG};
use crate::text::{self, Pairs, TEXT_MAX};

/// Most answers until all targets must be named.
const ANSWERS_MAX: usize = 64;
/// Most targets that are taken from a portal.
pub const TARGETS_MAX: usize = 1024;
/// Most bytes of an answer's data segment.
const SEGMENT_MAX: usize = crate::login::RECEIVE_MAX as usize;

/// An answer that can't be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the portal's list of targets can't be read: {0}")]
pub struct BadList(String);

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send this, then read an answer.
    Send(Vec<u8>),
    /// Names of the targets.
    Done(Vec<String>),
}

/// A question that is under way.
#[derive(Debug)]
pub struct Discovery {
    cmd_sn: u32,
    exp_stat_sn: u32,
    answers: usize,
    held: Vec<u8>,
}

/// Bytes of an answer's data segment, with padding: what to read after its header.
///
/// # Errors
/// More than we said that we take.
pub fn segment(header: &Bhs) -> Result<usize, BadList> {
    let length = pdu::data_length(header);
    if length > SEGMENT_MAX {
        return Err(BadList(format!("an answer of {length} bytes, expected at most {SEGMENT_MAX}")));
    }
    Ok(length + pdu::padding(length))
}

impl Discovery {
    /// The first request, in a session that was agreed without digests.
    #[must_use]
    pub fn begin(agreed: &Agreed) -> (Self, Vec<u8>) {
        let mut discovery =
            Self { cmd_sn: agreed.cmd_sn, exp_stat_sn: agreed.exp_stat_sn, answers: 0, held: Vec::new() };
        let mut text = Pairs::default();
        text.put("SendTargets", "All");
        let first = discovery.request(NO_TAG, text);
        (discovery, first)
    }

    fn request(&mut self, transfer: u32, text: Pairs) -> Vec<u8> {
        let data = text.bytes();
        let counted = Counted { tag: 2, cmd_sn: self.cmd_sn, exp_stat_sn: self.exp_stat_sn };
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        let mut out = build::text(data.len(), transfer, counted).to_vec();
        out.extend_from_slice(&data);
        out.resize(out.len() + pdu::padding(data.len()), 0);
        out
    }

    /// Takes an answer: its header, and its data segment without padding.
    ///
    /// # Errors
    /// It isn't one, or there is no end to it.
    pub fn answer(&mut self, header: &Bhs, data: &[u8]) -> Result<Step, BadList> {
        self.answers += 1;
        let read = pdu::read(header).map_err(|error| BadList(error.to_string()))?;
        let (last, transfer) = match read.kind {
            Kind::Text { tag: 2, last, transfer } => (last, transfer),
            Kind::Reject { reason } => return Err(BadList(format!("rejected: {}", pdu::reject_reason(reason)))),
            _ => return Err(BadList("something else than an answer to our question".to_owned())),
        };
        if self.answers > ANSWERS_MAX || self.held.len() + data.len() > TEXT_MAX {
            return Err(BadList(format!("it has no end after {} bytes", self.held.len() + data.len())));
        }
        self.exp_stat_sn = read.numbers.stat_sn.wrapping_add(1);
        self.held.extend_from_slice(data);
        if !last {
            return Ok(Step::Send(self.request(transfer, Pairs::default())));
        }
        let pairs = text::pairs(&self.held).map_err(|error| BadList(error.to_string()))?;
        let mut names: Vec<String> = Vec::new();
        for (_, name) in pairs.iter().filter(|(key, _)| *key == "TargetName") {
            if names.len() < TARGETS_MAX && !names.iter().any(|known| known == name) {
                names.push((*name).to_owned());
            }
        }
        Ok(Step::Done(names))
    }
}
