//! Judged entries into segments: by bucket, those to do first, sorted by name, so that the same input gives the same blobs. Pure.

use std::collections::BTreeMap;

use ingle_proto::storage::Object;
use ingle_proto::v1::{self, EntryAction};

use super::compare::Judged;
use crate::limits::{BUCKET_ENTRIES, BUCKETS_MAX, SEGMENT_ENTRIES};

/// Path buckets for a place that first sees this many documents: about 512 documents each, a power of two, at most 256.
#[must_use]
pub fn buckets_for(documents: usize) -> u32 {
    let wanted = u32::try_from(documents.div_ceil(BUCKET_ENTRIES)).unwrap_or(BUCKETS_MAX);
    wanted.clamp(1, BUCKETS_MAX).next_power_of_two()
}

/// Which path bucket a name belongs to.
#[must_use]
pub fn bucket_of(name: &[u8], buckets: u32) -> u32 {
    let hash = blake3::hash(name);
    let [a, b, c, d, ..] = *hash.as_bytes();
    u32::from_le_bytes([a, b, c, d]) % buckets.max(1)
}

/// A segment and its counts; the blob's reference is still to be filled in.
pub struct Piece {
    /// What is written.
    pub segment: v1::Segment,
    /// What is told.
    pub info: v1::SegmentInfo,
}

/// Cuts entries into segments of one bucket each. `base` is what names are relative to, `None` for texts given with the job;
/// `texts` is where documents may have their text.
#[must_use]
pub fn cut(entries: Vec<Judged>, buckets: u32, base: Option<&Object>, texts: Option<&Object>) -> Vec<Piece> {
    let mut by_bucket: BTreeMap<u32, Vec<Judged>> = BTreeMap::new();
    for entry in entries {
        by_bucket.entry(bucket_of(&entry.found.name, buckets)).or_default().push(entry);
    }
    let mut pieces = Vec::new();
    for (bucket, mut entries) in by_bucket {
        entries.sort_by(|a, b| (rank(a.action), &a.found.name).cmp(&(rank(b.action), &b.found.name)));
        for chunk in entries.chunks(SEGMENT_ENTRIES) {
            pieces.push(piece(bucket, chunk, base, texts));
        }
    }
    pieces
}

fn rank(action: EntryAction) -> u8 {
    match action {
        EntryAction::Do => 0,
        EntryAction::Deleted => 1,
        EntryAction::Unchanged => 2,
        EntryAction::Conflict => 4,
        EntryAction::Wait => 5,
        EntryAction::Skip | EntryAction::Unspecified => 3,
    }
}

fn piece(bucket: u32, chunk: &[Judged], base: Option<&Object>, texts: Option<&Object>) -> Piece {
    let mut info = v1::SegmentInfo { bucket, entries: chunk.len() as u32, ..Default::default() };
    for entry in chunk {
        match entry.action {
            EntryAction::Do => {
                info.to_do += 1;
                info.to_do_bytes += entry.found.size;
                info.size_kib.push(u32::try_from(entry.found.size.div_ceil(1024)).unwrap_or(u32::MAX));
            }
            EntryAction::Unchanged => info.unchanged += 1,
            EntryAction::Deleted => info.deleted += 1,
            EntryAction::Conflict => info.conflict += 1,
            EntryAction::Wait => info.waiting += 1,
            EntryAction::Skip | EntryAction::Unspecified => info.skipped += 1,
        }
    }
    let entries = chunk.iter().map(|entry| wire(entry, base, texts)).collect();
    Piece { segment: v1::Segment { bucket, entries }, info }
}

fn wire(entry: &Judged, base: Option<&Object>, texts: Option<&Object>) -> v1::SegmentEntry {
    // A name that doesn't fit below its base is listed as skipped, and then nobody reads its object.
    let object = base.and_then(|base| {
        let path = base.path.join(&entry.found.name).ok()?;
        Some(v1::ObjectRef { export: base.export.clone(), path: path.as_bytes().to_vec().into() })
    });
    v1::SegmentEntry {
        object,
        inline_index: entry.inline_index,
        name: entry.found.name.clone().into(),
        size: entry.found.size,
        mtime_ns: entry.found.mtime_ns,
        action: entry.action.into(),
        reason: entry.found.skipped.clone().unwrap_or_default(),
        content_digest: entry.content_digest.clone().into(),
        results_current: entry.results_current,
        text: entry.found.text.as_ref().zip(texts).map(|((path, _), place)| v1::ObjectRef {
            export: place.export.clone(),
            path: path.as_bytes().to_vec().into(),
        }),
        text_mtime_ns: entry.found.text.as_ref().map_or(0, |(_, mtime_ns)| *mtime_ns),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::walk::Found;

    fn entry(name: &str, action: EntryAction) -> Judged {
        Judged {
            found: Found { name: name.into(), size: 1025, mtime_ns: 1, ..Found::default() },
            inline_index: None,
            action,
            content_digest: Vec::new(),
            results_current: false,
            again: None,
        }
    }

    #[test]
    fn buckets_grow_with_the_place_and_are_bounded() {
        for (documents, buckets) in
            [(0, 1), (1, 1), (512, 1), (513, 2), (1025, 4), (10_000, 32), (131_072, 256), (10_000_000, 256)]
        {
            assert_eq!(buckets_for(documents), buckets, "{documents}");
        }
    }

    #[test]
    fn a_segment_holds_one_bucket_with_what_is_to_do_first() {
        let mut entries: Vec<Judged> = (0..3000).map(|i| entry(&format!("d{i:05}.md"), EntryAction::Do)).collect();
        entries.extend((0..3000).map(|i| entry(&format!("u{i:05}.md"), EntryAction::Unchanged)));
        entries.reverse();
        let mut again = entries.clone();
        again.sort_by_key(|e| blake3::hash(&e.found.name).as_bytes()[0]);
        let base = Object { export: "docs".into(), path: ingle_proto::ObjectPath::new("in").unwrap() };
        let pieces = cut(entries, 4, Some(&base), None);
        assert_eq!(pieces.iter().map(|p| p.info.entries).sum::<u32>(), 6000);
        assert_eq!(pieces.iter().map(|p| p.info.to_do).sum::<u32>(), 3000);
        for piece in &pieces {
            assert!(piece.segment.entries.len() <= 1000);
            assert_eq!(piece.info.size_kib, vec![2; piece.info.to_do as usize]);
            for (at, entry) in piece.segment.entries.iter().enumerate() {
                assert_eq!(bucket_of(&entry.name, 4), piece.info.bucket);
                assert_eq!(entry.action() == EntryAction::Do, at < piece.info.to_do as usize);
            }
        }
        let other = cut(again, 4, Some(&base), None);
        let bytes =
            |pieces: &[Piece]| -> Vec<_> { pieces.iter().map(|p| prost::Message::encode_to_vec(&p.segment)).collect() };
        assert_eq!(bytes(&pieces), bytes(&other), "the order of finding doesn't matter");
    }
}
