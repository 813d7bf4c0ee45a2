//! The manifest of a batch or join: what became of each document, summed for `Complete`.

use ingle_proto::v1::{self, ItemOutcome};
use ingle_proto::{Digest, ErrorCode, Problem};

use super::{Attempt, Outcome};
use crate::error::Failure;
use crate::storage::{Gateway, encode};

/// Collects what a batch made.
#[derive(Debug, Default)]
pub struct Manifest {
    /// The message as it will be staged.
    pub message: v1::ResultManifest,
    /// Bytes of documents read.
    pub bytes: u64,
    /// Microseconds of model time.
    pub busy_us: u64,
    /// Pages read.
    pub pages: u32,
    /// Documents with more pages than one attempt should read.
    pub splits: Vec<v1::SplitDocument>,
}

/// A document that got no result, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoResult {
    /// `FAILED` or `SKIPPED`.
    pub outcome: ItemOutcome,
    /// In the terms of the wire.
    pub problem: Problem,
}

/// How many have a result that lacks pages: only theirs says why.
fn lacking(items: &[v1::ItemResult]) -> u32 {
    let lacking = items.iter().filter(|item| item.outcome() == ItemOutcome::Committed && !item.code.is_empty());
    u32::try_from(lacking.count()).unwrap_or(u32::MAX)
}

impl NoResult {
    /// It can't be done.
    pub fn failed(code: ErrorCode, reason: impl Into<String>) -> Self {
        Self { outcome: ItemOutcome::Failed, problem: Problem::new(code, reason) }
    }
}

impl Manifest {
    /// For the entries of a segment, or for a join without one.
    #[must_use]
    pub fn new(attempt: &Attempt, segment: Option<v1::BlobRef>) -> Self {
        let message = v1::ResultManifest { token: Some(attempt.token.clone()), segment, ..Default::default() };
        Self { message, ..Self::default() }
    }

    /// A document without a result.
    pub fn no_result(&mut self, index: u32, why: &NoResult) {
        self.message.items.push(v1::ItemResult {
            index,
            outcome: why.outcome.into(),
            code: why.problem.code.as_str().to_owned(),
            reason: why.problem.message.clone(),
            ..Default::default()
        });
    }

    /// Stages the manifest; the attempt is complete then. `count` entries are settled.
    ///
    /// # Errors
    /// What storage said.
    pub async fn complete(
        self,
        attempt: &Attempt,
        gateway: &Gateway,
        count: u32,
        model_digest: Option<Digest>,
    ) -> Result<Outcome, Failure> {
        let of = |outcome: ItemOutcome| {
            let items = self.message.items.iter().filter(|item| item.outcome() == outcome);
            u32::try_from(items.count()).unwrap_or(u32::MAX)
        };
        let mut complete = v1::Complete {
            token: Some(attempt.token.clone()),
            count,
            busy_us: self.busy_us,
            model_digest: model_digest.map(Digest::to_wire).unwrap_or_default(),
            committed: of(ItemOutcome::Committed),
            unchanged: of(ItemOutcome::Unchanged),
            skipped: of(ItemOutcome::Skipped),
            failed: of(ItemOutcome::Failed),
            incomplete: lacking(&self.message.items),
            bytes: self.bytes,
            outputs: u32::try_from(self.message.outputs.len()).unwrap_or(u32::MAX),
            manifest: None,
            splits: self.splits,
            pages: self.pages,
        };
        let manifest = gateway.stage_blob(&attempt.token, encode(&self.message)).await.map_err(Failure::storage)?;
        complete.manifest = Some(manifest);
        Ok(Outcome::Complete(complete))
    }

    /// As [`Manifest::complete`] for a range of a document's pages: `count` of them are settled, whatever they say.
    ///
    /// # Errors
    /// What storage said.
    pub async fn complete_pages(
        self,
        attempt: &Attempt,
        gateway: &Gateway,
        count: u32,
        model_digest: Digest,
    ) -> Result<Outcome, Failure> {
        let mut outcome = self.complete(attempt, gateway, count, Some(model_digest)).await?;
        if let Outcome::Complete(complete) = &mut outcome {
            complete.committed = count;
        }
        Ok(outcome)
    }
}
