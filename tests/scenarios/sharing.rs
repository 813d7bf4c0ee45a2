//! Several inputs write into one place, and documents that can no longer be read: nothing that was good is lost over it.

use ingle_proto::v1::{self, ItemOutcome, JobState};
use ingle_tests::client::{counts, embed_job, generate_job, tree};
use ingle_tests::cluster::Cluster;
use ingle_tests::models::FakeModel;
use ingle_tests::parquet::{Row, rows};

fn of(spec: v1::JobSpec, input: &str) -> v1::JobSpec {
    v1::JobSpec { input: Some(tree(input)), ..spec }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_inputs_with_one_name_never_overwrite_each_other() {
    let cluster = Cluster::of(1)
        .with(FakeModel::that_answers("talk", 6))
        .with(FakeModel::that_embeds("words"))
        .over_nfs()
        .start()
        .await;
    for (name, text) in [("one/same.md", "the first"), ("two/same.md", "the second"), ("two/other.md", "another")] {
        cluster.share.write(name, text);
    }
    for (spec, place) in [(generate_job(), "answers"), (embed_job(), "vectors")] {
        let output = Some(ingle_tests::client::object(place));
        let spec = v1::JobSpec { output, ..spec };
        cluster.client.success(of(spec.clone(), "one")).await;
        let job = cluster.client.done(of(spec.clone(), "two")).await;
        let seen = counts(&job);
        assert_eq!((job.state(), seen.total), (JobState::Failed, 2), "{place}: {job:?}");
        assert_eq!((seen.published, seen.conflict), (1, 1), "{place}: {job:?}");
        let (outcome, item) = cluster.client.item(&job.job_id, "same.md").await;
        assert_eq!((outcome, item.code.as_str()), (ItemOutcome::Conflict, "NAME_TAKEN"), "{item:?}");
        assert!(item.reason.contains("docs/one/same.md") && item.reason.contains("docs/two/same.md"), "{item:?}");
        // The first input's job finds everything as it left it.
        let again = cluster.client.success(of(spec, "one")).await;
        assert_eq!(counts(&again).total, 1);
    }
    let found: Vec<Row> = rows(&cluster.share, "vectors");
    let texts: Vec<&str> = found.iter().map(|row| row.text.as_str()).collect();
    assert_eq!(texts, ["another", "the first"], "by path: both inputs' documents, each name once");
    assert!(cluster.share.names("answers").contains(&"other.md.txt".to_owned()));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_good_vectors_stay_until_the_document_can_be_read_again() {
    let cluster = Cluster::of(1).with(FakeModel::that_embeds("words")).start().await;
    cluster.share.write("in/a.md", "good words");
    cluster.share.write("in/b.md", "other words");
    cluster.client.success(embed_job()).await;
    let texts = || {
        let rows = rows(&cluster.share, "out");
        rows.iter().map(|row| format!("{}: {}", row.path, row.text)).collect::<Vec<_>>()
    };
    let before = texts();
    cluster.share.write("in/a.md", b"words\0\0\0\x01\x02\x03 no more");
    cluster.share.write("in/b.md", "newer words");
    let job = cluster.client.done(embed_job()).await;
    assert_eq!((counts(&job).failed, counts(&job).published), (1, 1), "{job:?}");
    assert_eq!(texts(), [before[0].clone(), "b.md: newer words".to_owned()]);
    cluster.share.write("in/a.md", "words that can be read");
    cluster.client.success(embed_job()).await;
    assert_eq!(texts(), ["a.md: words that can be read", "b.md: newer words"]);
    cluster.share.remove("in/a.md");
    cluster.client.success(embed_job()).await;
    assert_eq!(texts(), ["b.md: newer words"]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_cluster_says_so_to_whoever_asks() {
    let cluster = Cluster::of(1).with(FakeModel::that_answers("talk", 4)).start().await;
    let id = cluster.client.nodes().await.expect("nodes")["node-1"].node_id.clone();
    let drain = v1::DrainNodeRequest { node_id: id.clone(), stay: true, ..Default::default() };
    cluster.client.cluster.clone().drain_node(drain).await.expect("drained");
    let status = cluster.client.generate(ingle_tests::client::question("anyone?")).await.expect_err("nobody works");
    assert_eq!(super::bad_input::code_of(&status), "NO_NODE");
    assert!(status.message().contains(&format!("ingle nodes uncordon {id}")), "{status:?}");
    cluster.stop().await;
}
