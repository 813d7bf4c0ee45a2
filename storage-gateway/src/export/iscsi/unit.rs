//! A unit as a session finds it: ready, a disk, how big; and which units there are if it isn't there.

use ingle_iscsi::Outcome;
use ingle_iscsi::scsi::{self, Capacity, Inquiry, Sense};

use super::dial::Dialer;
use super::link::{Broken, Link};
use crate::export::ExportError;

/// How often a unit may put us off (unit attention after a login, becoming ready) before its session is given up.
const ATTENTIONS_MAX: usize = 16;
/// Bytes asked of READ CAPACITY(16).
pub(crate) const CAPACITY: u32 = 32;
/// Bytes asked of INQUIRY.
const INQUIRY: u16 = 255;
/// Bytes asked of REPORT LUNS: 511 units.
const LUNS: u32 = 4096;
/// Most bytes that one of our reads takes: as much as a gateway's caller may ask for.
pub(crate) const READ_MAX: u32 = 1 << 20;

/// What is known of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unit {
    pub(crate) capacity: Capacity,
    /// Most bytes of one read.
    pub(crate) read_max: u32,
}

/// Asks for it, in a session that was just opened.
pub(crate) async fn look(link: &mut Link, dialer: &Dialer) -> Result<Unit, ExportError> {
    let lost = |broken: Broken| ExportError::Unavailable(format!("{}: {broken}", dialer.url.shown));
    let unsound = |error: scsi::BadAnswer| dialer.broken(error.to_string());
    // Its first answer tells of everything that happened before us.
    for _ in 0..ATTENTIONS_MAX {
        match link.ask(&scsi::test_unit_ready(), 0).await.map_err(lost)? {
            Outcome::Failed { sense: Some(sense), .. } if sense.passing() => {
                if sense.key != Sense::UNIT_ATTENTION {
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
            Outcome::Failed { sense: Some(sense), .. } if sense.no_such_unit() => {
                return Err(missing(link, dialer).await);
            }
            _ => break,
        }
    }
    let answer = done(link, dialer, "INQUIRY", &scsi::inquiry(INQUIRY), INQUIRY.into()).await?;
    let inquiry = Inquiry::read(&answer).map_err(unsound)?;
    match inquiry.device() {
        "a disk" => {}
        "nothing" => return Err(missing(link, dialer).await),
        other => {
            let url = &dialer.url.shown;
            return Err(ExportError::Unsupported(format!("{url}: LUN {} is {other}, expected a disk", dialer.url.lun)));
        }
    }
    let answer = done(link, dialer, "READ CAPACITY(16)", &scsi::read_capacity(CAPACITY), CAPACITY).await?;
    let capacity = Capacity::read(&answer).map_err(unsound)?;
    let mut read_max = READ_MAX;
    // Old units don't have that page, and say no more than that.
    if let Outcome::Done(answer) = link.ask(&scsi::inquiry_limits(64), 64).await.map_err(lost)?
        && let Some(blocks) = scsi::most_blocks(&answer)
    {
        read_max = read_max.min(blocks.saturating_mul(capacity.block_size)).max(capacity.block_size);
    }
    // Whole blocks.
    Ok(Unit { capacity, read_max: read_max / capacity.block_size * capacity.block_size })
}

async fn done(
    link: &mut Link,
    dialer: &Dialer,
    command: &str,
    cdb: &scsi::Cdb,
    expected: u32,
) -> Result<bytes::BytesMut, ExportError> {
    let mut said = String::new();
    for _ in 0..ATTENTIONS_MAX {
        match link.ask(cdb, expected).await {
            Ok(Outcome::Done(answer)) => return Ok(answer),
            Ok(Outcome::Failed { sense: Some(sense), .. }) if sense.no_such_unit() => {
                return Err(missing(link, dialer).await);
            }
            Ok(Outcome::Failed { status, sense }) => {
                said = failure(status, sense);
                if !sense.is_some_and(Sense::passing) {
                    break;
                }
            }
            Err(broken) => return Err(ExportError::Unavailable(format!("{}: {broken}", dialer.url.shown))),
        }
    }
    Err(ExportError::Unavailable(format!("{}: {command}: {said}", dialer.url.shown)))
}

/// How a command failed, in words.
pub(crate) fn failure(status: u8, sense: Option<Sense>) -> String {
    match sense {
        Some(sense) => sense.to_string(),
        None => scsi::status_name(status).to_owned(),
    }
}

/// Names the units that are there.
async fn missing(link: &mut Link, dialer: &Dialer) -> ExportError {
    // Asked of a unit that is always there: tgt answers for one that isn't with whatever lies in its memory.
    link.session.turn_to(scsi::lun(0));
    let there = match link.ask(&scsi::report_luns(LUNS), LUNS).await {
        Ok(Outcome::Done(answer)) => scsi::luns(&answer).unwrap_or_default(),
        _ => Vec::new(),
    };
    let words = match there.as_slice() {
        [] => "it names none".to_owned(),
        units => format!("it has {}", units.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")),
    };
    ExportError::NotFound(format!("{}: LUN {}; {words}", dialer.url.shown, dialer.url.lun))
}
