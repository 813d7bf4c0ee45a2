//! `ingle jobs`: list, show, watch, steer and explain folder jobs.

use clap::{Args, Subcommand, ValueEnum};
use ingle_proto::storage::display_bytes;
use ingle_proto::v1::{self, ItemOutcome, JobState};
use serde_json::{Value, json};

use super::submit::Kind;
use super::{wait, watching};
use crate::client::Client;
use crate::exit::Failure;
use crate::out::{Colour, Out, note, printable};
use crate::{human, json};

/// Largest page asked for at once.
const PAGE: u32 = 1000;

/// Folder jobs: list, show, watch, steer, explain
#[derive(Debug, Subcommand)]
pub(crate) enum JobsCommand {
    /// List jobs, newest first
    #[command(
        after_help = "Examples:\n  ingle jobs list\n  ingle jobs list --state running --state paused\n  ingle jobs list --label team=archive --json"
    )]
    List(ListArgs),
    /// Show one job with its counts
    #[command(after_help = "Examples:\n  ingle jobs show j-1")]
    Show(JobArgs),
    /// List a job's documents with their outcomes; as JSON one per line
    #[command(
        after_help = "Examples:\n  ingle jobs items j-1 --outcome failed --outcome skipped\n  ingle jobs items j-1 --all --json > items.jsonl"
    )]
    Items(ItemsArgs),
    /// Show progress until a job ends; exit with 1 if any document failed. As JSON a line per change
    #[command(after_help = "Examples:\n  ingle jobs watch j-1\n  ingle jobs watch j-1 --json")]
    Watch(JobArgs),
    /// End a job; what is published stays
    #[command(after_help = "Examples:\n  ingle jobs cancel j-1")]
    Cancel(JobArgs),
    /// Start nothing more of a job until it is resumed
    #[command(after_help = "Examples:\n  ingle jobs pause j-1")]
    Pause(JobArgs),
    /// Go on with a paused job
    #[command(after_help = "Examples:\n  ingle jobs resume j-1")]
    Resume(JobArgs),
    /// Say why a job is where it is, and how each node scored
    #[command(after_help = "Examples:\n  ingle jobs explain j-1")]
    Explain(JobArgs),
}

#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// The job, e.g. j-1, or 1
    #[arg(value_parser = job_id)]
    job: String,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only jobs in this state; may be given several times
    #[arg(long, value_enum)]
    state: Vec<State>,
    /// Only jobs of this kind; may be given several times
    #[arg(long, value_enum)]
    kind: Vec<Kind>,
    /// Only jobs with this label
    #[arg(long, value_name = "KEY=VALUE", default_value = "", hide_default_value = true)]
    label: String,
    /// Most jobs to list
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

#[derive(Debug, Args)]
pub(crate) struct ItemsArgs {
    /// The job, e.g. j-1, or 1
    #[arg(value_parser = job_id)]
    job: String,
    /// Only documents with this outcome; may be given several times
    #[arg(long, value_enum)]
    outcome: Vec<Outcome>,
    /// Only documents with a result that lacks pages
    #[arg(long)]
    incomplete: bool,
    /// Most documents to list
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "all")]
    limit: u32,
    /// List all documents
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum State {
    Listing,
    Running,
    Paused,
    Cancelling,
    Succeeded,
    Failed,
    Cancelled,
    Standing,
}

impl State {
    const fn to_wire(self) -> JobState {
        match self {
            Self::Listing => JobState::Listing,
            Self::Running => JobState::Running,
            Self::Paused => JobState::Paused,
            Self::Cancelling => JobState::Cancelling,
            Self::Succeeded => JobState::Succeeded,
            Self::Failed => JobState::Failed,
            Self::Cancelled => JobState::Cancelled,
            Self::Standing => JobState::Standing,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Outcome {
    Pending,
    Running,
    Committed,
    Published,
    Unchanged,
    Skipped,
    Failed,
    Quarantined,
    Conflict,
    Deleted,
    Cancelled,
}

impl Outcome {
    const fn to_wire(self) -> ItemOutcome {
        match self {
            Self::Pending => ItemOutcome::Pending,
            Self::Running => ItemOutcome::Running,
            Self::Committed => ItemOutcome::Committed,
            Self::Published => ItemOutcome::Published,
            Self::Unchanged => ItemOutcome::Unchanged,
            Self::Skipped => ItemOutcome::Skipped,
            Self::Failed => ItemOutcome::Failed,
            Self::Quarantined => ItemOutcome::Quarantined,
            Self::Conflict => ItemOutcome::Conflict,
            Self::Deleted => ItemOutcome::Deleted,
            Self::Cancelled => ItemOutcome::Cancelled,
        }
    }
}

/// `18` is short for `j-18`; whatever else is typed is for the coordinator to judge.
#[allow(clippy::unnecessary_wraps, reason = "what reads an argument may fail")]
fn job_id(text: &str) -> Result<String, std::convert::Infallible> {
    let number = text.parse::<u64>().ok().filter(|number| number.to_string() == text);
    Ok(number.map_or_else(|| text.to_owned(), |number| ingle_proto::job::job_id(number).to_string()))
}

/// Ends a job. One that has ended already stays as it is, and that is said.
async fn cancel(client: &Client, job_id: String) -> Result<(), Failure> {
    let mut jobs = client.jobs().await?;
    let before = client.call(jobs.get_job(client.request(v1::GetJobRequest { job_id: job_id.clone() }))).await?;
    let before = before.job.unwrap_or_default();
    if wait::ended(before.state()) {
        let how = json::job_state(before.state());
        let when = human::age(before.ended_ms, human::now_ms());
        note(client.out, format!("{job_id} ended already, {when}: {how}; there is nothing to cancel"));
        return show(client.out, &before);
    }
    let job = client.call(jobs.cancel_job(client.request(v1::CancelJobRequest { job_id }))).await?.job;
    show(client.out, &job.unwrap_or_default())
}

pub(crate) async fn run(client: &Client, command: JobsCommand) -> Result<(), Failure> {
    let mut jobs = client.jobs().await?;
    let job = match command {
        JobsCommand::List(args) => return list(client, &args).await,
        JobsCommand::Items(args) => return items(client, &args).await,
        JobsCommand::Watch(args) => return watch(client, &args.job).await,
        JobsCommand::Explain(args) => return explain(client, args.job).await,
        JobsCommand::Show(JobArgs { job: job_id }) => {
            client.call(jobs.get_job(client.request(v1::GetJobRequest { job_id }))).await?.job
        }
        JobsCommand::Cancel(args) => return cancel(client, args.job).await,
        JobsCommand::Pause(JobArgs { job: job_id }) => {
            client.call(jobs.pause_job(client.request(v1::PauseJobRequest { job_id }))).await?.job
        }
        JobsCommand::Resume(JobArgs { job: job_id }) => {
            client.call(jobs.resume_job(client.request(v1::ResumeJobRequest { job_id }))).await?.job
        }
    };
    show(client.out, &job.unwrap_or_default())
}

async fn list(client: &Client, args: &ListArgs) -> Result<(), Failure> {
    let mut service = client.jobs().await?;
    let mut found: Vec<v1::Job> = Vec::new();
    let mut page_token = String::new();
    loop {
        let left = args.limit - u32::try_from(found.len()).unwrap_or(u32::MAX).min(args.limit);
        let request = v1::ListJobsRequest {
            page_size: left.min(PAGE),
            page_token,
            states: args.state.iter().map(|s| s.to_wire().into()).collect(),
            kinds: args.kind.iter().map(|k| k.to_wire().into()).collect(),
            label: args.label.clone(),
        };
        let page = client.call(service.list_jobs(client.request(request))).await?;
        let empty = page.jobs.is_empty();
        found.extend(page.jobs);
        page_token = page.next_page_token;
        if empty || page_token.is_empty() || found.len() >= args.limit as usize {
            break;
        }
    }
    let out = client.out;
    if out.json {
        let jobs = found.iter().map(json::job).collect::<Value>();
        return out.json(&json!({ "jobs": jobs, "more": !page_token.is_empty() }));
    }
    if found.is_empty() {
        return out.line("no jobs");
    }
    let now = human::now_ms();
    let rows = found.iter().map(|job| row(out, job, now)).collect();
    out.table(&["JOB", "STATE", "KIND", "MODEL", "DONE", "BAD", "INPUT", "OUTPUT", "CREATED"], rows)?;
    for job in found.iter().filter(|job| wait::waits(job.state()) && !job.reason.is_empty()) {
        out.line(format!("{}: waiting: {}", job.job_id, human::cut(&printable(&job.reason), 400)))?;
    }
    if !page_token.is_empty() {
        out.line(format!("… and more: --limit {}", args.limit.saturating_mul(2)))?;
    }
    Ok(())
}

fn row(out: Out, job: &v1::Job, now: i64) -> Vec<String> {
    let spec = job.spec.clone().unwrap_or_default();
    let counts = job.counts.unwrap_or_default();
    vec![
        job.job_id.clone(),
        watching::state(state(out, job.state()), job, now),
        json::kind(spec.kind()),
        if spec.model.is_empty() { "–".into() } else { spec.model.clone() },
        format!("{}/{}", wait::settled(&counts), counts.total),
        (counts.failed + counts.quarantined + counts.conflict + counts.held).to_string(),
        spec.input.as_ref().map(json::input_text).unwrap_or_default(),
        spec.output.as_ref().map(json::object).unwrap_or_default(),
        human::age(job.created_ms, now),
    ]
}

fn state(out: Out, state: JobState) -> String {
    let word = json::job_state(state);
    match state {
        JobState::Succeeded => out.paint(Colour::Green, &word),
        JobState::Failed => out.paint(Colour::Red, &word),
        JobState::Paused | JobState::Cancelling | JobState::Cancelled => out.paint(Colour::Yellow, &word),
        _ => word,
    }
}

fn show(out: Out, job: &v1::Job) -> Result<(), Failure> {
    if out.json {
        return out.json(&json::job(job));
    }
    let spec = job.spec.clone().unwrap_or_default();
    let counts = job.counts.unwrap_or_default();
    let now = human::now_ms();
    let mut labels: Vec<String> = spec.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    labels.sort();
    let mut facts = vec![
        ("job", job.job_id.clone()),
        ("state", watching::state(state(out, job.state()), job, now)),
        ("reason", printable(&job.reason)),
        ("code", job.code.clone()),
        ("kind", json::kind(spec.kind())),
        ("model", spec.model.clone()),
        ("input", spec.input.as_ref().map(json::input_text).unwrap_or_default()),
        ("output", spec.output.as_ref().map(json::object).unwrap_or_default()),
        ("labels", labels.join(" ")),
        ("created", human::age(job.created_ms, now)),
        ("ended", if job.ended_ms > 0 { human::age(job.ended_ms, now) } else { String::new() }),
        ("running on", job.nodes.join(", ")),
    ];
    facts.extend(watching::facts(job, now));
    facts.extend([(
        "documents",
        format!("{} of {} settled, {} running", wait::settled(&counts), counts.total, counts.running),
    )]);
    facts.extend(wait::by_outcome(&counts).into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name, n.to_string())));
    if counts.bytes_total > 0 {
        facts.push(("bytes", format!("{} of {}", human::bytes(counts.bytes_done), human::bytes(counts.bytes_total))));
    }
    if !wait::ended(job.state()) && job.state() != JobState::Standing {
        facts.push(("rate", human::rate(job.items_per_second)));
        if job.eta_ms > 0 {
            facts.push(("time left", human::duration(std::time::Duration::from_millis(job.eta_ms.unsigned_abs()))));
        }
    }
    out.facts(&facts)
}

async fn items(client: &Client, args: &ItemsArgs) -> Result<(), Failure> {
    let mut service = client.jobs().await?;
    let out = client.out;
    let (mut listed, mut page_token, mut rows) = (0u64, String::new(), Vec::new());
    let limit = if args.all { u64::MAX } else { u64::from(args.limit) };
    loop {
        let request = v1::ListItemsRequest {
            job_id: args.job.clone(),
            page_size: u32::try_from(limit - listed).unwrap_or(PAGE).min(PAGE),
            page_token,
            outcomes: args.outcome.iter().map(|o| o.to_wire().into()).collect(),
            incomplete: args.incomplete,
        };
        let page = client.call(service.list_items(client.request(request))).await?;
        listed += page.items.len() as u64;
        for item in &page.items {
            if out.json {
                out.json_line(&json::item(item))?;
            } else {
                rows.push(item_row(out, item));
            }
        }
        page_token = page.next_page_token;
        // A page may be empty and not the last: the documents asked for lie further on.
        let last = page_token.is_empty() || listed >= limit;
        if !out.json && !rows.is_empty() && (last || rows.len() >= PAGE as usize) {
            out.table(
                &["DOCUMENT", "OUTCOME", "SIZE", "TOKENS", "PASSAGES", "PAGES", "CODE", "REASON"],
                std::mem::take(&mut rows),
            )?;
        }
        if last {
            break;
        }
    }
    if !out.json && listed == 0 {
        out.line("no such documents")?;
    }
    if !out.json && !page_token.is_empty() {
        out.line("… and more: --all lists every one")?;
    }
    Ok(())
}

fn item_row(out: Out, item: &v1::Item) -> Vec<String> {
    let number = |n: u32| if n == 0 { "–".to_owned() } else { n.to_string() };
    let outcome = json::outcome(item.outcome());
    let outcome = match item.outcome() {
        bad if wait::BAD.contains(&bad) => out.paint(Colour::Red, &outcome),
        ItemOutcome::Published => out.paint(Colour::Green, &outcome),
        _ => outcome,
    };
    let cut = if item.truncated { "cut to the model's limit" } else { "" };
    let reason = if item.reason.is_empty() { cut.to_owned() } else { printable(&item.reason) };
    // Two fifths of the line, and never so little that nothing is to be seen of the name.
    let name = display_bytes(&item.name);
    let name = out.width().map_or_else(|| name.clone(), |width| human::cut_middle(&name, (width * 2 / 5).max(24)));
    vec![
        name,
        outcome,
        human::bytes(item.size),
        number(item.tokens),
        number(item.passages),
        number(item.pages),
        item.code.clone(),
        human::cut(&reason, if out.terminal { 100 } else { 2000 }),
    ]
}

async fn watch(client: &Client, job_id: &str) -> Result<(), Failure> {
    if !client.out.json {
        return wait::to_the_end(client, job_id, false).await;
    }
    let job = wait::follow(client, job_id, false, |seen| match seen {
        wait::Seen::Job(job) => client.out.json_line(&json::job(job)),
        wait::Seen::Away(_) => Ok(()),
    })
    .await?;
    wait::verdict(&job)
}

async fn explain(client: &Client, job_id: String) -> Result<(), Failure> {
    let mut service = client.jobs().await?;
    let answer = client.call(service.explain_job(client.request(v1::ExplainJobRequest { job_id }))).await?;
    let out = client.out;
    if out.json {
        return out.json(&json::explanation(&answer));
    }
    out.line(printable(&answer.summary))?;
    if !answer.batches.is_empty() {
        out.line("")?;
        let rows = answer.batches.iter().map(|b| {
            let wait = b.not_before_ms - human::now_ms();
            let wait = if b.not_before_ms > 0 && wait > 0 {
                format!("not for {}; ", human::duration(std::time::Duration::from_millis(wait.unsigned_abs())))
            } else {
                String::new()
            };
            let why = match (b.reason.is_empty(), b.why_here.is_empty()) {
                (false, true) => b.reason.clone(),
                (false, false) => format!("{}; before: {}", b.why_here, b.reason),
                (true, _) => b.why_here.clone(),
            };
            vec![
                b.batch.to_string(),
                b.state.clone(),
                b.items.to_string(),
                b.attempts.to_string(),
                b.node_id.clone(),
                format!("{wait}{}", human::cut(&why, 300)),
            ]
        });
        out.table(&["BATCH", "STATE", "ITEMS", "ATTEMPTS", "NODE", "WHY"], rows.collect())?;
    }
    if !answer.nodes.is_empty() {
        out.line("")?;
        let ms = |v: f64| match std::time::Duration::try_from_secs_f64(v / 1e3) {
            Ok(time) => human::duration(time),
            Err(_) => "–".into(),
        };
        let rows = answer.nodes.iter().map(|n| {
            let fits = if n.fits { "yes".to_owned() } else { format!("no: {}", n.why_not) };
            vec![
                n.node_id.clone(),
                fits,
                ms(n.backlog_ms),
                ms(n.load_ms),
                ms(n.prefill_ms),
                ms(n.output_ms),
                ms(n.finish_ms),
            ]
        });
        out.table(&["NODE", "FITS", "BACKLOG", "LOAD", "PREFILL", "OUTPUT", "FINISH"], rows.collect())?;
    }
    Ok(())
}
