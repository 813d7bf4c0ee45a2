//! Units of iSCSI targets in user space: no kernel initiator, no mount, no root needed. Read-only.
//!
//! From the wire up: `dial` (connection and login), `link` (a session on a connection), `unit` (what it is), `target`
//! (reads in flight, new sessions), `volume` (partitions, and ext4 on one of them). The protocol itself is the crate
//! `ingle-iscsi`.

mod buffers;
mod dial;
#[cfg(test)]
mod hostile;
mod link;
mod target;
mod unit;
mod url;
mod volume;
mod whole;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ingle_proto::ObjectPath;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::Instant;

use self::dial::Dialer;
use self::target::Target;
use self::url::IscsiUrl;
pub use self::url::{Account, IscsiOptions};
use self::volume::UnitDisk;
use super::ext4::Volume;
use super::{Abilities, Attr, Entry, Export, ExportError, Replace};

/// Longest that a listing may take: big directories need many reads, each with a deadline of its own.
const LISTING_MAX: Duration = Duration::from_secs(600);

/// How much longer a call may take than the reads below it: they know why they are late, the call doesn't.
const GRACE: Duration = Duration::from_millis(500);

/// The volume, with when it was looked at last.
struct Opened {
    volume: Arc<Volume>,
    looked: Instant,
}

/// An ext4 volume on a unit of an iSCSI target.
pub struct IscsiExport {
    url: IscsiUrl,
    options: IscsiOptions,
    target: OnceCell<Arc<Target>>,
    opened: Mutex<Option<Opened>>,
}

impl IscsiExport {
    /// Reads the URL and opens nothing: the first call logs in, and every later one does again where it must.
    ///
    /// # Errors
    /// The URL or our own name can't be read: says which part, and what was expected.
    pub fn new(url: &str, options: &IscsiOptions) -> Result<Self, ExportError> {
        let url = IscsiUrl::parse(url)?;
        if let Err(why) = url::check_name(&options.initiator) {
            return Err(ExportError::Path(format!("initiator {:?} {why}", options.initiator)));
        }
        Ok(Self { url, options: options.clone(), target: OnceCell::new(), opened: Mutex::default() })
    }

    /// Reads the URL, logs in and looks at the volume.
    ///
    /// # Errors
    /// The URL can't be read; the target can't be reached or refuses; there is no volume that can be read. Each says what
    /// to do.
    pub async fn connect(url: &str, options: &IscsiOptions) -> Result<Self, ExportError> {
        let export = Self::new(url, options)?;
        export.within(export.options.deadline, &ObjectPath::root(), export.open()).await?;
        Ok(export)
    }

    async fn target(&self) -> Arc<Target> {
        let open = || async { Arc::new(Target::new(Dialer::new(self.url.clone(), self.options.clone()))) };
        self.target.get_or_init(open).await.clone()
    }

    /// Bytes of the unit itself, as [`IscsiExport::read_unit`] can read them.
    ///
    /// # Errors
    /// As [`IscsiExport::connect`], but for the volume.
    pub async fn unit_bytes(&self) -> Result<u64, ExportError> {
        Ok(self.target().await.unit().await?.capacity.bytes())
    }

    /// Bytes of the unit itself, whatever lies on it: whole blocks, at most 1 MiB.
    ///
    /// # Errors
    /// As [`IscsiExport::connect`], but for the volume.
    pub async fn read_unit(&self, offset: u64, length: u32) -> Result<Bytes, ExportError> {
        self.target().await.read(offset, length).await
    }

    /// For calls about what lies on the volume.
    async fn volume(&self) -> Result<Arc<Volume>, ExportError> {
        self.open().await.map_err(volume::away)
    }

    async fn open(&self) -> Result<Arc<Volume>, ExportError> {
        let mut opened = self.opened.lock().await;
        if let Some(opened) = opened.as_mut() {
            if opened.looked.elapsed() < self.options.metadata_age {
                return Ok(opened.volume.clone());
            }
            // Made anew, grown, or mounted for writing elsewhere meanwhile?
            let looked = Instant::now();
            match opened.volume.still().await {
                Ok(true) => {
                    opened.looked = looked;
                    return Ok(opened.volume.clone());
                }
                Ok(false) => {}
                // It is where it was, and may not be read now; or nobody says.
                Err(error @ ExportError::Unavailable(_)) => return Err(error),
                Err(error) => {
                    tracing::info!(
                        export = self.url.shown,
                        %error,
                        "what was opened can't be read any more: looked for anew"
                    );
                }
            }
        }
        // The unit may be larger than it was, or have other partitions.
        *opened = None;
        let looked = Instant::now();
        let disk = UnitDisk::open(self.target().await, self.url.shown.clone()).await?;
        let volume = Arc::new(volume::open(disk, &self.url, self.options.metadata_age).await?);
        *opened = Some(Opened { volume: volume.clone(), looked });
        Ok(volume)
    }

    /// Within the deadline, whatever it does.
    async fn within<T>(
        &self,
        most: Duration,
        path: &ObjectPath,
        work: impl Future<Output = Result<T, ExportError>>,
    ) -> Result<T, ExportError> {
        let late = || {
            let shown = if path.is_root() { "the export's root".to_owned() } else { path.display() };
            let seconds = most.as_secs_f32();
            Err(ExportError::Unavailable(format!("{shown}: {}: no answer within {seconds} s", self.url.shown)))
        };
        tokio::time::timeout(most + GRACE, work).await.unwrap_or_else(|_| late())
    }

    fn read_only<T>(path: &ObjectPath) -> Result<T, ExportError> {
        Err(ExportError::ReadOnly(path.display()))
    }
}

#[async_trait]
impl Export for IscsiExport {
    fn url(&self) -> String {
        self.url.shown.clone()
    }

    fn remote(&self) -> bool {
        true
    }

    async fn abilities(&self) -> Result<Abilities, ExportError> {
        self.within(self.options.deadline, &ObjectPath::root(), self.volume()).await?;
        Ok(Abilities { write: false, link: false })
    }

    async fn stat(&self, path: &ObjectPath) -> Result<Attr, ExportError> {
        self.within(self.options.deadline, path, async { self.volume().await?.stat(path).await }).await
    }

    async fn list(&self, path: &ObjectPath, limit: usize) -> Result<Vec<Entry>, ExportError> {
        self.within(LISTING_MAX, path, async { self.volume().await?.list(path, limit).await }).await
    }

    async fn read_at(&self, path: &ObjectPath, offset: u64, length: u32) -> Result<Bytes, ExportError> {
        let read = async { self.volume().await?.read(path, offset, length).await };
        self.within(self.options.deadline, path, read).await
    }

    /// The protocol tells nothing by itself: this looks, once for all reads that end together.
    async fn read_with_attr(
        &self,
        path: &ObjectPath,
        offset: u64,
        length: u32,
    ) -> Result<(Bytes, Option<Attr>), ExportError> {
        let read = async {
            let (data, attr) = self.volume().await?.read_and_look(path, offset, length).await?;
            Ok::<_, ExportError>((data, Some(attr)))
        };
        self.within(self.options.deadline, path, read).await
    }

    async fn create(&self, path: &ObjectPath) -> Result<(), ExportError> {
        Self::read_only(path)
    }

    async fn write_at(&self, path: &ObjectPath, _offset: u64, _data: Bytes) -> Result<(), ExportError> {
        Self::read_only(path)
    }

    async fn commit(&self, path: &ObjectPath) -> Result<(), ExportError> {
        Self::read_only(path)
    }

    async fn link(&self, _from: &ObjectPath, to: &ObjectPath) -> Result<(), ExportError> {
        Self::read_only(to)
    }

    async fn rename(&self, _from: &ObjectPath, to: &ObjectPath, _replace: Replace) -> Result<(), ExportError> {
        Self::read_only(to)
    }

    async fn remove(&self, path: &ObjectPath) -> Result<(), ExportError> {
        Self::read_only(path)
    }

    async fn make_directory(&self, path: &ObjectPath) -> Result<(), ExportError> {
        Self::read_only(path)
    }

    async fn remove_directory(&self, path: &ObjectPath) -> Result<(), ExportError> {
        Self::read_only(path)
    }
}
