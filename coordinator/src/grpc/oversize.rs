//! A message over the bound is refused by the transport before any handler sees it, without a code of ours: said here in our
//! terms, with what to do instead.

use std::convert::Infallible;

use ingle_proto::{ErrorCode, MESSAGE_BYTES_MAX, Problem};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Context, Poll, Service, http};
use tonic::server::NamedService;
use tonic::{Code, Status};

/// A service whose refusals of oversized messages carry our code.
#[derive(Debug, Clone)]
pub struct Oversize<S>(pub(super) S);

impl<S: NamedService> NamedService for Oversize<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for Oversize<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move { Ok(told(answer.await?)) })
    }
}

fn told(answer: http::Response<Body>) -> http::Response<Body> {
    match Status::from_header_map(answer.headers()) {
        Some(status) if refused_as_too_large(&status) => Status::from(problem()).into_http(),
        _ => answer,
    }
}

/// Whether the transport refused a message for its length: there is no code of its own for that.
pub(super) fn refused_as_too_large(status: &Status) -> bool {
    matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted) && status.message().contains("message length")
}

/// What is said of it.
pub(super) fn problem() -> Problem {
    let words = format!(
        "the request has more than {} MiB, the most that one message may have: put the texts into files on an export and submit \
         a job over them, or send several requests",
        MESSAGE_BYTES_MAX >> 20
    );
    Problem::new(ErrorCode::TooLarge, words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_transports_own_refusal_is_told_anew() {
        let transport =
            Status::out_of_range("Error, decoded message length too large: found 5 bytes, the limit is: 4 bytes");
        let answer = told(transport.into_http());
        let status = Status::from_header_map(answer.headers()).expect("a status");
        let problem = Problem::from_status(&status);
        assert_eq!(problem.code, ErrorCode::TooLarge);
        assert!(problem.message.contains("4 MiB"), "{}", problem.message);
        let ours = Status::from(Problem::invalid("page_size", "expected 1 to 1000"));
        let answer = told(ours.into_http());
        let status = Status::from_header_map(answer.headers()).expect("a status");
        assert_eq!(Problem::from_status(&status).code, ErrorCode::InvalidArgument);
    }
}
