//! Each document through a prompt to a text and a JSON file beside the mirrored path; poison is set aside.

use std::collections::BTreeSet;

use ingle_proto::v1::{self, ItemOutcome, JobState};
use ingle_tests::client::{counts, generate_job};
use ingle_tests::cluster::Cluster;
use ingle_tests::models::FakeModel;

fn results_of<'a>(documents: impl IntoIterator<Item = &'a String>) -> BTreeSet<String> {
    documents.into_iter().flat_map(|name| [format!("{name}.json"), format!("{name}.txt")]).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_mirror_the_tree_as_text_and_json() {
    let cluster = Cluster::of(2).with(FakeModel::that_answers("talk", 8)).start().await;
    let documents = cluster.share.documents(40);
    cluster.share.age("in");
    let job = cluster.client.success(generate_job()).await;
    assert_eq!((counts(&job).total, counts(&job).published), (40, 40), "{job:?}");
    let names: BTreeSet<_> = cluster.share.names("out").into_iter().collect();
    assert_eq!(names, results_of(documents.keys()));
    for name in documents.keys() {
        let json = cluster.share.json(&format!("out/{name}.json"));
        assert_eq!(json["path"], name.as_str());
        assert_eq!(json["model"], "talk");
        assert_eq!(json["finish_reason"], "stop");
        assert_eq!(json["usage"]["output_tokens"], 8);
        let text = String::from_utf8(cluster.share.read(&format!("out/{name}.txt"))).expect("UTF-8");
        assert_eq!(json["text"].as_str().expect("a text").trim_end_matches('\n'), text.trim_end_matches('\n'));
        assert!(!text.trim().is_empty());
    }
    // One edited, one gone; the others stay the very same files.
    let before = cluster.share.identities("out");
    let (edited, gone) = (documents.keys().next().unwrap(), documents.keys().nth(1).unwrap());
    cluster.share.write(&format!("in/{edited}"), "quite another note");
    cluster.share.remove(&format!("in/{gone}"));
    let job = cluster.client.success(generate_job()).await;
    let seen = counts(&job);
    assert_eq!((seen.published, seen.unchanged, seen.deleted), (1, 38, 1), "{job:?}");
    let after = cluster.share.identities("out");
    for name in results_of([gone]) {
        assert!(!after.contains_key(&name), "{name}: results of a deleted document leave");
    }
    for name in results_of([edited]) {
        assert_ne!(after[&name], before[&name], "{name} is done again");
    }
    for name in results_of(documents.keys().filter(|name| *name != edited && *name != gone)) {
        assert_eq!(after[&name], before[&name], "{name} is left alone");
    }
    // Another prompt is another result: all are done again.
    let mut spec = generate_job();
    spec.generate.as_mut().expect("options").prompt = "Name three words of:\n{{ document }}".into();
    let seen = counts(&cluster.client.success(spec).await);
    assert_eq!((seen.published, seen.unchanged), (39, 0));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poisonous_document_is_set_aside_and_the_rest_is_published() {
    let model = FakeModel::that_answers("talk", 4).poisoned_by("arsenic");
    let cluster = Cluster::of(2).with(model).start().await;
    let documents = cluster.share.documents(30);
    cluster.share.write("in/a/bad.md", "a note on arsenic");
    let job = cluster.client.done(generate_job()).await;
    assert_eq!(job.state(), JobState::Failed, "{job:?}");
    assert_eq!((counts(&job).published, counts(&job).quarantined, counts(&job).failed), (30, 1, 0), "{job:?}");
    let (outcome, item) = cluster.client.item(&job.job_id, "a/bad.md").await;
    assert_eq!(outcome, ItemOutcome::Quarantined);
    assert!(item.reason.contains("poison"), "{item:?}");
    let names: BTreeSet<_> = cluster.share.names("out").into_iter().collect();
    assert_eq!(names, results_of(documents.keys()), "it delays no other document and leaves nothing");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_brings_the_model_down_is_set_aside_too() {
    let model = FakeModel::that_answers("talk", 4).panicking_at("dynamite");
    let cluster = Cluster::of(1).with(model).start().await;
    let documents = cluster.share.documents(6);
    cluster.share.write("in/a/bad.md", "a note on dynamite");
    let job = cluster.client.done(generate_job()).await;
    assert_eq!((counts(&job).published, counts(&job).quarantined), (6, 1), "{job:?}");
    assert_eq!(cluster.client.item(&job.job_id, "a/bad.md").await.0, ItemOutcome::Quarantined);
    let names: BTreeSet<_> = cluster.share.names("out").into_iter().collect();
    assert_eq!(names, results_of(documents.keys()));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prompts_see_the_name_and_a_template_that_cannot_be_read_is_refused() {
    let cluster = Cluster::of(1).with(FakeModel::that_answers("talk", 4)).start().await;
    cluster.share.documents(3);
    let with = |prompt: &str| {
        let mut spec = generate_job();
        spec.generate.as_mut().expect("options").prompt = prompt.into();
        spec
    };
    let first = cluster.client.success(with("{{ name }} in {{ path }}")).await;
    assert_eq!(counts(&first).published, 3);
    // Whether it is refused at once or when a node reads it: the job doesn't hang, and says what is wrong.
    match cluster.client.try_submit(with("{% if %}"), "").await {
        Err(status) => assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}"),
        Ok(answer) => {
            let job = cluster.client.end_of(&answer.job.expect("a job").job_id).await;
            assert_eq!(job.state(), JobState::Failed, "{job:?}");
            let items = cluster.client.items(&job.job_id).await;
            let told = format!("{} {:?}", job.reason, items.values().map(|item| &item.reason).collect::<Vec<_>>());
            assert!(told.contains("template") || told.contains("prompt"), "{told}");
        }
    }
    let spec = v1::JobSpec { model: "talk".into(), force: true, ..with("{{ document }}") };
    assert_eq!(counts(&cluster.client.success(spec).await).published, 3);
    cluster.stop().await;
}
