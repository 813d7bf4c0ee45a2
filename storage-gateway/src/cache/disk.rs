//! Pieces on the local disk: each a file with its checksum, none trusted unread, all of it expendable.
//!
//! Stored: `<two hex digits>/<key>`: a header (mark, length, BLAKE3 of the data) and the data. Never synced: a piece that a
//! crash tore fails its checksum and is fetched again.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::Advice;

use super::Key;
use crate::buffers;

/// What a piece's file begins with; another layout gets another mark.
const MARK: [u8; 8] = *b"inglpc01";
/// Mark, length, digest.
const HEADER_BYTES: usize = 8 + 8 + 32;
/// Room on the file system that is left to others: this many of a hundred, and no more than so many bytes.
const FREE_PERCENT: u64 = 10;
const FREE_BYTES: u64 = 8 << 30;

/// What reading a piece found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The piece.
    Piece(Bytes),
    /// No such file.
    Nothing,
    /// Something else than was written: it is removed.
    Damaged,
}

/// The directory. Every call blocks.
#[derive(Debug, Clone)]
pub struct Disk {
    root: PathBuf,
}

impl Disk {
    /// Takes a directory, made if need be.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(root: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(root)?;
        Ok(Self { root: root.to_owned() })
    }

    fn path(&self, key: &Key) -> PathBuf {
        let name = key.to_hex();
        self.root.join(&name[..2]).join(name)
    }

    /// What lies there, oldest first: keys and bytes. What isn't ours by its name is left alone.
    ///
    /// # Errors
    /// The directory can't be listed.
    pub fn list(&self) -> io::Result<Vec<(Key, u64)>> {
        let mut found = Vec::new();
        for shelf in std::fs::read_dir(&self.root)?.flatten() {
            let Ok(files) = std::fs::read_dir(shelf.path()) else { continue };
            for file in files.flatten() {
                let key = file.file_name().to_str().and_then(Key::from_hex);
                let (Some(key), Ok(metadata)) = (key, file.metadata()) else { continue };
                found.push((metadata.modified().ok(), key, metadata.len()));
            }
        }
        found.sort_by_key(|(modified, ..)| *modified);
        Ok(found.into_iter().map(|(_, key, bytes)| (key, bytes)).collect())
    }

    /// Whether there is room beside what others keep on the file system.
    #[must_use]
    pub fn has_room(&self) -> bool {
        rustix::fs::statvfs(&self.root).is_ok_and(|fs| {
            let bytes = |blocks: u64| blocks.saturating_mul(fs.f_frsize);
            bytes(fs.f_bavail) >= (bytes(fs.f_blocks) / 100 * FREE_PERCENT).min(FREE_BYTES)
        })
    }

    /// Writes a piece.
    ///
    /// # Errors
    /// What the system said; nothing is left then.
    pub fn write(&self, key: &Key, data: &[u8]) -> io::Result<File> {
        let path = self.path(key);
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&MARK);
        header[8..16].copy_from_slice(&(data.len() as u64).to_le_bytes());
        header[16..].copy_from_slice(blake3::hash(data).as_bytes());
        let written = (|| {
            let mut file = match File::create(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
                    File::create(&path)?
                }
                other => other?,
            };
            file.write_all(&header)?;
            file.write_all(data)?;
            Ok(file)
        })();
        if written.is_err() {
            self.remove(key);
        }
        written
    }

    /// Reads a piece and checks it.
    ///
    /// # Errors
    /// What the system said.
    pub fn read(&self, key: &Key) -> io::Result<Found> {
        let file = match File::open(self.path(key)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            other => other?,
        };
        let mut header = [0; HEADER_BYTES];
        let whole = rustix::io::pread(&file, &mut header, 0)? == HEADER_BYTES && header[..8] == MARK;
        let length = u64::from_le_bytes(*header[8..16].first_chunk().expect("eight bytes"));
        let mut data = Vec::new();
        if whole && length <= buffers::PIECE_BYTES as u64 {
            // One byte more: a file that is longer than it says is damaged.
            data = buffers::take(length as usize + 1);
            while data.len() as u64 <= length {
                let at = (HEADER_BYTES + data.len()) as u64;
                if rustix::io::pread(&file, rustix::buffer::spare_capacity(&mut data), at)? == 0 {
                    break;
                }
            }
        }
        // It is in memory now; the page cache has better uses.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
        if !whole || data.len() as u64 != length || blake3::hash(&data).as_bytes() != &header[16..] {
            self.remove(key);
            return Ok(Found::Damaged);
        }
        Ok(Found::Piece(buffers::share(data)))
    }

    /// Removes a piece; one that isn't there is no matter.
    pub fn remove(&self, key: &Key) {
        let path = self.path(key);
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(path = %path.display(), %error, "a cached piece can't be removed");
        }
    }
}

/// Writes back what was written and takes it out of the page cache: it was read once already. Blocks.
pub fn settle(files: &[File]) {
    for file in files {
        if rustix::fs::fdatasync(file).is_ok() {
            let _ = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_comes_back_and_a_damaged_one_does_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = Disk::open(&dir.path().join("pieces")).expect("made");
        let keys: Vec<Key> = (0..5).map(|piece| Key { file: [9; 16], piece }).collect();
        let data = vec![7; buffers::PIECE_BYTES];
        assert_eq!(disk.read(&keys[0]).expect("read"), Found::Nothing);
        for key in &keys {
            settle(&[disk.write(key, &data).expect("room")]);
        }
        assert_eq!(disk.read(&keys[0]).expect("read"), Found::Piece(data.clone().into()));
        let spoil = |key: &Key, how: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = std::fs::read(disk.path(key)).expect("there");
            how(&mut bytes);
            std::fs::write(disk.path(key), bytes).expect("room");
        };
        spoil(&keys[1], &|bytes| bytes[HEADER_BYTES + 1000] ^= 1);
        spoil(&keys[2], &|bytes| bytes.truncate(HEADER_BYTES + 1000));
        spoil(&keys[3], &|bytes| bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes()));
        spoil(&keys[4], &|bytes| bytes.truncate(3));
        for key in &keys[1..] {
            assert_eq!(disk.read(key).expect("read"), Found::Damaged, "{key:?}");
            assert_eq!(disk.read(key).expect("read"), Found::Nothing, "it went");
        }
    }

    #[test]
    fn what_is_listed_is_what_was_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = Disk::open(dir.path()).expect("made");
        let key = Key { file: [0xab; 16], piece: 77 };
        disk.write(&key, b"some").expect("room");
        std::fs::write(dir.path().join("ab/not a piece"), "x").expect("room");
        assert_eq!(disk.list().expect("listed"), [(key, (HEADER_BYTES + 4) as u64)]);
    }
}
