//! `ingle submit`: a folder job, and with `--wait` its end.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ingle_daemon::backoff::Backoff;
use ingle_proto::{ErrorCode, job, prompt, v1};
use serde_json::json;

use super::sampling::SamplingArgs;
use super::wait;
use super::watching::WatchArgs;
use crate::client::Client;
use crate::exit::Failure;
use crate::human::{now_ms, parse_duration};
use crate::out::note;
use crate::{input, json};

/// How often a submission is sent again when its answer got lost. The key makes that safe.
const RETRIES: u32 = 3;

const EXAMPLES: &str = "\
INPUT is nas://EXPORT/path (a file or everything below a directory), a glob such as
'nas://docs/**/*.md' (quote it), text:… for a text itself, or - for a text per line of standard input.

Never taken: names that begin with a dot (.git, .env), what NAS systems and PCs keep for
themselves (@eaDir, #recycle, #snapshot, @Recycle, lost+found, $RECYCLE.BIN, Thumbs.db,
System Volume Information), symbolic links, and the results of the job itself. --exclude
leaves out more.

Results are named after their documents' paths below INPUT (of a glob: below the part before
its first wildcard). Where two inputs share an --output, a name belongs to the document that
had it first: another one's outcome is conflict, and nothing is overwritten.

Examples:
  ingle submit ocr nas://docs/ --output nas://docs/.text --wait
  ingle submit embed nas://docs/ --output nas://docs/.index --text-from nas://docs/.text --wait
  ingle submit generate 'nas://docs/**/*.md' --output nas://docs/summaries --max-tokens 80 \\
        --prompt 'Summarise in two sentences: {{ document }}' --wait
  ingle submit embed nas://docs/ --output nas://docs/.index --exclude '*.log' --exclude node_modules
  ingle submit embed nas://docs/ --output nas://docs/.index --watch --every 1m --settle 30s
  ingle submit generate nas://docs/letters --output nas://docs/replies --prompt @reply.txt --temperature 0.7
  cut -f2 questions.tsv | ingle submit generate - --output nas://docs/answers --prompt '{{ document }}'";

/// Submit a job over the documents of a folder
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SubmitArgs {
    /// What to do with each document
    kind: Kind,
    /// What to read
    input: String,
    /// Directory for the results, as nas://EXPORT/path; made if absent
    #[arg(long, value_name = "NAS-URL")]
    output: String,
    /// Show progress until the job ends; exit with 1 if any document failed. With --watch, each pass until Ctrl-C; the job goes on
    #[arg(long)]
    wait: bool,
    /// Name of a model; needed only where several would do
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    model: String,
    /// Leave out files and directories of this name at any depth, or, with a / in it, of this path below INPUT; a glob;
    /// may be given up to 64 times. Results of earlier jobs stay
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// embed, generate: where an OCR job over the same INPUT put its results: documents without text are read there
    #[arg(long, value_name = "NAS-URL")]
    text_from: Option<String>,
    /// Do documents again that have not changed
    #[arg(long)]
    force: bool,
    /// Interactive work goes before batch work
    #[arg(long, value_enum, default_value = "batch")]
    priority: Priority,
    /// Cancel the job if it is not done by then, e.g. 8h
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    deadline: Option<Duration>,
    /// A label to find the job by; may be given up to 32 times
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Submit it even where a job that has not ended does the same already
    #[arg(long)]
    again: bool,
    /// The same key and job again answers with the first job instead of a second one
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// embed: longest passage that becomes one vector, in tokens (at least 16) [default: the model's limit]
    #[arg(long, allow_negative_numbers = true, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(16..=1_000_000), help_heading = "Passages")]
    passage_tokens: Option<u32>,
    /// embed: how much a passage shares with the one before, in tokens [default: an eighth of a passage]
    #[arg(long, allow_negative_numbers = true, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(0..=500_000), help_heading = "Passages")]
    overlap_tokens: Option<u32>,
    /// generate: what to ask of each document: a template that sees document, path and name. @FILE reads a file
    /// [default: a summary in a few sentences: "Summarise the following document in a few sentences." and the document]
    #[arg(long, value_name = "TEMPLATE|@FILE", help_heading = "Prompt")]
    prompt: Option<String>,
    /// generate: what the model is told first. @FILE reads a file
    #[arg(long, value_name = "TEXT|@FILE", help_heading = "Prompt")]
    system: Option<String>,
    #[command(flatten)]
    watching: WatchArgs,
    // Last: what follows would come below its heading.
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// A job's kind as it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Documents to vectors
    Embed,
    /// Documents through a prompt to text
    Generate,
    /// Pages to text
    Ocr,
}

impl Kind {
    pub(crate) const fn to_wire(self) -> v1::JobKind {
        match self {
            Self::Embed => v1::JobKind::Embed,
            Self::Generate => v1::JobKind::Generate,
            Self::Ocr => v1::JobKind::Ocr,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Priority {
    /// Before batch work: someone waits
    Interactive,
    /// When the nodes have time
    Batch,
}

pub(crate) async fn run(client: &Client, args: SubmitArgs) -> Result<(), Failure> {
    let spec = spec(&args, std::io::stdin())?;
    // A key of our own makes a submission whose answer got lost safe to send again.
    let key = args.idempotency_key.clone().unwrap_or_else(|| format!("cli-{:032x}", fastrand::u128(..)));
    let request =
        v1::SubmitJobRequest { spec: Some(spec), idempotency_key: key, look_first: true, unless_open: !args.again };
    let answer = Box::pin(submit(client, request)).await.map_err(explained)?;
    let job = answer.job.unwrap_or_default();
    let out = client.out;
    if args.wait {
        if answer.existed && args.idempotency_key.is_some() {
            note(out, format!("{} was submitted before with this key", job.job_id));
        }
        return wait::to_the_end(client, &job.job_id, true).await;
    }
    if out.json {
        return out
            .json(&json!({ "job": json::job(&job), "existed": answer.existed && args.idempotency_key.is_some() }));
    }
    out.line(&job.job_id)?;
    note(out, format!("accepted; `ingle jobs watch {}` shows how it goes", job.job_id));
    Ok(())
}

/// What to do about refusals that only submissions meet.
fn explained(failure: Failure) -> Failure {
    let code = |code: ErrorCode| failure.code == Some(code.as_str());
    if code(ErrorCode::JobState) {
        let id = failure.message.split(' ').next().unwrap_or_default().to_owned();
        return failure.hint(format!("`ingle jobs watch {id}` shows how it goes; --again submits it all the same"));
    }
    if code(ErrorCode::ObjectNotFound) && failure.message.starts_with("text_from") {
        return failure
            .hint("--text-from is where `ingle submit ocr` over the same INPUT put its results, its --output");
    }
    failure
}

async fn submit(client: &Client, request: v1::SubmitJobRequest) -> Result<v1::SubmitJobResponse, Failure> {
    let mut jobs = client.jobs().await?;
    let mut backoff = Backoff::new(Duration::from_millis(300), Duration::from_secs(2));
    loop {
        let answer = client.call(jobs.submit_job(client.request(request.clone()))).await;
        match answer {
            Err(failure) if failure.retryable() && backoff.attempt() < RETRIES => {
                tokio::time::sleep(backoff.next_random()).await;
                // Of several coordinators another may be there.
                if let Ok(connected) = client.jobs().await {
                    jobs = connected;
                }
            }
            answer => return answer,
        }
    }
}

/// The job that the options stand for, checked as far as can be from here.
fn spec(args: &SubmitArgs, stdin: impl std::io::Read) -> Result<v1::JobSpec, Failure> {
    let only = |given: bool, option: &str, kind: Kind| {
        if given && args.kind != kind {
            let name = kind.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default();
            return Err(Failure::usage(format!("{option} is for `submit {name}` only")));
        }
        Ok(())
    };
    only(args.prompt.is_some(), "--prompt", Kind::Generate)?;
    only(args.system.is_some(), "--system", Kind::Generate)?;
    only(args.sampling.given(), "--max-tokens, --temperature and other options for choosing tokens", Kind::Generate)?;
    only(args.passage_tokens.is_some(), "--passage-tokens", Kind::Embed)?;
    only(args.overlap_tokens.is_some(), "--overlap-tokens", Kind::Embed)?;
    if args.text_from.is_some() && args.kind == Kind::Ocr {
        return Err(Failure::usage("--text-from is for `submit embed` and `submit generate` only"));
    }
    let text_from = args.text_from.as_deref().map(input::text_from).transpose()?;
    let mut labels = BTreeMap::new();
    for (key, value) in &args.label {
        if labels.insert(key.clone(), value.clone()).is_some() {
            return Err(Failure::usage(format!("--label {key} is given twice")));
        }
    }
    let deadline_ms = args.deadline.map_or(0, |d| now_ms() + i64::try_from(d.as_millis()).unwrap_or(i64::MAX / 2));
    let spec = v1::JobSpec {
        kind: args.kind.to_wire().into(),
        model: args.model.clone(),
        output: Some(input::output(&args.output)?),
        input: Some(input::parse(&args.input, stdin)?),
        priority: match args.priority {
            Priority::Interactive => v1::Priority::Interactive,
            Priority::Batch => v1::Priority::Batch,
        }
        .into(),
        deadline_ms,
        generate: (args.kind == Kind::Generate).then(|| generate(args, text_from.clone())).transpose()?,
        embed: (args.kind == Kind::Embed).then(|| v1::EmbedOptions {
            passage_tokens: args.passage_tokens.unwrap_or(0),
            overlap_tokens: args.overlap_tokens,
            text_from,
        }),
        force: args.force,
        exclude: args.exclude.clone(),
        watch: args.watching.to_wire(),
        allow_mass_deletion: args.watching.allow_mass_deletion,
        labels: labels.into_iter().collect(),
    };
    // What the coordinator would refuse is said without asking it.
    job::validate_spec(spec.clone())?;
    Ok(spec)
}

fn generate(args: &SubmitArgs, text_from: Option<v1::ObjectRef>) -> Result<v1::GenerateOptions, Failure> {
    let prompt = args.prompt.as_deref().map(|p| text_or_file("--prompt", p)).transpose()?;
    // A template with a fault of its own is refused for that.
    if let Some(prompt) = prompt.as_deref().filter(|source| prompt::check(source).is_ok())
        && !prompt::reads_document(prompt)
    {
        return Err(Failure::usage("--prompt shows the model nothing of the document: {{ document }} isn't in it")
            .hint(
                "write {{ document }} where the text goes, e.g. --prompt 'Summarise in two sentences: {{ document }}'",
            ));
    }
    Ok(v1::GenerateOptions {
        prompt: prompt.unwrap_or_default(),
        system: args.system.as_deref().map(|s| text_or_file("--system", s)).transpose()?.unwrap_or_default(),
        max_tokens: args.sampling.max_tokens.unwrap_or(0),
        sampling: args.sampling.to_wire(),
        stop: args.sampling.stop.clone(),
        text_from,
    })
}

/// The text itself, or a file's for `@FILE`.
pub(crate) fn text_or_file(option: &str, text: &str) -> Result<String, Failure> {
    let Some(path) = text.strip_prefix('@') else { return Ok(text.to_owned()) };
    let fail = |why: String| Failure::usage(format!("{option} @{path}: {why}"));
    let metadata = std::fs::metadata(path).map_err(|error| fail(error.to_string()))?;
    if !metadata.is_file() {
        return Err(fail("is not a file".into()));
    }
    if metadata.len() > job::PROMPT_BYTES_MAX as u64 {
        return Err(fail(format!("is longer than {}", crate::human::bytes(job::PROMPT_BYTES_MAX as u64))));
    }
    let read = std::fs::read_to_string(path).map_err(|error| fail(format!("can't be read as UTF-8 text: {error}")))?;
    if read.trim().is_empty() { Err(fail("is empty".into())) } else { Ok(read) }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("expected KEY=VALUE, got {text:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use crate::exit::Exit;
    use clap::Parser as _;

    fn parsed(line: &[&str]) -> Result<v1::JobSpec, Failure> {
        let cli = Cli::try_parse_from(["ingle", "submit"].iter().chain(line)).expect("a command line");
        let Command::Submit(args) = cli.command else { panic!("another command") };
        spec(&args, std::io::empty())
    }

    #[test]
    fn options_become_a_specification() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "Say it shorter: {{ document }}").expect("room");
        let prompt = format!("@{}", file.path().display());
        let spec = parsed(&[
            "generate",
            "nas://docs/",
            "--output",
            "nas://docs/out",
            "--model",
            "m",
            "--prompt",
            &prompt,
            "--system",
            "Be brief.",
            "--max-tokens",
            "48",
            "--temperature",
            "0.5",
            "--stop",
            "END",
            "--priority",
            "interactive",
            "--force",
            "--label",
            "a=b=c",
            "--exclude",
            "*.log",
            "--exclude",
            "old/**",
        ])
        .expect("a job");
        let generate = spec.generate.clone().expect("options");
        assert_eq!(generate.prompt, "Say it shorter: {{ document }}");
        assert_eq!((generate.system.as_str(), generate.max_tokens), ("Be brief.", 48));
        assert_eq!(generate.sampling.and_then(|s| s.temperature), Some(0.5));
        assert_eq!(generate.stop, ["END"]);
        assert_eq!(spec.priority(), v1::Priority::Interactive);
        assert_eq!(spec.labels.get("a").map(String::as_str), Some("b=c"));
        assert_eq!(spec.exclude, ["*.log", "old/**"]);
        assert!(spec.force && spec.embed.is_none() && spec.deadline_ms == 0);
    }

    #[test]
    fn a_folder_is_watched_when_asked_for() {
        let to = ["--output", "nas://docs/x"];
        let spec = |more: &[&str]| parsed(&[&["embed", "nas://docs/"], &to[..], more].concat());
        assert_eq!(spec(&[]).expect("a job").watch, None);
        let watch = spec(&["--watch"]).expect("a job").watch;
        assert_eq!(watch, Some(v1::WatchOptions { interval_s: 30, settle_s: Some(10) }));
        let watch = spec(&["--watch", "--every", "1m", "--settle", "0", "--allow-mass-deletion"]).expect("a job");
        assert_eq!(watch.watch, Some(v1::WatchOptions { interval_s: 60, settle_s: Some(0) }));
        assert!(watch.allow_mass_deletion);
        for (bad, word) in
            [(&["--watch", "--every", "1s"][..], "interval_s"), (&["--watch", "--settle", "2h"], "settle_s")]
        {
            assert!(spec(bad).expect_err(word).message.contains(word), "{bad:?}");
        }
        let texts = parsed(&["embed", "text:a", "--output", "nas://docs/x", "--watch"]).expect_err("no folder");
        assert!(texts.message.contains("spec.watch"), "{}", texts.message);
        let line = ["ingle", "submit", "embed", "nas://docs/", "--output", "nas://docs/x", "--every", "1m"];
        assert!(Cli::try_parse_from(line).is_err(), "--every says nothing without --watch");
    }

    #[test]
    fn what_can_not_be_is_said_here() {
        for (line, word) in [
            (&["embed", "docs", "--output", "nas://docs/x"][..], "nas://"),
            (&["embed", "nas://docs/", "--output", "x"], "--output"),
            (&["embed", "nas://docs/", "--output", "nas://docs/.inglenook/x"], ".inglenook"),
            (&["embed", "nas://docs/", "--output", "nas://docs/x", "--prompt", "p"], "--prompt"),
            (&["embed", "nas://docs/", "--output", "nas://docs/x", "--temperature", "1"], "--temperature"),
            (&["embed", "nas://docs/", "--output", "nas://docs/x", "--text-from", "docs"], "--text-from"),
            (&["embed", "text:a", "--output", "nas://docs/x", "--text-from", "nas://docs/ocr"], "text_from"),
            (&["ocr", "nas://docs/", "--output", "nas://docs/x", "--text-from", "nas://docs/ocr"], "--text-from"),
            (&["ocr", "text:a", "--output", "nas://docs/x"], "pages"),
            (&["generate", "nas://docs/", "--output", "nas://docs/x", "--passage-tokens", "64"], "--passage-tokens"),
            (
                &["generate", "nas://docs/", "--output", "nas://docs/x", "--prompt", "@/nowhere/at/all"],
                "/nowhere/at/all",
            ),
            (&["generate", "nas://docs/", "--output", "nas://docs/x", "--prompt", "@/"], "not a file"),
            (&["generate", "nas://docs/", "--output", "nas://docs/x", "--stop", ""], "stop[0]"),
            (&["generate", "nas://docs/", "--output", "nas://docs/x", "--prompt", "{{ text }}"], "`text` is unknown"),
            (&["generate", "nas://docs/", "--output", "nas://docs/x", "--prompt", "{{ document"], "prompt"),
            (&["generate", "nas://docs/", "--output", "nas://docs/x", "--prompt", " "], "blank"),
            (&["generate", "nas://docs/", "--output", "nas://docs/x", "--prompt", "Summarise."], "{{ document }}"),
            (&["generate", "nas://docs/", "--output", "nas://docs/x", "--prompt", "Of {{ name }}"], "{{ document }}"),
            (&["embed", "nas://docs/", "--output", "nas://docs/x", "--exclude", "../x"], "exclude[0]"),
            (&["embed", "text:a", "--output", "nas://docs/x", "--exclude", "*.md"], "exclude"),
            (&["embed", "nas://docs/", "--output", "nas://docs/x", "--label", "a=1", "--label", "a=2"], "twice"),
            (
                &[
                    "embed",
                    "nas://docs/",
                    "--output",
                    "nas://docs/x",
                    "--passage-tokens",
                    "32",
                    "--overlap-tokens",
                    "17",
                ],
                "overlap",
            ),
        ] {
            let failure = parsed(line).expect_err(word);
            assert_eq!(failure.exit, Exit::Usage, "{line:?}");
            assert!(failure.message.contains(word), "{line:?}: {}", failure.message);
        }
    }

    #[test]
    fn labels_need_a_key() {
        assert!(label("=x").is_err());
        assert!(label("x").is_err());
        assert_eq!(label("x="), Ok(("x".into(), String::new())));
    }
}
