//! An output place: a directory of an export, and the names of ours below its `.inglenook/`.

use std::sync::Arc;

use ingle_proto::storage::{OWN_DIRECTORY, Object, display_bytes};
use ingle_proto::{ErrorCode, ObjectPath, Problem};

use crate::export::{Export, User};
use crate::ledger::record;
use crate::limits::PLACE_PATH_BYTES_MAX;

/// Where results of jobs go.
#[derive(Clone)]
pub struct Place {
    /// What people call it: export and path.
    pub object: Object,
    /// What it lies on.
    pub export: Arc<dyn Export>,
    /// Whose jobs it is used for now; empty for the gateway itself.
    pub principal: String,
    own: ObjectPath,
}

impl Place {
    /// Takes a directory as a place.
    ///
    /// # Errors
    /// `PATH_REFUSED` if it lies in a directory of ours or leaves no room for names below it.
    pub fn new(object: Object, export: Arc<dyn Export>) -> Result<Self, Problem> {
        if object.path.components().any(|part| part == OWN_DIRECTORY) {
            return Err(Problem::new(
                ErrorCode::PathRefused,
                format!("{object}: .inglenook is Inglenook's own; name the directory that it lies in"),
            ));
        }
        if object.path.as_bytes().len() > PLACE_PATH_BYTES_MAX {
            return Err(Problem::new(
                ErrorCode::PathRefused,
                format!("{object}: an output place's path has at most {PLACE_PATH_BYTES_MAX} bytes"),
            ));
        }
        let own = object.path.join(OWN_DIRECTORY)?;
        Ok(Self { object, export, principal: String::new(), own })
    }

    /// The same for a principal, as whom `export` is seen already.
    #[must_use]
    pub fn used_by(mut self, principal: &str) -> Self {
        principal.clone_into(&mut self.principal);
        self
    }

    /// The same as another user of the NAS sees it, where it knows users.
    #[must_use]
    pub fn as_user(&self, user: Option<&record::User>) -> Self {
        let theirs = user.map(User::from).filter(|theirs| self.export.user().as_ref() != Some(theirs));
        let export = theirs.and_then(|theirs| self.export.as_user(&theirs));
        Self { export: export.unwrap_or_else(|| Arc::clone(&self.export)), ..self.clone() }
    }

    fn below(&self, name: &str) -> ObjectPath {
        self.own.join(name.as_bytes()).expect("names of ours are short and plain, and Place::new left room for them")
    }

    /// Where results wait.
    #[must_use]
    pub fn staged_directory(&self) -> ObjectPath {
        self.below("staged")
    }

    /// A staged result.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if it isn't a name that staged results have.
    pub fn staged(&self, name: &str) -> Result<ObjectPath, Problem> {
        check_staged_name(name)?;
        self.staged_directory().join(name.as_bytes())
    }

    /// Where what results replaced waits to be forgotten.
    #[must_use]
    pub fn trash_directory(&self) -> ObjectPath {
        self.below("trash")
    }

    /// Something in the trash; `name` is made of a job's identifier, hexadecimal digits and dashes.
    #[must_use]
    pub fn trash(&self, name: &str) -> ObjectPath {
        self.below(&format!("trash/{name}"))
    }

    /// Where a person's file goes that could not be put back: never swept.
    #[must_use]
    pub fn kept_directory(&self) -> ObjectPath {
        self.below("kept")
    }

    /// A person's file there, by its name in the trash.
    #[must_use]
    pub fn kept(&self, name: &str) -> ObjectPath {
        self.below(&format!("kept/{name}"))
    }

    /// Where files are written before they get their name.
    #[must_use]
    pub fn temporary(&self) -> ObjectPath {
        self.below("tmp")
    }

    /// Where the ledger lies.
    #[must_use]
    pub fn ledger(&self) -> ObjectPath {
        self.below("ledger")
    }

    /// Where what scans of jobs leave for their publishes lies.
    #[must_use]
    pub fn jobs_directory(&self) -> ObjectPath {
        self.below("jobs")
    }

    /// What the scan of a job left for its publishes.
    #[must_use]
    pub fn job(&self, job: &ingle_proto::JobId) -> ObjectPath {
        self.below(&format!("jobs/{job}"))
    }

    /// Where what looks at inputs saw lies.
    #[must_use]
    pub fn seen_directory(&self) -> ObjectPath {
        self.below("seen")
    }

    /// What the last look saw of an input; `name` is hexadecimal digits.
    #[must_use]
    pub fn seen(&self, name: &str) -> ObjectPath {
        self.below(&format!("seen/{name}"))
    }

    /// What is fixed about the place for good.
    #[must_use]
    pub fn constants(&self) -> ObjectPath {
        self.below("place")
    }

    /// A visible file below the place.
    ///
    /// # Errors
    /// `PATH_REFUSED` for a name that leaves the place, is the place, or lies in a directory of ours.
    pub fn visible(&self, name: &[u8]) -> Result<ObjectPath, Problem> {
        let refuse = |why: &str| {
            Err(Problem::new(ErrorCode::PathRefused, format!("output name {:?} {why}", display_bytes(name))))
        };
        if name.is_empty() {
            return refuse("is empty");
        }
        if ObjectPath::new(name)?.components().any(|part| part == OWN_DIRECTORY) {
            return refuse("lies in .inglenook, which is Inglenook's own");
        }
        self.object.path.join(name)
    }
}

/// Checks a staged result's name: 1 to 200 letters, digits, `.`, `_` or `-`, not beginning with a dot.
///
/// # Errors
/// `INVALID_ARGUMENT` with the form expected.
pub fn check_staged_name(name: &str) -> Result<(), Problem> {
    let ok = (1..=200).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if ok {
        Ok(())
    } else {
        Err(Problem::invalid(
            "staged_name",
            format!("expected 1 to 200 letters, digits, '.', '_' or '-', not beginning with a dot; got {name:?}"),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staged_names_have_no_way_out() {
        for ok in ["j-1-0-7", "a", "A_b.json", &"x".repeat(200)] {
            assert!(check_staged_name(ok).is_ok(), "{ok}");
        }
        for bad in ["", ".", "..", ".hidden", "a/b", "../x", "a b", "ä", "a\0", "%2e%2e", &"x".repeat(201)] {
            assert!(check_staged_name(bad).is_err(), "{bad:?}");
        }
    }
}
