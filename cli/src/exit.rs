//! How a command ends: exit codes, and an error said once, with what to do next.

use std::time::Duration;

use ingle_proto::{ErrorCode, Problem};
use serde_json::{Value, json};

/// Exit codes; documented in `ingle --help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// The work failed: documents failed, or something broke on the way.
    WorkFailed = 1,
    /// Bad usage or bad input.
    Usage = 2,
    /// The coordinator can't be reached.
    Unreachable = 3,
    /// No such job, node, model, export or object.
    NotFound = 4,
    /// The request is fine, but not in the present state.
    Refused = 5,
    /// It may work later: overloaded, no node ready, deadline passed, the NAS is away.
    TryLater = 6,
    /// Interrupted by Ctrl-C.
    Interrupted = 130,
    /// Whoever read our output went away; nothing is said.
    BrokenPipe = 141,
}

/// The table of exit codes for `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    the work failed: documents failed, were quarantined or met a conflict
  2    bad usage or bad input
  3    the coordinator can't be reached
  4    not found: job, node, model, export or object
  5    refused in the present state, or not permitted
  6    try again later: overloaded, no node ready, a deadline passed, the NAS is away
  130  interrupted";

/// An error as a person or script gets it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// Stable code, e.g. `MODEL_NOT_FOUND`; absent for errors of this program itself.
    pub(crate) code: Option<&'static str>,
    pub(crate) message: String,
    /// What to do next.
    pub(crate) hint: Option<String>,
    pub(crate) field: Option<String>,
    pub(crate) retry_after: Option<Duration>,
}

impl Failure {
    /// An error of this program's own.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, code: None, message: message.into(), hint: None, field: None, retry_after: None }
    }

    /// Bad usage.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Says what to do next.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Whether the same call may succeed in a moment.
    pub(crate) fn retryable(&self) -> bool {
        matches!(self.exit, Exit::Unreachable | Exit::TryLater)
    }

    /// From what a call answered. A status without our details comes from the transport or from something between.
    pub(crate) fn from_status(endpoint: &str, status: &tonic::Status) -> Self {
        use tonic_types::StatusExt as _;
        let ours =
            status.get_error_details().error_info().is_some_and(|i| i.domain == ingle_proto::error::ERROR_DOMAIN);
        if ours {
            return Self::from(Problem::from_status(status));
        }
        let cause = deepest(status);
        match status.code() {
            tonic::Code::Unavailable | tonic::Code::Unknown => Self::unreachable(endpoint, &cause),
            tonic::Code::DeadlineExceeded => {
                Self::new(Exit::TryLater, format!("{endpoint} did not answer in time: {cause}"))
                    .hint("give it longer with --timeout, or look at `ingle status`")
            }
            tonic::Code::Unimplemented => {
                Self::new(Exit::Refused, format!("{endpoint} does not know this call: {cause}"))
                    .hint("is it an Inglenook coordinator of this version? `ingle status` shows its version")
            }
            tonic::Code::NotFound => Self::new(Exit::NotFound, cause),
            // What the transport says of a message that is too long, ours or the answer.
            tonic::Code::OutOfRange if cause.contains("message length") => Self::from(Problem::new(
                ErrorCode::TooLarge,
                format!("a message to or from {endpoint} is too large: {cause}"),
            )),
            _ => Self::from(Problem::from_status(status)),
        }
    }

    /// Nobody answers there.
    pub(crate) fn unreachable(endpoint: &str, cause: &str) -> Self {
        Self::new(Exit::Unreachable, format!("can't reach the coordinator at {endpoint}: {cause}"))
            .hint("start one with `ingle up`, or name another with --coordinator or INGLE_COORDINATOR")
    }

    /// For scripts.
    pub(crate) fn to_json(&self) -> Value {
        json!({ "error": {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "field": self.field,
            "retry_after_ms": self.retry_after.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
            "exit_code": self.exit as u8,
        }})
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        let hint = match problem.code {
            // What was mistyped is told by the field that the message begins with.
            ErrorCode::ExportNotFound if problem.message.starts_with("spec.output") => Some(
                "--output is nas://NAME/path, and NAME one of those; `ingle up --share NAME=DIR` serves a directory under a name",
            ),
            ErrorCode::ExportNotFound if problem.message.starts_with("text_from") => {
                Some("--text-from is nas://NAME/path, and NAME one of those")
            }
            code => hint_of(code),
        };
        let mut failure = Self {
            exit: exit_of(problem.code),
            code: Some(problem.code.as_str()),
            hint: hint.map(str::to_owned),
            message: problem.message,
            field: problem.field,
            retry_after: problem.retry_after,
        };
        if let Some(delay) = failure.retry_after {
            failure.hint = Some(format!("try again in {}", crate::human::duration(delay)));
        }
        failure
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::new(Exit::BrokenPipe, "the reader of our output went away");
        }
        Self::new(Exit::WorkFailed, error.to_string())
    }
}

fn exit_of(code: ErrorCode) -> Exit {
    use tonic::Code;
    match (code, code.grpc()) {
        (ErrorCode::NotLeader | ErrorCode::ShuttingDown, _) => Exit::Unreachable,
        (ErrorCode::Cancelled, _) => Exit::WorkFailed,
        (_, Code::NotFound) => Exit::NotFound,
        (_, Code::InvalidArgument) => Exit::Usage,
        (_, Code::FailedPrecondition | Code::AlreadyExists | Code::PermissionDenied | Code::Unimplemented) => {
            Exit::Refused
        }
        _ if code.retryable() => Exit::TryLater,
        _ => Exit::WorkFailed,
    }
}

fn hint_of(code: ErrorCode) -> Option<&'static str> {
    Some(match code {
        ErrorCode::ModelNotFound => {
            "`ingle models list` shows what the nodes see; `ingle models pull --starter` fetches three models"
        }
        ErrorCode::ModelUnusable => {
            "`ingle models list` shows what each model is for, `ingle models show MODEL` what is wrong with one"
        }
        ErrorCode::TooLarge => {
            "make it smaller or ask in several parts; documents above 64 MiB are read from an export, by `ingle submit`"
        }
        ErrorCode::NameTaken => "move the file away that has the name, or name another --output",
        ErrorCode::ModelDoesNotFit => "`ingle models fit MODEL` shows what it needs and what each node has",
        ErrorCode::JobNotFound => "`ingle jobs list` shows the jobs there are",
        ErrorCode::JobState => "`ingle jobs show JOB` shows its state",
        ErrorCode::NodeNotFound => "`ingle nodes list` shows the nodes there are",
        ErrorCode::NoNode => "`ingle nodes list` shows the nodes and why they are not ready",
        ErrorCode::ExportNotFound => {
            "`ingle up --share NAME=DIR` serves a directory under a name; INPUT is nas://NAME/path"
        }
        ErrorCode::ObjectNotFound => "check the path after nas://EXPORT/; it is relative to the export's root",
        ErrorCode::IdempotencyKeyReused => "use another --idempotency-key, or the same specification as before",
        ErrorCode::PathRefused => "paths are relative to the export's root and hold no '..', no '//' and no NUL",
        ErrorCode::Overloaded => "the queue is full; try again in a moment",
        ErrorCode::StorageUnavailable | ErrorCode::StorageProtocol => {
            "the NAS or the gateway does not answer; jobs wait and go on by themselves"
        }
        ErrorCode::StorageFull => "free space or raise the quota on the NAS, then run the job again",
        ErrorCode::StorageDenied => "give the gateway's user permission on the NAS",
        ErrorCode::Deadline => "give it longer with --timeout",
        ErrorCode::Internal => "this is a defect of Inglenook: please report it with the daemon's log",
        _ => return None,
    })
}

/// The innermost cause: "connection refused" rather than "transport error".
fn deepest(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        text = error.to_string();
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_an_exit() {
        for (code, exit) in [
            (ErrorCode::InvalidArgument, Exit::Usage),
            (ErrorCode::PathRefused, Exit::Usage),
            (ErrorCode::JobNotFound, Exit::NotFound),
            (ErrorCode::ModelNotFound, Exit::NotFound),
            (ErrorCode::ExportNotFound, Exit::NotFound),
            (ErrorCode::JobState, Exit::Refused),
            (ErrorCode::Unimplemented, Exit::Refused),
            (ErrorCode::IdempotencyKeyReused, Exit::Refused),
            (ErrorCode::Overloaded, Exit::TryLater),
            (ErrorCode::NoNode, Exit::TryLater),
            (ErrorCode::StorageUnavailable, Exit::TryLater),
            (ErrorCode::NotLeader, Exit::Unreachable),
            (ErrorCode::Internal, Exit::WorkFailed),
        ] {
            let status = ingle_proto::status(&Problem::new(code, "words"));
            let failure = Failure::from_status("http://127.0.0.1:7700", &status);
            assert_eq!(failure.exit, exit, "{code:?}");
            assert_eq!(failure.code, Some(code.as_str()));
        }
    }

    #[test]
    fn a_status_of_the_transport_is_unreachable() {
        let failure = Failure::from_status("http://127.0.0.1:7700", &tonic::Status::unavailable("tcp connect error"));
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(failure.message.contains("127.0.0.1:7700") && failure.hint.is_some_and(|h| h.contains("ingle up")));
    }

    #[test]
    fn a_message_that_the_transport_refuses_has_our_code_and_a_hint() {
        let status =
            tonic::Status::out_of_range("decoded message length too large: found 9 bytes, the limit is: 4 bytes");
        let failure = Failure::from_status("http://127.0.0.1:7700", &status);
        assert_eq!((failure.exit, failure.code), (Exit::Usage, Some("TOO_LARGE")));
        assert!(failure.hint.is_some_and(|hint| hint.contains("ingle submit")));
    }

    #[test]
    fn an_unknown_export_is_explained_by_the_option_that_named_it() {
        for (field, option) in [("spec.output", "--output"), ("text_from", "--text-from"), ("spec.input", "INPUT")] {
            let words = format!("{field}: no export \"dcos\"; the gateway serves docs");
            let hint = Failure::from(Problem::new(ErrorCode::ExportNotFound, words)).hint.unwrap_or_default();
            assert!(hint.contains(option), "{field}: {hint}");
            assert_eq!(hint.contains("INPUT"), option == "INPUT", "{field}: {hint}");
        }
    }

    #[test]
    fn json_carries_what_text_does() {
        let problem = Problem::new(ErrorCode::Overloaded, "queue is full").retry_after(Duration::from_millis(1500));
        let value = Failure::from(problem).to_json();
        assert_eq!(value["error"]["code"], "OVERLOADED");
        assert_eq!(value["error"]["retry_after_ms"], 1500);
        assert_eq!(value["error"]["exit_code"], 6);
        assert_eq!(value["error"]["hint"], "try again in 1.5 s");
    }
}
