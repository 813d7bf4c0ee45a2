//! The service `ingle.v1.Jobs`: folder jobs, translated into events and views.

use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use ingle_proto::choice::choices;
use ingle_proto::extent::validate_deadline;
use ingle_proto::v1::{self, input_spec::Input};
use ingle_proto::{ErrorCode, Problem};
use prost::Message as _;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::items::Items;
use super::{PRINCIPAL, Reach, rules, spec, unexpected};
use crate::core::record::ended;
use crate::core::{Answer, Event, ReplyId};
use crate::driver::Seen;

/// How often a watcher is told at most; a job's end is told at once.
const TELL_EVERY: Duration = Duration::from_millis(250);
/// How long a submission waits to learn which exports there are.
const EXPORTS_WITHIN: Duration = Duration::from_secs(2);
/// Longest idempotency key, in bytes.
const KEY_BYTES_MAX: usize = 255;

/// See the module.
pub struct JobsService {
    api: Reach,
    items: Items,
}

impl JobsService {
    pub(super) fn new(api: Reach) -> Self {
        let items = Items::new(api.clone());
        Self { api, items }
    }

    async fn steer(&self, id: &str, event: fn(ReplyId, u64) -> Event) -> Result<Option<v1::Job>, Problem> {
        let job = spec::job_number(id)?;
        match self.api.handle.ask(|reply| event(reply, job)).await? {
            Answer::Job(job, _) => Ok(Some(*job)),
            Answer::Node(_) => Err(unexpected()),
        }
    }

    async fn submit(&self, request: v1::SubmitJobRequest) -> Result<v1::SubmitJobResponse, Problem> {
        let given = request.spec.ok_or_else(|| Problem::missing("spec"))?;
        let key = request.idempotency_key;
        if key.len() > KEY_BYTES_MAX {
            let words = format!("expected at most {KEY_BYTES_MAX} bytes, got {}", key.len());
            return Err(Problem::invalid("idempotency_key", words));
        }
        let spec_digest = spec::digest(&given);
        let mut spec = ingle_proto::job::validate_spec(given)?;
        self.api.handle.stores()?;
        // A submission that is sent again is answered for whatever time it is by now.
        let asked = key.clone();
        if !self.api.handle.query(move |core, _| core.knows_key(&asked)).await? {
            self.api.handle.admits()?;
            validate_deadline(spec.deadline_ms, ingle_daemon::clock::unix_ms())?;
            self.check_exports(&spec).await?;
            if request.look_first {
                self.check_there(&spec).await?;
            }
        }
        if let Some(Input::Inline(texts)) = spec.input.as_ref().and_then(|input| input.input.as_ref()) {
            let blob = self.api.gateway.put_blob(texts.encode_to_vec().into()).await?;
            spec.input = Some(v1::InputSpec { input: Some(Input::Payload(blob)) });
        }
        if request.unless_open {
            self.check_twin(&key, &spec).await?;
        }
        let submitted = self.api.handle.ask(|reply| Event::Submit {
            reply,
            spec: Box::new(spec),
            idempotency_key: key,
            spec_digest,
            principal: PRINCIPAL.into(),
        });
        match submitted.await? {
            Answer::Job(job, existed) => Ok(v1::SubmitJobResponse { job: Some(*job), existed }),
            Answer::Node(_) => Err(unexpected()),
        }
    }

    /// Refuses what is sure to fail: exports that the gateway doesn't have, results where none may go, names that are closed. Where no gateway
    /// answers at once the job waits for one, and learns it then.
    async fn check_exports(&self, spec: &v1::JobSpec) -> Result<(), Problem> {
        let Ok(Ok(listed)) = tokio::time::timeout(EXPORTS_WITHIN, self.api.gateway.exports()).await else {
            return Ok(());
        };
        let known = listed.exports;
        let input = match spec.input.as_ref().and_then(|input| input.input.as_ref()) {
            Some(Input::Object(object) | Input::Tree(object)) => Some(object),
            Some(Input::Glob(glob)) => glob.base.as_ref(),
            _ => None,
        };
        let text_from = spec.embed.as_ref().and_then(|options| options.text_from.as_ref());
        let text_from = text_from.or(spec.generate.as_ref().and_then(|options| options.text_from.as_ref()));
        for (field, object) in [("spec.input", input), ("spec.output", spec.output.as_ref()), ("text_from", text_from)]
        {
            let Some(object) = object.filter(|_| !known.is_empty()) else { continue };
            let Some(export) = known.iter().find(|export| export.name == object.export) else {
                let names: Vec<&str> = known.iter().map(|export| export.name.as_str()).collect();
                let words = format!("{field}: no export {:?}; the gateway serves {}", object.export, names.join(", "));
                return Err(Problem::new(ErrorCode::ExportNotFound, words));
            };
            if field == "spec.output" && export.read_only {
                let words = format!("{field}: nothing may be written to the export {:?}", object.export);
                return Err(Problem::new(ErrorCode::ExportReadOnly, words));
            }
            rules::check(field, export, object)?;
        }
        Ok(())
    }

    /// Refuses what isn't there, as far as the gateway says so at once.
    async fn check_there(&self, spec: &v1::JobSpec) -> Result<(), Problem> {
        if spec.watch.is_some() {
            return Ok(());
        }
        let input = match spec.input.as_ref().and_then(|input| input.input.as_ref()) {
            Some(Input::Object(object) | Input::Tree(object)) => Some(object),
            Some(Input::Glob(glob)) => glob.base.as_ref(),
            _ => None,
        };
        let text_from = spec.embed.as_ref().and_then(|options| options.text_from.as_ref());
        let text_from = text_from.or(spec.generate.as_ref().and_then(|options| options.text_from.as_ref()));
        for (field, object) in [("spec.input", input), ("text_from", text_from)] {
            let Some(object) = object.cloned() else { continue };
            let place = object.clone();
            // A job that is open may be about to make it.
            if self.api.handle.query(move |core, _| core.is_made(&place)).await? {
                continue;
            }
            let looked = tokio::time::timeout(EXPORTS_WITHIN, self.api.gateway.stat(object)).await;
            if let Ok(Err(problem)) = looked
                && problem.code == ErrorCode::ObjectNotFound
            {
                return Err(Problem::new(problem.code, format!("{field}: {}", problem.message)));
            }
        }
        Ok(())
    }

    /// Refuses what is being done already. Two that come at the same moment are both accepted: this is for people, who don't.
    async fn check_twin(&self, key: &str, spec: &v1::JobSpec) -> Result<(), Problem> {
        let (key, spec) = (key.to_owned(), spec.clone());
        // One that is sent again is answered with its own job.
        let twin = move |core: &crate::core::Core| if core.knows_key(&key) { None } else { core.twin(&spec) };
        match self.api.handle.query(move |core, _| twin(core)).await? {
            Some(number) => {
                let id = ingle_proto::job::job_id(number);
                Err(Problem::new(ErrorCode::JobState, format!("{id} does the same already, and has not ended")))
            }
            None => Ok(()),
        }
    }

    async fn job(&self, id: &str) -> Result<v1::Job, Problem> {
        let number = spec::job_number(id)?;
        self.api.handle.query(move |core, _| core.job(number)).await?.ok_or_else(|| spec::no_job(number))
    }

    async fn list(&self, request: v1::ListJobsRequest) -> Result<v1::ListJobsResponse, Problem> {
        let size = spec::page_size(request.page_size)?;
        let before = match request.page_token.as_str() {
            "" => u64::MAX,
            token => token.parse().map_err(|_| Problem::invalid("page_token", "expected a next_page_token"))?,
        };
        let label = match request.label.as_str() {
            "" => None,
            label => {
                let (key, value) =
                    label.split_once('=').ok_or_else(|| Problem::invalid("label", "expected `key=value`"))?;
                Some((key.to_owned(), value.to_owned()))
            }
        };
        let (states, kinds) = (request.states, request.kinds);
        choices("states", &states, v1::JobState::as_str_name)?;
        choices("kinds", &kinds, v1::JobKind::as_str_name)?;
        let mut jobs = self
            .api
            .handle
            .query(move |core, _| {
                core.list_jobs(before, size + 1, &|job| {
                    let Some(spec) = &job.spec else { return false };
                    (states.is_empty() || states.contains(&job.state))
                        && (kinds.is_empty() || kinds.contains(&spec.kind))
                        && label.as_ref().is_none_or(|(key, value)| spec.labels.get(key) == Some(value))
                })
            })
            .await?;
        let more = jobs.len() > size;
        jobs.truncate(size);
        let next_page_token = match jobs.last() {
            Some(last) if more => spec::job_number(&last.job_id)?.to_string(),
            _ => String::new(),
        };
        Ok(v1::ListJobsResponse { jobs, next_page_token })
    }
}

type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchJobResponse, Status>> + Send>>;

#[tonic::async_trait]
impl v1::jobs_server::Jobs for JobsService {
    type WatchJobStream = WatchStream;

    async fn submit_job(
        &self,
        request: Request<v1::SubmitJobRequest>,
    ) -> Result<Response<v1::SubmitJobResponse>, Status> {
        Ok(Response::new(self.submit(request.into_inner()).await?))
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::GetJobResponse>, Status> {
        let job = self.job(&request.into_inner().job_id).await?;
        Ok(Response::new(v1::GetJobResponse { job: Some(job) }))
    }

    async fn list_jobs(&self, request: Request<v1::ListJobsRequest>) -> Result<Response<v1::ListJobsResponse>, Status> {
        Ok(Response::new(self.list(request.into_inner()).await?))
    }

    async fn list_items(
        &self,
        request: Request<v1::ListItemsRequest>,
    ) -> Result<Response<v1::ListItemsResponse>, Status> {
        Ok(Response::new(self.items.list(request.into_inner()).await?))
    }

    async fn watch_job(&self, request: Request<v1::WatchJobRequest>) -> Result<Response<WatchStream>, Status> {
        let job = spec::job_number(&request.into_inner().job_id)?;
        // Listens before the first look, so that no change is missed in between.
        let changes = self.api.handle.watch(job);
        let first = self.api.handle.query(move |core, _| core.job(job)).await?.ok_or_else(|| spec::no_job(job))?;
        let watcher = Watcher { api: self.api.clone(), job, changes, told: Instant::now(), first: Some(first) };
        Ok(Response::new(Box::pin(futures::stream::unfold(Some(watcher), watch))))
    }

    async fn cancel_job(
        &self,
        request: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::CancelJobResponse>, Status> {
        let job = self.steer(&request.into_inner().job_id, |reply, job| Event::Cancel { reply, job }).await?;
        Ok(Response::new(v1::CancelJobResponse { job }))
    }

    async fn pause_job(&self, request: Request<v1::PauseJobRequest>) -> Result<Response<v1::PauseJobResponse>, Status> {
        let job = self.steer(&request.into_inner().job_id, |reply, job| Event::Pause { reply, job }).await?;
        Ok(Response::new(v1::PauseJobResponse { job }))
    }

    async fn resume_job(
        &self,
        request: Request<v1::ResumeJobRequest>,
    ) -> Result<Response<v1::ResumeJobResponse>, Status> {
        let job = self.steer(&request.into_inner().job_id, |reply, job| Event::Resume { reply, job }).await?;
        Ok(Response::new(v1::ResumeJobResponse { job }))
    }

    async fn explain_job(
        &self,
        request: Request<v1::ExplainJobRequest>,
    ) -> Result<Response<v1::ExplainJobResponse>, Status> {
        let number = spec::job_number(&request.into_inner().job_id)?;
        let explained = self.api.handle.query(move |core, _| core.explain(number)).await?;
        Ok(Response::new(explained.ok_or_else(|| spec::no_job(number))?))
    }
}

struct Watcher {
    api: Reach,
    job: u64,
    changes: watch::Receiver<Seen>,
    told: Instant,
    first: Option<v1::Job>,
}

/// The next that a watcher is told, and the watcher unless that was the last.
async fn watch(watcher: Option<Watcher>) -> Option<(Result<v1::WatchJobResponse, Status>, Option<Watcher>)> {
    let mut watcher = watcher?;
    let stop = watcher.api.shutdown.wait();
    let next = tokio::select! {
        () = stop => Err(Problem::new(ErrorCode::ShuttingDown, "this coordinator is stopping; watch again in a few seconds")),
        next = watcher.next() => next,
    };
    Some(match next {
        Ok(job) => {
            let over = ended(job.state());
            (Ok(v1::WatchJobResponse { job: Some(job) }), (!over).then_some(watcher))
        }
        Err(problem) => (Err(problem.into()), None),
    })
}

/// Waits for a change that may be told: none before `due`, but the job's end. False if there will be none.
async fn news(changes: &mut watch::Receiver<Seen>, due: Instant) -> bool {
    if changes.changed().await.is_err() {
        return false;
    }
    tokio::select! {
        () = tokio::time::sleep_until(due) => true,
        // The driver may end meanwhile: what changed before is told all the same.
        _ = changes.wait_for(|seen| seen.ended) => true,
    }
}

impl Watcher {
    async fn next(&mut self) -> Result<v1::Job, Problem> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        if !news(&mut self.changes, self.told + TELL_EVERY).await {
            let words = "too many jobs are watched, or this coordinator is stopping; watch again in a few seconds";
            return Err(Problem::new(ErrorCode::Overloaded, words).retry_after(Duration::from_secs(2)));
        }
        self.told = Instant::now();
        // What changed while we waited is told now.
        self.changes.mark_unchanged();
        let number = self.job;
        self.api.handle.query(move |core, _| core.job(number)).await?.ok_or_else(|| spec::no_job(number))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn changes_wait_until_they_are_due_and_the_end_does_not() {
        let far = Instant::now() + Duration::from_secs(3_600);
        let (sender, mut changes) = watch::channel(Seen::default());
        {
            let mut told = Box::pin(news(&mut changes, far));
            assert_eq!((&mut told).now_or_never(), None, "nothing changed");
            sender.send_modify(|seen| seen.changes += 1);
            assert_eq!((&mut told).now_or_never(), None, "it was told a moment ago");
            sender.send_modify(|seen| *seen = Seen { changes: seen.changes + 1, ended: true });
            assert_eq!((&mut told).now_or_never(), Some(true), "the end is told at once");
        }
        // Once it is due a change is told whatever it is.
        let (sender, mut changes) = watch::channel(Seen::default());
        sender.send_modify(|seen| seen.changes += 1);
        assert!(news(&mut changes, Instant::now()).await);
        changes.mark_unchanged();
        drop(sender);
        assert_eq!(news(&mut changes, far).now_or_never(), Some(false), "nobody tells any more");
    }
}
