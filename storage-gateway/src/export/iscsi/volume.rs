//! From a unit to the volume on it: its partitions, what each holds, and the one that can be read.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt as _;
use futures::stream::FuturesOrdered;

use super::target::Target;
use super::unit::Unit;
use super::url::IscsiUrl;
use crate::export::ExportError;
use crate::export::disk::{self, Disk, Slice};
use crate::export::ext4::Volume;
use crate::export::partitions::{self, Partition};
use crate::export::recognise::{self, Content};

/// For who asked for something on a unit: that target, unit or partition aren't there, or let nobody in, says nothing of
/// whether that something is there, nor who may read it.
pub(crate) fn away(error: ExportError) -> ExportError {
    match error {
        error @ (ExportError::NotFound(_) | ExportError::Denied { .. }) => {
            ExportError::Unavailable(format!("can't be opened now: {error}"))
        }
        error => error,
    }
}

/// A unit as a disk: bytes from any place on.
pub(crate) struct UnitDisk {
    target: Arc<Target>,
    unit: Unit,
    shown: String,
}

impl UnitDisk {
    /// The unit as it is now.
    pub(crate) async fn open(target: Arc<Target>, shown: String) -> Result<Self, ExportError> {
        let unit = target.unit().await?;
        Ok(Self { target, unit, shown })
    }

    /// Whole blocks, as the target reads them. A session that must be opened anew for that may find nothing there.
    async fn blocks(&self, start: u64, length: u32) -> Result<Bytes, ExportError> {
        self.target.read(start, length).await.map_err(away)
    }
}

#[async_trait]
impl Disk for UnitDisk {
    fn size(&self) -> u64 {
        self.unit.capacity.bytes()
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, ExportError> {
        if offset.checked_add(length.into()).is_none_or(|end| end > self.size()) {
            return Err(disk::outside(self, offset, length));
        }
        let block = u64::from(self.unit.capacity.block_size);
        let start = offset - offset % block;
        let end = (offset + u64::from(length)).next_multiple_of(block);
        let most = u64::from(self.unit.read_max);
        let (skip, whole) = ((offset - start) as usize, end - start);
        let data = if whole <= most {
            self.blocks(start, u32::try_from(whole).expect("a read's most")).await?
        } else {
            let pieces = (start..end).step_by(self.unit.read_max as usize);
            let mut reads: FuturesOrdered<_> =
                pieces.map(|at| self.blocks(at, u32::try_from((end - at).min(most)).expect("a read's most"))).collect();
            let mut out = BytesMut::with_capacity(usize::try_from(whole).expect("a disk's read is small"));
            while let Some(data) = reads.try_next().await? {
                out.extend_from_slice(&data);
            }
            out.freeze()
        };
        Ok(if skip == 0 && data.len() == length as usize { data } else { data.slice(skip..skip + length as usize) })
    }

    fn shown(&self) -> String {
        self.shown.clone()
    }
}

/// Finds the volume that the URL means.
pub(crate) async fn open(disk: UnitDisk, url: &IscsiUrl, age: Duration) -> Result<Volume, ExportError> {
    let disk: Arc<dyn Disk> = Arc::new(disk);
    let table = partitions::read(&*disk).await?;
    let chosen: Arc<dyn Disk> = match (table, url.partition) {
        (Some(table), Some(number)) => {
            let partition = table.iter().find(|partition| partition.number == number);
            let Some(partition) = partition else {
                let numbers: Vec<String> = table.iter().map(|partition| partition.number.to_string()).collect();
                let why = format!("{}: partition {number}; it has {}", url.shown, numbers.join(", "));
                return Err(ExportError::NotFound(why));
            };
            slice(&disk, partition, url)?
        }
        (None, Some(number)) => {
            let why = format!("{}: partition {number}; the unit has no partition table", url.shown);
            return Err(ExportError::NotFound(why));
        }
        (Some(table), None) => only(&disk, &table, url).await?,
        (None, None) => disk,
    };
    match recognise::content(&*chosen).await? {
        Content::Ext4 => Volume::open(chosen, age).await,
        content => Err(ExportError::Unsupported(format!("{}: {}; {EXPECTED}", url.shown, words(content)))),
    }
}

const EXPECTED: &str = "only ext4 is read from units";

fn words(content: Content) -> String {
    match content {
        Content::Ext4 => "ext4".to_owned(),
        Content::Other(name) => format!("it holds {name}"),
        Content::Unknown => "it holds nothing that is known here".to_owned(),
    }
}

fn slice(disk: &Arc<dyn Disk>, partition: &Partition, url: &IscsiUrl) -> Result<Arc<dyn Disk>, ExportError> {
    let shown = format!("{} partition {}", url.shown.split('?').next().unwrap_or_default(), partition.number);
    match Slice::new(disk.clone(), partition.start, partition.size, shown) {
        Some(slice) => Ok(Arc::new(slice)),
        None => {
            let why = format!("{}: partition {} goes past the end of the unit", url.shown, partition.number);
            Err(ExportError::Broken(why))
        }
    }
}

/// The only partition with ext4.
async fn only(disk: &Arc<dyn Disk>, table: &[Partition], url: &IscsiUrl) -> Result<Arc<dyn Disk>, ExportError> {
    let (mut readable, mut said) = (Vec::new(), Vec::new());
    for partition in table {
        let part = slice(disk, partition, url)?;
        let content = recognise::content(&*part).await?;
        let name = if partition.name.is_empty() { String::new() } else { format!(" {:?}", partition.name) };
        said.push(format!("{}{name}: {}", partition.number, words(content)));
        if content == Content::Ext4 {
            readable.push(part);
        }
    }
    match readable.len() {
        1 => Ok(readable.remove(0)),
        0 => Err(ExportError::Unsupported(format!("{}: {} ({})", url.shown, EXPECTED, said.join("; ")))),
        _ => Err(ExportError::Unsupported(format!(
            "{}: several partitions hold ext4: say which one with ?partition=N ({})",
            url.shown,
            said.join("; ")
        ))),
    }
}
