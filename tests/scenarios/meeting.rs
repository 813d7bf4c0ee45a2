//! Members that meet in etcd rather than at the coordinator: the same cluster, the same jobs.

use ingle_proto::v1::JobState;
use ingle_tests::client::{counts, embed_job, generate_job, object, question};
use ingle_tests::cluster::Cluster;
use ingle_tests::etcd::Etcd;
use ingle_tests::eventually::eventually;
use ingle_tests::models::FakeModel;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_meets_in_etcd_does_its_jobs() {
    let Some(etcd) = Etcd::start() else { return };
    let mut cluster = Cluster::of(2)
        .with(FakeModel::that_embeds("words"))
        .with(FakeModel::that_answers("talk", 4))
        .meeting_at(&etcd.url())
        .start()
        .await;
    cluster.share.documents(30);
    let job = cluster.client.success(embed_job()).await;
    assert_eq!(counts(&job).published, 30, "{job:?}");
    let mut spec = generate_job();
    spec.output = Some(object("answers"));
    let job = cluster.client.success(spec).await;
    assert_eq!((job.state(), counts(&job).published), (JobState::Succeeded, 30));
    assert_eq!(cluster.client.generate(question("hello")).await.expect("an answer").tokens.len(), 4);
    // A node that ends in order leaves the members at once.
    cluster.nodes.remove(0).stop().await;
    eventually("one node to be left", || async {
        let nodes = cluster.client.nodes().await.map_err(|status| status.to_string())?;
        let ready = nodes.values().filter(|node| node.state() == ingle_proto::v1::NodeState::Ready).count();
        if ready == 1 { Ok(()) } else { Err(format!("{nodes:?}")) }
    })
    .await;
    assert_eq!(cluster.client.generate(question("hello again")).await.expect("an answer").tokens.len(), 4);
    cluster.stop().await;
}
