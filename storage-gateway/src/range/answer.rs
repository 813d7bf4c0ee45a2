//! Answers: a range's bytes as they come, or a problem with its code; and a connection that doesn't wait for ever.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use ingle_daemon::trace;
use ingle_proto::{ErrorCode, Problem};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tracing::Instrument as _;

use super::{Ranges, request};
use crate::source::Opened;

/// What an answer carries.
pub(super) type Body = UnsyncBoxBody<Bytes, Problem>;

/// This process's name for itself.
const INSTANCE: &str = "ingle-instance";
/// The file's last change, nanoseconds since the epoch.
const MTIME_NS: &str = "ingle-mtime-ns";
/// A problem's stable code.
const CODE: &str = "ingle-code";

impl Ranges {
    /// Answers one request.
    pub(super) async fn answer<B>(&self, wire: &Request<B>) -> Response<Body> {
        let span = tracing::info_span!("range", otel.kind = "server");
        trace::join(&span, wire.headers());
        let mut response = match self.opened(wire).instrument(span).await {
            Ok(response) => response,
            Err(problem) => refusal(&problem),
        };
        if let Ok(instance) = HeaderValue::from_str(self.instance()) {
            response.headers_mut().insert(INSTANCE, instance);
        }
        response
    }

    async fn opened<B>(&self, wire: &Request<B>) -> Result<Response<Body>, Problem> {
        let asked = request::read(wire)?;
        let opened = self.sources.open(&asked.read).await?;
        if asked.if_match.as_ref().is_some_and(|wanted| *wanted != opened.etag) {
            let words = "the file is another version than the one that was begun; read it again from its start";
            return Err(Problem::new(ErrorCode::ObjectChanged, words));
        }
        let (start, end, size) = (opened.start, opened.end, opened.attr.size);
        let mut response = Response::builder()
            .header(header::ACCEPT_RANGES, "bytes")
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, end - start)
            .header(header::ETAG, format!("\"{}\"", opened.etag))
            .header(MTIME_NS, opened.attr.mtime_ns);
        if asked.ranged && start < end {
            response = response
                .status(StatusCode::PARTIAL_CONTENT)
                .header(header::CONTENT_RANGE, format!("bytes {start}-{}/{size}", end - 1));
        } else if asked.ranged {
            response = response
                .status(StatusCode::RANGE_NOT_SATISFIABLE)
                .header(header::CONTENT_RANGE, format!("bytes */{size}"));
        }
        let body =
            if asked.head { Full::default().map_err(|never| match never {}).boxed_unsync() } else { body(opened) };
        response.body(body).map_err(|error| Problem::new(ErrorCode::Internal, error.to_string()))
    }
}

/// The bytes. A problem in the middle breaks the connection off: a body that is too short is no body.
fn body(opened: Opened) -> Body {
    let Opened { pieces, held, .. } = opened;
    let frames = Held { pieces, _held: held }.map(|piece| {
        if let Err(problem) = &piece {
            tracing::debug!(%problem, "a range is broken off");
        }
        piece.map(Frame::data)
    });
    StreamBody::new(frames).boxed_unsync()
}

/// A stream with what must live as long as it.
struct Held<S, H> {
    pieces: S,
    _held: H,
}

impl<S: Stream + Unpin, H: Unpin> Stream for Held<S, H> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.pieces.poll_next_unpin(cx)
    }
}

/// A problem as JSON, with its code in a header too.
fn refusal(problem: &Problem) -> Response<Body> {
    let status = match problem.code {
        ErrorCode::InvalidArgument | ErrorCode::PathRefused | ErrorCode::ObjectKind => StatusCode::BAD_REQUEST,
        ErrorCode::StorageDenied => StatusCode::FORBIDDEN,
        ErrorCode::ObjectNotFound | ErrorCode::ExportNotFound => StatusCode::NOT_FOUND,
        ErrorCode::ObjectChanged => StatusCode::PRECONDITION_FAILED,
        ErrorCode::Overloaded => StatusCode::TOO_MANY_REQUESTS,
        code if code.retryable() => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let text = serde_json::json!({ "code": problem.code.as_str(), "message": problem.message }).to_string();
    let mut response = Response::new(Full::from(text).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CODE, HeaderValue::from_static(problem.code.as_str()));
    if let Some(after) = problem.retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
    }
    response
}

/// A stream whose other side must take what is written: who takes nothing for so long is gone.
pub(super) struct Patient<S> {
    inner: S,
    patience: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    pub(super) fn new(inner: S, patience: Duration) -> Self {
        Self { inner, patience, waiting: None }
    }

    fn judged<T>(&mut self, cx: &mut Context<'_>, polled: Poll<std::io::Result<T>>) -> Poll<std::io::Result<T>> {
        if polled.is_ready() {
            self.waiting = None;
            return polled;
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(waiting.as_mut().poll(cx));
        Poll::Ready(Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "nothing was taken for too long")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.judged(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.judged(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.judged(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.judged(cx, polled)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn who_takes_nothing_is_given_up_and_who_is_slow_is_not() {
        let (near, mut far) = tokio::io::duplex(1000);
        let patience = Duration::from_millis(400);
        let mut patient = Patient::new(near, patience);
        let slow = async {
            for _ in 0..5 {
                tokio::time::sleep(patience / 4).await;
                far.read_exact(&mut [0; 1000]).await.expect("sent");
            }
        };
        let (sent, ()) = tokio::join!(patient.write_all(&[7; 5000]), slow);
        sent.expect("it was slow, no more");
        let refused = patient.write_all(&[7; 5000]).await.expect_err("nobody reads");
        assert_eq!(refused.kind(), std::io::ErrorKind::TimedOut);
    }

    #[test]
    fn problems_keep_their_codes() {
        let busy = Problem::new(ErrorCode::Overloaded, "busy").retry_after(std::time::Duration::from_millis(10));
        let response = refusal(&busy);
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(
            (&response.headers()[CODE], &response.headers()[header::RETRY_AFTER]),
            (&HeaderValue::from_static("OVERLOADED"), &HeaderValue::from_static("1"))
        );
    }
}
