//! Why a coordinator doesn't start, or ends by itself.

use ingle_daemon::config::ConfigError;
use ingle_daemon::{grpc, tls};
use ingle_membership::identity::IdentityError;
use ingle_membership::{MembershipError, connect};

use crate::store::StoreError;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Settings that can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The job store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Our identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Members can't be reached.
    #[error(transparent)]
    Connect(#[from] connect::ConnectError),
    /// Members refuse us for good.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The listener's or a connection's settings.
    #[error(transparent)]
    Grpc(#[from] grpc::ConnectError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// Jobs would be left behind.
    #[error(
        "{place} holds jobs that the store in etcd doesn't have: take them there with `ingle cluster migrate-store` (or \
         `ingle-coordinator --migrate-store`), or keep them here with job_store = 'sqlite', or move the file away"
    )]
    LeftBehind {
        /// The file.
        place: String,
    },
    /// Another coordinator leads from now on.
    #[error("leadership is lost: another coordinator may lead; start again to stand for it")]
    LeadershipLost,
    /// The system refuses.
    #[error("{what}: {source}")]
    System {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        source: std::io::Error,
    },
    /// A task it can't do without ended.
    #[error("{0}")]
    Task(String),
}

impl RunError {
    /// Whether starting again as it is may help.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Config(_) | Self::Tls(_) | Self::LeftBehind { .. } => false,
            Self::Store(error) => error.retryable(),
            Self::Identity(error) => error.retryable(),
            Self::Connect(error) => error.retryable(),
            Self::Membership(error) => error.retryable(),
            Self::Grpc(error) => error.retryable(),
            Self::LeadershipLost | Self::System { .. } | Self::Task(_) => true,
        }
    }
}
