//! What programs find at every daemon's port before they know anything: reflection in both versions, and health.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use ingle_tests::client::channel;
use ingle_tests::cluster::Cluster;
use ingle_tests::models::FakeModel;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::{v1, v1alpha};

macro_rules! services {
    ($version:ident, $address:expr) => {{
        use $version::server_reflection_request::MessageRequest;
        use $version::server_reflection_response::MessageResponse;
        let mut client = $version::server_reflection_client::ServerReflectionClient::new(channel($address));
        let request = $version::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let answers = client.server_reflection_info(futures::stream::iter([request])).await.expect("reflection");
        let answer = answers.into_inner().message().await.expect("no error").expect("an answer");
        match answer.message_response {
            Some(MessageResponse::ListServicesResponse(list)) => {
                list.service.into_iter().map(|service| service.name).collect::<BTreeSet<_>>()
            }
            other => panic!("{other:?}"),
        }
    }};
}

async fn check(address: SocketAddr, expected: &[&str]) {
    for found in [services!(v1, address), services!(v1alpha, address)] {
        for name in expected {
            assert!(found.contains(*name), "{address}: {name} isn't among {found:?}");
        }
    }
    for service in ["", expected[0]] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = HealthClient::new(channel(address)).check(request).await.expect("health").into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{address} {service}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_daemon_describes_itself_and_says_that_it_serves() {
    let cluster = Cluster::of(1).with(FakeModel::that_embeds("words")).start().await;
    let public = ["ingle.v1.Jobs", "ingle.v1.Inference", "ingle.v1.Cluster", "ingle.v1.Models", "ingle.v1.Registry"];
    check(cluster.address, &public).await;
    check(cluster.gateway_address, &["ingle.v1.Storage"]).await;
    check(cluster.nodes[0].address, &["ingle.v1.Node"]).await;
    cluster.stop().await;
}

#[test]
fn a_node_takes_whatever_a_coordinator_hands_out() {
    for slots in [1, 2, 8, 256] {
        // Batches, and as many calls beside them.
        let handed_out = 2 * ingle_coordinator::limits::ATTEMPTS_PER_SLOT * slots as usize;
        let taken = ingle_node_agent::limits::attempts_max(slots);
        assert!(taken >= handed_out, "{slots} slots: {handed_out} handed out, {taken} taken");
    }
}
