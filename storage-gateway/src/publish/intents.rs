//! From a manifest to intents: checked names and digests, what we published under each name before, what is staged.

use std::collections::BTreeSet;

use futures::{StreamExt as _, TryStreamExt as _};
use ingle_proto::storage::display_bytes;
use ingle_proto::{Digest, ErrorCode, ObjectPath, Problem, v1};

use crate::export::{ExportError, Kind};
use crate::file;
use crate::ledger::Ledger;
use crate::ledger::record::{Input, Intent, JobRecord, Publish};
use crate::limits::{MANIFEST_OUTPUTS_MAX, PUBLISH_IN_FLIGHT};
use crate::place::Place;
use crate::scan::claims;

/// Checks a manifest's outputs, in order of their names.
///
/// # Errors
/// `INVALID_ARGUMENT` or `PATH_REFUSED` names the output.
pub fn from_manifest(place: &Place, ledger: &Ledger, manifest: &v1::ResultManifest) -> Result<Vec<Intent>, Problem> {
    if manifest.outputs.len() > MANIFEST_OUTPUTS_MAX {
        return Err(Problem::invalid(
            "manifest.outputs",
            format!("at most {MANIFEST_OUTPUTS_MAX}, got {}", manifest.outputs.len()),
        ));
    }
    let mut names = BTreeSet::new();
    let mut staged = BTreeSet::new();
    let mut intents = Vec::with_capacity(manifest.outputs.len());
    for output in &manifest.outputs {
        place.visible(&output.name)?;
        let shown = display_bytes(&output.name);
        let invalid = |what: &str| Problem::invalid("manifest.outputs", format!("{shown}: {what}"));
        if !names.insert(output.name.clone()) {
            return Err(invalid("is named twice"));
        }
        if output.remove && output.keep {
            return Err(invalid("can't both be removed and kept"));
        }
        let shows = !output.remove && !output.keep;
        if shows {
            place.staged(&output.staged_name)?;
            if !staged.insert(output.staged_name.clone()) {
                return Err(invalid("shares its staged file with another output; stage each of its own"));
            }
        } else if !output.staged_name.is_empty() {
            return Err(invalid("has a staged file though nothing is to be shown"));
        }
        let digest =
            if shows { Digest::from_wire("manifest.outputs.digest", &output.digest)?.0.to_vec() } else { Vec::new() };
        intents.push(Intent {
            name: output.name.to_vec(),
            staged: output.staged_name.clone(),
            digest,
            size: output.size,
            previous: ledger.output(&output.name).map(|before| before.digest.0.to_vec()).unwrap_or_default(),
            remove: output.remove,
            keep: output.keep,
            taken: String::new(),
            anew: output.based_on.as_ref().is_some_and(|based_on| based_on.is_empty()),
            inputs: output.inputs.iter().map(input).collect::<Result<_, _>>()?,
        });
    }
    intents.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(intents)
}

fn input(wire: &v1::Provenance) -> Result<Input, Problem> {
    ObjectPath::new(wire.name.clone())?;
    if !wire.content_digest.is_empty() {
        Digest::from_wire("manifest.outputs.inputs.content_digest", &wire.content_digest)?;
    }
    Ok(Input {
        name: wire.name.to_vec(),
        size: wire.size,
        mtime_ns: wire.mtime_ns,
        content_digest: wire.content_digest.to_vec(),
        gone: wire.gone,
    })
}

/// Keeps results from names that documents of another input have come to hold since the scan looked: two jobs that list at the
/// same time see nothing of each other.
pub fn yield_names(ledger: &Ledger, record: &JobRecord, publish: &mut Publish) {
    let Some(root) = record.root.clone() else { return };
    let kind = publish.kind;
    for intent in publish.intents.iter_mut().filter(|intent| !intent.remove && !intent.keep) {
        let Some(before) = ledger.output(&intent.name) else { continue };
        let held = intent.inputs.iter().filter(|input| !input.gone).find_map(|input| {
            let theirs = before.inputs.get(&input.name)?.root.as_ref()?;
            let another = (before.kind != kind || *theirs != root) && !record.replaces.contains(theirs);
            another.then(|| claims::reason(kind, &root, before.kind, theirs, &input.name))
        });
        intent.taken = held.unwrap_or_default();
    }
}

/// Makes sure that no other publish came between an output and the visible file that it was made from.
///
/// What counts is what we published; where a person changed or removed that file since, the output is as good as one made
/// again, and its steps decide what becomes of it.
///
/// # Errors
/// `RESULT_OUTDATED` names the output; those of the export.
pub async fn check_base(place: &Place, ledger: &Ledger, manifest: &v1::ResultManifest) -> Result<(), Problem> {
    for output in &manifest.outputs {
        let Some(based_on) = &output.based_on else { continue };
        let ours = ledger.output(&output.name).map(|before| before.digest.to_wire()).unwrap_or_default();
        if ours == *based_on {
            continue;
        }
        let there = match file::digest(&*place.export, &place.visible(&output.name)?).await {
            Ok((digest, _)) => digest.to_wire(),
            Err(error) if error.retryable() => return Err(error.into()),
            Err(_) => bytes::Bytes::new(),
        };
        if there != *based_on {
            return Err(Problem::new(
                ErrorCode::ResultOutdated,
                format!(
                    "{}: another job replaced the visible file while this result was made from it; make it again",
                    display_bytes(&output.name)
                ),
            ));
        }
    }
    Ok(())
}

/// Makes sure that everything that is to be shown is staged, before anything is promised.
///
/// # Errors
/// `OBJECT_NOT_FOUND` or `DIGEST_MISMATCH` names the staged file; those of the export.
pub async fn check_staged(place: &Place, publish: &Publish) -> Result<(), Problem> {
    let shown = publish.intents.iter().filter(|intent| !intent.staged.is_empty());
    let looks: Vec<_> = shown.map(|intent| is_staged(place, intent)).collect();
    futures::stream::iter(looks).buffer_unordered(PUBLISH_IN_FLIGHT).try_collect::<()>().await
}

async fn is_staged(place: &Place, intent: &Intent) -> Result<(), Problem> {
    let path = place.staged(&intent.staged)?;
    let attr = match place.export.stat(&path).await {
        Ok(attr) => attr,
        Err(ExportError::NotFound(_)) => {
            return Err(Problem::new(
                ErrorCode::ObjectNotFound,
                format!("staged result {}: is not there; stage it and publish again", path.display()),
            ));
        }
        Err(error) => return Err(error.into()),
    };
    if attr.kind == Kind::File && attr.size == intent.size {
        return Ok(());
    }
    Err(Problem::new(
        ErrorCode::DigestMismatch,
        format!("staged result {}: has {} bytes, the manifest says {}", path.display(), attr.size, intent.size),
    ))
}
