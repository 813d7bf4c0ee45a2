//! Identities: of jobs (made by the coordinator) and nodes (the digest of a key made once on the node).

use crate::error::Problem;

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident, $field:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Checks the form: 1 to 64 characters of `a-z`, `0-9` and `-`.
            ///
            /// # Errors
            /// [`Problem`] with code `INVALID_ARGUMENT` names the field and the form.
            pub fn parse(text: &str) -> Result<Self, Problem> {
                let ok = (1..=64).contains(&text.len())
                    && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
                if ok {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(Problem::invalid($field, "expected 1 to 64 characters of a-z, 0-9 and '-'"))
                }
            }

            /// As text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

identity!(
    /// A job.
    JobId,
    "job_id"
);
identity!(
    /// A node: follows the key in its state directory, never its host name or address.
    NodeId,
    "node_id"
);
