//! BLAKE3 over a file of this machine, on several threads: a model's copy is checked about as fast as it can be read.
//!
//! The hash is a tree over kibibytes; its subtrees may be made apart and put together (BLAKE3 paper, section 2.1).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use blake3::hazmat::{ChainingValue, HasherExt as _, Mode};
use blake3::hazmat::{left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use ingle_proto::Digest;

/// Largest subtree that one thread makes alone.
const SUBTREE_BYTES: u64 = 16 << 20;
/// Bytes of one read: they are hashed while they are in the second cache.
const READ_BYTES: usize = 256 << 10;
const THREADS_MAX: usize = 4;

/// Digest and size of a file. Blocks.
///
/// # Errors
/// What the system said; `UnexpectedEof` if it shrinks meanwhile.
pub fn file(path: &Path) -> io::Result<(Digest, u64)> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    // The kernel reads ahead of every thread.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential);
    if size <= SUBTREE_BYTES {
        let mut hasher = blake3::Hasher::new();
        update(&mut hasher, &file, 0, size)?;
        return Ok((hasher.finalize().into(), size));
    }
    let mut leaves = Vec::new();
    split(0, size, &mut leaves);
    let values: Vec<OnceLock<io::Result<ChainingValue>>> = leaves.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).clamp(1, THREADS_MAX);
    std::thread::scope(|scope| {
        let work = || {
            while let Some((start, length)) = leaves.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut hasher = blake3::Hasher::new();
                hasher.set_input_offset(*start);
                let value = update(&mut hasher, &file, *start, *length).map(|()| hasher.finalize_non_root());
                let at = leaves.partition_point(|(other, _)| other < start);
                let _set_once = values[at].set(value);
            }
        };
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    let mut values = values.into_iter().map(|value| value.into_inner().expect("every leaf was taken by a thread"));
    let left = left_subtree_len(size);
    let (left, right) = (join(left, &mut values)?, join(size - left, &mut values)?);
    Ok((merge_subtrees_root(&left, &right, Mode::Hash).into(), size))
}

/// The subtrees that are made apart, in order.
fn split(start: u64, length: u64, leaves: &mut Vec<(u64, u64)>) {
    if length <= SUBTREE_BYTES {
        leaves.push((start, length));
    } else {
        let left = left_subtree_len(length);
        split(start, left, leaves);
        split(start + left, length - left, leaves);
    }
}

fn join(length: u64, values: &mut impl Iterator<Item = io::Result<ChainingValue>>) -> io::Result<ChainingValue> {
    if length <= SUBTREE_BYTES {
        return values.next().expect("as many values as leaves");
    }
    let left = left_subtree_len(length);
    let (left, right) = (join(left, values)?, join(length - left, values)?);
    Ok(merge_subtrees_non_root(&left, &right, Mode::Hash))
}

fn update(hasher: &mut blake3::Hasher, file: &File, start: u64, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    let (mut at, end) = (start, start + length);
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(READ_BYTES).min(READ_BYTES);
        file.read_exact_at(&mut buffer[..want], at)?;
        hasher.update(&buffer[..want]);
        at += want as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_digest_that_everybody_gets() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("weights");
        let bytes: Vec<u8> = (0..3 * SUBTREE_BYTES as usize + 12_345).map(|i| ((i * 31) >> 7) as u8).collect();
        let subtree = SUBTREE_BYTES as usize;
        for length in [0, 1, 1024, 1025, subtree - 1, subtree, subtree + 1, 2 * subtree, 2 * subtree + 1, bytes.len()] {
            std::fs::write(&path, &bytes[..length]).expect("room");
            let (digest, size) = file(&path).expect("read");
            assert_eq!((digest, size), (Digest::of(&bytes[..length]), length as u64), "{length} bytes");
        }
        assert!(file(&dir.path().join("absent")).is_err());
    }
}
