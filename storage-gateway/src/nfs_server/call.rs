//! RPC calls as they come in, and the replies' headers.

use bytes::Bytes;
use nfs3_types::rpc::{
    RPC_VERSION_2, accept_stat_data, accepted_reply, auth_stat, msg_body, msg_type, opaque_auth, rejected_reply,
    reply_body, rpc_msg,
};

use super::access::Claimed;
use crate::export::nfs::record;
use crate::export::nfs::xdr::{Malformed, Reader, put};

/// Longest credential and verifier (RFC 5531).
const AUTH_BYTES_MAX: usize = 400;
/// Longest name of the calling machine, and most of its groups (RFC 5531).
const MACHINE_NAME_MAX: usize = 255;
const GROUPS_MAX: usize = 16;
/// Credential flavors.
const AUTH_NONE: u32 = 0;
const AUTH_SYS: u32 = 1;

/// A call's header.
pub(super) struct Call {
    pub(super) xid: u32,
    pub(super) program: u32,
    pub(super) version: u32,
    pub(super) procedure: u32,
    /// Who the caller says it is; `None` for `AUTH_NONE`.
    pub(super) claimed: Option<Claimed>,
    /// What follows the header.
    pub(super) arguments: Reader,
}

/// A call that isn't carried out.
pub(super) enum Header {
    /// Carry it out.
    Call(Call),
    /// Answer this.
    Answer(Vec<u8>),
    /// Not RPC at all: nothing to answer.
    Nothing,
}

/// Reads a record's header.
pub(super) fn read(record: Bytes) -> Header {
    let mut reader = Reader::new(record);
    let (Ok(xid), Ok(msg_type::CALL)) = (reader.u32(), reader.take::<msg_type>()) else {
        return Header::Nothing;
    };
    match header(xid, reader) {
        Ok(Ok(call)) => Header::Call(call),
        Ok(Err(rejected)) => Header::Answer(denied(xid, rejected)),
        Err(_) => {
            let mut answer = accepted(xid, accept_stat_data::GARBAGE_ARGS);
            record::seal(&mut answer);
            Header::Answer(answer)
        }
    }
}

fn header(xid: u32, mut reader: Reader) -> Result<Result<Call, rejected_reply>, Malformed> {
    if reader.u32()? != RPC_VERSION_2 {
        return Ok(Err(rejected_reply::rpc_mismatch(RPC_VERSION_2, RPC_VERSION_2)));
    }
    let (program, version, procedure) = (reader.u32()?, reader.u32()?, reader.u32()?);
    let (flavor, credential) = (reader.u32()?, reader.opaque(AUTH_BYTES_MAX)?);
    let _verifier = (reader.u32()?, reader.opaque(AUTH_BYTES_MAX)?);
    let claimed = match flavor {
        AUTH_NONE => None,
        AUTH_SYS => match auth_sys(credential) {
            Ok(claimed) => Some(claimed),
            Err(_) => return Ok(Err(rejected_reply::auth_error(auth_stat::AUTH_BADCRED))),
        },
        _ => return Ok(Err(rejected_reply::auth_error(auth_stat::AUTH_REJECTEDCRED))),
    };
    Ok(Ok(Call { xid, program, version, procedure, claimed, arguments: reader }))
}

fn auth_sys(credential: Bytes) -> Result<Claimed, Malformed> {
    let mut reader = Reader::new(credential);
    let _stamp = reader.u32()?;
    let _machine = reader.opaque(MACHINE_NAME_MAX)?;
    let claimed = Claimed { uid: reader.u32()?, gid: reader.u32()?, groups: reader.integers(GROUPS_MAX)? };
    reader.end()?;
    Ok(claimed)
}

/// Begins a reply to a call that was taken; the result, if any, follows. [`record::seal`] ends it.
pub(super) fn accepted(xid: u32, outcome: accept_stat_data) -> Vec<u8> {
    let body = reply_body::MSG_ACCEPTED(accepted_reply { verf: opaque_auth::default(), reply_data: outcome });
    let mut out = record::begin(256);
    put(&mut out, &rpc_msg { xid, body: msg_body::REPLY(body) });
    out
}

fn denied(xid: u32, why: rejected_reply) -> Vec<u8> {
    let mut out = record::begin(64);
    put(&mut out, &rpc_msg { xid, body: msg_body::REPLY(reply_body::MSG_DENIED(why)) });
    record::seal(&mut out);
    out
}
