//! What a caller may read: never a directory of ours by name, and with a token only what the token says.

use ingle_proto::storage::{OWN_DIRECTORY, Object};
use ingle_proto::{ErrorCode, Problem, v1};

use crate::principals::OURSELVES;

/// An object that may be named: not inside a directory of ours.
///
/// # Errors
/// `PATH_REFUSED`.
pub(crate) fn visible(wire: v1::ObjectRef) -> Result<Object, Problem> {
    let object = Object::try_from(wire)?;
    if object.path.components().any(|part| part == OWN_DIRECTORY) {
        return Err(Problem::new(
            ErrorCode::PathRefused,
            format!("{object}: .inglenook is Inglenook's own and can't be read by path"),
        ));
    }
    Ok(object)
}

/// As whom it is read: the token's principal, or the gateway itself.
pub(crate) fn principal(token: Option<&v1::AttemptToken>) -> &str {
    token.map_or(OURSELVES, |token| token.principal.as_str())
}

/// Whether the token, if there is one, lets its holder read the object.
///
/// # Errors
/// `STORAGE_DENIED` names the object.
pub(crate) fn may_read(token: Option<&v1::AttemptToken>, object: &Object) -> Result<(), Problem> {
    let Some(token) = token else { return Ok(()) };
    for readable in &token.readable {
        let readable = Object::try_from(readable.clone())?;
        if readable.export == object.export && object.path.below(&readable.path).is_some() {
            return Ok(());
        }
    }
    Err(Problem::new(
        ErrorCode::StorageDenied,
        format!("{object}: attempt {} of job {:?} may not read it", token.attempt, token.job_id),
    ))
}

/// Whether the token, if there is one, belongs to the place.
///
/// # Errors
/// `STORAGE_DENIED` names the place.
pub(crate) fn may_use(token: Option<&v1::AttemptToken>, place: &Object) -> Result<(), Problem> {
    let Some(token) = token else { return Ok(()) };
    match &token.place {
        Some(own) if Object::try_from(own.clone())? == *place => Ok(()),
        _ => Err(Problem::new(
            ErrorCode::StorageDenied,
            format!("{place}: attempt {} of job {:?} works for another place", token.attempt, token.job_id),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(url: &str) -> Object {
        Object::parse(url).unwrap()
    }

    #[test]
    fn a_token_opens_what_it_names_and_what_lies_below() {
        let token = v1::AttemptToken {
            readable: vec![(&object("nas://docs/in")).into(), (&object("nas://docs/one.md")).into()],
            place: Some((&object("nas://docs/out")).into()),
            ..Default::default()
        };
        for (url, ok) in [
            ("nas://docs/in", true),
            ("nas://docs/in/a/b.md", true),
            ("nas://docs/one.md", true),
            ("nas://docs/inside", false),
            ("nas://docs/other.md", false),
            ("nas://docs", false),
            ("nas://other/in/a", false),
        ] {
            assert_eq!(may_read(Some(&token), &object(url)).is_ok(), ok, "{url}");
            assert!(may_read(None, &object(url)).is_ok());
        }
        assert!(may_use(Some(&token), &object("nas://docs/out")).is_ok());
        assert!(may_use(Some(&token), &object("nas://docs/out/deeper")).is_err());
        assert!(may_use(Some(&v1::AttemptToken::default()), &object("nas://docs/out")).is_err());
    }

    #[test]
    fn our_own_directory_is_closed() {
        for path in [".inglenook", "a/.inglenook", "a/.inglenook/staged/x", ".inglenook/ledger/log/1.seg"] {
            let wire = v1::ObjectRef { export: "docs".into(), path: path.as_bytes().to_vec().into() };
            assert_eq!(visible(wire).unwrap_err().code, ErrorCode::PathRefused, "{path}");
        }
        let wire = v1::ObjectRef { export: "docs".into(), path: b"a/inglenook/.inglenook2".to_vec().into() };
        assert!(visible(wire).is_ok());
    }
}
