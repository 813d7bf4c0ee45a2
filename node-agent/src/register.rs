//! Tells members where we are, for as long as we serve.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ingle_daemon::{OnFailure, Shutdown};
use ingle_membership::connect::{ConnectOptions, EtcdUser};
use ingle_membership::registration::{MEMBER_TTL, RegistrationHandle};
use ingle_membership::{Membership, NodeRecord, Registration, RegistrationState, connect};

use crate::agent::Agent;
use crate::config::NodeConfig;
use crate::error::StartError;

/// How long leaving may take.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

/// Our record among members; none if the settings name nobody to tell.
pub(crate) struct Registered {
    handle: Option<RegistrationHandle<NodeRecord>>,
    stop: Shutdown,
}

/// Registers in the background and keeps the record alive.
pub(crate) async fn start(
    config: &NodeConfig,
    agent: &Agent,
    given: Option<Arc<dyn Membership>>,
    work: SocketAddr,
    beat: SocketAddr,
) -> Result<Registered, StartError> {
    let stop = Shutdown::new();
    let membership = match (given, config.membership_url()) {
        (Some(membership), _) => membership,
        (None, Some(url)) => {
            let etcd_user = match (&config.etcd_user, &config.etcd_password) {
                (Some(user), Some(password)) => Some(EtcdUser { user: user.clone(), password: password.clone() }),
                _ => None,
            };
            let options = ConnectOptions { tls: config.tls.clone(), etcd_user, ..ConnectOptions::default() };
            connect(&url, &options).await?
        }
        (None, None) => {
            tracing::info!("neither coordinator nor membership is set: the coordinator must be told our addresses");
            return Ok(Registered { handle: None, stop });
        }
    };
    let record = NodeRecord {
        id: agent.identity.node_id().to_string(),
        incarnation: agent.identity.incarnation().to_owned(),
        name: agent.name.clone(),
        work_address: config.advertise.clone().unwrap_or_else(|| work.to_string()),
        beat_address: config.beat_advertise.clone().unwrap_or_else(|| beat.to_string()),
        version: ingle_daemon::version().to_owned(),
        place: agent.identity.place().to_owned(),
    };
    let (registration, handle) = Registration::new(membership, record, MEMBER_TTL);
    // Without a record nobody finds us, and a second node of our identity must not go on.
    agent.tasks.spawn("registration", OnFailure::Shutdown, registration.run(stop.clone()));
    Ok(Registered { handle: Some(handle), stop })
}

impl Registered {
    /// Takes the record away.
    pub(crate) async fn leave(self) {
        self.stop.begin();
        let Some(mut handle) = self.handle else { return };
        let gone =
            handle.state.wait_for(|state| matches!(state, RegistrationState::Pending(reason) if reason == "ended"));
        // An error means that the registration has ended, which is what we wait for.
        let _ = tokio::time::timeout(LEAVE_WITHIN, gone).await;
    }
}
