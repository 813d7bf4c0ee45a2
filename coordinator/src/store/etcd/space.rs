//! How full etcd is, and what follows from that. Pure.

use etcd_client::StatusResponse;

use super::super::Room;

/// What a person does about a full etcd.
pub(super) const REMEDY: &str = "give it room: `etcdctl compact`, `etcdctl defrag` on every member, then `etcdctl alarm disarm`, or a greater \
     --quota-backend-bytes (docs/operations/runbook.md, \"etcd is full\")";
/// Of its quota, in hundredths: beyond it no job is accepted, so that those which are can be written to their end. Pages that are
/// never quite full make it stop at about three quarters in use.
const USED_MAX: u64 = 70;
/// The same of what lies on its disk, free pages included: by that etcd itself tells when it is full.
const ALLOCATED_MAX: u64 = 90;
/// Beyond so much in use old jobs leave, whatever their number.
const PRESSED: u64 = 50;

/// What a member of etcd says of its database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Space {
    /// Its newest revision.
    pub(super) revision: i64,
    /// It takes no writes any more.
    alarmed: bool,
    /// On disk, bytes.
    allocated: u64,
    /// Of that not free, bytes.
    used: u64,
    /// How much it may be, bytes.
    quota: u64,
}

impl Space {
    /// `quota` is what we were told: only 3.6 and later say it themselves.
    pub(super) fn of(status: &StatusResponse, quota: u64) -> Self {
        let bytes = |count: i64| u64::try_from(count).unwrap_or(0);
        let said = bytes(status.db_size_quota());
        Self {
            revision: status.header().map_or(0, etcd_client::ResponseHeader::revision),
            alarmed: status.errors().iter().any(|error| error.to_ascii_uppercase().contains("NOSPACE")),
            allocated: bytes(status.db_size()),
            used: bytes(status.raft_used_db_size()),
            quota: if said > 0 { said } else { quota },
        }
    }

    fn beyond(&self, bytes: u64, hundredths: u64) -> bool {
        bytes > self.quota / 100 * hundredths
    }

    /// Whether old jobs should leave, whatever their number.
    pub(super) fn pressed(&self) -> bool {
        self.alarmed || self.beyond(self.used, PRESSED)
    }

    pub(super) fn room(&self) -> Room {
        let mib = |bytes: u64| bytes >> 20;
        let words =
            format!("{} of {} MiB are in use, {} on disk", mib(self.used), mib(self.quota), mib(self.allocated));
        if self.alarmed {
            return Room::Little(format!("etcd takes no writes (alarm NOSPACE): {words}; {REMEDY}"));
        }
        if self.beyond(self.used, USED_MAX) || self.beyond(self.allocated, ALLOCATED_MAX) {
            return Room::Little(format!("etcd is nearly full: {words}; {REMEDY}"));
        }
        Room::Enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(allocated: u64, used: u64) -> Space {
        Space { revision: 1, alarmed: false, allocated: allocated << 20, used: used << 20, quota: 1000 << 20 }
    }

    #[test]
    fn admission_ends_before_etcd_does() {
        for (allocated, used) in [(10, 10), (690, 690), (890, 100)] {
            assert_eq!(space(allocated, used).room(), Room::Enough, "{allocated} {used}");
        }
        for (allocated, used) in [(710, 710), (910, 100), (2000, 2000)] {
            let Room::Little(words) = space(allocated, used).room() else { panic!("{allocated} {used}") };
            assert!(words.contains("defrag") && words.contains("1000 MiB"), "{words}");
        }
        let alarmed = Space { alarmed: true, ..space(10, 10) };
        assert!(matches!(alarmed.room(), Room::Little(words) if words.contains("NOSPACE")));
    }

    #[test]
    fn old_jobs_leave_before_admission_ends() {
        assert!(!space(490, 490).pressed());
        assert!(space(510, 510).pressed());
        assert!(!space(900, 300).pressed(), "free pages are no records");
        assert!(Space { alarmed: true, ..space(10, 10) }.pressed());
    }
}
