//! RPC records over TCP (RFC 5531, section 11): fragments put together under a cap.

use bytes::Bytes;
use nfs3_types::rpc::fragment_header;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::buffers;

/// Most bytes of a record: a write or read of 1 MiB, with room for what some servers prefer.
pub(crate) const RECORD_MAX: usize = 4 << 20;
/// Most fragments of a record; a stream of empty ones would never end.
const FRAGMENTS_MAX: usize = 1024;

/// Why there is no record.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// The connection ended inside a record, or broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] std::io::Error),
    /// What is announced is too big; nothing was allocated for it.
    #[error("a record of at least {announced} bytes was announced, at most {RECORD_MAX} may be")]
    TooLong {
        /// Bytes.
        announced: usize,
    },
    /// Over a thousand fragments.
    #[error("a record of over {FRAGMENTS_MAX} fragments")]
    Fragments,
}

/// Reads one record; `None` at an orderly end between two.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<Bytes>, RecordError> {
    let mut record = Vec::new();
    for fragment in 0..FRAGMENTS_MAX {
        let mut header = [0; 4];
        let first = stream.read(&mut header).await?;
        if first == 0 && fragment == 0 {
            return Ok(None);
        }
        if first < 4 {
            stream.read_exact(&mut header[first..]).await?;
        }
        let header = fragment_header::from(header);
        let length = header.fragment_length() as usize;
        let announced = record.len() + length;
        if announced > RECORD_MAX {
            return Err(RecordError::TooLong { announced });
        }
        if record.capacity() == 0 {
            record = buffers::take(length);
        }
        record.reserve_exact(length);
        let mut body = (&mut *stream).take(length as u64);
        while record.len() < announced {
            if body.read_buf(&mut record).await? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
        }
        if header.eof() {
            return Ok(Some(buffers::share(record)));
        }
    }
    Err(RecordError::Fragments)
}

/// A buffer that begins with room for the header that [`seal`] fills in.
pub(crate) fn begin(capacity: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(capacity + 4);
    out.extend_from_slice(&[0; 4]);
    out
}

/// Makes what follows the header one record of one fragment.
pub(crate) fn seal(record: &mut [u8]) {
    seal_before(record, 0);
}

/// The same where so many bytes more follow the buffer.
pub(crate) fn seal_before(record: &mut [u8], following: usize) {
    let length = u32::try_from(record.len() - 4 + following).expect("records of ours are below 4 MiB and a header");
    record[..4].copy_from_slice(&fragment_header::new(length, true).into_xdr_buf());
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn record_of(mut bytes: &[u8]) -> Result<Option<Bytes>, RecordError> {
        read(&mut bytes).await
    }

    #[tokio::test]
    async fn fragments_are_put_together() {
        let bytes = [0, 0, 0, 2, 1, 2, 0, 0, 0, 0, 0x80, 0, 0, 1, 3];
        assert_eq!(record_of(&bytes).await.unwrap().unwrap(), &[1, 2, 3][..]);
        assert!(record_of(&[]).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn too_long_is_refused_by_its_header() {
        // 2 GiB at once, and many fragments that only together are too long.
        assert!(matches!(record_of(&[0xff; 4]).await, Err(RecordError::TooLong { announced: 0x7fff_ffff })));
        let mut many = Vec::new();
        for _ in 0..5 {
            many.extend_from_slice(&[0, 0x10, 0, 0]);
            many.resize(many.len() + (1 << 20), 0);
        }
        assert!(matches!(record_of(&many).await, Err(RecordError::TooLong { .. })));
        assert!(matches!(record_of(&[0; 4 * 2000]).await, Err(RecordError::Fragments)));
    }

    #[tokio::test]
    async fn an_end_inside_is_no_orderly_end() {
        for bytes in [&[0x80, 0][..], &[0x80, 0, 0, 8, 1, 2], &[0, 0, 0, 1, 7]] {
            assert!(matches!(record_of(bytes).await, Err(RecordError::Broken(_))), "{bytes:?}");
        }
    }
}
