//! HTTP/1.1 as far as ranges need it: one request's head out, one answer's head in, and the body into memory of the caller's.

use ingle_proto::{ErrorCode, Problem};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Most bytes of an answer's head, and of a problem's text.
const HEAD_BYTES_MAX: usize = 16 << 10;
const PROBLEM_BYTES_MAX: u64 = 64 << 10;
/// Bytes taken with the head at first: what they hold of the body is copied once more.
const FIRST_READ: usize = 2 << 10;
const HEADERS_MAX: usize = 32;
/// Memory that is taken for a body before any of it has come.
const BODY_RESERVED_MAX: u64 = crate::limits::WEIGHTS_RANGE_BYTES;

/// A byte stream to a gateway.
pub(super) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// An answer's head.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    pub(super) length: u64,
    pub(super) etag: String,
    pub(super) instance: String,
    pub(super) code: String,
    pub(super) mtime_ns: i64,
    /// The file's whole size, of a part.
    pub(super) size: Option<u64>,
    pub(super) retry_after_s: u64,
    /// No other answer comes over this connection: the other side ends it, or some of this one is left in it.
    pub(super) last: bool,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Broken {
    /// Nothing of it came: the connection may have been idle for too long, and another is worth a try at once.
    Stale,
    /// It ended in the middle, or isn't HTTP.
    Middle(String),
}

/// Asks, and reads the answer's head. What came of the body already stands in `body`.
pub(super) async fn ask(wire: &mut dyn Wire, request: &str, body: &mut Vec<u8>) -> Result<Head, Broken> {
    // TLS may have taken the request and sent nothing of it.
    if wire.write_all(request.as_bytes()).await.is_err() || wire.flush().await.is_err() {
        return Err(Broken::Stale);
    }
    let mut received = Vec::with_capacity(FIRST_READ);
    loop {
        match wire.read_buf(&mut received).await {
            Ok(1..) => {}
            Ok(0) | Err(_) if received.is_empty() => return Err(Broken::Stale),
            Ok(0) => return Err(Broken::Middle("the gateway ended the connection in the middle of an answer".into())),
            Err(error) => return Err(Broken::Middle(format!("the connection to the gateway broke: {error}"))),
        }
        if let Some((head, end)) = parse(&received)? {
            body.extend_from_slice(&received[end..]);
            return Ok(head);
        }
        if received.len() >= HEAD_BYTES_MAX {
            return Err(Broken::Middle(format!("the head of an answer has more than {HEAD_BYTES_MAX} bytes")));
        }
        received.reserve(FIRST_READ);
    }
}

/// Reads the rest of a body into `body`, straight from the connection, at most `at_once` bytes with one call: TLS clears all
/// memory that it is offered before it fills a record's worth of it.
pub(super) async fn rest(wire: &mut dyn Wire, head: &Head, at_once: u64, body: &mut Vec<u8>) -> Result<(), Broken> {
    let have = body.len() as u64;
    let Some(left) = head.length.checked_sub(have) else {
        return Err(Broken::Middle(format!("{have} bytes came where {} were announced", head.length)));
    };
    // What is announced is believed up to what a part may be; the rest makes room as it comes.
    body.reserve_exact(usize::try_from(left.min(BODY_RESERVED_MAX)).unwrap_or_default());
    while (body.len() as u64) < head.length {
        let left = head.length - body.len() as u64;
        match (&mut *wire).take(left.min(at_once)).read_buf(body).await {
            Ok(1..) => {}
            Ok(0) => {
                let words = format!("the gateway broke off after {} of {} bytes", body.len(), head.length);
                return Err(Broken::Middle(words));
            }
            Err(error) => return Err(Broken::Middle(format!("the connection to the gateway broke: {error}"))),
        }
    }
    Ok(())
}

/// A problem that the gateway answered with. One that isn't read whole is the connection's last.
pub(super) async fn problem(wire: &mut dyn Wire, head: &mut Head, mut body: Vec<u8>) -> Problem {
    let words = if head.length <= PROBLEM_BYTES_MAX && rest(wire, head, head.length, &mut body).await.is_ok() {
        let said: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        said["message"].as_str().map(str::to_owned)
    } else {
        head.last = true;
        None
    };
    let code = ErrorCode::parse(&head.code).unwrap_or(ErrorCode::StorageUnavailable);
    let words = words.unwrap_or_else(|| format!("the gateway answered with status {}", head.status));
    let problem = Problem::new(code, words);
    match head.retry_after_s {
        0 => problem,
        seconds => problem.retry_after(std::time::Duration::from_secs(seconds.min(60))),
    }
}

/// The head and where it ends, once all of it is there.
fn parse(received: &[u8]) -> Result<Option<(Head, usize)>, Broken> {
    let middle = |words: String| Broken::Middle(words);
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let end = match response.parse(received).map_err(|error| middle(format!("not an answer over HTTP: {error}")))? {
        httparse::Status::Complete(end) => end,
        httparse::Status::Partial => return Ok(None),
    };
    let mut head = Head { status: response.code.unwrap_or_default(), ..Head::default() };
    let mut length = None;
    for header in response.headers.iter() {
        let value = String::from_utf8_lossy(header.value);
        let number = || value.trim().parse::<u64>().map_err(|_| middle(format!("{}: {value}", header.name)));
        match header.name.to_ascii_lowercase().as_str() {
            "content-length" => length = Some(number()?),
            "etag" => head.etag = value.trim_matches('"').to_owned(),
            "ingle-instance" => head.instance = value.into_owned(),
            "ingle-code" => head.code = value.into_owned(),
            "ingle-mtime-ns" => head.mtime_ns = value.trim().parse().map_err(|_| middle(format!("mtime {value}")))?,
            "content-range" => head.size = value.rsplit_once('/').and_then(|(_, size)| size.parse().ok()),
            "retry-after" => head.retry_after_s = number()?,
            "connection" => head.last = value.eq_ignore_ascii_case("close"),
            "transfer-encoding" => return Err(middle("an answer without a length".to_owned())),
            _ => {}
        }
    }
    head.length = length.ok_or_else(|| middle("an answer without a length".to_owned()))?;
    Ok(Some((head, end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answered(bytes: &[u8]) -> Result<(Head, Vec<u8>), Broken> {
        let (mut near, mut far) = tokio::io::duplex(1 << 20);
        far.write_all(bytes).await.expect("room");
        drop(far);
        let mut body = Vec::new();
        let asked = async {
            let head = ask(&mut near, "", &mut body).await?;
            rest(&mut near, &head, 3, &mut body).await?;
            Ok(head)
        };
        let head = asked.await?;
        Ok((head, body))
    }

    #[tokio::test]
    async fn an_answer_is_read() {
        let bytes =
            b"HTTP/1.1 206 Partial Content\r\ncontent-length: 5\r\netag: \"ab\"\r\ncontent-range: bytes 0-4/99\r\n\
                      ingle-mtime-ns: -7\r\nIngle-Instance: i\r\n\r\nhello";
        let (head, body) = answered(bytes).await.expect("well formed");
        assert_eq!((head.status, head.size, head.mtime_ns, head.etag.as_str()), (206, Some(99), -7, "ab"));
        assert_eq!(body, b"hello");
    }

    #[tokio::test]
    async fn a_problem_that_is_not_read_whole_ends_its_connection() {
        let said = br#"{"message": "busy"}"#;
        let long = vec![b' '; PROBLEM_BYTES_MAX as usize + 1];
        for (announced, body, message, last) in [
            (said.len(), &said[..], "busy", false),
            (said.len() + 1, &said[..], "the gateway answered with status 503", true),
            (said.len() - 1, &said[..], "the gateway answered with status 503", true),
            (long.len(), &long[..], "the gateway answered with status 503", true),
        ] {
            let (mut near, mut far) = tokio::io::duplex(1 << 20);
            let head = format!("HTTP/1.1 503 Busy\r\ncontent-length: {announced}\r\n\r\n");
            far.write_all(&[head.as_bytes(), body].concat()).await.expect("room");
            drop(far);
            let mut begun = Vec::new();
            let mut head = ask(&mut near, "", &mut begun).await.expect("a head");
            let problem = problem(&mut near, &mut head, begun).await;
            assert_eq!((problem.message.as_str(), head.last), (message, last), "{announced} bytes announced");
        }
    }

    #[tokio::test]
    async fn lies_and_ends_are_told_apart() {
        assert!(matches!(answered(b"").await, Err(Broken::Stale)));
        let long = [&b"HTTP/1.1 200 OK\r\nx: "[..], &[b'a'; 40_000]].concat();
        for bytes in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello"[..],
            b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551615\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n1",
            b"HTTP/1.1 200 OK\r\ncontent-le",
            b"SSH-2.0-x\r\n\r\n",
            &long,
        ] {
            let answer = answered(bytes).await;
            assert!(matches!(answer, Err(Broken::Middle(_))), "{answer:?}");
        }
    }
}
