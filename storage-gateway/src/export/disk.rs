//! Bytes that lie in order somewhere: what partitions and file systems are read from.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::ExportError;

/// Most bytes of one read.
pub(crate) const READ_MAX: u32 = 1 << 20;

/// See the module.
#[async_trait]
pub(crate) trait Disk: Send + Sync {
    /// Bytes of it.
    fn size(&self) -> u64;

    /// Bytes `offset .. offset + length`, which lie within it, at most [`READ_MAX`]; all of them, or an error.
    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, ExportError>;

    /// What is read, for errors.
    fn shown(&self) -> String;
}

/// A part of a disk.
pub(crate) struct Slice {
    whole: Arc<dyn Disk>,
    start: u64,
    size: u64,
    shown: String,
}

impl Slice {
    /// `None` unless it lies within the whole.
    pub(crate) fn new(whole: Arc<dyn Disk>, start: u64, size: u64, shown: String) -> Option<Self> {
        let fits = start.checked_add(size).is_some_and(|end| end <= whole.size());
        fits.then_some(Self { whole, start, size, shown })
    }
}

#[async_trait]
impl Disk for Slice {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, ExportError> {
        if offset.checked_add(length.into()).is_none_or(|end| end > self.size) {
            return Err(outside(self, offset, length));
        }
        self.whole.read(self.start + offset, length).await
    }

    fn shown(&self) -> String {
        self.shown.clone()
    }
}

/// A read that goes past the end.
pub(crate) fn outside(disk: &dyn Disk, offset: u64, length: u32) -> ExportError {
    ExportError::Broken(format!(
        "{}: {length} bytes at {offset} are past its end ({} bytes)",
        disk.shown(),
        disk.size()
    ))
}

/// Disks of tests.
#[cfg(test)]
pub(crate) mod image {
    use std::os::unix::fs::FileExt as _;
    use std::path::Path;
    use std::sync::Mutex;

    use super::*;

    /// An image in a file, or in memory.
    pub(crate) struct Image {
        bytes: Mutex<Vec<u8>>,
        file: Option<std::fs::File>,
        size: u64,
    }

    impl Image {
        pub(crate) fn file(path: &Path) -> Self {
            let file = std::fs::File::open(path).expect("an image");
            let size = file.metadata().expect("its size").len();
            Self { bytes: Mutex::default(), file: Some(file), size }
        }

        pub(crate) fn memory(bytes: Vec<u8>) -> Self {
            Self { size: bytes.len() as u64, bytes: Mutex::new(bytes), file: None }
        }
    }

    #[async_trait]
    impl Disk for Image {
        fn size(&self) -> u64 {
            self.size
        }

        async fn read(&self, offset: u64, length: u32) -> Result<Bytes, ExportError> {
            assert!(length <= READ_MAX, "no read is larger than a disk's");
            let length = length as usize;
            if offset.checked_add(length as u64).is_none_or(|end| end > self.size) {
                return Err(outside(self, offset, u32::try_from(length).expect("it was one")));
            }
            let mut data = vec![0; length];
            match &self.file {
                Some(file) => file.read_exact_at(&mut data, offset).expect("within the file"),
                None => {
                    let start = usize::try_from(offset).expect("in memory");
                    data.copy_from_slice(&self.bytes.lock().expect("no test panics with it")[start..start + length]);
                }
            }
            Ok(data.into())
        }

        fn shown(&self) -> String {
            "the image".to_owned()
        }
    }
}
