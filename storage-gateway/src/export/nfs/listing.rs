//! A directory, page by page: cookies that lead nowhere are found out, a cookie that went bad starts over, a few times.

use std::collections::HashSet;

use futures::StreamExt as _;
use ingle_proto::ObjectPath;
use nfs3_types::nfs3::{cookieverf3, nfsstat3};

use super::listed::Listing;
use super::status::Fault;
use super::wire::{self, Handle, Named, Server};
use super::xdr::Malformed;
use crate::export::{Entry, ExportError};

/// How often a listing begins anew because its cookie went bad.
const RESTARTS_MAX: usize = 3;
/// Names that a listing may hold beyond twice its bound: those that came and went while it was read.
const NAMES_SPARE: usize = 1000;
/// Attributes asked for one by one, at once, where the listing brought none.
const LOOKUPS_MAX: usize = 16;

/// Entries, and what of them can be read without another LOOKUP.
type Listed = (Vec<Entry>, Listing);

/// All entries but `.` and `..`.
pub(crate) async fn all(server: &Server, directory: &Handle, path: &ObjectPath, limit: usize) -> Result<Listed, Fault> {
    let mut restarts = 0;
    loop {
        match once(server, directory, path, limit).await {
            Err(fault) if fault.is(nfsstat3::NFS3ERR_BAD_COOKIE) && restarts < RESTARTS_MAX => restarts += 1,
            other => return other,
        }
    }
}

async fn once(server: &Server, directory: &Handle, path: &ObjectPath, limit: usize) -> Result<Listed, Fault> {
    let (mut out, mut with_handles): Listed = Default::default();
    let mut visited = HashSet::from([0]);
    let mut named = 0;
    let (mut cookie, mut verifier, mut plus) = (0, cookieverf3::default(), true);
    loop {
        let page = match server.page(directory, cookie, verifier, plus).await {
            // A server without READDIRPLUS: names only, and each is looked up.
            Err(fault) if plus && cookie == 0 && unsupported(&fault) => {
                plus = false;
                continue;
            }
            other => other?,
        };
        verifier = page.verifier;
        // Names that aren't there when they are looked up count too: a server may make them up for ever.
        named += page.entries.len();
        if named > limit.saturating_mul(2).saturating_add(NAMES_SPARE) {
            return Err(ExportError::TooMany { path: path.display(), limit }.into());
        }
        let last = page.entries.last().map(|entry| entry.cookie);
        page.entries.iter().for_each(|named| with_handles.add(named));
        for entry in complete(server, directory, page.entries).await? {
            if out.len() == limit {
                return Err(ExportError::TooMany { path: path.display(), limit }.into());
            }
            out.push(entry);
        }
        if page.end {
            return Ok((out, with_handles));
        }
        // Each page must lead to a place where we have not been.
        match last {
            Some(next) if visited.insert(next) => cookie = next,
            Some(next) => return Err(Malformed(format!("the listing comes back to its cookie {next}")).into()),
            None => return Err(Malformed("the listing has an empty page before its end".to_owned()).into()),
        }
    }
}

fn unsupported(fault: &Fault) -> bool {
    use super::rpc::RpcError;
    fault.is(nfsstat3::NFS3ERR_NOTSUPP) || matches!(fault, Fault::Rpc(RpcError::ProcedureUnavailable))
}

/// Entries with attributes; those gone in the meantime are left out.
async fn complete(server: &Server, directory: &Handle, page: Vec<Named>) -> Result<Vec<Entry>, Fault> {
    let named = page.into_iter().filter(|named| named.name != b"." && named.name != b"..");
    let (told, untold): (Vec<Named>, Vec<Named>) = named.partition(|named| named.attr.is_some());
    let entry = |named: Named| named.attr.map(|attr| Entry { name: named.name, attr: wire::attr(&attr) });
    let mut out: Vec<Entry> = told.into_iter().filter_map(entry).collect();
    let mut looked_up = futures::stream::iter(untold)
        .map(|named| async move {
            let attr = server.lookup(directory, &named.name).await?.attr;
            Ok(Entry { name: named.name, attr })
        })
        .buffered(LOOKUPS_MAX);
    while let Some(entry) = looked_up.next().await {
        match entry {
            Ok(entry) => out.push(entry),
            Err(fault) if Fault::is(&fault, nfsstat3::NFS3ERR_NOENT) => {}
            Err(fault) => return Err(fault),
        }
    }
    Ok(out)
}
