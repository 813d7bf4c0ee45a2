//! People work in the same folders: what is theirs is never lost.

use ingle_proto::v1::{ItemOutcome, JobState};
use ingle_tests::client::{counts, generate_job};
use ingle_tests::cluster::Cluster;
use ingle_tests::models::FakeModel;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_persons_file_in_the_way_is_kept_and_the_result_lies_beside_it() {
    let cluster = Cluster::of(1).with(FakeModel::that_answers("talk", 6)).over_nfs().start().await;
    let documents = cluster.share.documents(5);
    let name = documents.keys().next().unwrap();
    cluster.share.write(&format!("out/{name}.txt"), "written by hand");
    let job = cluster.client.done(generate_job()).await;
    assert_eq!(job.state(), JobState::Failed, "{job:?}");
    assert_eq!((counts(&job).published, counts(&job).conflict), (4, 1), "{job:?}");
    let (outcome, item) = cluster.client.item(&job.job_id, name).await;
    assert_eq!(outcome, ItemOutcome::Conflict);
    assert!(!item.reason.is_empty(), "{item:?}");
    assert_eq!(cluster.share.read(&format!("out/{name}.txt")), b"written by hand");
    let beside = format!("{name}.txt.conflict-");
    let found = cluster.share.names("out").into_iter().find(|other| other.starts_with(&beside));
    let found = found.expect("our result lies beside it");
    assert!(!cluster.share.read(&format!("out/{found}")).is_empty());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_a_person_edited_is_kept_when_its_document_changes() {
    let cluster = Cluster::of(1).with(FakeModel::that_answers("talk", 6)).start().await;
    let documents = cluster.share.documents(3);
    cluster.share.age("in");
    cluster.client.success(generate_job()).await;
    let name = documents.keys().next().unwrap();
    cluster.share.write(&format!("out/{name}.txt"), "better words of a person");
    cluster.share.write(&format!("in/{name}"), "the document changes as well");
    let job = cluster.client.done(generate_job()).await;
    assert_eq!((counts(&job).conflict, counts(&job).unchanged), (1, 2), "{job:?}");
    let texts: Vec<_> = cluster.share.names("out").into_iter().filter(|other| other.contains(".txt")).collect();
    let kept = texts.iter().any(|name| cluster.share.read(&format!("out/{name}")) == b"better words of a person");
    assert!(kept, "the person's words are among {texts:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_somebody_deleted_is_made_again() {
    let cluster = Cluster::of(1).with(FakeModel::that_answers("talk", 6)).start().await;
    let documents = cluster.share.documents(4);
    cluster.share.age("in");
    cluster.client.success(generate_job()).await;
    let name = documents.keys().next().unwrap();
    let before = cluster.share.json(&format!("out/{name}.json"));
    cluster.share.remove(&format!("out/{name}.json"));
    let job = cluster.client.success(generate_job()).await;
    assert_eq!((counts(&job).published, counts(&job).unchanged), (1, 3), "{job:?}");
    assert_eq!(cluster.share.json(&format!("out/{name}.json"))["path"], before["path"]);
    cluster.stop().await;
}
