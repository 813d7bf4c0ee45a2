//! A request's line and headers as the read that gRPC would have been asked for.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, Method, Request, header};
use ingle_proto::v1::read_request::Source;
use ingle_proto::{Digest, Problem, v1};
use percent_encoding::percent_decode;
use prost::Message as _;

/// An `AttemptToken`, base64.
pub(super) const TOKEN: &str = "ingle-token";
/// `1`: what is read will be wanted again.
pub(super) const LASTING: &str = "ingle-lasting";

/// What was asked for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) read: v1::ReadRequest,
    /// Only of this version.
    pub(super) if_match: Option<String>,
    /// A part was asked for.
    pub(super) ranged: bool,
    /// Only the head is wanted.
    pub(super) head: bool,
}

/// Reads a request.
pub(super) fn read<B>(request: &Request<B>) -> Result<Asked, Problem> {
    let head = match *request.method() {
        Method::GET => false,
        Method::HEAD => true,
        _ => return Err(Problem::invalid("method", format!("{}: expected GET or HEAD", request.method()))),
    };
    let headers = request.headers();
    let source = source(request.uri().path())?;
    let range = text(headers, header::RANGE.as_str())?.map(range).transpose()?;
    let (offset, length) = range.unwrap_or_default();
    let token = match text(headers, TOKEN)? {
        None => None,
        Some(token) => {
            let bytes =
                STANDARD.decode(token).map_err(|error| Problem::invalid(TOKEN, format!("not base64: {error}")))?;
            let token = v1::AttemptToken::decode(bytes.as_slice());
            Some(token.map_err(|error| Problem::invalid(TOKEN, format!("no AttemptToken: {error}")))?)
        }
    };
    let if_match = text(headers, header::IF_MATCH.as_str())?.map(|etag| etag.trim().trim_matches('"').to_owned());
    let lasting = text(headers, LASTING)? == Some("1");
    let read = v1::ReadRequest { source: Some(source), offset, length, token, staged: None, lasting };
    Ok(Asked { read, if_match, ranged: range.is_some(), head })
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::invalid(name, "came twice"));
    }
    value.to_str().map(Some).map_err(|_| Problem::invalid(name, "is no plain text"))
}

fn source(path: &str) -> Result<Source, Problem> {
    let expected = || Problem::invalid("path", format!("{path:?}: expected /objects/EXPORT/PATH or /blobs/DIGEST"));
    if let Some(rest) = path.strip_prefix("/objects/") {
        let (export, path) = rest.split_once('/').ok_or_else(expected)?;
        let export = percent_decode(export.as_bytes()).decode_utf8().map_err(|_| expected())?.into_owned();
        // One decoding, of the whole: what it holds is judged as any other path is.
        let path: Vec<u8> = percent_decode(path.as_bytes()).collect();
        return Ok(Source::Object(v1::ObjectRef { export, path: path.into() }));
    }
    let digest = path.strip_prefix("/blobs/").ok_or_else(expected)?;
    let digest = Digest::from_hex(digest).ok_or_else(expected)?;
    Ok(Source::Blob(v1::BlobRef { digest: digest.to_wire(), size: 0 }))
}

/// `bytes=A-B` or `bytes=A-`, as offset and length (0: to the end).
fn range(text: &str) -> Result<(u64, u64), Problem> {
    let refused = || Problem::invalid("range", format!("{text:?}: expected bytes=FIRST-LAST or bytes=FIRST-"));
    let (first, last) = text.trim().strip_prefix("bytes=").and_then(|r| r.split_once('-')).ok_or_else(refused)?;
    let number =
        |text: &str| -> Option<u64> { text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten() };
    let first = number(first).ok_or_else(refused)?;
    if last.is_empty() {
        return Ok((first, 0));
    }
    let last = number(last).filter(|last| *last >= first && *last < u64::MAX).ok_or_else(refused)?;
    Ok((first, last - first + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(path: &str, headers: &[(&str, &str)]) -> Result<Asked, Problem> {
        let mut request = Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        read(&request.body(()).expect("a request"))
    }

    #[test]
    fn what_gets_through_is_what_grpc_would_have_been_asked() {
        let token = v1::AttemptToken { job_id: "j".into(), ..Default::default() };
        let encoded = STANDARD.encode(token.encode_to_vec());
        let asked = ask(
            "/objects/docs/a%20b/%ff.gguf",
            &[("range", "bytes=10-19"), (TOKEN, &encoded), ("if-match", "\"abc\""), (LASTING, "1")],
        )
        .expect("well formed");
        let object = v1::ObjectRef { export: "docs".into(), path: b"a b/\xff.gguf".to_vec().into() };
        assert_eq!(asked.read.source, Some(Source::Object(object)));
        assert_eq!((asked.read.offset, asked.read.length, asked.read.lasting), (10, 10, true));
        assert_eq!((asked.read.token, asked.if_match.as_deref(), asked.ranged), (Some(token), Some("abc"), true));
        let digest = Digest::of(b"x");
        let asked = ask(&format!("/blobs/{}", digest.hex()), &[]).expect("well formed");
        assert!(matches!(asked.read.source, Some(Source::Blob(blob)) if blob.digest == digest.to_wire()));
        assert!(
            !asked.ranged && ask("/objects/docs/", &[("range", "bytes=5-")]).expect("well formed").read.length == 0
        );
    }

    #[test]
    fn nonsense_is_named() {
        for (path, headers, word) in [
            ("/", &[][..], "path"),
            ("/objects/docs", &[], "path"),
            ("/blobs/xyz", &[], "path"),
            ("/objects/docs/a", &[("range", "bytes=5-4")], "range"),
            ("/objects/docs/a", &[("range", "bytes=-5")], "range"),
            ("/objects/docs/a", &[("range", "bytes=0-1,4-5")], "range"),
            ("/objects/docs/a", &[("range", "bytes=0-18446744073709551615")], "range"),
            ("/objects/docs/a", &[("range", "bytes=+1-2")], "range"),
            ("/objects/docs/a", &[("range", "bytes=0-1"), ("range", "bytes=2-3")], "range"),
            ("/objects/docs/a", &[(TOKEN, "!!")], TOKEN),
            ("/objects/docs/a", &[(TOKEN, "/////w==")], TOKEN),
        ] {
            let problem = ask(path, headers).expect_err(path);
            assert!(problem.message.contains(word), "{path}: {problem}");
        }
    }
}
