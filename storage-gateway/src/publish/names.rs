//! Names that publishing gives: trash, and where a result goes when a person's file has its name.

use ingle_proto::storage::COMPONENT_BYTES_MAX;

/// A trash name: one per job, output and attempt. The hash takes in the publish's key, which holds the generation of the
/// coordinator's store: one that was begun anew uses job and attempt numbers again, and still never meets an old name.
#[must_use]
pub fn trash_name(job: &str, attempt: u64, key: &str, output: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(key.as_bytes());
    hasher.update(&[0]);
    hasher.update(output);
    let hash = hasher.finalize().to_hex();
    format!("{job}-{}-{attempt}", &hash[..24])
}

/// The `n`th name tried for what can't have its own: `NAME.conflict-ATTEMPT`, then `NAME.conflict-ATTEMPT-2` …
/// A name too long for that is cut and told apart by a hash.
#[must_use]
pub fn conflict_name(name: &[u8], attempt: u64, n: u32) -> Vec<u8> {
    let suffix = if n <= 1 { format!(".conflict-{attempt}") } else { format!(".conflict-{attempt}-{n}") };
    let cut = name.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    let (directory, file) = name.split_at(cut);
    let mut out = directory.to_vec();
    if file.len() + suffix.len() <= COMPONENT_BYTES_MAX {
        out.extend_from_slice(file);
    } else {
        let hash = blake3::hash(file).to_hex();
        out.extend_from_slice(&file[..file.len().min(180)]);
        out.push(b'-');
        out.extend_from_slice(&hash.as_bytes()[..8]);
    }
    out.extend_from_slice(suffix.as_bytes());
    out
}

/// The same name without its directories, for when a person's file stands where a directory is needed.
#[must_use]
pub fn flattened(name: &[u8]) -> Vec<u8> {
    name.iter().flat_map(|b| if *b == b'/' { b"--".to_vec() } else { vec![*b] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflict_names_stay_beside_and_fit() {
        assert_eq!(conflict_name(b"a/b.txt", 7, 1), b"a/b.txt.conflict-7");
        assert_eq!(conflict_name(b"b.txt", 7, 3), b"b.txt.conflict-7-3");
        let long = [b"d/".as_slice(), &[b'x'; 255]].concat();
        let other = [b"d/".as_slice(), &[b'x'; 254], b"y"].concat();
        let name = conflict_name(&long, u64::MAX, 100);
        assert!(ingle_proto::ObjectPath::new(name.clone()).is_ok());
        assert_ne!(name, conflict_name(&other, u64::MAX, 100));
        assert!(ingle_proto::ObjectPath::new(conflict_name(&flattened(&vec![b'/'; 4000]), 1, 1)).is_ok());
    }

    #[test]
    fn trash_names_differ_by_output_attempt_and_manifest() {
        let names = [
            trash_name("j-1", 7, "j-1/7/aa", b"a"),
            trash_name("j-1", 7, "j-1/7/aa", b"b"),
            trash_name("j-1", 8, "j-1/8/aa", b"a"),
            trash_name("j-1", 7, "j-1/7/bb", b"a"),
        ];
        let different: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(different.len(), names.len());
    }
}
