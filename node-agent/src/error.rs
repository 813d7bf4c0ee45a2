//! What can go wrong: [`Failure`] ends an attempt or a command, [`StartError`] keeps the process from serving.

use std::path::PathBuf;
use std::time::Duration;

use ingle_engine::EngineError;
use ingle_proto::v1::FailureKind;
use ingle_proto::{ErrorCode, Problem};

/// Why an attempt failed, and whose fault it is: the coordinator decides by the kind what comes next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Failure {
    /// Whose fault.
    pub kind: FailureKind,
    /// In the terms of the wire.
    pub problem: Problem,
}

impl Failure {
    /// Any kind with a code and words.
    pub fn new(kind: FailureKind, code: ErrorCode, message: impl Into<String>) -> Self {
        Self { kind, problem: Problem::new(code, message) }
    }

    /// Something in the batch: split it.
    pub fn item(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::new(FailureKind::Item, code, message)
    }

    /// The request itself.
    pub fn input(problem: Problem) -> Self {
        Self { kind: FailureKind::Input, problem }
    }

    /// The NAS or the gateway.
    pub fn storage(problem: Problem) -> Self {
        Self { kind: FailureKind::Storage, problem }
    }

    /// The model can't be run here.
    pub fn model(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::new(FailureKind::Model, code, message)
    }

    /// This node can't do it now.
    pub fn node(code: ErrorCode, message: impl Into<String>, retry_after: Duration) -> Self {
        Self { kind: FailureKind::Node, problem: Problem::new(code, message).retry_after(retry_after) }
    }

    /// As asked.
    pub fn cancelled(reason: &str) -> Self {
        Self::new(FailureKind::Cancelled, ErrorCode::Cancelled, format!("cancelled: {reason}"))
    }

    /// What an engine said of one request of an attempt.
    pub fn engine(error: &EngineError) -> Self {
        match error {
            EngineError::Input(text) => Self::input(Problem::new(ErrorCode::InvalidArgument, text.clone())),
            EngineError::Model { .. } => Self::model(ErrorCode::ModelUnusable, error.to_string()),
            EngineError::Memory { .. } => Self::model(ErrorCode::ModelDoesNotFit, error.to_string()),
            EngineError::Full { .. } => {
                Self::node(ErrorCode::Overloaded, error.to_string(), Duration::from_millis(500))
            }
            // Whoever was in it is treated as if the node had died with it; whoever only waited goes elsewhere at once.
            EngineError::Stalled { inside: true, .. } => {
                Self::node(ErrorCode::EngineStalled, error.to_string(), Duration::from_secs(1))
            }
            EngineError::Stalled { inside: false, .. } => {
                Self::node(ErrorCode::ShuttingDown, error.to_string(), Duration::from_millis(100))
            }
            EngineError::Compute(_) => Self::item(ErrorCode::ComputeFailed, error.to_string()),
        }
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        self.problem.code
    }

    /// Whether the same attempt may succeed later or elsewhere.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self.kind {
            FailureKind::Storage | FailureKind::Node => true,
            FailureKind::Cancelled | FailureKind::Input => false,
            _ => self.problem.retryable(),
        }
    }
}

/// Why the node can't serve.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file or directory of ours can't be used.
    #[error("{what} {path}: {reason}", path = .path.display())]
    Directory {
        /// `state_dir`, `cache_dir` or `models`.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said, or what was expected.
        reason: String,
    },
    /// No identity: in use, or damaged.
    #[error(transparent)]
    Identity(#[from] ingle_membership::identity::IdentityError),
    /// Members can't be told of us.
    #[error(transparent)]
    Membership(#[from] ingle_membership::connect::ConnectError),
    /// Settings that can't be used.
    #[error(transparent)]
    Config(#[from] ingle_daemon::config::ConfigError),
    /// The listener or its security can't be set up.
    #[error(transparent)]
    Transport(#[from] ingle_daemon::grpc::ConnectError),
    /// TLS files.
    #[error(transparent)]
    Tls(#[from] ingle_daemon::tls::TlsError),
    /// The system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What it said.
        source: std::io::Error,
    },
    /// A task that the node can't do without ended.
    #[error("{0}")]
    Task(String),
}

impl StartError {
    /// Whether starting again without a change may help.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Task(_) => true,
            Self::Identity(error) => error.retryable(),
            Self::Membership(error) => error.retryable(),
            Self::Transport(error) => error.retryable(),
            _ => false,
        }
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Identity(_) => ErrorCode::IdentityInUse,
            Self::Config(_) | Self::Tls(_) | Self::Directory { .. } => ErrorCode::InvalidArgument,
            _ => ErrorCode::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_say_what_helps() {
        assert!(Failure::storage(Problem::new(ErrorCode::StorageDenied, "x")).retryable());
        assert!(!Failure::cancelled("drain").retryable());
        assert!(Failure::engine(&EngineError::Compute("nan".into())).retryable());
        assert_eq!(Failure::engine(&EngineError::Compute("nan".into())).kind, FailureKind::Item);
        assert_eq!(Failure::engine(&EngineError::Input("long".into())).kind, FailureKind::Input);
        assert_eq!(Failure::engine(&EngineError::Full { slots: 1 }).code(), ErrorCode::Overloaded);
    }
}
