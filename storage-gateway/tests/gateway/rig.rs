//! A publisher on exports in memory, started and killed at will, and a few words to write scenarios with.

use std::collections::BTreeMap;
use std::sync::Arc;

use ingle_daemon::metrics::Metrics;
use ingle_gateway::blob::Blobs;
use ingle_gateway::config::STATE_EXPORT;
use ingle_gateway::export::Export;
use ingle_gateway::export::nfs::{NfsExport, NfsOptions};
use ingle_gateway::exports::Exports;
use ingle_gateway::fence::Fence;
use ingle_gateway::file;
use ingle_gateway::metrics::Meters;
use ingle_gateway::nfs_server::{NfsServer, NfsServerOptions};
use ingle_gateway::place::Place;
use ingle_gateway::publish::{Publisher, Request};
use ingle_proto::storage::Object;
use ingle_proto::{Digest, Epoch, JobId, Problem, v1};

use crate::memory::Memory;
use crate::plan::{Plan, Planned};
use crate::share::{Behind, Share};

/// The NAS, the state export and the state directory: what outlives a gateway.
pub(crate) struct Rig {
    pub(crate) nas: Arc<Memory>,
    pub(crate) state: Arc<Memory>,
    pub(crate) dir: tempfile::TempDir,
    /// The place lies on a real server instead of `nas`.
    served: Option<Served>,
}

struct Served {
    export: Arc<dyn Export>,
    behind: Arc<Behind>,
    _server: NfsServer,
    _root: tempfile::TempDir,
}

/// One run of a gateway's publisher.
pub(crate) struct Running {
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) place: Place,
    pub(crate) blobs: Blobs,
    pub(crate) plan: Plan,
    pub(crate) fence: Arc<Fence>,
    pub(crate) meters: Meters,
}

/// What is to be published: the result under a name, its removal, or that it stays.
#[derive(Debug, Clone)]
pub(crate) enum Output {
    Show(&'static str, &'static [u8]),
    Remove(&'static str),
    Keep(&'static str),
}

impl Output {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Show(name, _) | Self::Remove(name) | Self::Keep(name) => name,
        }
    }
}

/// In memory where the machine has such a place: thousands of runs each sync a few small files.
fn scratch() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    if memory.is_dir()
        && let Ok(dir) = tempfile::tempdir_in(memory)
    {
        return dir;
    }
    tempfile::tempdir().unwrap()
}

impl Rig {
    pub(crate) fn new(link: bool) -> Self {
        let (nas, state) = (Arc::new(Memory::new(link)), Arc::new(Memory::new(link)));
        Self { nas, state, dir: scratch(), served: None }
    }

    /// With the place on our own NFS server, spoken to by our own client.
    pub(crate) async fn over_nfs() -> Self {
        let root = scratch();
        let server = NfsServer::bind(root.path(), NfsServerOptions::default()).await.unwrap();
        let export: Arc<dyn Export> = Arc::new(NfsExport::new(&server.url(), &NfsOptions::default()).unwrap());
        let behind = Arc::new(Behind(root.path().to_owned()));
        Self { served: Some(Served { export, behind, _server: server, _root: root }), ..Self::new(true) }
    }

    /// Where people do their deeds.
    pub(crate) fn share(&self) -> Arc<dyn Share> {
        match &self.served {
            Some(served) => served.behind.clone(),
            None => self.nas.clone(),
        }
    }

    pub(crate) fn start(&self) -> Running {
        let plan = Plan::default();
        let wrap = |inner: Arc<dyn Export>| -> Arc<dyn Export> {
            Arc::new(Planned { inner, people_at: self.share(), plan: plan.clone() })
        };
        let nas: Arc<dyn Export> = match &self.served {
            Some(served) => served.export.clone(),
            None => self.nas.clone(),
        };
        let meters = Meters::new(&Metrics::new("test"));
        let state = Exports::empty(meters.clone()).with(STATE_EXPORT, wrap(self.state.clone()));
        let blobs = Blobs::new(Arc::new(state));
        let fence = Arc::new(Fence::open(self.dir.path()).unwrap());
        let publisher = Publisher::new(blobs.clone(), fence.clone(), self.dir.path(), meters.clone());
        let place = Place::new(Object::parse("nas://docs/out").unwrap(), wrap(nas)).unwrap();
        Running { publisher: Arc::new(publisher), place, blobs, plan, fence, meters }
    }

    /// Files below the place that people see, by name.
    pub(crate) fn visible(&self) -> BTreeMap<String, Vec<u8>> {
        let strip = |(path, data): (String, Vec<u8>)| path.strip_prefix("out/").map(|name| (name.to_owned(), data));
        self.share().files(false).into_iter().filter_map(strip).collect()
    }

    /// Everything a test compares: visible files, what waits in our own directories, and the ledger.
    pub(crate) async fn summary(&self) -> Summary {
        let running = self.start();
        let ledger = running.publisher.ledger(&running.place).await.unwrap();
        let own = self.share().files(true);
        let outputs = ledger.outputs().map(|(name, output)| {
            let inputs: Vec<_> = output.inputs.keys().map(|n| String::from_utf8(n.clone()).unwrap()).collect();
            (String::from_utf8(name.to_vec()).unwrap(), (output.digest, output.attempt, inputs))
        });
        Summary {
            visible: self.visible(),
            outputs: outputs.collect(),
            staged: own.keys().filter(|path| path.contains("/staged/")).cloned().collect(),
            trash: own.iter().filter(|(path, _)| path.contains("/trash/")).map(|(_, data)| data.clone()).collect(),
            open: ledger.open().len(),
        }
    }
}

/// See [`Rig::summary`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) visible: BTreeMap<String, Vec<u8>>,
    pub(crate) outputs: BTreeMap<String, (Digest, u64, Vec<String>)>,
    pub(crate) staged: Vec<String>,
    pub(crate) trash: Vec<Vec<u8>>,
    pub(crate) open: usize,
}

pub(crate) fn staged_name(attempt: u64, at: usize) -> String {
    format!("j-1-{at}-{attempt}")
}

impl Running {
    /// Stages the results of an attempt, and the manifest that names them.
    pub(crate) async fn stage(&self, attempt: u64, outputs: &[Output]) -> Request {
        let mut manifest = v1::ResultManifest::default();
        for (at, output) in outputs.iter().enumerate() {
            let source = output.name().trim_end_matches(".json").to_owned();
            let input = v1::Provenance {
                name: source.into_bytes().into(),
                size: 3,
                mtime_ns: 5,
                content_digest: Digest::of(b"doc").to_wire(),
                gone: matches!(output, Output::Remove(_)),
            };
            let mut result = v1::OutputResult {
                name: output.name().as_bytes().to_vec().into(),
                inputs: vec![input],
                ..Default::default()
            };
            match output {
                Output::Show(_, data) => {
                    result.staged_name = staged_name(attempt, at);
                    result.digest = Digest::of(data).to_wire();
                    result.size = data.len() as u64;
                    let path = self.place.staged(&result.staged_name).unwrap();
                    let data = bytes::Bytes::from_static(data);
                    let sealed = file::write_whole(&self.place.export, &self.place.temporary(), &data).await.unwrap();
                    sealed.name(&path).await.unwrap();
                }
                Output::Remove(_) => result.remove = true,
                Output::Keep(_) => result.keep = true,
            }
            manifest.outputs.push(result);
        }
        let blob = self.blobs.put(&prost::Message::encode_to_vec(&manifest).into()).await.unwrap();
        Request {
            epoch: Epoch { generation: 1, revision: 1 },
            job: JobId::parse("j-1").unwrap(),
            attempt,
            manifest: blob,
            model: vec![1; 32],
            parameters: vec![2; 32],
            kind: v1::JobKind::Generate,
        }
    }

    pub(crate) async fn publish(&self, request: &Request) -> Result<v1::PublishResponse, Problem> {
        self.publisher.publish(&self.place, request.clone()).await
    }

    /// What is said of each output, by name.
    pub(crate) async fn reasons(&self, response: &v1::PublishResponse) -> BTreeMap<String, String> {
        let manifest: v1::OutcomeManifest =
            self.blobs.message("outcomes", response.outcomes.as_ref().unwrap()).await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        manifest.outputs.iter().map(|o| (text(&o.name), o.reason.clone())).collect()
    }

    /// Outcomes by name: how it ended and where our result lies instead.
    pub(crate) async fn outcomes(&self, response: &v1::PublishResponse) -> BTreeMap<String, (v1::ItemOutcome, String)> {
        let manifest: v1::OutcomeManifest =
            self.blobs.message("outcomes", response.outcomes.as_ref().unwrap()).await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        manifest.outputs.iter().map(|o| (text(&o.name), (o.outcome(), text(&o.conflict_name)))).collect()
    }
}
