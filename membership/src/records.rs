//! What members say of themselves: versioned JSON under well-known keys, read with tolerance for what is newer.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Every key of ours starts so.
pub const ROOT: &str = "/inglenook/v1/";
/// Where nodes are.
pub const NODES: &str = "/inglenook/v1/nodes/";
/// Where gateways are.
pub const GATEWAYS: &str = "/inglenook/v1/gateways/";
/// Where coordinators are.
pub const COORDINATORS: &str = "/inglenook/v1/coordinators/";
/// Who leads.
pub const LEADER: &str = "/inglenook/v1/leader";

/// Version of the records that we write.
const VERSION: u32 = 1;

/// A record that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("member record {key}: {reason}")]
pub struct RecordError {
    /// Where it stands.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

impl RecordError {
    /// Never by itself: its writer must write it anew.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        false
    }
}

/// A kind of member.
pub trait Record: Serialize + DeserializeOwned + Clone + PartialEq + std::fmt::Debug + Send + Sync + 'static {
    /// Keys of this kind start so; the identity follows.
    const PREFIX: &'static str;

    /// Who it is, for as long as it lives and beyond.
    fn id(&self) -> &str;

    /// Which start of its process.
    fn incarnation(&self) -> &str;

    /// Where its identity is kept; see [`crate::Identity::place`]. Empty if it has none.
    fn place(&self) -> &str;

    /// Its key.
    fn key(&self) -> Bytes {
        key::<Self>(self.id())
    }

    /// As it is stored.
    fn encode(&self) -> Bytes {
        let stored = Stored { v: VERSION, record: self };
        Bytes::from(serde_json::to_vec(&stored).expect("a record is strings and lists of them"))
    }

    /// Reads what is stored under `key`. Unknown fields and greater versions are fine.
    ///
    /// # Errors
    /// [`RecordError`] if it isn't such a record, or stands under another member's key.
    fn decode(key: &Bytes, value: &Bytes) -> Result<Self, RecordError> {
        let name = String::from_utf8_lossy(key).into_owned();
        let bad = |reason: String| RecordError { key: name.clone(), reason };
        let stored: Stored<Self> = serde_json::from_slice(value).map_err(|error| bad(error.to_string()))?;
        if stored.v == 0 {
            return Err(bad("its version is 0; expected 1 or more".into()));
        }
        if stored.record.key() != key {
            return Err(bad(format!("it is of {:?}", stored.record.id())));
        }
        Ok(stored.record)
    }
}

/// The key of a member of this kind.
#[must_use]
pub fn key<R: Record>(id: &str) -> Bytes {
    Bytes::from(format!("{}{id}", R::PREFIX))
}

#[derive(Serialize, Deserialize)]
struct Stored<R> {
    v: u32,
    #[serde(flatten)]
    record: R,
}

/// A node as others find it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its identity: `n-` and 16 hexadecimal digits.
    pub id: String,
    /// Of this start of the process.
    pub incarnation: String,
    /// For people; not its identity.
    #[serde(default)]
    pub name: String,
    /// Where `Node.Work` is served, `HOST:PORT`.
    pub work_address: String,
    /// Where `Node.Beat` is served, `HOST:PORT`.
    pub beat_address: String,
    /// Of its program.
    #[serde(default)]
    pub version: String,
    /// Where its identity is kept.
    #[serde(default)]
    pub place: String,
    /// What it has, as it measured it at its start.
    #[serde(default)]
    pub capacity: NodeCapacity,
    /// Models in its memory, by name; of more than [`MODELS_TOLD`] the first.
    #[serde(default)]
    pub models: Vec<String>,
    /// What it was doing when it last said so: at most once in some seconds, so for people, never for placing work.
    #[serde(default)]
    pub load: NodeLoad,
}

/// Models that a node's record names at most: records of thousands of nodes go into one store.
pub const MODELS_TOLD: usize = 16;

/// What a node measured of itself, in whole numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeCapacity {
    /// Processor cores.
    #[serde(default)]
    pub cores: u32,
    /// Attempts taken at once.
    #[serde(default)]
    pub slots: u32,
    /// What models may take, bytes.
    #[serde(default)]
    pub memory_budget_bytes: u64,
    /// Bytes per second, all threads.
    #[serde(default)]
    pub memory_bandwidth: u64,
    /// 32-bit operations per second, all threads.
    #[serde(default)]
    pub compute_f32: u64,
}

/// How much of that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeLoad {
    /// Attempts that run.
    #[serde(default)]
    pub running: u32,
    /// Those among them that a person waits for.
    #[serde(default)]
    pub interactive: u32,
    /// Taken by models and attempts, bytes.
    #[serde(default)]
    pub reserved_bytes: u64,
    /// It takes no new work.
    #[serde(default)]
    pub draining: bool,
}

impl NodeRecord {
    /// Whether whoever dials the other would reach the same process: what it holds and does may differ.
    #[must_use]
    pub fn dials_as(&self, other: &Self) -> bool {
        let told = |record: &Self| Self {
            capacity: NodeCapacity::default(),
            models: Vec::new(),
            load: NodeLoad::default(),
            ..record.clone()
        };
        told(self) == told(other)
    }
}

/// A gateway as others find it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GatewayRecord {
    /// Its identity.
    pub id: String,
    /// Of this start of the process.
    pub incarnation: String,
    /// Where `Storage` is served, `HOST:PORT`.
    pub address: String,
    /// Of its program.
    #[serde(default)]
    pub version: String,
    /// Names of its exports.
    #[serde(default)]
    pub exports: Vec<String>,
    /// Where its identity is kept.
    #[serde(default)]
    pub place: String,
}

/// A coordinator as others find it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CoordinatorRecord {
    /// Its identity.
    pub id: String,
    /// Of this start of the process.
    pub incarnation: String,
    /// Where its services are, `HOST:PORT`.
    pub address: String,
    /// Of its program.
    #[serde(default)]
    pub version: String,
    /// Where its identity is kept.
    #[serde(default)]
    pub place: String,
}

macro_rules! record {
    ($name:ident, $prefix:expr) => {
        impl Record for $name {
            const PREFIX: &'static str = $prefix;

            fn id(&self) -> &str {
                &self.id
            }

            fn incarnation(&self) -> &str {
                &self.incarnation
            }

            fn place(&self) -> &str {
                &self.place
            }
        }
    };
}

record!(NodeRecord, NODES);
record!(GatewayRecord, GATEWAYS);
record!(CoordinatorRecord, COORDINATORS);

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeRecord {
        NodeRecord {
            id: "n-1".into(),
            incarnation: "i".into(),
            name: "attic".into(),
            work_address: "127.0.0.1:7710".into(),
            beat_address: "127.0.0.1:7711".into(),
            version: "0.1.0".into(),
            place: "p".into(),
            capacity: NodeCapacity { cores: 4, slots: 2, memory_budget_bytes: 8 << 30, ..NodeCapacity::default() },
            models: vec!["minilm".into()],
            load: NodeLoad { running: 1, ..NodeLoad::default() },
        }
    }

    #[test]
    fn records_survive_the_store() {
        let record = node();
        assert_eq!(record.key(), "/inglenook/v1/nodes/n-1");
        assert_eq!(NodeRecord::decode(&record.key(), &record.encode()), Ok(record));
    }

    #[test]
    fn what_a_node_does_is_told_and_is_no_other_node() {
        let (one, text) = (node(), String::from_utf8(node().encode().to_vec()).expect("JSON"));
        for told in [r#""capacity":{"cores":4"#, r#""models":["minilm"]"#, r#""running":1"#] {
            assert!(text.contains(told), "{text}");
        }
        let busier = NodeRecord { load: NodeLoad { running: 9, ..one.load }, models: Vec::new(), ..one.clone() };
        assert!(one != busier && one.dials_as(&busier));
        assert!(!one.dials_as(&NodeRecord { work_address: "h:1".into(), ..node() }));
        assert!(!one.dials_as(&NodeRecord { incarnation: "j".into(), ..node() }));
        // As 0.1 wrote it.
        let older = br#"{"v":1,"id":"n-1","incarnation":"i","name":"attic","work_address":"127.0.0.1:7710",
            "beat_address":"127.0.0.1:7711","version":"0.1.0","place":"p"}"#;
        let older = NodeRecord::decode(&one.key(), &Bytes::from_static(older)).expect("the fields of then");
        assert!(older.dials_as(&one) && older.models.is_empty() && older.capacity == NodeCapacity::default());
    }

    #[test]
    fn newer_records_are_read() {
        let newer = br#"{"v":9,"id":"g-1","incarnation":"i","address":"h:1","shiny":{"new":[1]},"exports":["docs"]}"#;
        let record = GatewayRecord::decode(&key::<GatewayRecord>("g-1"), &Bytes::from_static(newer)).expect("tolerant");
        assert_eq!((record.address.as_str(), record.exports), ("h:1", vec!["docs".to_owned()]));
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let good = node();
        let deep = format!("{{\"v\":1,\"x\":{}", "[".repeat(10_000));
        for value in ["", "null", "[]", "{}", r#"{"v":0}"#, r#"{"v":1,"id":"n-1"}"#, "\u{0}", deep.as_str()] {
            assert!(NodeRecord::decode(&good.key(), &Bytes::copy_from_slice(value.as_bytes())).is_err(), "{value:.40}");
        }
        let error = NodeRecord::decode(&key::<NodeRecord>("n-2"), &good.encode()).expect_err("another's key");
        assert!(error.to_string().contains("n-2") && error.to_string().contains("n-1"), "{error}");
    }
}
