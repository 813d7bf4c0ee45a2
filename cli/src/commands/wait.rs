//! Following a job to its end: a bar, a summary by outcome, and the documents that did not make it.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use ingle_daemon::backoff::Backoff;
use ingle_proto::Problem;
use ingle_proto::storage::display_bytes;
use ingle_proto::v1::{self, ItemOutcome, JobState};
use serde_json::{Value, json};

use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::human;
use crate::json;
use crate::out::{Colour, Out, note, printable};

/// How long a coordinator may be away before we stop waiting for it. The job goes on without us.
const AWAY_MAX: Duration = Duration::from_secs(300);
/// Most documents listed that did not make it.
const LISTED_MAX: u32 = 20;
/// How often progress is said where no bar can be drawn.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Outcomes that make a job end in failure.
pub(crate) const BAD: [ItemOutcome; 3] = [ItemOutcome::Failed, ItemOutcome::Quarantined, ItemOutcome::Conflict];

/// Shows progress until the job ends, then a summary. `known`: the coordinator has answered for this job before.
///
/// # Errors
/// With exit code 1 if any document failed, was quarantined or met a conflict, or the job did not finish.
pub(crate) async fn to_the_end(client: &Client, job_id: &str, known: bool) -> Result<(), Failure> {
    let mut bar = Bar::new(client.out);
    let followed = follow(client, job_id, known, |seen| {
        match seen {
            Seen::Job(job) => bar.show(job),
            Seen::Away(failure) => bar.away(failure),
        }
        Ok(())
    })
    .await;
    bar.clear();
    let job = followed?;
    let problems = if trouble(&job) { problems(client, job_id).await? } else { Vec::new() };
    let incomplete = if job.counts.unwrap_or_default().incomplete > 0 {
        items(client, job_id, &[], true).await?
    } else {
        Vec::new()
    };
    if client.out.json {
        let listed = problems.iter().map(json::item).collect::<Value>();
        let lacking = incomplete.iter().map(json::item).collect::<Value>();
        client.out.json(&json!({ "job": json::job(&job), "problems": listed, "incomplete": lacking }))?;
    } else {
        summary(client.out, &job, &problems, &incomplete)?;
    }
    verdict(&job)
}

/// What a watcher sees.
pub(crate) enum Seen<'a> {
    /// The job as it is now.
    Job(&'a v1::Job),
    /// The coordinator is away; we go on trying.
    Away(&'a Failure),
}

/// Watches a job until it ends, over restarts of the coordinator. One that has never answered is not waited for.
pub(crate) async fn follow(
    client: &Client,
    job_id: &str,
    known: bool,
    mut seen: impl FnMut(Seen<'_>) -> Result<(), Failure>,
) -> Result<v1::Job, Failure> {
    let watching = async {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        let mut last_heard = Instant::now();
        let mut ever = known;
        loop {
            // Connected anew each time: of several coordinators another may be there.
            let watched = async {
                let mut jobs = client.jobs().await?;
                let request = v1::WatchJobRequest { job_id: job_id.into() };
                jobs.watch_job(request).await.map_err(|status| client.failure(&status))
            };
            let failure = match watched.await {
                Ok(response) => {
                    let mut stream = response.into_inner();
                    loop {
                        match stream.message().await {
                            Ok(Some(message)) => {
                                (ever, last_heard) = (true, Instant::now());
                                backoff.reset();
                                let job = message.job.unwrap_or_default();
                                seen(Seen::Job(&job))?;
                                if ended(job.state()) {
                                    return Ok(job);
                                }
                            }
                            // A stream that ends before the job does: the coordinator is shutting down.
                            Ok(None) => break Failure::unreachable(&client.endpoint, "the stream ended"),
                            Err(status) => break client.failure(&status),
                        }
                    }
                }
                Err(failure) => failure,
            };
            // Someone who was never there is not worth waiting for.
            if !failure.retryable() || !ever || last_heard.elapsed() > AWAY_MAX {
                return Err(if ever && failure.retryable() {
                    failure.hint(format!("the job goes on by itself; `ingle jobs watch {job_id}` looks again"))
                } else {
                    failure
                });
            }
            seen(Seen::Away(&failure))?;
            tokio::time::sleep(backoff.next_random()).await;
        }
    };
    tokio::select! {
        job = watching => job,
        _ = tokio::signal::ctrl_c() => Err(Failure::new(Exit::Interrupted, format!("stopped waiting; {job_id} goes on"))
            .hint(format!("`ingle jobs watch {job_id}` looks again, `ingle jobs cancel {job_id}` ends it"))),
    }
}

/// Whether a job is in a final state.
pub(crate) fn ended(state: JobState) -> bool {
    matches!(state, JobState::Succeeded | JobState::Failed | JobState::Cancelled)
}

/// Whether a job in this state goes on by itself: a reason that it has then is one to wait for.
pub(crate) fn waits(state: JobState) -> bool {
    matches!(state, JobState::Listing | JobState::Running | JobState::Standing)
}

/// Whether documents did not make it.
fn trouble(job: &v1::Job) -> bool {
    bad(&job.counts.unwrap_or_default()) > 0
}

fn bad(counts: &v1::ItemCounts) -> u64 {
    counts.failed + counts.quarantined + counts.conflict
}

/// Documents of the input with a final outcome: never more than `total`. Those that left are none of them.
pub(crate) fn settled(counts: &v1::ItemCounts) -> u64 {
    counts.published + counts.unchanged + counts.skipped + counts.held + bad(counts)
}

/// What to do about documents that did not make it.
fn remedy(counts: &v1::ItemCounts) -> String {
    let mut ways = Vec::new();
    if counts.failed + counts.quarantined > 0 {
        ways.push("mend the documents that failed");
    }
    if counts.conflict > 0 {
        ways.push(
            "for each conflict move the file away that has the result's name (or is kept beside it as NAME.conflict-…), or name \
             another --output",
        );
    }
    format!("{}; then submit the same job again: only what is missing or changed is done", ways.join("; "))
}

/// What the exit code says.
pub(crate) fn verdict(job: &v1::Job) -> Result<(), Failure> {
    let id = &job.job_id;
    let count = bad(&job.counts.unwrap_or_default());
    let why = if job.reason.is_empty() { String::new() } else { format!(": {}", printable(&job.reason)) };
    let mut failure = match job.state() {
        JobState::Cancelled => Failure::new(Exit::WorkFailed, format!("{id} was cancelled{why}")),
        _ if count > 0 => Failure::new(Exit::WorkFailed, format!("{count} of {id}'s documents did not make it"))
            .hint(remedy(&job.counts.unwrap_or_default())),
        JobState::Succeeded if matched_nothing(job) => {
            let input =
                job.spec.as_ref().and_then(|spec| spec.input.as_ref()).map(json::input_text).unwrap_or_default();
            Failure::new(Exit::NotFound, format!("{id} found nothing to do: no document matches {input}"))
                .hint("`*` stays within a directory, `**/` goes across them; quote the glob, so that the shell leaves it alone")
        }
        JobState::Succeeded => return Ok(()),
        // As if the call itself had been refused: a folder that isn't there is not found, whoever found it out.
        _ => match ingle_proto::ErrorCode::parse(&job.code) {
            Some(code) => Failure::from(Problem::new(code, format!("{id} failed{why}"))),
            None => Failure::new(Exit::WorkFailed, format!("{id} failed{why}"))
                .hint(format!("`ingle jobs explain {id}` says more")),
        },
    };
    failure.code = ingle_proto::ErrorCode::parse(&job.code).map(|code| code.as_str());
    Err(failure)
}

/// Whether a glob was mistyped, by all that can be seen: nothing is there now, and nothing has gone.
fn matched_nothing(job: &v1::Job) -> bool {
    let counts = job.counts.unwrap_or_default();
    let input = job.spec.as_ref().and_then(|spec| spec.input.as_ref()?.input.as_ref());
    matches!(input, Some(v1::input_spec::Input::Glob(_))) && counts.total == 0 && counts.deleted == 0
}

/// The first documents that did not make it.
async fn problems(client: &Client, job_id: &str) -> Result<Vec<v1::Item>, Failure> {
    items(client, job_id, &BAD, false).await
}

async fn items(
    client: &Client,
    job_id: &str,
    outcomes: &[ItemOutcome],
    incomplete: bool,
) -> Result<Vec<v1::Item>, Failure> {
    let mut jobs = client.jobs().await?;
    let (mut found, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListItemsRequest {
            job_id: job_id.into(),
            page_size: LISTED_MAX,
            page_token,
            outcomes: outcomes.iter().map(|o| i32::from(*o)).collect(),
            incomplete,
        };
        let page = client.call(jobs.list_items(client.request(request))).await?;
        found.extend(page.items);
        page_token = page.next_page_token;
        // A page may be short, and empty, and still not the last.
        if page_token.is_empty() || found.len() >= LISTED_MAX as usize {
            found.truncate(LISTED_MAX as usize);
            return Ok(found);
        }
    }
}

fn summary(out: Out, job: &v1::Job, problems: &[v1::Item], incomplete: &[v1::Item]) -> Result<(), Failure> {
    let spec = job.spec.clone().unwrap_or_default();
    let counts = job.counts.unwrap_or_default();
    let state = json::job_state(job.state());
    let state = out.paint(if job.state() == JobState::Succeeded { Colour::Green } else { Colour::Red }, &state);
    let took = Duration::from_millis(u64::try_from(job.ended_ms - job.created_ms).unwrap_or(0));
    out.line(format!("{} {state} after {}", job.job_id, human::duration(took)))?;
    let mut facts = vec![("documents", counts.total.to_string())];
    for (name, count) in by_outcome(&counts) {
        if count > 0 {
            facts.push((name, count.to_string()));
        }
    }
    if counts.published > 0 && !took.is_zero() {
        facts.push(("rate", human::rate(counts.published as f64 / took.as_secs_f64())));
    }
    facts.push(("results", spec.output.as_ref().map(json::object).unwrap_or_default()));
    out.facts(&facts)?;
    if !problems.is_empty() {
        out.line("")?;
        out.table(&["DOCUMENT", "OUTCOME", "CODE", "REASON"], problems.iter().map(|i| problem_row(out, i)).collect())?;
        let more = bad(&counts).saturating_sub(problems.len() as u64);
        if more > 0 {
            let kinds = [("failed", counts.failed), ("quarantined", counts.quarantined), ("conflict", counts.conflict)];
            let asked = kinds.into_iter().filter(|(_, n)| *n > 0).map(|(name, _)| format!(" --outcome {name}"));
            out.line(format!(
                "… and {more} more: `ingle jobs items {}{} --all`",
                job.job_id,
                asked.collect::<String>()
            ))?;
        }
    }
    if !incomplete.is_empty() {
        out.line("")?;
        out.line(format!("{} documents have a result that lacks pages:", counts.incomplete))?;
        out.table(
            &["DOCUMENT", "OUTCOME", "CODE", "REASON"],
            incomplete.iter().map(|i| problem_row(out, i)).collect(),
        )?;
        let more = counts.incomplete.saturating_sub(incomplete.len() as u64);
        if more > 0 {
            out.line(format!("… and {more} more: `ingle jobs items {} --incomplete --all`", job.job_id))?;
        }
    }
    if counts.total == 0 && job.state() == JobState::Succeeded {
        note(
            out,
            format!(
                "nothing was done: {} has no documents",
                job.spec.as_ref().and_then(|spec| spec.input.as_ref()).map(json::input_text).unwrap_or_default()
            ),
        );
    }
    if counts.skipped > 0 {
        note(out, format!("`ingle jobs items {} --outcome skipped` says why documents were skipped", job.job_id));
    }
    Ok(())
}

fn problem_row(out: Out, item: &v1::Item) -> Vec<String> {
    let limit = if out.terminal { 100 } else { 2000 };
    vec![display_bytes(&item.name), json::outcome(item.outcome()), item.code.clone(), human::cut(&item.reason, limit)]
}

/// Counts by final outcome, in the order people want to know them.
pub(crate) fn by_outcome(counts: &v1::ItemCounts) -> [(&'static str, u64); 9] {
    [
        ("published", counts.published),
        ("unchanged", counts.unchanged),
        ("skipped", counts.skipped),
        ("deleted", counts.deleted),
        ("failed", counts.failed),
        ("quarantined", counts.quarantined),
        ("conflict", counts.conflict),
        ("waiting", counts.waiting),
        ("held", counts.held),
    ]
}

/// A bar on terminals, a line now and then elsewhere.
struct Bar {
    out: Out,
    bar: ProgressBar,
    styled_for_length: bool,
    last_said: Option<Instant>,
    last_count: u64,
    /// Why nothing went on, as it was said last.
    last_reason: String,
    /// Passes of a standing job that need not be told any more; `None` before it was seen.
    passes: Option<u64>,
}

impl Bar {
    fn new(out: Out) -> Self {
        let bar = if out.json { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        bar.enable_steady_tick(Duration::from_millis(120));
        Self {
            out,
            bar,
            styled_for_length: false,
            last_said: None,
            last_count: 0,
            last_reason: String::new(),
            passes: None,
        }
    }

    fn show(&mut self, job: &v1::Job) {
        let counts = job.counts.unwrap_or_default();
        let text = progress(job, &counts);
        self.say_why(job);
        self.say_pass(job);
        if job.state() == JobState::Listing || counts.total == 0 {
            self.bar.set_message(text.clone());
        } else {
            if !self.styled_for_length {
                let style = ProgressStyle::with_template("{bar:30.green} {pos}/{len} documents  {msg}")
                    .map(|style| style.progress_chars("━╸─"));
                if let Ok(style) = style {
                    self.bar.set_style(style);
                }
                self.styled_for_length = true;
            }
            self.bar.set_length(counts.total);
            self.bar.set_position(settled(&counts));
            self.bar.set_message(text.clone());
        }
        let due = self.last_said.is_none_or(|at| at.elapsed() >= SAY_EVERY) && settled(&counts) != self.last_count;
        if self.bar.is_hidden() && !self.out.json && due {
            note(self.out, format!("{}: {}/{} documents  {text}", job.job_id, settled(&counts), counts.total));
            self.last_said = Some(Instant::now());
            self.last_count = settled(&counts);
        }
    }

    /// A reason is said on a line of its own, once, and again when it is another: a listing that is tried again, storage that
    /// doesn't answer, nodes that are missed.
    fn say_why(&mut self, job: &v1::Job) {
        let reason = if waits(job.state()) { human::cut(&job.reason, 400) } else { String::new() };
        if !reason.is_empty() && reason != self.last_reason && !self.out.json {
            let words = format!("{}: waiting: {reason}", job.job_id);
            if self.bar.is_hidden() {
                note(self.out, words);
            } else {
                self.bar.println(words);
            }
        }
        self.last_reason = reason;
    }

    /// A pass of a standing job is said on a line of its own, for scripts as the whole job.
    fn say_pass(&mut self, job: &v1::Job) {
        let Some(standing) = pass_done(&mut self.passes, job) else { return };
        if self.out.json {
            // Whoever reads it may have left; the job goes on either way, and so do we.
            let _ = self.out.json_line(&json::job(job));
            return;
        }
        let words = super::watching::pass(job, &standing, human::now_ms());
        if self.bar.is_hidden() {
            note(self.out, words);
        } else {
            self.bar.println(words);
        }
    }

    fn away(&mut self, failure: &Failure) {
        self.bar.set_message(format!("{}; trying again", failure.message));
        if self.bar.is_hidden() && self.last_said.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
            note(self.out, format!("{}; trying again", failure.message));
            self.last_said = Some(Instant::now());
        }
    }

    fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// The pass that a standing job has done since it was looked at last. Those of before the first look are told already; and
/// while another one is at work the counts are that one's.
fn pass_done(told: &mut Option<u64>, job: &v1::Job) -> Option<v1::Standing> {
    let passes = job.standing.map_or(0, |standing| standing.passes);
    let before = *told.get_or_insert(passes);
    if job.state() != JobState::Standing || passes <= before {
        return None;
    }
    *told = Some(passes);
    job.standing
}

/// Rate, time left and trouble, in words.
fn progress(job: &v1::Job, counts: &v1::ItemCounts) -> String {
    let mut words = Vec::new();
    match job.state() {
        JobState::Listing => words.push(format!("listing, {} documents so far", counts.total)),
        JobState::Paused => words.push("paused".to_owned()),
        JobState::Standing => words.push("standing".to_owned()),
        JobState::Cancelling => words.push("cancelling".to_owned()),
        _ => {}
    }
    if job.items_per_second > 0.0 {
        words.push(human::rate(job.items_per_second));
    }
    if job.eta_ms > 0 {
        words.push(format!("{} left", human::duration(Duration::from_millis(job.eta_ms.unsigned_abs()))));
    }
    if bad(counts) > 0 {
        words.push(format!("{} failed", bad(counts)));
    }
    if !job.reason.is_empty() && !ended(job.state()) {
        words.push(human::cut(&job.reason, 80));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(state: JobState, counts: v1::ItemCounts) -> v1::Job {
        v1::Job { job_id: "j-1".into(), state: state.into(), counts: Some(counts), ..Default::default() }
    }

    #[test]
    fn the_exit_code_follows_the_documents() {
        let good = v1::ItemCounts { total: 3, published: 1, skipped: 1, unchanged: 1, ..Default::default() };
        assert!(verdict(&job(JobState::Succeeded, good)).is_ok());
        for counts in [
            v1::ItemCounts { failed: 1, ..good },
            v1::ItemCounts { quarantined: 1, ..good },
            v1::ItemCounts { conflict: 1, ..good },
        ] {
            let failure = verdict(&job(JobState::Failed, counts)).expect_err("trouble");
            assert_eq!(failure.exit, Exit::WorkFailed);
        }
        let failure = verdict(&v1::Job {
            reason: "the model fits on no node".into(),
            code: "MODEL_DOES_NOT_FIT".into(),
            ..job(JobState::Failed, good)
        })
        .expect_err("failed as a whole");
        assert!(failure.message.contains("fits on no node"));
        assert_eq!(failure.code, Some("MODEL_DOES_NOT_FIT"));
        assert_eq!(verdict(&job(JobState::Cancelled, good)).expect_err("cancelled").exit, Exit::WorkFailed);
    }

    #[test]
    fn progress_says_rate_time_left_and_trouble() {
        let counts =
            v1::ItemCounts { total: 9, published: 3, failed: 1, running: 2, committed: 1, ..Default::default() };
        let job = v1::Job { items_per_second: 2.5, eta_ms: 2400, ..job(JobState::Running, counts) };
        assert_eq!(progress(&job, &counts), "2.5/s, 2.4 s left, 1 failed");
        assert_eq!(settled(&counts), 4, "what runs or is not visible yet isn't settled");
    }

    #[test]
    fn a_pass_is_told_once_it_is_done_and_never_with_the_counts_of_another() {
        let seen = |state, passes| {
            let standing = v1::Standing { passes, ..Default::default() };
            v1::Job { standing: Some(standing), ..job(state, v1::ItemCounts::default()) }
        };
        let told = |seen: &[v1::Job]| -> Vec<u64> {
            let mut passes = None;
            seen.iter().filter_map(|job| pass_done(&mut passes, job)).map(|standing| standing.passes).collect()
        };
        let (running, stands) = (|passes| seen(JobState::Running, passes), |passes| seen(JobState::Standing, passes));
        assert_eq!(told(&[running(0), stands(1), stands(1), running(1), stands(2)]), [1, 2]);
        assert_eq!(told(&[running(3), running(3), stands(4)]), [4], "the third was over before anybody looked");
        assert_eq!(told(&[stands(3), stands(3), running(3), stands(4)]), [4]);
        // Its end was missed, and the next one is at work.
        assert_eq!(told(&[running(0), running(1), stands(2)]), [2]);
    }

    #[test]
    fn documents_that_left_are_not_among_those_that_are_done() {
        let counts = v1::ItemCounts { total: 244, published: 4, unchanged: 240, deleted: 2, ..Default::default() };
        assert_eq!(settled(&counts), counts.total, "never 246 of 244");
        let all: u64 = by_outcome(&counts).into_iter().filter(|(name, _)| *name != "deleted").map(|(_, n)| n).sum();
        assert_eq!(all, counts.total, "the summary adds up to the same");
        assert_eq!(json::job(&job(JobState::Succeeded, counts))["counts"]["settled"], 244);
    }

    #[test]
    fn each_trouble_has_its_remedy() {
        let hint = |counts| verdict(&job(JobState::Failed, counts)).expect_err("trouble").hint.unwrap_or_default();
        let failed = hint(v1::ItemCounts { failed: 1, total: 1, ..Default::default() });
        assert!(failed.contains("mend") && !failed.contains("conflict"), "{failed}");
        let conflict = hint(v1::ItemCounts { conflict: 1, total: 1, ..Default::default() });
        assert!(conflict.contains("move the file away") && conflict.contains("--output"), "{conflict}");
        assert!(!conflict.contains("mend"), "{conflict}");
    }
}
