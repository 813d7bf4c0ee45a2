//! Results that mirror their document: `NAME.json` and `NAME.txt` in the same place of another tree.

use bytes::Bytes;
use ingle_proto::v1;
use ingle_proto::{Digest, ErrorCode};

use super::Attempt;
use super::manifest::NoResult;
use crate::error::Failure;
use crate::storage::{Gateway, StageBody};

/// What is appended to a document's name.
pub const EXTENSIONS: [&str; 2] = ["json", "txt"];

/// What became of one document of a batch.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// For the manifest.
    pub(super) item: v1::ItemResult,
    /// Its two files.
    pub(super) outputs: Vec<v1::OutputResult>,
    /// Bytes read of it.
    pub(super) bytes: u64,
    /// Microseconds of the model's time.
    pub(super) busy_us: u64,
}

impl Done {
    /// Without a result.
    pub(super) fn without(index: u32, why: &NoResult, bytes: u64) -> Self {
        let item = v1::ItemResult {
            index,
            outcome: why.outcome.into(),
            code: why.problem.code.as_str().to_owned(),
            reason: why.problem.message.clone(),
            ..Default::default()
        };
        Self { item, bytes, ..Self::default() }
    }

    /// With the results it has already: they stay, and what they were made from is told anew.
    pub(super) fn unchanged(item: v1::ItemResult, input: &v1::Provenance) -> Self {
        let keep = |extension: &&str| v1::OutputResult {
            name: output_name(&input.name, extension),
            keep: true,
            inputs: vec![input.clone()],
            ..Default::default()
        };
        let outputs = EXTENSIONS.iter().map(keep).collect();
        let bytes = item.size;
        let item = v1::ItemResult { outcome: v1::ItemOutcome::Unchanged.into(), ..item };
        Self { item, outputs, bytes, busy_us: 0 }
    }
}

/// The visible file of a document.
#[must_use]
pub fn output_name(document: &[u8], extension: &str) -> Bytes {
    let mut name = document.to_vec();
    name.push(b'.');
    name.extend_from_slice(extension.as_bytes());
    name.into()
}

/// Stages both files of a document; `bodies` are of JSON and text, each with digest and size. `part` names the document
/// within the job.
///
/// # Errors
/// What storage said.
pub(super) async fn stage(
    attempt: &Attempt,
    gateway: &Gateway,
    part: &str,
    input: &v1::Provenance,
    bodies: [(StageBody, Digest, u64); 2],
) -> Result<Vec<v1::OutputResult>, Failure> {
    let mut outputs = Vec::new();
    for (extension, (body, digest, size)) in EXTENSIONS.into_iter().zip(bodies) {
        let staged_name = attempt.staged_name(part, extension);
        gateway.stage(&attempt.token, &staged_name, digest, size, body).await.map_err(Failure::storage)?;
        outputs.push(v1::OutputResult {
            staged_name,
            name: output_name(&input.name, extension),
            digest: digest.to_wire(),
            size,
            inputs: vec![input.clone()],
            ..Default::default()
        });
    }
    Ok(outputs)
}

/// Bytes as [`stage`] takes them.
pub(super) fn body(bytes: Vec<u8>) -> (StageBody, Digest, u64) {
    let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
    (StageBody::Bytes(bytes.into()), digest, size)
}

/// Removes both files of every document that left.
///
/// # Errors
/// What storage said.
pub(super) async fn removals(
    attempt: &Attempt,
    gateway: &Gateway,
    segments: &[(v1::BlobRef, v1::Segment)],
) -> Result<super::Outcome, Failure> {
    let mut manifest = super::manifest::Manifest::new(attempt, None);
    let entries = segments.iter().flat_map(|(_, segment)| &segment.entries);
    for entry in entries.filter(|entry| entry.action() == v1::EntryAction::Deleted) {
        for extension in EXTENSIONS {
            let inputs = vec![v1::Provenance { name: entry.name.clone(), gone: true, ..Default::default() }];
            let name = output_name(&entry.name, extension);
            manifest.message.outputs.push(v1::OutputResult { name, remove: true, inputs, ..Default::default() });
        }
    }
    manifest.complete(attempt, gateway, 0, None).await
}

/// A document that can't be done for a reason of ours, in one sentence.
pub(super) fn io_failed(error: &std::io::Error) -> Failure {
    Failure::item(ErrorCode::Internal, format!("writing the result: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_appended_to() {
        assert_eq!(output_name(b"a.pdf", "json").as_ref(), b"a.pdf.json");
        let input = v1::Provenance { name: "d/a.pdf".into(), ..Default::default() };
        let done = Done::unchanged(v1::ItemResult { size: 7, ..Default::default() }, &input);
        assert_eq!(done.bytes, 7);
        assert!(done.outputs.iter().all(|output| output.keep && output.staged_name.is_empty()));
        assert_eq!(done.outputs[1].name.as_ref(), b"d/a.pdf.txt");
    }
}
