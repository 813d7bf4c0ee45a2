//! The gateway and what lies behind it: whether it answers, what it may read, and whether results can be written.

use ingle_proto::v1;
use ingle_proto::v1::stage_request::Message;

use super::Check;
use super::clock::judge;
use super::cluster::{Seen, ask};
use crate::client::Client;
use crate::exit::Failure;
use crate::json;

/// Most exports and output places that are looked at.
const EXPORTS_MAX: usize = 64;
const OUTPUTS_MAX: usize = 8;
/// Whoever jobs are done for, until people are known apart.
const PRINCIPAL: &str = "local";

pub(super) async fn look(client: &Client, seen: &Seen, output: Option<v1::ObjectRef>, checks: &mut Vec<Check>) {
    let status = &seen.status;
    if status.gateway.is_empty() {
        let todo = "start ingle-gateway, with this coordinator in its settings";
        return checks.push(Check::fail("gateway", "there is no gateway: no document can be read or written", todo));
    }
    if !status.gateway_ready {
        let todo = "see whether ingle-gateway runs, and its log";
        checks.push(Check::fail("gateway", format!("the coordinator gets no answer of {}", status.gateway), todo));
    }
    let what = format!("the gateway at {}", status.gateway);
    let client = client.at(status.gateway.clone());
    let mut storage = match client.storage().await {
        Ok(storage) => storage,
        Err(failure) => return checks.push(from_here(&what, &failure)),
    };
    let met = ask(storage.list_exports(v1::ListExportsRequest {})).await;
    if met.answer.is_ok() {
        super::here::of_server(&client, &what, checks).await;
    }
    checks.extend(met.skew_ms.map(|skew| judge(&what, skew)));
    let listed = match met.answer {
        Ok(listed) => listed,
        Err(status) => return checks.push(from_here(&what, &client.failure(&status))),
    };
    checks.push(Check::ok("gateway", format!("{what} answers, with {} exports", listed.exports.len())));
    for export in listed.exports.iter().take(EXPORTS_MAX) {
        checks.push(readable(&client, export).await);
    }
    checks.push(state_export(&client, status.epoch).await);
    for place in seen.outputs.iter().take(OUTPUTS_MAX) {
        checks.extend(output_place(&client, place).await);
    }
    if let Some(place) = output {
        checks.push(staged(&client, place).await);
    }
}

/// The coordinator has to reach the gateway, not we: from here it may be another network.
fn from_here(what: &str, failure: &Failure) -> Check {
    let todo = "run this on a machine that reaches the gateway (the coordinator's does): the NAS is asked through it";
    Check::warn("gateway", format!("{what} can't be asked from here: {}", failure.message), todo)
}

async fn readable(client: &Client, export: &v1::ExportInfo) -> Check {
    let name = &export.name;
    if !export.ready {
        let todo = if export.problem.is_empty() { "see the gateway's log" } else { "as it says; then look again" };
        return Check::fail("storage", format!("export {name} ({}): {}", export.url, export.problem), todo);
    }
    let mode = if export.read_only { "read-only" } else { "to be read and written" };
    match first_entries(client, v1::ObjectRef { export: name.clone(), ..Default::default() }).await {
        Ok(0) => {
            let todo = "if documents should be there: is the right directory exported, and is its disk mounted?";
            Check::warn("storage", format!("export {name} ({}) is empty", export.url), todo)
        }
        Ok(entries) => Check::ok("storage", format!("export {name} can be listed ({entries} names or more), {mode}")),
        Err(failure) => Check::failed("storage", &format!("export {name} can't be listed"), &failure),
    }
}

/// How many names the first page of a listing has.
async fn first_entries(client: &Client, object: v1::ObjectRef) -> Result<usize, Failure> {
    let mut storage = client.storage().await?;
    let listing = async {
        let mut pages = storage.list(v1::ListRequest { object: Some(object) }).await?.into_inner();
        pages.message().await.map(|page| tonic::Response::new(page.map_or(0, |page| page.entries.len())))
    };
    client.call(listing).await
}

/// Two bytes are written and removed.
async fn state_export(client: &Client, epoch: Option<v1::Epoch>) -> Check {
    let bytes = b"ok".to_vec();
    let header = v1::StageHeader { epoch, blob: true, size: 2, of_call: true, ..Default::default() };
    let blob = match stage(client, header, bytes).await {
        Ok(answer) => v1::BlobRef { digest: answer.digest, size: answer.size },
        Err(failure) => return Check::failed("storage", "the state export can't be written", &failure),
    };
    let forgotten = async {
        let mut storage = client.storage().await?;
        client.call(storage.forget(v1::ForgetRequest { epoch, blobs: vec![blob] })).await
    };
    match forgotten.await {
        Ok(_) => Check::ok("storage", "the state export can be written"),
        Err(failure) => Check::failed("storage", "the state export can be written, but nothing removed", &failure),
    }
}

async fn stage(client: &Client, header: v1::StageHeader, bytes: Vec<u8>) -> Result<v1::StageResponse, Failure> {
    let mut messages = vec![v1::StageRequest { message: Some(Message::Header(header)) }];
    if !bytes.is_empty() {
        messages.push(v1::StageRequest { message: Some(Message::Data(bytes.into())) });
    }
    let mut storage = client.storage().await?;
    client.call(storage.stage(tokio_stream::iter(messages))).await
}

/// Where a job put results, as far as it is there.
async fn output_place(client: &Client, place: &v1::ObjectRef) -> Option<Check> {
    let mut storage = client.storage().await.ok()?;
    let shown = json::object(place);
    match client.call(storage.stat(v1::StatRequest { object: Some(place.clone()) })).await {
        Ok(answer) => {
            let kind = answer.attributes.unwrap_or_default().kind();
            (kind != v1::ObjectKind::Directory).then(|| {
                let todo = "move it away: results need a directory of that name";
                Check::fail("storage", format!("output place {shown} is no directory"), todo)
            })
        }
        // Nothing was published there yet, or somebody has cleared it: the next job makes it anew.
        Err(failure) if failure.exit == crate::exit::Exit::NotFound => None,
        Err(failure) => Some(Check::failed("storage", &format!("output place {shown}"), &failure)),
    }
}

/// Stages an empty file as a node's result is staged, as whoever jobs are done for.
async fn staged(client: &Client, place: v1::ObjectRef) -> Check {
    let shown = json::object(&place);
    let token = v1::AttemptToken { principal: PRINCIPAL.into(), place: Some(place), ..Default::default() };
    let staged_name = format!("doctor-{:016x}", fastrand::u64(..));
    let header = v1::StageHeader { token: Some(token), staged_name, ..Default::default() };
    match stage(client, header, Vec::new()).await {
        Ok(_) => Check::ok("storage", format!("results can be written to {shown}")),
        Err(failure) => Check::failed("storage", &format!("results can't be written to {shown}"), &failure),
    }
}
