//! Tells members where we are, for as long as we serve.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ingle_daemon::{OnFailure, Shutdown};
use ingle_membership::connect::{ConnectOptions, EtcdUser};
use ingle_membership::records::MODELS_TOLD;
use ingle_membership::registration::{MEMBER_TTL, RegistrationHandle};
use ingle_membership::{Membership, NodeCapacity, NodeLoad, NodeRecord, Registration, RegistrationState, connect};

use crate::agent::Agent;
use crate::config::NodeConfig;
use crate::error::StartError;

/// How long leaving may take.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

/// How often the record is looked at, and rewritten where the models that we hold are others.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// Every so many looks it is rewritten for what we do alone.
const LOAD_ROUNDS: u32 = 6;

/// Our record among members; none if the settings name nobody to tell.
pub(crate) struct Registered {
    handle: Option<RegistrationHandle<NodeRecord>>,
    stop: Shutdown,
}

/// Registers in the background and keeps the record alive.
pub(crate) async fn start(
    config: &NodeConfig,
    agent: &Arc<Agent>,
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
        ..described(agent)
    };
    let (registration, handle) = Registration::new(membership, record, MEMBER_TTL);
    let (telling, told, over) = (Arc::clone(agent), handle.clone(), stop.clone());
    agent.tasks.spawn("record", OnFailure::Log, async move {
        tell(&telling, &told, &over).await;
        Ok::<(), std::convert::Infallible>(())
    });
    // Without a record nobody finds us, and a second node of our identity must not go on.
    agent.tasks.spawn("registration", OnFailure::Shutdown, registration.run(stop.clone()));
    Ok(Registered { handle: Some(handle), stop })
}

/// Keeps what the record says of us true, at a rate that a store with thousands of us bears.
async fn tell(agent: &Agent, handle: &RegistrationHandle<NodeRecord>, over: &Shutdown) {
    let mut rounds = 0_u32;
    loop {
        tokio::select! {
            () = over.wait() => return,
            () = tokio::time::sleep(TELL_EVERY) => {}
        }
        let now = described(agent);
        rounds = rounds.wrapping_add(1);
        handle.update(|record| {
            // Which models a node holds changes rarely; what it does changes all the time.
            let changed = record.models != now.models || record.load.draining != now.load.draining;
            if changed || rounds.is_multiple_of(LOAD_ROUNDS) {
                (record.models, record.load) = (now.models, now.load);
            }
        });
    }
}

/// What we have, hold and do.
fn described(agent: &Agent) -> NodeRecord {
    let has = &agent.capacity;
    let whole = |measured: f64| if measured.is_finite() && measured > 0.0 { measured as u64 } else { 0 };
    let small = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let (running, interactive) = agent.running();
    let mut models: Vec<String> =
        agent.loaded.infos().into_iter().filter_map(|loaded| Some(loaded.model?.name)).collect();
    models.sort_unstable();
    models.truncate(MODELS_TOLD);
    NodeRecord {
        capacity: NodeCapacity {
            cores: has.cores,
            slots: has.slots,
            memory_budget_bytes: has.memory_budget_bytes,
            memory_bandwidth: whole(has.memory_bandwidth),
            compute_f32: whole(has.compute_f32),
        },
        models,
        load: NodeLoad {
            running: small(running),
            interactive: small(interactive),
            reserved_bytes: agent.loaded.reserved(),
            draining: agent.draining(),
        },
        ..NodeRecord::default()
    }
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
