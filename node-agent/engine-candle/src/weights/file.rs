//! Files of a model folder, opened with a limit on their size, and bytes read at checked positions.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ingle_engine::EngineError;

use super::{HeaderError, bad};

/// Longest JSON file of a model other than its tokenizer.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Longest tokenizer.json; the largest known ones have 35 MB.
pub const TOKENIZER_BYTES_MAX: u64 = 64 << 20;

/// Reads a whole small file.
///
/// # Errors
/// [`EngineError::Model`] if it is missing, longer than `limit`, or can't be read.
pub fn read_small(dir: &Path, name: &str, limit: u64) -> Result<Vec<u8>, EngineError> {
    let fail = |problem: String| EngineError::Model { file: name.into(), problem };
    let file = File::open(dir.join(name)).map_err(|error| fail(format!("can't be opened: {error}")))?;
    let size = file.metadata().map_err(|error| fail(error.to_string()))?.len();
    if size > limit {
        return Err(fail(format!("has {size} bytes, at most {limit} are read")));
    }
    let mut bytes = Vec::new();
    // The file may have grown since: one byte more than allowed shows it.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| fail(error.to_string()))?;
    if bytes.len() as u64 > limit {
        return Err(fail(format!("has more than {limit} bytes")));
    }
    Ok(bytes)
}

/// Reads and parses a small JSON file.
///
/// # Errors
/// As [`read_small`], or what serde says of its contents.
pub fn read_json<T: serde::de::DeserializeOwned>(dir: &Path, name: &str) -> Result<T, EngineError> {
    let bytes = read_small(dir, name, CONFIG_BYTES_MAX)?;
    serde_json::from_slice(&bytes).map_err(|error| EngineError::Model { file: name.into(), problem: error.to_string() })
}

/// A file of weights with its length as it was when opened.
#[derive(Debug)]
pub struct WeightFile {
    file: File,
    name: String,
    length: u64,
}

impl WeightFile {
    /// Opens a file below `dir`.
    ///
    /// # Errors
    /// [`EngineError::Model`] if it can't be opened or isn't a regular file.
    pub fn open(dir: &Path, name: &str) -> Result<Self, EngineError> {
        let fail = |problem: String| EngineError::Model { file: name.into(), problem };
        let path = dir.join(name);
        // Looked at before it is opened: opening a pipe would wait for its other end.
        let about = std::fs::metadata(&path).map_err(|error| fail(format!("can't be opened: {error}")))?;
        if !about.is_file() {
            return Err(fail("is not a regular file".into()));
        }
        let file = File::open(&path).map_err(|error| fail(format!("can't be opened: {error}")))?;
        let length = file.metadata().map_err(|error| fail(error.to_string()))?.len();
        Ok(Self { file, name: name.into(), length })
    }

    /// Its name relative to the model's folder.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Length in bytes when opened.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// A buffered reader from the beginning.
    #[must_use]
    pub fn reader(&self) -> std::io::BufReader<Positioned<'_>> {
        std::io::BufReader::with_capacity(64 << 10, Positioned { file: &self.file, at: 0 })
    }

    /// Exactly `length` bytes at `begin`.
    ///
    /// # Errors
    /// [`EngineError::Model`] if they lie outside the file, or the file has changed since it was opened.
    pub fn read_at(&self, begin: u64, length: u64) -> Result<Vec<u8>, EngineError> {
        let fail = |problem: String| EngineError::Model { file: self.name.clone(), problem };
        let inside = begin.checked_add(length).is_some_and(|end| end <= self.length);
        let size = usize::try_from(length).ok().filter(|_| inside);
        let Some(size) = size else {
            return Err(fail(format!("{length} bytes at {begin} lie outside its {} bytes", self.length)));
        };
        let mut bytes = vec![0; size];
        self.file
            .read_exact_at(&mut bytes, begin)
            .map_err(|error| fail(format!("changed while it was read: {length} bytes at {begin}: {error}")))?;
        Ok(bytes)
    }
}

/// Reads a file from its own position, leaving the file's alone.
#[derive(Debug)]
pub struct Positioned<'a> {
    file: &'a File,
    at: u64,
}

impl Read for Positioned<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl std::io::Seek for Positioned<'_> {
    fn seek(&mut self, to: std::io::SeekFrom) -> std::io::Result<u64> {
        let target = match to {
            std::io::SeekFrom::Start(at) => Some(at),
            std::io::SeekFrom::Current(by) => self.at.checked_add_signed(by),
            std::io::SeekFrom::End(by) => self.file.metadata()?.len().checked_add_signed(by),
        };
        self.at = target.ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// A header being read: knows where it is and how much the file still holds.
pub(crate) struct Cursor<R> {
    inner: R,
    at: u64,
    end: u64,
}

impl<R: Read> Cursor<R> {
    /// `end` is the file's length, or the header's limit if that is less.
    pub(crate) fn new(inner: R, end: u64) -> Self {
        Self { inner, at: 0, end }
    }

    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    pub(crate) fn left(&self) -> u64 {
        self.end - self.at
    }

    pub(crate) fn bytes(&mut self, what: &str, count: u64) -> Result<Vec<u8>, HeaderError> {
        if count > self.left() {
            return bad(format!("{what} needs {count} bytes at {}, where {} are left", self.at, self.left()));
        }
        let mut bytes = vec![0; usize::try_from(count).map_err(|_| HeaderError(format!("{what} is too long")))?];
        self.inner
            .read_exact(&mut bytes)
            .map_err(|error| HeaderError(format!("{what} at {} can't be read: {error}", self.at)))?;
        self.at += count;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], HeaderError> {
        if N as u64 > self.left() {
            return bad(format!("{what} needs {N} bytes at {}, where {} are left", self.at, self.left()));
        }
        let mut bytes = [0; N];
        self.inner
            .read_exact(&mut bytes)
            .map_err(|error| HeaderError(format!("{what} at {} can't be read: {error}", self.at)))?;
        self.at += N as u64;
        Ok(bytes)
    }

    pub(crate) fn u8(&mut self, what: &str) -> Result<u8, HeaderError> {
        Ok(self.array::<1>(what)?[0])
    }

    pub(crate) fn u32(&mut self, what: &str) -> Result<u32, HeaderError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(crate) fn u64(&mut self, what: &str) -> Result<u64, HeaderError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }
}
