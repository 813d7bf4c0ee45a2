//! The chain of a TIFF's directories, walked once and never in a circle; and a view of the file that shows one of them alone.

use std::collections::HashSet;
use std::io::{self, Read, Seek, SeekFrom};

use crate::limits::PAGES_MAX;

/// `NewSubfileType`: bit 0 a thumbnail of another page, bit 2 a mask for one.
const NEW_SUBFILE_TYPE: u16 = 254;
const PHOTOMETRIC: u16 = 262;
const THUMBNAIL_OR_MASK: u64 = 0b101;

/// How a file writes its numbers.
#[derive(Debug, Clone, Copy)]
struct Layout {
    little: bool,
    /// BigTIFF: offsets and counts of eight bytes.
    big: bool,
}

/// Where one page's directory lies, and what has to be changed for others to read it alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Directory {
    /// Of its first byte.
    offset: u64,
    /// Of the offset of the next one.
    next_at: u64,
    /// Of its `PhotometricInterpretation`, a short.
    photometric_at: Option<u64>,
}

/// The directories of a file's pages in their order, thumbnails and masks left out. Stops at the first that is broken or seen
/// before, and one after [`PAGES_MAX`].
pub(super) fn walk(file: &[u8]) -> Vec<Directory> {
    let Some(layout) = Layout::of(file) else { return Vec::new() };
    let mut pages = Vec::new();
    let mut others = Vec::new();
    let mut seen = HashSet::new();
    let mut next = layout.offset(file, layout.first_at());
    while let Some(offset) = next.filter(|offset| *offset != 0 && seen.insert(*offset)) {
        let Some((directory, subfile)) = layout.directory(file, offset) else { break };
        let list = if subfile & THUMBNAIL_OR_MASK == 0 { &mut pages } else { &mut others };
        list.push(directory);
        if pages.len() + others.len() > PAGES_MAX as usize {
            break;
        }
        next = layout.offset(file, directory.next_at);
    }
    if pages.is_empty() { others } else { pages }
}

impl Layout {
    fn of(file: &[u8]) -> Option<Self> {
        let little = match file.get(..2)? {
            b"II" => true,
            b"MM" => false,
            _ => return None,
        };
        let layout = Layout { little, big: false };
        match layout.number(file, 2, 2)? {
            42 => Some(layout),
            43 => Some(Layout { big: true, ..layout }),
            _ => None,
        }
    }

    fn number(self, file: &[u8], at: u64, bytes: u64) -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        let slice = file.get(at..at.checked_add(bytes as usize)?)?;
        let add = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        Some(if self.little { slice.iter().rev().fold(0, add) } else { slice.iter().fold(0, add) })
    }

    fn first_at(self) -> u64 {
        if self.big { 8 } else { 4 }
    }

    fn offset_bytes(self) -> u64 {
        if self.big { 8 } else { 4 }
    }

    fn offset(self, file: &[u8], at: u64) -> Option<u64> {
        self.number(file, at, self.offset_bytes())
    }

    /// The directory at `offset`, and its `NewSubfileType`.
    fn directory(self, file: &[u8], offset: u64) -> Option<(Directory, u64)> {
        let (count_bytes, entry_bytes) = if self.big { (8, 20) } else { (2, 12) };
        let count = self.number(file, offset, count_bytes)?;
        let entries = offset.checked_add(count_bytes)?;
        let next_at = entries.checked_add(count.checked_mul(entry_bytes)?)?;
        // Everything up to the next offset must be in the file: that bounds the loop below too.
        self.offset(file, next_at)?;
        let mut directory = Directory { offset, next_at, photometric_at: None };
        let mut subfile = 0;
        for entry in (entries..next_at).step_by(entry_bytes as usize) {
            let value_at = entry + 4 + self.offset_bytes();
            match (self.number(file, entry, 2)?, self.number(file, entry + 2, 2)?) {
                (tag, 3) if tag == u64::from(PHOTOMETRIC) => directory.photometric_at = Some(value_at),
                (tag, kind @ (3 | 4)) if tag == u64::from(NEW_SUBFILE_TYPE) => {
                    subfile = self.number(file, value_at, if kind == 3 { 2 } else { 4 })?;
                }
                _ => {}
            }
        }
        Some((directory, subfile))
    }
}

/// A file in which one directory is the first and the last. Nothing is copied but what is changed.
#[derive(Debug)]
pub(super) struct OnlyPage<'a> {
    file: &'a [u8],
    at: u64,
    /// Offsets with the bytes that stand there instead.
    changes: Vec<(u64, Vec<u8>)>,
}

impl<'a> OnlyPage<'a> {
    /// `as_indices` shows the samples of a palette page as shades of grey, which they can be read as.
    pub(super) fn new(file: &'a [u8], directory: Directory, as_indices: bool) -> Self {
        let layout = Layout::of(file).unwrap_or(Layout { little: true, big: false });
        let bytes = |value: u64, count: usize| {
            let mut bytes = value.to_le_bytes()[..count].to_vec();
            if !layout.little {
                bytes.reverse();
            }
            bytes
        };
        let wide = layout.offset_bytes() as usize;
        let mut changes = vec![(layout.first_at(), bytes(directory.offset, wide)), (directory.next_at, bytes(0, wide))];
        if let Some(at) = directory.photometric_at.filter(|_| as_indices) {
            changes.push((at, bytes(1, 2)));
        }
        OnlyPage { file, at: 0, changes }
    }
}

impl Read for OnlyPage<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let start = usize::try_from(self.at).unwrap_or(usize::MAX).min(self.file.len());
        let count = into.len().min(self.file.len() - start);
        into[..count].copy_from_slice(&self.file[start..start + count]);
        for (offset, bytes) in &self.changes {
            for (at, byte) in (*offset..).zip(bytes) {
                if let Some(place) = at.checked_sub(start as u64).filter(|place| *place < count as u64) {
                    into[place as usize] = *byte;
                }
            }
        }
        self.at = (start + count) as u64;
        Ok(count)
    }
}

impl Seek for OnlyPage<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let place = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => (self.file.len() as u64).checked_add_signed(by),
        };
        self.at = place.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a place before the file"))?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A little-endian file with a directory of one entry (tag, value) per page; the last leads to `last_next`.
    fn file(pages: &[(u16, u16)], last_next: u32) -> Vec<u8> {
        let mut file = b"II*\0\x08\0\0\0".to_vec();
        for (index, (tag, value)) in pages.iter().enumerate() {
            let next = if index + 1 == pages.len() { last_next } else { 8 + 18 * (index as u32 + 1) };
            file.extend([1, 0]);
            file.extend(tag.to_le_bytes());
            file.extend([3, 0, 1, 0, 0, 0]);
            file.extend(u32::from(*value).to_le_bytes());
            file.extend(next.to_le_bytes());
        }
        file
    }

    #[test]
    fn pages_are_counted_once() {
        assert_eq!(walk(&file(&[(262, 3), (262, 1), (262, 1)], 0)).len(), 3);
        assert_eq!(walk(&file(&[(262, 3), (262, 1)], 8)).len(), 2, "a circle");
        assert_eq!(walk(&file(&[(262, 3)], 8)).len(), 1, "a directory that is its own successor");
        assert_eq!(walk(&file(&[(262, 3)], 9_999)).len(), 1, "a successor beyond the file");
        assert_eq!(walk(&file(&[(254, 1), (262, 1)], 0)).len(), 1, "a thumbnail is no page");
        assert_eq!(walk(&file(&[(254, 1)], 0)).len(), 1, "but better than nothing");
        assert_eq!(walk(b"II*\0"), []);
        assert_eq!(walk(b"MM\0*\xff\xff\xff\xff"), []);
        let mut many = file(&[(262, 1)], 0);
        many[8..10].fill(0xff);
        assert_eq!(walk(&many), [], "more entries than the file has");
    }

    #[test]
    fn one_page_alone() {
        let whole = file(&[(262, 1), (262, 3)], 8);
        let second = walk(&whole)[1];
        let mut seen = Vec::new();
        OnlyPage::new(&whole, second, true).read_to_end(&mut seen).expect("memory");
        assert_eq!(seen[4..8], 26_u32.to_le_bytes(), "it is the first");
        assert_eq!(seen[26 + 14..26 + 18], [0; 4], "and the last");
        assert_eq!(seen[26 + 10..26 + 12], [1, 0], "and grey");
        assert_eq!(walk(&seen).len(), 1);
        let mut page = OnlyPage::new(&whole, second, false);
        page.seek(SeekFrom::Start(5)).expect("in the file");
        let mut three = [0; 3];
        page.read_exact(&mut three).expect("in the file");
        assert_eq!(three, [0, 0, 0], "a change that was cut");
        page.seek(SeekFrom::Start(u64::MAX)).expect("beyond the file");
        assert_eq!(page.read(&mut three).expect("the end"), 0);
    }

    #[test]
    fn big_tiff_is_walked_too() {
        let mut file = b"MM\0+\0\x08\0\0".to_vec();
        file.extend(16_u64.to_be_bytes());
        file.extend(1_u64.to_be_bytes());
        file.extend(b"\x01\x06\0\x03");
        file.extend(1_u64.to_be_bytes());
        file.extend([0, 3, 0, 0, 0, 0, 0, 0]);
        file.extend(16_u64.to_be_bytes());
        let pages = walk(&file);
        assert_eq!(pages, [Directory { offset: 16, next_at: 44, photometric_at: Some(36) }]);
    }
}
