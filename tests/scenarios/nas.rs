//! A NAS that fails in the middle of a job: the job waits, says why, answers whoever steers it, and ends with everything
//! published exactly once.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{MetadataExt as _, chown};
use std::sync::Arc;
use std::time::Duration;

use ingle_gateway::nfs_server::{Faults, Full, NfsFaults, Trouble};
use ingle_gateway::principals::Ids;
use ingle_proto::v1::{self, JobState};
use ingle_tests::client::{EXPORT, counts, ended, generate_job, object};
use ingle_tests::cluster::{Cluster, Plan};
use ingle_tests::eventually::{eventually, in_time};
use ingle_tests::models::FakeModel;

use crate::bad_input::code_of;

/// Documents of a job that something happens to.
const DOCUMENTS: usize = 60;
/// What the gateway says with `DIGEST_MISMATCH`; batches are explained in words alone.
const MISMATCH: &str = "its bytes are not those of its digest";

/// A job that has begun, over a NAS that is about to fail.
struct Scene {
    cluster: Cluster,
    faults: Arc<Faults>,
    documents: BTreeMap<String, String>,
    id: String,
}

fn plan() -> Plan {
    Cluster::of(2).with(FakeModel::that_answers("talk", 8).at_ms_per_step(8).with_slots(2))
}

impl Scene {
    /// Some results are visible, and most are still to come.
    async fn begun() -> Self {
        let faults = Faults::new(NfsFaults::default());
        let cluster = plan().over_nfs_with(&faults).start().await;
        let documents = cluster.share.documents(DOCUMENTS);
        cluster.share.age("in");
        let id = cluster.client.submit(generate_job()).await;
        let begun = |job: &v1::Job| counts(job).published > 0;
        let job = cluster.client.job_that(&id, "the first results", begun).await;
        assert!(!ended(&job), "most is still to come: {job:?}");
        Self { cluster, faults, documents, id }
    }

    fn trouble(&self, change: impl FnOnce(&mut Trouble)) {
        self.faults.set(change);
    }

    fn mend(&self) {
        self.faults.set(|trouble| *trouble = Trouble::default());
    }

    /// The job says what it waits for.
    async fn waits(&self, code: &str, words: &str) {
        let told = |job: &v1::Job| !ended(job) && job.code == code && job.reason.contains(words);
        self.cluster.client.job_that(&self.id, &format!("it to wait for {words:?}"), told).await;
    }

    /// Whoever steers it is answered, whatever the NAS does.
    async fn steered(&self) {
        let (mut jobs, job_id) = (self.cluster.client.jobs.clone(), self.id.clone());
        in_time("steering", async {
            let listed = jobs.list_jobs(v1::ListJobsRequest::default()).await.expect("listed").into_inner().jobs;
            assert!(listed.iter().any(|job| job.job_id == job_id && !job.reason.is_empty()), "{listed:?}");
            let explained =
                jobs.explain_job(v1::ExplainJobRequest { job_id: job_id.clone() }).await.expect("explained");
            assert!(!explained.into_inner().summary.is_empty());
            let paused = jobs.pause_job(v1::PauseJobRequest { job_id: job_id.clone() }).await.expect("paused");
            assert_eq!(paused.into_inner().job.expect("a job").state(), JobState::Paused);
            let resumed = jobs.resume_job(v1::ResumeJobRequest { job_id: job_id.clone() }).await.expect("resumed");
            assert_ne!(resumed.into_inner().job.expect("a job").state(), JobState::Paused);
        })
        .await;
    }

    /// The job ends, and each document has its results once.
    async fn ends(self) {
        let job = self.cluster.client.end_of(&self.id).await;
        let seen = counts(&job);
        assert_eq!(job.state(), JobState::Succeeded, "{job:?} {:?}", self.cluster.client.items(&self.id).await);
        assert_eq!((seen.total, seen.published), (DOCUMENTS as u64, DOCUMENTS as u64), "{job:?}");
        assert_eq!((seen.failed, seen.quarantined, seen.skipped, seen.conflict), (0, 0, 0, 0), "{job:?}");
        results_are_of(&self.cluster, &self.documents);
        assert_eq!(self.cluster.share.names("in").len(), DOCUMENTS, "no document of a person is touched");
        self.cluster.stop().await;
    }
}

fn results_are_of(cluster: &Cluster, documents: &BTreeMap<String, String>) {
    let names: BTreeSet<_> = cluster.share.names("out").into_iter().collect();
    let expected = documents.keys().flat_map(|name| [format!("{name}.json"), format!("{name}.txt")]).collect();
    assert_eq!(names, expected, "each once, and nothing beside");
    for name in documents.keys() {
        assert_eq!(cluster.share.json(&format!("out/{name}.json"))["path"], name.as_str());
        assert!(!cluster.share.read(&format!("out/{name}.txt")).is_empty(), "{name}");
    }
}

/// How long it hangs: the two minutes of a real one in the long rounds.
fn hang() -> Duration {
    let soak = std::env::var_os("INGLE_SOAK").is_some();
    Duration::from_secs(if soak { 120 } else { 5 })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nas_that_hangs() {
    let scene = Scene::begun().await;
    scene.trouble(|trouble| trouble.hung = true);
    scene.waits("STORAGE_UNAVAILABLE", "nas://docs").await;
    scene.steered().await;
    tokio::time::sleep(hang()).await;
    scene.waits("STORAGE_UNAVAILABLE", "by itself").await;
    scene.mend();
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nas_that_hangs_while_a_job_is_cancelled() {
    let scene = Scene::begun().await;
    scene.trouble(|trouble| trouble.hung = true);
    scene.waits("STORAGE_UNAVAILABLE", "nas://docs").await;
    let request = v1::CancelJobRequest { job_id: scene.id.clone() };
    let answer = in_time("cancelling", scene.cluster.client.jobs.clone().cancel_job(request)).await.expect("answered");
    assert!(matches!(answer.into_inner().job.expect("a job").state(), JobState::Cancelling | JobState::Cancelled));
    let job = scene.cluster.client.end_of(&scene.id).await;
    assert_eq!(job.state(), JobState::Cancelled, "while the NAS still hangs: {job:?}");
    scene.mend();
    // What it left is no hindrance to the next.
    let job = scene.cluster.client.success(generate_job()).await;
    assert_eq!(counts(&job).published + counts(&job).unchanged, DOCUMENTS as u64, "{job:?}");
    results_are_of(&scene.cluster, &scene.documents);
    scene.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nas_that_is_rebooted_again_and_again() {
    let mut scene = Scene::begun().await;
    let root = scene.cluster.share.root().to_owned();
    for published in [10, 20, 30] {
        scene.cluster.reboot_nas(&root).await;
        let on = |job: &v1::Job| ended(job) || counts(job).published >= published;
        scene.cluster.client.job_that(&scene.id, "it to go on", on).await;
    }
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nas_that_shows_another_directory() {
    let mut scene = Scene::begun().await;
    let (root, other) = (scene.cluster.share.root().to_owned(), tempfile::tempdir().expect("a directory"));
    scene.cluster.reboot_nas(other.path()).await;
    scene.waits("STORAGE_UNAVAILABLE", "another directory").await;
    scene.steered().await;
    assert_eq!(std::fs::read_dir(other.path()).expect("ours").count(), 0, "nothing is made there");
    scene.cluster.reboot_nas(&root).await;
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nas_that_is_full_and_freed() {
    let scene = Scene::begun().await;
    for (full, status) in [(Full::Space, "NFS3ERR_NOSPC"), (Full::Quota, "NFS3ERR_DQUOT")] {
        scene.trouble(|trouble| trouble.full = Some(full));
        scene.waits("STORAGE_FULL", status).await;
        scene.waits("STORAGE_FULL", "nas://docs").await;
    }
    scene.steered().await;
    scene.mend();
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nas_that_becomes_read_only_and_writable_again() {
    let scene = Scene::begun().await;
    scene.trouble(|trouble| trouble.read_only = true);
    scene.waits("STORAGE_READ_ONLY", "nas://docs").await;
    // A job that is submitted now waits too, and isn't refused: nobody asked for this in the settings.
    let mut second = generate_job();
    second.output = Some(object("second"));
    let second = scene.cluster.client.submit(second).await;
    let told = |job: &v1::Job| job.code == "STORAGE_READ_ONLY" && job.reason.contains("writable again");
    scene.cluster.client.job_that(&second, "it to wait too", told).await;
    scene.mend();
    let job = scene.cluster.client.end_of(&second).await;
    assert_eq!(counts(&job).published, DOCUMENTS as u64, "{job:?}");
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nas_that_is_slow() {
    let scene = Scene::begun().await;
    let faults = Arc::clone(&scene.faults);
    scene.trouble(|trouble| trouble.slow = Duration::from_millis(15));
    scene.ends().await;
    // Most of the documents were still to be read, and their results to be written.
    assert!(faults.slowed() > DOCUMENTS as u64, "{} calls were slow", faults.slowed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nas_that_answers_wrong_lengths() {
    let scene = Scene::begun().await;
    scene.trouble(|trouble| trouble.wrong_lengths = true);
    eventually("a batch to say so", || async {
        let request = v1::ExplainJobRequest { job_id: scene.id.clone() };
        let told = scene.cluster.client.jobs.clone().explain_job(request).await.expect("explained").into_inner();
        let told_so = told.batches.iter().any(|batch| batch.reason.contains("are announced"));
        if told_so { Ok(()) } else { Err(format!("{told:?}")) }
    })
    .await;
    scene.mend();
    scene.ends().await;
}

/// Documents carry no digest, but everything of ours does: listings, manifests, what nodes are sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nas_that_corrupts_what_is_ours() {
    let faults = Faults::new(NfsFaults::default());
    let cluster = plan().state_over_nfs_with(&faults).start().await;
    let documents = cluster.share.documents(DOCUMENTS);
    faults.set(|trouble| trouble.corrupt = true);
    let id = cluster.client.submit(generate_job()).await;
    let told = eventually("a batch to say so", || async {
        let request = v1::ExplainJobRequest { job_id: id.clone() };
        let told = cluster.client.jobs.clone().explain_job(request).await.expect("explained").into_inner();
        let reasons: Vec<_> = told.batches.iter().map(|batch| batch.reason.clone()).filter(|r| !r.is_empty()).collect();
        if reasons.is_empty() { Err(format!("{told:?}")) } else { Ok(reasons) }
    })
    .await;
    assert!(told.iter().all(|reason| reason.contains(MISMATCH)), "{told:?}");
    assert_eq!(cluster.share.names("out"), [""; 0], "nothing is made of what is damaged");
    faults.set(|trouble| trouble.corrupt = false);
    let job = cluster.client.end_of(&id).await;
    assert_eq!((job.state(), counts(&job).published), (JobState::Succeeded, DOCUMENTS as u64), "{job:?}");
    results_are_of(&cluster, &documents);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nas_with_a_loose_cable() {
    let faults = Faults::new(NfsFaults {
        seed: 7,
        stale: 60,
        short_reads: 3,
        verifier_changes: 40,
        disconnects: 40,
        delays: 10,
        delay_max: Duration::from_millis(20),
        ..NfsFaults::default()
    });
    let cluster = plan().over_nfs_with(&faults).start().await;
    let documents = cluster.share.documents(DOCUMENTS);
    let job = cluster.client.success(generate_job()).await;
    assert_eq!(counts(&job).published, DOCUMENTS as u64, "{job:?}");
    results_are_of(&cluster, &documents);
    let [stale, short, verifiers, _, cut, late] = faults.struck();
    assert!([stale, short, verifiers, cut, late].iter().all(|times| *times > 0), "all were met: {:?}", faults.struck());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nas_that_knows_users_gets_results_of_theirs() {
    const LOCAL: u32 = 51_234;
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make files of several users");
        return;
    }
    let as_local = |config: &mut ingle_gateway::Config| {
        config.principals.insert("local".into(), Ids { uid: LOCAL, gid: LOCAL, groups: Vec::new() });
    };
    let cluster = plan().over_nfs().gateway(as_local).start().await;
    let documents = cluster.share.documents(4);
    let refused = cluster.client.done(generate_job()).await;
    assert_eq!((refused.state(), refused.code.as_str()), (JobState::Failed, "STORAGE_DENIED"), "{refused:?}");
    assert!(refused.reason.contains("nas://docs/out") && refused.reason.contains("uid 51234"), "{refused:?}");
    cluster.share.write("out/keep", "");
    chown(cluster.share.root().join("out"), Some(LOCAL), Some(LOCAL)).expect("root");
    std::fs::remove_file(cluster.share.root().join("out/keep")).expect("made above");
    assert_eq!(counts(&cluster.client.success(generate_job()).await).published, 4);
    results_are_of(&cluster, &documents);
    for name in cluster.share.names("out") {
        let made = std::fs::metadata(cluster.share.root().join("out").join(&name)).expect("a result");
        assert_eq!((made.uid(), made.gid()), (LOCAL, LOCAL), "{name}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nas_places_outside_the_output_prefixes_are_refused_at_once() {
    let prefixed = |config: &mut ingle_gateway::Config| {
        config.exports.get_mut(EXPORT).expect("served").output_prefixes = vec!["results".into()];
    };
    let cluster = plan().gateway(prefixed).start().await;
    cluster.share.documents(3);
    let refused = cluster.client.try_submit(generate_job(), "").await.expect_err("out isn't among them");
    assert_eq!(code_of(&refused), "EXPORT_READ_ONLY");
    assert!(refused.message().contains("results"), "{refused:?}");
    let mut spec = generate_job();
    spec.output = Some(object("results/may"));
    assert_eq!(counts(&cluster.client.success(spec).await).published, 3);
    cluster.stop().await;
}
