//! Registration: coordinators find this gateway, and which exports it serves, by its record in the membership store.

use std::net::SocketAddr;
use std::time::Duration;

use ingle_daemon::backoff::Backoff;
use ingle_daemon::{BoxError, OnFailure, Tasks};
use ingle_membership::connect::EtcdUser;
use ingle_membership::registration::MEMBER_TTL;
use ingle_membership::{ConnectOptions, GatewayRecord, Identity, Registration};

use crate::config::Config;

/// Keeps us registered until shutdown, if the settings say where. The identity's lock is held as long.
pub fn start(config: &Config, identity: Identity, exports: Vec<String>, address: SocketAddr, tasks: &Tasks) {
    let shutdown = tasks.shutdown().clone();
    let Some(url) = config.membership.clone() else {
        // Held all the same: the state directory is ours alone.
        tasks.spawn("identity", OnFailure::Log, async move {
            shutdown.wait().await;
            drop(identity);
            Ok::<_, std::convert::Infallible>(())
        });
        return;
    };
    let record = GatewayRecord {
        id: identity.with_prefix("g"),
        incarnation: identity.incarnation().to_owned(),
        address: config.advertise.clone().unwrap_or_else(|| address.to_string()),
        version: ingle_daemon::version().to_owned(),
        exports,
        place: identity.place().to_owned(),
    };
    let etcd_user = match (&config.etcd_user, &config.etcd_password) {
        (Some(user), Some(password)) => Some(EtcdUser { user: user.clone(), password: password.clone() }),
        _ => None,
    };
    let options = ConnectOptions { tls: config.tls.clone(), etcd_user, ..ConnectOptions::default() };
    tasks.spawn("registration", OnFailure::Shutdown, async move {
        let _identity = identity;
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        let membership = loop {
            match ingle_membership::connect(&url, &options).await {
                Ok(membership) => break membership,
                Err(error) if error.retryable() => tracing::warn!(%error, "can't register yet"),
                Err(error) => return Err(BoxError::from(error)),
            }
            tokio::select! {
                () = shutdown.wait() => return Ok(()),
                () = tokio::time::sleep(backoff.next_random()) => {}
            }
        };
        let (registration, _handle) = Registration::new(membership, record, MEMBER_TTL);
        registration.run(shutdown).await.map_err(BoxError::from)
    });
}
