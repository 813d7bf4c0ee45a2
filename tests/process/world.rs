//! A cluster of real processes over a share that our own NFS server serves.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use futures::future::join_all;
use ingle_proto::v1::{self, JobState};
use ingle_tests::client::{Client, counts, embed_job, generate_job, object};
use ingle_tests::cluster::counted;
use ingle_tests::etcd::Etcd;
use ingle_tests::models::FakeModel;
use ingle_tests::parquet::rows;
use ingle_tests::process::{Process, binary};
use ingle_tests::share::{Identity, Share};
use std::collections::{BTreeMap, BTreeSet};
use tempfile::TempDir;

/// Documents of the share.
pub(crate) const DOCUMENTS: usize = 300;

/// See the module. Processes end when it is dropped.
pub(crate) struct World {
    pub(crate) client: Client,
    pub(crate) share: Share,
    pub(crate) nodes: Vec<Process>,
    pub(crate) gateway: Process,
    pub(crate) coordinator: Process,
    /// Those beside it.
    pub(crate) others: Vec<Process>,
    etcd: Option<Etcd>,
    _nfs: Process,
    _home: TempDir,
}

fn settings(home: &Path, name: &str, text: &str) -> Vec<OsString> {
    let path = home.join(format!("{name}.toml"));
    std::fs::write(&path, text).expect("room for settings");
    vec!["--config".into(), path.into(), "--metrics".into(), "127.0.0.1:0".into()]
}

/// `ingle-test-node`: the node with the engine of tests.
pub(crate) fn node_binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_ingle-test-node"))
}

impl World {
    /// Starts everything and waits until it is whole.
    pub(crate) async fn start(nodes: usize, models: &[FakeModel]) -> Self {
        Self::start_with(nodes, models, "").await
    }

    /// The same with more settings for each daemon: whole sections of TOML.
    pub(crate) async fn start_with(nodes: usize, models: &[FakeModel], more: &str) -> Self {
        Self::start_in(None, 1, nodes, models, more).await
    }

    /// With several coordinators that keep members and jobs in etcd. `None`, said aloud, where there is no etcd.
    pub(crate) async fn of_several(coordinators: usize, nodes: usize, models: &[FakeModel]) -> Option<Self> {
        let etcd = Etcd::start()?;
        Some(Self::start_in(Some(etcd), coordinators, nodes, models, "").await)
    }

    async fn start_in(etcd: Option<Etcd>, coordinators: usize, nodes: usize, models: &[FakeModel], more: &str) -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let at = home.path();
        let share = Share::at(at.join("share"));
        for model in models {
            model.put(&at.join("models"));
        }
        let serve: Vec<OsString> = vec!["serve-nfs".into(), share.root().into()];
        let nfs = Process::start("nfs", binary("ingle-gateway"), serve, at).await;
        let nfs_address = nfs.address("nfs");
        let port = nfs_address.port();

        let etcd_url = etcd.as_ref().map(Etcd::url);
        // Side by side: each of them waits for itself alone.
        let starting = (1..=coordinators).map(|number| {
            let name = if number == 1 { "coordinator".to_owned() } else { format!("coordinator-{number}") };
            let mut text = format!("listen = '127.0.0.1:0'\nstate_dir = '{}'\n", at.join(&name).display());
            if let Some(url) = &etcd_url {
                let _ = writeln!(text, "membership = '{url}'");
            }
            let arguments = settings(at, &name, &(text + more));
            async move { Process::start(&name, binary("ingle-coordinator"), arguments, at).await }
        });
        let mut started = join_all(starting).await;
        let (coordinator, others) = (started.remove(0), started);
        let address = coordinator.address("grpc");
        let members = etcd_url.unwrap_or_else(|| format!("http://{address}"));

        let mut text = format!("listen = '127.0.0.1:0'\nmembership = '{members}'\n");
        let _ = writeln!(text, "state_dir = '{}'\n[exports.docs]", at.join("gateway").display());
        let _ = writeln!(text, "url = 'nfs://{nfs_address}/?mountport={port}&nfsport={port}'");
        text += more;
        let gateway = Process::start("gateway", binary("ingle-gateway"), settings(at, "gateway", &text), at).await;

        let starting = (1..=nodes).map(|number| {
            let name = format!("node-{number}");
            let mut text = format!("name = '{name}'\nlisten = '127.0.0.1:0'\nbeat_listen = '127.0.0.1:0'\n");
            let _ = writeln!(text, "membership = '{members}'\nmodels = '{}'", at.join("models").display());
            let _ = writeln!(text, "state_dir = '{0}/state'\ncache_dir = '{0}/cache'", at.join(&name).display());
            let _ = writeln!(text, "memory_reserve_bytes = 0\nmeasure_ms = 0\nthreads = 1\ndrain_timeout_s = 10");
            text += more;
            let arguments = settings(at, &name, &text);
            async move { Process::start(&name, node_binary(), arguments, at).await }
        });
        let started = join_all(starting).await;
        let client = Client::to(address);
        client.ready(nodes, models.len()).await;
        Self { client, share, nodes: started, gateway, coordinator, others, etcd, _nfs: nfs, _home: home }
    }

    /// All that daemons have said so far.
    pub(crate) fn logs(&self) -> String {
        let entries = std::fs::read_dir(self._home.path()).expect("a directory");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        let logs = paths.filter(|path| path.extension().is_some_and(|ending| ending == "log"));
        logs.map(|path| std::fs::read_to_string(path).expect("a log")).collect()
    }

    /// Where members and jobs are.
    pub(crate) fn etcd_url(&self) -> String {
        self.etcd.as_ref().expect("a world of several").url()
    }

    /// The coordinators.
    pub(crate) fn coordinators(&mut self) -> impl Iterator<Item = &mut Process> {
        std::iter::once(&mut self.coordinator).chain(&mut self.others)
    }

    /// Models slow enough for a job of [`DOCUMENTS`] to take some seconds.
    pub(crate) fn slow_models() -> [FakeModel; 2] {
        [
            FakeModel::that_answers("talk", ANSWER_TOKENS).at_ms_per_step(4).with_slots(2),
            FakeModel::that_embeds("words").at_ms_per_step(8).with_slots(1),
        ]
    }

    /// Tokens that all nodes wrote since they started.
    pub(crate) async fn tokens_written(&self) -> u64 {
        let mut sum = 0;
        for node in 0..self.nodes.len() {
            sum += self.tokens_written_by(node).await;
        }
        sum
    }

    /// Tokens that one node wrote since it started.
    pub(crate) async fn tokens_written_by(&self, node: usize) -> u64 {
        counted(&self.nodes[node].metrics().await, "ingle_node_tokens_written_total")
    }
}

/// Tokens of each answer of [`World::slow_models`].
pub(crate) const ANSWER_TOKENS: u32 = 5;

/// Two jobs over the same 300 documents, one of each kind, in the middle of their work.
pub(crate) struct Jobs {
    answers: String,
    vectors: String,
    documents: BTreeSet<String>,
    /// What was visible when something was about to be killed.
    before: BTreeMap<String, Identity>,
}

impl Jobs {
    /// Submits both, and waits until some answers are visible and many are not.
    pub(crate) async fn in_the_middle(world: &World) -> Self {
        let documents: BTreeSet<String> = world.share.documents(DOCUMENTS).into_keys().collect();
        let client = &world.client;
        let spec = v1::JobSpec { model: "talk".into(), output: Some(object("answers")), ..generate_job() };
        let answers = client.submit(spec).await;
        let spec = v1::JobSpec { model: "words".into(), output: Some(object("vectors")), ..embed_job() };
        let vectors = client.submit(spec).await;
        let job = client.job_that(&answers, "the first answers", |job| counts(job).published > 0).await;
        assert!(counts(&job).published < DOCUMENTS as u64, "the job is in the middle: {job:?}");
        let before = world.share.identities("answers");
        Self { answers, vectors, documents, before }
    }

    /// Waits for the end of both and proves: nothing lost, nothing doubled, nothing that was visible done again.
    pub(crate) async fn end_well(&self, world: &World) {
        for id in [&self.answers, &self.vectors] {
            let job = world.client.end_of(id).await;
            let seen = counts(&job);
            assert_eq!((job.state(), seen.total), (JobState::Succeeded, DOCUMENTS as u64), "{job:?}");
            assert_eq!((seen.published, seen.running, seen.committed), (DOCUMENTS as u64, 0, 0), "{job:?}");
            let items = world.client.items(id).await;
            assert_eq!(items.keys().cloned().collect::<BTreeSet<_>>(), self.documents);
            assert!(items.values().all(|item| item.outcome() == v1::ItemOutcome::Published), "{items:?}");
        }
        let after = world.share.identities("answers");
        let expected: BTreeSet<String> =
            self.documents.iter().flat_map(|name| [format!("{name}.json"), format!("{name}.txt")]).collect();
        assert_eq!(after.keys().cloned().collect::<BTreeSet<_>>(), expected, "one result each, and nothing beside");
        for (name, identity) in &self.before {
            assert_eq!(&after[name], identity, "{name} was visible before and is the very same file");
        }
        for name in &self.documents {
            let json = world.share.json(&format!("answers/{name}.json"));
            assert_eq!((json["path"].as_str(), json["model"].as_str()), (Some(name.as_str()), Some("talk")));
            assert_eq!(json["usage"]["output_tokens"], ANSWER_TOKENS, "{name} is whole");
        }
        let rows = rows(&world.share, "vectors");
        let passages: BTreeSet<_> = rows.iter().map(|row| (row.path.as_str(), row.passage)).collect();
        assert_eq!(passages.len(), rows.len(), "no passage twice");
        let embedded: BTreeSet<_> = rows.iter().map(|row| row.path.clone()).collect();
        assert_eq!(embedded, self.documents, "no document lost");
        // Submitted again, there is nothing left to do.
        let spec = v1::JobSpec { model: "talk".into(), output: Some(object("answers")), ..generate_job() };
        let again = counts(&world.client.success(spec).await);
        assert_eq!((again.unchanged, again.published), (DOCUMENTS as u64, 0));
        assert_eq!(world.share.identities("answers"), after);
    }

    /// Tokens of the answers that were not visible yet.
    pub(crate) fn tokens_left(&self) -> u64 {
        (DOCUMENTS - self.visible_before()) as u64 * u64::from(ANSWER_TOKENS)
    }

    /// How many answers were visible before the end.
    pub(crate) fn visible_before(&self) -> usize {
        self.before.len() / 2
    }
}
