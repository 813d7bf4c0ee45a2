//! One session per node: the leader's `Node.Work` stream and, on a thread of its own, its beats.

mod beats;
mod heat;
mod link;
mod work;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ingle_daemon::config::TlsConfig;
use ingle_daemon::{OnFailure, Tasks};
use ingle_membership::NodeRecord;
use ingle_proto::v1::{self, work_request::Message};
use ingle_proto::{Epoch, ErrorCode, NodeId, Problem};
use tokio_util::sync::CancellationToken;

use crate::calls::Calls;
use crate::core::Event;
use crate::driver::Handle;
use crate::gateway::Gateway;
use crate::members::Roster;

use beats::Beats;
use heat::Heat;
use link::Link;

/// How long a node may take to load or unload a model.
const COMMAND_WITHIN: Duration = Duration::from_secs(600);

/// What sessions need.
pub struct Deps {
    /// Where events go.
    pub handle: Handle,
    /// Where frames of interactive calls go.
    pub calls: Calls,
    /// Told to nodes.
    pub gateway: Gateway,
    /// For dialling.
    pub tls: TlsConfig,
    /// Owns the sessions' tasks.
    pub tasks: Tasks,
    /// We lead in.
    pub epoch: Epoch,
    /// Who we are.
    pub coordinator_id: String,
}

/// All sessions. Clones share them.
#[derive(Clone)]
pub struct Sessions(Arc<Inner>);

struct Inner {
    deps: Deps,
    beats: Beats,
    heat: Heat,
    /// By the record's identity, or for nodes that don't register by their address.
    entries: Mutex<BTreeMap<String, Entry>>,
    /// Of the nodes that answered with their identity.
    links: Mutex<BTreeMap<NodeId, Arc<Link>>>,
}

struct Entry {
    record: NodeRecord,
    /// Ends the session.
    stop: CancellationToken,
    /// The record is gone: the session ends with its stream.
    leaving: CancellationToken,
}

impl Sessions {
    /// Without nodes yet. Starts the thread for beats.
    ///
    /// # Errors
    /// What the system said to another thread.
    pub fn new(deps: Deps) -> std::io::Result<Self> {
        let heat = Heat::default();
        let beats = Beats::start(&deps, &heat)?;
        Ok(Self(Arc::new(Inner { deps, beats, heat, entries: Mutex::default(), links: Mutex::default() })))
    }

    /// A node is there, or says something else of itself than before. One without an identity (it doesn't register) is
    /// known by its address until it answers.
    pub fn node_joined(&self, record: NodeRecord) {
        let key = if record.id.is_empty() { record.work_address.clone() } else { record.id.clone() };
        let entry = Entry { record, stop: CancellationToken::new(), leaving: CancellationToken::new() };
        let (record, stop, leaving) = (entry.record.clone(), entry.stop.clone(), entry.leaving.clone());
        {
            let mut entries = lock(&self.0.entries);
            if entries.get(&key).is_some_and(|known| known.record == record && !known.leaving.is_cancelled()) {
                return;
            }
            if let Some(before) = entries.insert(key, entry) {
                before.stop.cancel();
            }
        }
        self.0.beats.watch(&record, &stop);
        let sessions = self.clone();
        self.0.deps.tasks.spawn("node session", OnFailure::Log, async move {
            work::keep(&sessions, &record, &stop, &leaving).await;
            Ok::<(), std::convert::Infallible>(())
        });
    }

    /// A node's record is gone. Its stream, if it still has one, goes on until it breaks.
    pub fn node_left(&self, id: &NodeId) {
        let Some(entry) = lock(&self.0.entries).remove(id.as_str()) else { return };
        entry.leaving.cancel();
        if self.link(id).is_none_or(|link| !link.open()) {
            entry.stop.cancel();
        }
        let (sessions, node) = (self.clone(), id.clone());
        self.0.deps.tasks.spawn("node left", OnFailure::Log, async move { sessions.tell_left(node).await });
    }

    /// Tells that a node is gone, unless it is a member again: then another session stands for it, and the end of an older
    /// one, whose stream may have been dead for a while, says nothing.
    async fn tell_left(&self, node: NodeId) -> Result<(), Problem> {
        let link = self.link_of(&node);
        let _order = link.order.lock().await;
        if lock(&self.0.entries).contains_key(node.as_str()) {
            return Ok(());
        }
        self.0.deps.handle.send(Event::NodeLeft { node }).await
    }

    /// Sends to a node without waiting.
    ///
    /// # Errors
    /// `OVERLOADED` if there is no stream to it or too much waits for it.
    pub fn send(&self, node: &NodeId, message: Message) -> Result<(), Problem> {
        match self.link(node) {
            Some(link) => link.send(message),
            None => Err(unconnected(node)),
        }
    }

    /// Adds what beats said of heat and power to what is known of nodes.
    pub fn with_heat(&self, nodes: &mut [v1::NodeStatus]) {
        self.0.heat.add_to(nodes);
    }

    /// Loads (or unloads) a model on a node and waits until it says that it is done.
    ///
    /// # Errors
    /// What the node said; `OVERLOADED` without a stream to it; `DEADLINE` after ten minutes.
    pub async fn command(&self, node: &NodeId, model: v1::ModelRef, load: bool) -> Result<v1::CommandDone, Problem> {
        let link = self.link(node).ok_or_else(|| unconnected(node))?;
        let (request, answer) = link.expect_answer()?;
        let _forget = link::Forget(&link, request);
        let model = Some(model);
        link.send(if load {
            Message::Load(v1::LoadCommand { request, model })
        } else {
            Message::Unload(v1::UnloadCommand { request, model })
        })?;
        let done = tokio::time::timeout(COMMAND_WITHIN, answer)
            .await
            .map_err(|_| Problem::new(ErrorCode::Deadline, format!("node {node} took over {COMMAND_WITHIN:?}")))?
            .map_err(|_| Problem::new(ErrorCode::NoNode, format!("the connection to node {node} broke meanwhile")))?;
        if done.ok {
            return Ok(done);
        }
        let code = ErrorCode::parse(&done.code).unwrap_or(ErrorCode::Internal);
        Err(Problem::new(code, format!("node {node}: {}", done.message)))
    }

    fn link(&self, node: &NodeId) -> Option<Arc<Link>> {
        lock(&self.0.links).get(node).cloned()
    }

    /// The link of a node that told its identity.
    fn link_of(&self, node: &NodeId) -> Arc<Link> {
        Arc::clone(lock(&self.0.links).entry(node.clone()).or_default())
    }
}

impl Roster for Sessions {
    fn joined(&self, node: NodeRecord) {
        self.node_joined(node);
    }

    fn left(&self, node: &NodeId) {
        self.node_left(node);
    }
}

fn unconnected(node: &NodeId) -> Problem {
    Problem::new(ErrorCode::Overloaded, format!("node {node} has no stream to this coordinator now"))
        .retry_after(Duration::from_secs(1))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
