//! Every store of members runs the same suite: in process, over real gRPC, and etcd, each also behind a bad network.

#![allow(clippy::disallowed_methods, reason = "the test owns what it spawns, and awaits it")]

#[path = "../../../tests/process/hosts/certs.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod certs;
mod etcd;
mod over_grpc;
#[path = "../../../tests/src/ports.rs"]
#[allow(unreachable_pub, reason = "it is public where it lies")]
mod ports;

mod secure;
mod three;

use std::sync::Arc;

use ingle_membership::conformance::{converges, exact, leases_hold};
use ingle_membership::faulty::{Faults, Faulty};
use ingle_membership::{Membership, Memory};

const SEEDS: std::ops::Range<u64> = 0..20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_conforms() {
    exact(Arc::new(Memory::new()), "/exact").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_memory_conforms() {
    exact(Arc::new(Memory::restarted(7, std::time::Duration::ZERO)), "/exact").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_calm_double_conforms() {
    exact(Arc::new(Faulty::new(Memory::new(), 1, Faults::NONE)), "/exact").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_calm_etcd_and_a_calm_registry_conform_behind_the_wrapper() {
    let served = over_grpc::Served::anywhere(Memory::new()).await;
    exact(Arc::new(Faulty::new(served.client(), 2, Faults::NONE)), "/exact").await;
    served.stop().await;
    etcd::calm().await;
}

#[tokio::test]
async fn memory_converges_under_faults() {
    faults(Memory::new(), SEEDS).await;
}

/// Runs the suite of faults below a prefix per seed.
async fn faults<M: Membership + Clone>(store: M, seeds: std::ops::Range<u64>) {
    let mut counted = (0, 0);
    for seed in seeds {
        let faulty = Faulty::new(store.clone(), seed, Faults::MANY);
        converges(&faulty, seed, &format!("/faults/{seed}/")).await;
        let faulty = Faulty::new(store.clone(), seed, Faults::MANY);
        let (renewed, lost) = leases_hold(&faulty, seed, &format!("/leases/{seed}/")).await;
        counted = (counted.0 + renewed, counted.1 + lost);
    }
    assert!(counted.0 > 0 && counted.1 > 0, "renewals and lost leases {counted:?}: too few to tell anything");
}

/// The suite itself must be able to fail: a store that lies is found out.
#[tokio::test]
async fn a_store_that_lies_is_found_out() {
    let lying = Faulty::new(Liar(Memory::new()), 3, Faults::NONE);
    let outcome = tokio::spawn(async move { converges(&lying, 3, "/liar/").await }).await;
    assert!(outcome.expect_err("it lies").is_panic());
}

/// Forgets every tenth put that it says is done.
struct Liar(Memory);

#[async_trait::async_trait]
impl Membership for Liar {
    async fn grant(&self, ttl: std::time::Duration) -> Result<ingle_membership::LeaseId, Error> {
        self.0.grant(ttl).await
    }

    async fn keep_alive(&self, lease: ingle_membership::LeaseId) -> Result<std::time::Duration, Error> {
        self.0.keep_alive(lease).await
    }

    async fn revoke(&self, lease: ingle_membership::LeaseId) -> Result<(), Error> {
        self.0.revoke(lease).await
    }

    async fn put(
        &self,
        key: bytes::Bytes,
        value: bytes::Bytes,
        lease: Option<ingle_membership::LeaseId>,
        condition: ingle_membership::Condition,
    ) -> Result<ingle_membership::PutOutcome, Error> {
        if value.ends_with(b"7") {
            let at = self.0.list(key).await?.revision;
            return Ok(ingle_membership::PutOutcome::Done(at));
        }
        self.0.put(key, value, lease, condition).await
    }

    async fn delete(
        &self,
        key: bytes::Bytes,
        condition: ingle_membership::Condition,
    ) -> Result<ingle_membership::PutOutcome, Error> {
        self.0.delete(key, condition).await
    }

    async fn list(&self, prefix: bytes::Bytes) -> Result<ingle_membership::Listing, Error> {
        self.0.list(prefix).await
    }

    async fn watch(
        &self,
        prefix: bytes::Bytes,
        after: ingle_membership::Revision,
    ) -> Result<ingle_membership::WatchStream, Error> {
        self.0.watch(prefix, after).await
    }
}

type Error = ingle_membership::MembershipError;
