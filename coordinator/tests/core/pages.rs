//! A page of a job's items copies what is recorded of its own segments, not of the whole job.

use ingle_coordinator::core::{Effect, Event};
use ingle_proto::v1::{self, JobKind};

use super::{JOB, Rig, blob, scan_done, sent};

#[test]
fn parts_of_a_page_are_those_of_its_segments() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let effects = rig.submit(JobKind::Generate);
    let scan = effects.iter().find_map(|effect| match effect {
        Effect::Scan { scan, .. } => Some(*scan),
        _ => None,
    });
    let scan = scan.expect("a walk");
    for bucket in 0..3 {
        let info = v1::SegmentInfo {
            blob: Some(blob(1)),
            bucket,
            entries: 2,
            to_do: 2,
            size_kib: vec![4, 4],
            ..Default::default()
        };
        rig.step(Event::ScanSegment { job: JOB, scan, info: Box::new(info) });
    }
    let mut open = sent(&rig.step(scan_done(scan)));
    while let Some(at) = open.pop() {
        let effects = rig.complete(&at, &[]);
        open.extend(sent(&effects));
    }
    let (segments, batches) = rig.core.parts(JOB).unwrap();
    assert_eq!(segments.len(), 3);
    for first in 0..3u32 {
        let (some, of_them) = rig.core.parts_from(JOB, first, 1).unwrap();
        assert_eq!(some.iter().map(|segment| segment.index).collect::<Vec<_>>(), [first]);
        let wanted: Vec<_> = batches.iter().filter(|batch| batch.segment == first).cloned().collect();
        assert!(!wanted.is_empty());
        assert_eq!(of_them, wanted, "of segment {first}");
    }
    let (rest, _) = rig.core.parts_from(JOB, 1, 65).unwrap();
    assert_eq!(rest.len(), 2, "from there to the end");
    assert!(rig.core.parts_from(JOB, 3, 65).unwrap().0.is_empty());
    assert!(rig.core.parts_from(99, 0, 65).is_none());
}
