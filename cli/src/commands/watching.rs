//! Standing jobs as they are typed and told: the options of `submit --watch`, and a pass in a line.

use std::time::Duration;

use clap::Args;
use ingle_proto::job::{WATCH_INTERVAL_S, WATCH_SETTLE_S};
use ingle_proto::v1::{self, JobState};

use crate::human::{self, parse_duration};

/// Options of a job that goes on.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Keep the job going: what is new or changed in the folder is done as it comes, results of what is deleted leave. Until
    /// `ingle jobs cancel`
    #[arg(long, help_heading = "Watching")]
    watch: bool,
    /// Pause between two looks at the folder, 5s to 1d [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "watch", help_heading = "Watching")]
    every: Option<Duration>,
    /// Take a document once nobody has changed it for so long, 0 to 1h [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = still, requires = "watch", help_heading = "Watching")]
    settle: Option<Duration>,
    /// Let results leave even if over half of the documents, and at least ten, are gone at once: a disk that isn't mounted looks the same
    #[arg(long, help_heading = "Watching")]
    pub(crate) allow_mass_deletion: bool,
}

impl WatchArgs {
    pub(crate) fn to_wire(&self) -> Option<v1::WatchOptions> {
        let seconds = |time: Duration| u32::try_from(time.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
        self.watch.then(|| v1::WatchOptions {
            interval_s: self.every.map_or(WATCH_INTERVAL_S, seconds),
            settle_s: Some(self.settle.map_or(WATCH_SETTLE_S, seconds)),
        })
    }
}

/// A length of time that may be none.
fn still(text: &str) -> Result<Duration, String> {
    if matches!(text, "0" | "0s") { Ok(Duration::ZERO) } else { parse_duration(text) }
}

/// When the next look is, in words; nothing while one is under way.
fn next_look(standing: &v1::Standing, now_ms: i64) -> Option<String> {
    (standing.next_ms > 0).then(|| match u64::try_from(standing.next_ms - now_ms) {
        Ok(left_ms) if left_ms > 0 => {
            format!("next look in {}", human::duration(Duration::from_secs(left_ms.div_ceil(1000))))
        }
        _ => "next look now".to_owned(),
    })
}

/// A job's state as it is listed: of a standing job with its next look.
pub(crate) fn state(word: String, job: &v1::Job, now_ms: i64) -> String {
    let standing = job.standing.filter(|_| job.state() == JobState::Standing);
    match standing.and_then(|standing| next_look(&standing, now_ms)) {
        Some(next) => format!("{word}, {next}"),
        None => word,
    }
}

/// A pass that is done, in a line.
pub(crate) fn pass(job: &v1::Job, standing: &v1::Standing, now_ms: i64) -> String {
    let counts = job.counts.unwrap_or_default();
    let did = super::wait::by_outcome(&counts);
    let did = did.iter().filter(|(name, n)| *n > 0 && !matches!(*name, "unchanged" | "skipped" | "waiting" | "held"));
    let did: Vec<String> = did.map(|(name, n)| format!("{n} {name}")).collect();
    let did = if did.is_empty() { "nothing to do".to_owned() } else { did.join(", ") };
    let mut rest = vec![format!("{} documents", standing.documents)];
    let more = [("waiting", standing.waiting), ("held", standing.held), ("missing", standing.suspected)];
    rest.extend(more.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{n} {name}")));
    let next = next_look(standing, now_ms).map(|next| format!("; {next}")).unwrap_or_default();
    format!("{}: pass {} done: {did}; {}{next}", job.job_id, standing.passes, rest.join(", "))
}

/// How a job stands, as facts.
pub(crate) fn facts(job: &v1::Job, now_ms: i64) -> Vec<(&'static str, String)> {
    let Some(standing) = &job.standing else { return Vec::new() };
    let watch = job.spec.as_ref().and_then(|spec| spec.watch).unwrap_or_default();
    let done = standing.done.unwrap_or_default();
    let time = |s: u32| human::duration(Duration::from_secs(s.into()));
    let settle = watch.settle_s.map_or_else(String::new, |s| format!(", documents still for {}", time(s)));
    let looked = if standing.looked_ms > 0 { human::age(standing.looked_ms, now_ms) } else { String::new() };
    let some = |n: u64| if n > 0 { n.to_string() } else { String::new() };
    vec![
        ("watches", format!("every {}{settle}", time(watch.interval_s))),
        ("looked", looked),
        (
            "folder",
            format!(
                "{} documents in {} directories, {} of them moved",
                standing.documents, standing.directories, standing.directories_moved
            ),
        ),
        ("still written", some(standing.waiting)),
        ("missing once", some(standing.suspected)),
        ("passes", standing.passes.to_string()),
        ("published in all", done.published.to_string()),
        ("deleted in all", some(done.deleted)),
        ("failed in all", some(done.failed + done.quarantined + done.conflict)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_reads_as_a_line() {
        let counts =
            v1::ItemCounts { total: 9, published: 2, unchanged: 6, waiting: 1, deleted: 1, ..Default::default() };
        let standing = v1::Standing { passes: 3, documents: 9, waiting: 1, next_ms: 31_500, ..Default::default() };
        let job = v1::Job {
            job_id: "j-1".into(),
            state: JobState::Standing.into(),
            counts: Some(counts),
            standing: Some(standing),
            ..Default::default()
        };
        assert_eq!(
            pass(&job, &standing, 1_500),
            "j-1: pass 3 done: 2 published, 1 deleted; 9 documents, 1 waiting; next look in 30 s"
        );
        assert_eq!(state("standing".into(), &job, 11_000), "standing, next look in 21 s");
        assert_eq!(state("standing".into(), &job, 99_000), "standing, next look now");
        let running = v1::Job { state: JobState::Running.into(), ..job };
        assert_eq!(state("running".into(), &running, 11_000), "running");
    }

    #[test]
    fn a_settle_time_may_be_none() {
        assert_eq!(still("0"), Ok(Duration::ZERO));
        assert_eq!(still("90s"), Ok(Duration::from_secs(90)));
        assert!(still("soon").is_err() && parse_duration("0").is_err());
    }
}
