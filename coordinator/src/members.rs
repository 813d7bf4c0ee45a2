//! Follows members: nodes that come and go are told to the sessions, and which gateway to use to whoever calls it.

use std::collections::BTreeMap;
use std::sync::Arc;

use ingle_daemon::Shutdown;
use ingle_membership::{GatewayRecord, MemberEvent, Membership, NodeRecord, Record as _, watch_members};
use ingle_proto::NodeId;
use tokio::sync::watch;

use crate::limits;

/// What nodes' coming and going is told to.
pub trait Roster: Send + Sync + 'static {
    /// A node is there, or says something else of itself than before.
    fn joined(&self, node: NodeRecord);
    /// Its record is gone.
    fn left(&self, node: &NodeId);
}

/// Tells of nodes until shutdown.
pub async fn follow_nodes(membership: Arc<dyn Membership>, roster: Arc<dyn Roster>, shutdown: Shutdown) {
    let mut members = watch_members::<NodeRecord>(membership);
    let mut known: BTreeMap<NodeId, NodeRecord> = BTreeMap::new();
    loop {
        let event = tokio::select! {
            () = shutdown.wait() => return,
            event = members.next() => event,
        };
        let (record, here) = match event {
            MemberEvent::Joined(record) | MemberEvent::Changed(record) => (record, true),
            MemberEvent::Left(record) => (record, false),
        };
        let id = match NodeId::parse(&record.id) {
            Ok(id) => id,
            Err(problem) => {
                tracing::warn!(node = record.id, %problem, "a member is no node of ours and is ignored");
                continue;
            }
        };
        if !here {
            known.remove(&id);
            tracing::info!(node = %id, name = record.name, "node left");
            roster.left(&id);
        } else if known.get(&id).is_some_and(|known| known.dials_as(&record)) {
            // It holds or does something else: it tells us that itself.
        } else if known.contains_key(&id) || known.len() < limits::NODES_MAX {
            tracing::info!(node = %id, name = record.name, work = record.work_address, "node is a member");
            known.insert(id, record.clone());
            roster.joined(record);
        } else {
            tracing::warn!(node = %id, most = limits::NODES_MAX, "one node too many; it gets no work");
        }
    }
}

/// Keeps `chosen` at the address of a gateway that is there, until shutdown. It stays with the one it has.
pub async fn follow_gateways(
    membership: Arc<dyn Membership>,
    chosen: watch::Sender<Option<String>>,
    shutdown: Shutdown,
) {
    let mut members = watch_members::<GatewayRecord>(membership);
    let mut gateways = BTreeMap::new();
    let mut current: Option<String> = None;
    loop {
        let event = tokio::select! {
            () = shutdown.wait() => return,
            event = members.next() => event,
        };
        match event {
            MemberEvent::Joined(record) | MemberEvent::Changed(record) => {
                gateways.insert(record.id().to_owned(), record.address);
            }
            MemberEvent::Left(record) => drop(gateways.remove(record.id())),
        }
        if let Some(id) = &current
            && !gateways.contains_key(id)
        {
            // It stays chosen while nobody else is there: a gateway that restarts comes back to the same place, and
            // calls meanwhile fail by themselves.
            if gateways.is_empty() {
                continue;
            }
            current = None;
        }
        if current.is_none() {
            current = gateways.keys().next().cloned();
        }
        let address = current.as_ref().and_then(|id| gateways.get(id)).cloned();
        if address.is_some() && chosen.send_if_modified(|now| std::mem::replace(now, address.clone()) != address) {
            tracing::info!(gateway = ?address, "gateway chosen");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use ingle_membership::Memory;
    use ingle_membership::seam::Condition;

    use super::*;

    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>, tokio::sync::Notify);

    impl Heard {
        fn note(&self, text: String) {
            self.0.lock().unwrap().push(text);
            self.1.notify_one();
        }

        async fn until(&self, expected: &[&str]) {
            while *self.0.lock().unwrap() != expected {
                self.1.notified().await;
            }
        }
    }

    impl Roster for Heard {
        fn joined(&self, node: NodeRecord) {
            self.note(format!("+{} {}", node.id, node.work_address));
        }

        fn left(&self, node: &NodeId) {
            self.note(format!("-{node}"));
        }
    }

    fn node(id: &str, address: &str) -> NodeRecord {
        NodeRecord { id: id.into(), work_address: address.into(), ..NodeRecord::default() }
    }

    async fn put(memory: &Memory, record: &impl ingle_membership::Record) {
        memory.put(record.key(), record.encode(), None, Condition::Always).await.unwrap();
    }

    #[tokio::test]
    #[allow(clippy::disallowed_methods, reason = "the test owns the task and awaits it")]
    async fn nodes_come_change_and_go() {
        let (memory, stop, heard) = (Memory::new(), Shutdown::new(), Arc::new(Heard::default()));
        put(&memory, &node("n-1", "h:1")).await;
        let task = tokio::spawn(follow_nodes(Arc::new(memory.clone()), heard.clone(), stop.clone()));
        heard.until(&["+n-1 h:1"]).await;
        put(&memory, &node("No Node", "h:9")).await;
        put(&memory, &node("n-1", "h:2")).await;
        memory.delete(node("n-1", "").key(), Condition::Always).await.unwrap();
        heard.until(&["+n-1 h:1", "+n-1 h:2", "-n-1"]).await;
        stop.begin();
        task.await.unwrap();
    }

    #[tokio::test]
    #[allow(clippy::disallowed_methods, reason = "the test owns the task and awaits it")]
    async fn a_gateway_stays_chosen_while_it_is_there() {
        let (memory, stop) = (Memory::new(), Shutdown::new());
        let gateway = |id: &str, address: &str| GatewayRecord {
            id: id.into(),
            address: address.into(),
            ..GatewayRecord::default()
        };
        let (chosen, mut seen) = watch::channel(None);
        let task = tokio::spawn(follow_gateways(Arc::new(memory.clone()), chosen, stop.clone()));
        let mut until = async |address: &str| {
            seen.wait_for(|now| now.as_deref() == Some(address)).await.unwrap();
        };
        put(&memory, &gateway("g-2", "h:2")).await;
        until("h:2").await;
        put(&memory, &gateway("g-1", "h:1")).await;
        put(&memory, &gateway("g-2", "h:3")).await;
        until("h:3").await;
        memory.delete(gateway("g-2", "").key(), Condition::Always).await.unwrap();
        until("h:1").await;
        stop.begin();
        task.await.unwrap();
    }
}
