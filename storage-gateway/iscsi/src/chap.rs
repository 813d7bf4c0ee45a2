//! CHAP (RFC 1994) with the algorithms that iSCSI knows: MD5, and SHA-256.

use std::fmt;

use md5::{Digest as _, Md5};
use sha2::Sha256;

/// Longest challenge that is taken from a target.
pub const CHALLENGE_MAX: usize = 1024;
/// Longest response that is taken from a target.
pub const RESPONSE_MAX: usize = 64;

/// A secret. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// From its bytes.
    #[must_use]
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A name with its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The name.
    pub user: String,
    /// What only both sides know.
    pub secret: Secret,
}

/// How a response is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// Number 5; every target has it.
    Md5,
    /// Number 7.
    Sha256,
}

impl Algorithm {
    /// What we offer. MD5 comes first: Debian's tgt takes the first number that it knows, and takes 7 for SHA-1.
    pub const OFFER: &'static str = "5,7";

    /// The one a target chose out of [`Algorithm::OFFER`].
    #[must_use]
    pub fn chosen(text: &str) -> Option<Self> {
        match text {
            "5" => Some(Self::Md5),
            "7" => Some(Self::Sha256),
            _ => None,
        }
    }

    /// The proof that one knows the secret.
    #[must_use]
    pub fn response(self, identifier: u8, secret: &Secret, challenge: &[u8]) -> Vec<u8> {
        let parts = [&[identifier][..], &secret.0, challenge];
        match self {
            Self::Md5 => parts.iter().fold(Md5::new(), |hash, part| hash.chain_update(part)).finalize().to_vec(),
            Self::Sha256 => parts.iter().fold(Sha256::new(), |hash, part| hash.chain_update(part)).finalize().to_vec(),
        }
    }
}

/// Whether two responses are the same, in a time that doesn't tell where they differ.
#[must_use]
pub fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::hex;

    #[test]
    fn responses_are_hashes_over_identifier_secret_and_challenge() {
        // `printf '\x2asecretsecret12challenge' | md5sum`, and sha256sum.
        let secret = Secret::new("secretsecret12");
        assert_eq!(hex(&Algorithm::Md5.response(42, &secret, b"challenge")), "0x972e2b6a0d8de87b0a3f5564fd9df562");
        assert_eq!(
            hex(&Algorithm::Sha256.response(42, &secret, b"challenge")),
            "0x3349704d8a7b289466c99a648a8a3496339b42bd9409f043a6d18908a6f7d732"
        );
        assert!(same(b"ab", b"ab") && !same(b"ab", b"ac") && !same(b"ab", b"abc"));
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }
}
