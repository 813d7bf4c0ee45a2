//! Embedding a batch: documents to passages to vectors, staged as one Parquet blob for the join.

use std::sync::Arc;
use std::time::SystemTime;

use futures::{StreamExt as _, TryStreamExt as _};
use ingle_daemon::past::phase;
use ingle_engine::{Class, EmbedRequest, EmbedText, EngineError, Request, Task, plan_by_tokens};
use ingle_proto::storage::display_bytes;
use ingle_proto::v1::{self, ItemOutcome};
use ingle_proto::{ErrorCode, Problem};
use tokio::sync::mpsc;

use super::manifest::{Manifest, NoResult};
use super::passages::{Passage, Sizes, split};
use super::schema::{PartWriter, Row};
use super::source::{self, Document, Wanted};
use super::text::Text;
use super::texts;
use super::{Attempt, Outcome};
use crate::error::Failure;
use crate::executor::Event;
use crate::limits;
use crate::loaded::Lease;
use crate::storage::Gateway;

/// A passage on its way through the model.
struct Pending {
    item: usize,
    path: Arc<str>,
    number: i32,
    byte_start: i64,
    byte_end: i64,
    text: EmbedText,
    tokens: usize,
}

/// A document whose passages are being gathered.
struct Current {
    item: usize,
    path: Arc<str>,
    text: Text,
    passages: std::iter::Zip<std::ops::RangeFrom<i32>, std::vec::IntoIter<Passage>>,
}

/// Makes windows of passages from documents as they come.
struct Gatherer<'a> {
    attempt: &'a Attempt,
    lease: &'a Lease,
    sizes: Sizes,
    documents: mpsc::Receiver<Result<Document, Failure>>,
    current: Option<Current>,
    /// No further document is taken.
    ended: bool,
    /// Documents taken.
    count: u32,
    manifest: Manifest,
}

/// Embeds the entries of a batch.
///
/// # Errors
/// [`Failure`]; documents that can't be done are told in the manifest instead.
pub async fn batch(attempt: &Attempt, work: v1::BatchWork) -> Result<Outcome, Failure> {
    let gateway = attempt.gateway()?;
    let (entries, payload) = source::entries(&gateway, &work).await?;
    let lease = attempt.agent.loaded.acquire(&attempt.model).await?;
    if lease.handle.card().task != Task::Embed {
        return Err(Failure::model(ErrorCode::ModelUnusable, format!("model `{}` doesn't embed", lease.model.name)));
    }
    let options = work.embed.unwrap_or_default();
    let sizes = Sizes::new(options.passage_tokens, options.overlap_tokens, lease.handle.tokens().max_tokens());
    let (to, documents) = mpsc::channel(1);
    let mut gatherer = Gatherer {
        attempt,
        lease: &lease,
        sizes,
        documents,
        current: None,
        ended: false,
        count: 0,
        manifest: Manifest::new(attempt, work.segment.clone()),
    };
    // Reading goes on while the model works.
    let read = async {
        let documents = source::documents(attempt, &gateway, entries, payload, Wanted::Once);
        tokio::pin!(documents);
        while let Some(document) = documents.next().await {
            if to.send(document).await.is_err() {
                break;
            }
        }
        drop(to);
        std::future::pending::<()>().await;
    };
    let compute = async {
        let mut rows = Vec::new();
        let mut window = gatherer.window().await?;
        while !window.is_empty() {
            // While one window is in the model, the next is opened, split and tokenised.
            let (answers, next) = futures::try_join!(through_model(&lease, &window), gatherer.window())?;
            gatherer.take(std::mem::replace(&mut window, next), answers, &mut rows)?;
        }
        Ok::<_, Failure>(rows)
    };
    let rows = tokio::select! {
        rows = compute => rows?,
        () = read => return Err(Failure::item(ErrorCode::Internal, "reading ended before the documents did")),
    };
    let Gatherer { manifest, count, .. } = gatherer;
    finish(attempt, &gateway, &lease, manifest, rows, work.bucket, count).await
}

impl Gatherer<'_> {
    /// The next passages, about as many as are worth planning together; none once all documents are done.
    async fn window(&mut self) -> Result<Vec<Pending>, Failure> {
        let (mut window, mut tokens) = (Vec::new(), 0);
        while tokens < limits::EMBED_WINDOW_TOKENS {
            if let Some(pending) = self.passage() {
                tokens += pending.tokens;
                window.push(pending);
                continue;
            }
            if self.ended {
                break;
            }
            match self.documents.recv().await {
                Some(document) => {
                    self.add(document?).await?;
                    self.count += 1;
                    // A drain takes no further document; those begun are finished.
                    self.ended = self.attempt.agent.draining();
                }
                None => self.ended = true,
            }
        }
        Ok(window)
    }

    /// The next passage of the document that is being gathered.
    fn passage(&mut self) -> Option<Pending> {
        let current = self.current.as_mut()?;
        let Some((number, passage)) = current.passages.next() else {
            self.current = None;
            return None;
        };
        let text = &current.text;
        let offset = |at: usize| i64::try_from(text.base + at as u64).unwrap_or(i64::MAX);
        Some(Pending {
            item: current.item,
            path: Arc::clone(&current.path),
            number,
            byte_start: offset(passage.range.start),
            byte_end: offset(passage.range.end),
            text: EmbedText::tokenised(&text.text[passage.range.clone()], &passage.ids),
            tokens: passage.tokens,
        })
    }

    async fn add(&mut self, document: Document) -> Result<(), Failure> {
        let unchanged = document.unchanged();
        let Document { index, entry, content, .. } = document;
        let content = match content {
            Ok(content) => content,
            Err(why) => {
                self.manifest.no_result(index, &why);
                return Ok(());
            }
        };
        self.manifest.bytes += content.size;
        let item = v1::ItemResult {
            index,
            content_digest: content.digest.to_wire(),
            size: content.size,
            mtime_ns: content.mtime_ns,
            ..Default::default()
        };
        if unchanged {
            self.manifest.message.items.push(v1::ItemResult { outcome: ItemOutcome::Unchanged.into(), ..item });
            return Ok(());
        }
        let text = match texts::of(self.attempt, &entry, content).await? {
            Ok(text) => text,
            Err(why) => {
                self.manifest.no_result(index, &why);
                return Ok(());
            }
        };
        match self.passages(text).await? {
            Ok((text, passages)) => {
                let at = self.manifest.message.items.len();
                self.manifest.message.items.push(v1::ItemResult {
                    outcome: ItemOutcome::Committed.into(),
                    passages: u32::try_from(passages.len()).unwrap_or(u32::MAX),
                    ..item
                });
                let path = display_bytes(&entry.name).into();
                self.current = Some(Current { item: at, path, text, passages: (0i32..).zip(passages) });
            }
            Err(why) => self.manifest.no_result(index, &why),
        }
        Ok(())
    }

    async fn passages(&self, text: Text) -> Result<Result<(Text, Vec<Passage>), NoResult>, Failure> {
        let (tokens, sizes) = (Arc::clone(self.lease.handle.tokens()), self.sizes);
        let work = move || match split(&text.text, tokens.as_ref(), sizes) {
            Ok(passages) => Ok((text, passages)),
            Err(error) => Err(NoResult::failed(ErrorCode::DocumentMalformed, format!("can't be tokenised: {error}"))),
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| {
            Failure::item(ErrorCode::ComputeFailed, format!("splitting into passages failed: {error}"))
        })
    }

    /// Keeps what the model said of a window.
    fn take(
        &mut self,
        window: Vec<Pending>,
        answers: Vec<(Vec<usize>, Answer)>,
        rows: &mut Vec<Row>,
    ) -> Result<(), Failure> {
        let mut of: Vec<Option<(Vec<f32>, u32, bool)>> = vec![None; window.len()];
        for (group, answer) in answers {
            self.manifest.busy_us += answer.busy_us;
            for (at, vector) in group.into_iter().zip(answer.vectors) {
                of[at] = Some(vector);
            }
        }
        self.attempt.agent.metrics.passages.inc_by(window.len() as u64);
        let model = self.lease.model.digest.hex();
        let mut done = 0;
        for (pending, vector) in window.into_iter().zip(of) {
            let Some((vector, tokens, truncated)) = vector else {
                return Err(Failure::item(ErrorCode::ComputeFailed, "the model left out a passage"));
            };
            let item = &mut self.manifest.message.items[pending.item];
            item.tokens = item.tokens.saturating_add(tokens);
            item.truncated |= truncated;
            done = pending.item + 1;
            rows.push(Row {
                path: pending.path.to_string(),
                passage: pending.number,
                byte_start: pending.byte_start,
                byte_end: pending.byte_end,
                text: pending.text.text.to_string(),
                vector,
                model: model.clone(),
            });
        }
        let done = u32::try_from(done).unwrap_or(u32::MAX);
        self.attempt.progress(done, self.manifest.bytes, "embedding");
        Ok(())
    }
}

/// Sends a window of passages through the model, those of like length together.
async fn through_model(lease: &Lease, window: &[Pending]) -> Result<Vec<(Vec<usize>, Answer)>, Failure> {
    let lengths: Vec<usize> = window.iter().map(|pending| pending.tokens).collect();
    let plan = plan_by_tokens(&lengths, limits::EMBED_REQUEST_TOKENS, limits::EMBED_REQUEST_TEXTS);
    futures::stream::iter(plan)
        .map(|group| async move {
            let asked = group.iter().map(|&at| window[at].text.clone()).collect();
            vectors(lease, Class::Batch, asked).await.map(|answer| (group, answer))
        })
        .buffer_unordered(limits::EMBED_REQUESTS_IN_FLIGHT)
        .try_collect()
        .await
        .map_err(|error| as_item(&error))
}

/// Stages the rows for the join, and the manifest.
async fn finish(
    attempt: &Attempt,
    gateway: &Gateway,
    lease: &Lease,
    mut manifest: Manifest,
    mut rows: Vec<Row>,
    bucket: u32,
    count: u32,
) -> Result<Outcome, Failure> {
    if !rows.is_empty() {
        let (dimensions, name) = (lease.handle.card().dimensions, lease.model.name.clone());
        let part = tokio::task::spawn_blocking(move || {
            rows.sort_by(|a, b| (&a.path, a.passage).cmp(&(&b.path, b.passage)));
            let mut writer = PartWriter::new(Vec::new(), dimensions, &name)?;
            for row in rows {
                writer.push(row)?;
            }
            writer.finish()
        })
        .await
        .map_err(|error| Failure::item(ErrorCode::Internal, format!("writing Parquet failed: {error}")))?
        .map_err(|error| Failure::item(ErrorCode::Internal, error.to_string()))?;
        let blob = gateway.stage_blob(&attempt.token, part.into()).await.map_err(Failure::storage)?;
        manifest.message.partials.push(v1::PartialResult { blob: Some(blob), bucket });
    }
    lease.handle.measured_documents(manifest.bytes, manifest.busy_us);
    manifest.complete(attempt, gateway, count, Some(lease.model.digest)).await
}

/// What the model said of some texts.
pub(super) struct Answer {
    /// Vector, tokens and whether it was cut, for each text.
    pub(super) vectors: Vec<(Vec<f32>, u32, bool)>,
    /// Tokens read in all.
    pub(super) tokens: u32,
    /// Microseconds of the model's time.
    pub(super) busy_us: u64,
    /// Time spent reading.
    pub(super) prefill: std::time::Duration,
}

/// Sends texts through the model.
pub(super) async fn vectors(lease: &Lease, class: Class, texts: Vec<EmbedText>) -> Result<Answer, EngineError> {
    let begun = SystemTime::now();
    let mut of: Vec<Option<(Vec<f32>, u32, bool)>> = vec![None; texts.len()];
    let mut ticket = lease.handle.submit(class, Request::Embed(EmbedRequest { texts, normalise: true })).await?;
    loop {
        match ticket.next().await? {
            Event::Embedding { index, vector, tokens, truncated } => {
                if let Some(slot) = of.get_mut(index as usize) {
                    *slot = Some((vector, tokens, truncated));
                }
            }
            Event::Done { prompt_tokens, timings, .. } => {
                let vectors = of.into_iter().collect::<Option<Vec<_>>>();
                let vectors = vectors.ok_or_else(|| EngineError::Compute("the model left out a text".into()))?;
                let busy_us = ticket.busy_us();
                // An encoder reads, and that is all: waiting for its turn is a part of it.
                phase("prefill", begun, SystemTime::now(), &[("texts", &vectors.len().to_string())]);
                return Ok(Answer { vectors, tokens: prompt_tokens, busy_us, prefill: timings.prefill });
            }
            _ => {}
        }
    }
}

/// In a batch the texts are the documents': what a model refuses is an item's fault, not the job's.
pub(super) fn as_item(error: &EngineError) -> Failure {
    let mut failure = Failure::engine(error);
    if failure.kind == v1::FailureKind::Input {
        failure =
            Failure { kind: v1::FailureKind::Item, problem: Problem::new(ErrorCode::ComputeFailed, error.to_string()) };
    }
    failure
}
