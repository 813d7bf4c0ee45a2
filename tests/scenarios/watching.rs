//! A folder that is watched: what comes is done, what changes is done again, what goes goes twice unseen first, and nothing that
//! fails, restarts or is away ends it.

use ingle_proto::v1::{self, JobState};
use ingle_tests::client::{counts, generate_job};
use ingle_tests::cluster::Cluster;
use ingle_tests::eventually::eventually;
use ingle_tests::models::FakeModel;

/// Looks as often as may be; a document has to be still for two seconds.
fn watched() -> v1::JobSpec {
    v1::JobSpec { watch: Some(v1::WatchOptions { interval_s: 5, settle_s: Some(2) }), ..generate_job() }
}

struct Watched {
    cluster: Cluster,
    id: String,
}

impl Watched {
    async fn standing(&self, what: &str, wanted: impl Fn(&v1::Standing) -> bool) -> v1::Job {
        let stands = |job: &v1::Job| job.state() == JobState::Standing && job.standing.is_some_and(|s| wanted(&s));
        self.cluster.client.job_that(&self.id, what, stands).await
    }

    fn results(&self) -> Vec<String> {
        let names = self.cluster.share.names("out");
        names.into_iter().filter(|name| name.ends_with(".txt")).collect()
    }

    async fn shown(&self, what: &str, names: &[&str]) {
        eventually(what, || async {
            let results = self.results();
            if results == names { Ok(()) } else { Err(format!("{results:?}")) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watched_folder_is_kept_up_with() {
    let cluster = Cluster::of(1).with(FakeModel::that_answers("talk", 8)).start().await;
    cluster.share.write("in/a.md", "about apples");
    cluster.share.write("in/sub/b.md", "about bees");
    let id = cluster.client.submit(watched()).await;
    let mut watched = Watched { cluster, id };
    // They were written just now: the first look lets them lie.
    watched.shown("the first documents", &["a.md.txt", "sub/b.md.txt"]).await;
    let job = watched.standing("the end of its pass", |s| s.waiting == 0 && s.documents == 2).await;
    assert_eq!(job.standing.unwrap().done.unwrap().published, 2, "{job:?}");

    // One comes, one changes, and one is still being written.
    let share = &watched.cluster.share;
    let before = share.read("out/a.md.txt");
    share.write("in/c.md", "about cats");
    share.write("in/a.md", "about something else entirely");
    let growing = async {
        for line in 1.. {
            share.write("in/growing.md", "a line of it\n".repeat(line));
            assert!(!watched.results().contains(&"growing.md.txt".to_owned()), "half of it was taken");
            // Far more often than it would have to be still for: a busy machine may pause this for a while.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    let others = async {
        watched.shown("the new one, not the half one", &["a.md.txt", "c.md.txt", "sub/b.md.txt"]).await;
    };
    tokio::select! {
        () = growing => {}
        () = others => {}
    }
    let all = ["a.md.txt", "c.md.txt", "growing.md.txt", "sub/b.md.txt"];
    watched.shown("the one that is whole now", &all).await;
    eventually("the changed one's new result", || async {
        if share.read("out/a.md.txt") == before { Err("the old one".to_owned()) } else { Ok(()) }
    })
    .await;

    // The folder is away: nothing is deleted, the job says why it waits, and no restart makes it forget.
    watched.standing("everything to be done", |s| s.documents == 4 && s.waiting == 0).await;
    let (folder, aside) = (share.root().join("in"), share.root().join("aside"));
    std::fs::rename(&folder, &aside).expect("renamed");
    let away = |job: &v1::Job| job.state() == JobState::Standing && job.code == "OBJECT_NOT_FOUND";
    watched.cluster.client.job_that(&watched.id, "a look that fails", away).await;
    watched.cluster.restart_coordinator().await;
    watched.cluster.client.job_that(&watched.id, "a look that fails again", away).await;
    assert_eq!(watched.results(), all);
    std::fs::rename(&aside, &folder).expect("renamed");
    watched.standing("a look that doesn't fail", |s| s.documents == 4).await;
    assert_eq!(watched.results(), all);

    // One leaves: its result goes with the second listing that misses it.
    watched.cluster.share.remove("in/c.md");
    let job = watched.standing("a first listing without it", |s| s.suspected == 1).await;
    assert_eq!(watched.results(), all, "{job:?}");
    watched.shown("its result to leave", &["a.md.txt", "growing.md.txt", "sub/b.md.txt"]).await;
    let job = watched.standing("that pass", |s| s.done.is_some_and(|done| done.deleted == 1)).await;
    assert_eq!(counts(&job).deleted, 1, "{job:?}");
    let done = job.standing.unwrap().done.unwrap();
    assert_eq!((done.published, done.failed), (5, 0), "a twice, each other once: {job:?}");

    let cancel = v1::CancelJobRequest { job_id: watched.id.clone() };
    watched.cluster.client.jobs.clone().cancel_job(cancel).await.expect("cancelled");
    assert_eq!(watched.cluster.client.end_of(&watched.id).await.state(), JobState::Cancelled);
    watched.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_is_empty_all_at_once_is_not_believed() {
    let cluster = Cluster::of(1).with(FakeModel::that_answers("talk", 4)).start().await;
    cluster.share.documents(12);
    let once = cluster.client.success(generate_job()).await;
    assert_eq!(counts(&once).published, 12);
    let results = cluster.share.names("out");
    // Somebody forgot to mount the disk.
    let (folder, aside) = (cluster.share.root().join("in"), cluster.share.root().join("aside"));
    std::fs::rename(&folder, &aside).expect("renamed");
    std::fs::create_dir(&folder).expect("an empty directory");
    let job = cluster.client.done(generate_job()).await;
    assert_eq!((job.state(), job.code.as_str()), (JobState::Failed, "DOCUMENTS_VANISHED"), "{job:?}");
    assert!(job.reason.contains("12 of 12") && job.reason.contains("--allow-mass-deletion"), "{}", job.reason);
    assert_eq!(cluster.share.names("out"), results, "nothing left");
    // Somebody meant it.
    let meant = v1::JobSpec { allow_mass_deletion: true, ..generate_job() };
    let job = cluster.client.success(meant).await;
    assert_eq!((counts(&job).deleted, cluster.share.names("out").len()), (12, 0), "{job:?}");
    cluster.stop().await;
}
