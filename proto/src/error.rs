//! One error for every boundary of the wire, and its single mapping to and from a gRPC status with rich details.

use std::time::Duration;

use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

use crate::ErrorCode;

/// The domain of our codes in `ErrorInfo`.
pub const ERROR_DOMAIN: &str = "inglenook";

/// What went wrong, in the terms of the wire: a stable code, words for a person, and when to come back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// Stable.
    pub code: ErrorCode,
    /// Names the thing, what was expected and what to do next.
    pub message: String,
    /// Field of the request, for `INVALID_ARGUMENT`.
    pub field: Option<String>,
    /// When trying again may help.
    pub retry_after: Option<Duration>,
}

impl Problem {
    /// Any code with words.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), field: None, retry_after: None }
    }

    /// A bad field: says which and what was expected.
    #[must_use]
    pub fn invalid(field: impl Into<String>, expected: impl std::fmt::Display) -> Self {
        let field = field.into();
        Self {
            code: ErrorCode::InvalidArgument,
            message: format!("{field}: {expected}"),
            field: Some(field),
            retry_after: None,
        }
    }

    /// A required field that is absent.
    #[must_use]
    pub fn missing(field: impl Into<String>) -> Self {
        Self::invalid(field, "is required")
    }

    /// Adds when to come back.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn retryable(&self) -> bool {
        self.code.retryable() || self.retry_after.is_some()
    }

    /// Reads a status that a daemon of ours, or anything between, sent.
    #[must_use]
    pub fn from_status(status: &Status) -> Self {
        let details = status.get_error_details();
        let code = details
            .error_info()
            .filter(|info| info.domain == ERROR_DOMAIN)
            .and_then(|info| ErrorCode::parse(&info.reason))
            .unwrap_or(match status.code() {
                tonic::Code::Unavailable => ErrorCode::StorageUnavailable,
                tonic::Code::DeadlineExceeded => ErrorCode::Deadline,
                tonic::Code::Cancelled => ErrorCode::Cancelled,
                tonic::Code::InvalidArgument => ErrorCode::InvalidArgument,
                tonic::Code::ResourceExhausted => ErrorCode::Overloaded,
                tonic::Code::Unimplemented => ErrorCode::Unimplemented,
                _ => ErrorCode::Internal,
            });
        Self {
            code,
            message: status.message().to_owned(),
            field: details.bad_request().and_then(|bad| bad.field_violations.first().map(|v| v.field.clone())),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
        }
    }
}

impl From<Problem> for Status {
    fn from(problem: Problem) -> Self {
        status(&problem)
    }
}

/// The one mapping to a gRPC status: `ErrorInfo` always, `BadRequest`, `RetryInfo` and `QuotaFailure` where they apply.
#[must_use]
pub fn status(problem: &Problem) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(problem.code.as_str(), ERROR_DOMAIN, std::collections::HashMap::new());
    if let Some(field) = &problem.field {
        details.add_bad_request_violation(field, &problem.message);
    }
    if let Some(delay) = problem.retry_after {
        details.set_retry_info(Some(delay));
    }
    if problem.code == ErrorCode::Overloaded {
        details.add_quota_failure_violation("queue", &problem.message);
    }
    // A status message travels in a header: keep it short of the header limit whatever it quotes.
    let mut message = problem.message.clone();
    if message.len() > 2048 {
        let cut = (0..=2048).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
        message.truncate(cut);
        message.push('…');
    }
    Status::with_error_details(problem.code.grpc(), message, details)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_wire() {
        for code in ErrorCode::ALL {
            let problem = Problem {
                code: *code,
                message: "words".into(),
                field: Some("a.b".into()),
                retry_after: Some(Duration::from_millis(1500)),
            };
            let back = Problem::from_status(&status(&problem));
            assert_eq!(back, problem);
            assert_eq!(ErrorCode::parse(code.as_str()), Some(*code));
        }
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let status = status(&Problem::new(ErrorCode::Internal, "é".repeat(5000)));
        assert!(status.message().len() < 2100);
    }
}
