//! The frame around every file of ours in a place: a mark, the length, the message, and a digest of all that.

use bytes::{Bytes, BytesMut};
use ingle_proto::{ErrorCode, ObjectPath, Problem};

const MARK: &[u8; 8] = b"INGLEDG1";
const HEAD: usize = 16;
const TAIL: usize = 32;

/// Frames a message.
#[must_use]
pub fn encode(message: &impl prost::Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(HEAD + length + TAIL);
    out.extend_from_slice(MARK);
    out.extend_from_slice(&(length as u64).to_le_bytes());
    message.encode(&mut out).expect("a BytesMut grows as needed");
    let digest = blake3::hash(&out);
    out.extend_from_slice(digest.as_bytes());
    out.freeze()
}

/// Checks the frame and decodes the message.
///
/// # Errors
/// `DIGEST_MISMATCH` names the file and what is wrong with it: nothing of a damaged file is used.
pub fn decode<M: prost::Message + Default>(path: &ObjectPath, data: &Bytes) -> Result<M, Problem> {
    let damaged = |what: &str| {
        Problem::new(
            ErrorCode::DigestMismatch,
            format!(
                "{}: {what}; restore it from a backup of the share, or move the whole .inglenook/ledger aside \
                 (files it knew then count as a person's and are kept)",
                path.display()
            ),
        )
    };
    if data.len() < HEAD + TAIL {
        return Err(damaged("is cut short"));
    }
    if &data[..8] != MARK {
        return Err(damaged("is not a ledger file of this version"));
    }
    let length = u64::from_le_bytes(data[8..HEAD].try_into().expect("eight bytes of a longer slice"));
    if usize::try_from(length).ok().and_then(|l| l.checked_add(HEAD + TAIL)) != Some(data.len()) {
        return Err(damaged("is cut short or has grown"));
    }
    let (body, digest) = data.split_at(data.len() - TAIL);
    if blake3::hash(body).as_bytes() != digest {
        return Err(damaged("is damaged (its digest differs)"));
    }
    M::decode(data.slice(HEAD..data.len() - TAIL)).map_err(|error| damaged(&format!("can't be decoded: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::record::LogSegment;

    #[test]
    fn any_damage_is_seen() {
        let path = ObjectPath::new("a/ledger/log/1.seg").unwrap();
        let whole = encode(&LogSegment { seq: 7, publish: None, done: None });
        assert_eq!(decode::<LogSegment>(&path, &whole).unwrap().seq, 7);
        for cut in 0..whole.len() {
            let problem = decode::<LogSegment>(&path, &whole.slice(..cut)).unwrap_err();
            assert!(problem.message.contains("ledger/log/1.seg"), "{problem}");
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<LogSegment>(&path, &flipped.into()).is_err(), "bit {bit}");
        }
        let mut longer = whole.to_vec();
        longer.push(0);
        assert!(decode::<LogSegment>(&path, &longer.into()).is_err());
    }
}
