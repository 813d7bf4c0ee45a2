//! A place's ledger in memory: which visible files are ours, what they were made from, and what is being published.
//!
//! What is stored, per place (see [`store`]): intents before they are acted on, outcomes, and snapshots of both.
//! What isn't: visible bytes, and anything about files that are not ours.

pub mod frame;
pub mod record;
pub mod store;

use std::collections::{BTreeMap, BTreeSet};

use ingle_proto::storage::display_bytes;
use ingle_proto::v1::JobKind;
use ingle_proto::{Digest, ErrorCode, Problem};

use record::{Done, InputState, Intent, OutputState, Publish, Root};

/// Buckets of a ledger's snapshots. Another number needs another mark in the frame.
pub const BUCKETS: u32 = 16;

/// Kinds of jobs whose results have the same names for the same document, this one first.
pub fn alike(kind: i32) -> impl Iterator<Item = i32> {
    let (ocr, generate) = (i32::from(JobKind::Ocr), i32::from(JobKind::Generate));
    let other = if kind == ocr { Some(generate) } else { (kind == generate).then_some(ocr) };
    std::iter::once(kind).chain(other)
}

/// Which bucket a key's state is kept in.
#[must_use]
pub fn bucket_of(key: &[u8]) -> u32 {
    let hash = blake3::hash(key);
    let [a, b, c, d, ..] = *hash.as_bytes();
    u32::from_le_bytes([a, b, c, d]) % BUCKETS
}

/// A visible file of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Of what we published.
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    /// The attempt that made it.
    pub attempt: u64,
    /// The job that made it.
    pub job: String,
    /// `JobKind` of the wire.
    pub kind: i32,
    /// What it was made from, by name.
    pub inputs: BTreeMap<Vec<u8>, InputState>,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    outputs: BTreeMap<Vec<u8>, Output>,
    /// Kind and input name to output names.
    inputs: BTreeMap<(i32, Vec<u8>), BTreeSet<Vec<u8>>>,
    open: BTreeMap<String, Publish>,
    done: BTreeMap<String, Done>,
    dirty: BTreeSet<u32>,
}

impl Ledger {
    /// The visible file of this name, if it is ours.
    #[must_use]
    pub fn output(&self, name: &[u8]) -> Option<&Output> {
        self.outputs.get(name)
    }

    /// All visible files of ours.
    pub fn outputs(&self) -> impl Iterator<Item = (&[u8], &Output)> {
        self.outputs.iter().map(|(name, output)| (name.as_slice(), output))
    }

    /// What is known of an input for a kind of job: the least favourable of what its outputs say.
    #[must_use]
    pub fn input(&self, kind: i32, name: &[u8]) -> Option<&InputState> {
        let mut found: Option<&InputState> = None;
        for output in self.inputs.get(&(kind, name.to_vec()))? {
            let Some(state) = self.outputs.get(output).and_then(|o| o.inputs.get(name)) else { continue };
            if state.stale || found.is_none_or(|f| !f.stale && state.scanned_ms < f.scanned_ms) {
                found = Some(state);
            }
        }
        found
    }

    /// Visible files that were made from an input by a kind of job.
    pub fn outputs_of(&self, kind: i32, name: &[u8]) -> impl Iterator<Item = &[u8]> {
        self.inputs.get(&(kind, name.to_vec())).into_iter().flatten().map(Vec::as_slice)
    }

    /// The input that holds a name against a document of this name below `root`: another input that gave the place results
    /// of it, or the same one by a kind of job that names its results alike. With the kind.
    #[must_use]
    pub fn held_elsewhere(&self, kind: i32, name: &[u8], root: &Root) -> Option<(i32, &Root)> {
        alike(kind).find_map(|held| {
            let states = self.outputs_of(held, name).filter_map(|output| self.outputs.get(output)?.inputs.get(name));
            states
                .filter_map(|state| state.root.as_ref())
                .find(|theirs| held != kind || *theirs != root)
                .map(|r| (held, r))
        })
    }

    /// Names of all inputs of a kind of job, in order.
    pub fn input_names(&self, kind: i32) -> impl Iterator<Item = &[u8]> {
        self.inputs
            .range((kind, Vec::new())..)
            .take_while(move |((k, _), _)| *k == kind)
            .map(|((_, name), _)| name.as_slice())
    }

    /// Publishes whose outcome isn't known yet.
    #[must_use]
    pub fn open(&self) -> Vec<Publish> {
        self.open.values().cloned().collect()
    }

    /// Whether a publish's outcome isn't known yet.
    #[must_use]
    pub fn is_open(&self, key: &str) -> bool {
        self.open.contains_key(key)
    }

    /// A publish that is over.
    #[must_use]
    pub fn done(&self, key: &str) -> Option<&Done> {
        self.done.get(key)
    }

    /// Takes intents.
    pub fn begin(&mut self, publish: Publish) {
        self.open.insert(publish.key.clone(), publish);
    }

    /// Takes outcomes. `fresh` says whether a bucket's state is older than them: what a snapshot holds already is left.
    ///
    /// # Errors
    /// `DIGEST_MISMATCH` if there were no intents for them.
    pub fn finish(&mut self, done: &Done, fresh: impl Fn(u32) -> bool) -> Result<(), Problem> {
        let publish = self.open.remove(&done.key).ok_or_else(|| {
            Problem::new(ErrorCode::DigestMismatch, format!("ledger: outcomes of {} without its intents", done.key))
        })?;
        let results: BTreeMap<&[u8], record::Result> =
            done.outcomes.iter().map(|outcome| (outcome.name.as_slice(), outcome.result())).collect();
        for intent in &publish.intents {
            let bucket = bucket_of(&intent.name);
            if !fresh(bucket) {
                continue;
            }
            self.dirty.insert(bucket);
            match results.get(intent.name.as_slice()).copied().unwrap_or(record::Result::Unspecified) {
                record::Result::Published => self.publish(&publish, intent)?,
                record::Result::Kept => self.merge_inputs(&publish, intent),
                record::Result::Conflict | record::Result::Deleted => self.forget(&intent.name),
                // Digests decide whose it is when it is tried again; forgetting it would make it a person's for good.
                record::Result::Refused => {}
                record::Result::Unspecified => {
                    return Err(Problem::new(
                        ErrorCode::DigestMismatch,
                        format!("ledger: {} has no outcome for {}", done.key, display_bytes(&intent.name)),
                    ));
                }
            }
        }
        // After all of them: whatever else a document gave, a conflict makes it to be done again.
        for intent in &publish.intents {
            let result = results.get(intent.name.as_slice());
            if matches!(result, Some(record::Result::Conflict | record::Result::Refused)) {
                self.spoil(&publish, intent, &fresh);
            }
        }
        let bucket = bucket_of(done.key.as_bytes());
        if fresh(bucket) {
            self.dirty.insert(bucket);
            self.done.insert(done.key.clone(), Done { outcomes: Vec::new(), ..done.clone() });
        }
        Ok(())
    }

    fn publish(&mut self, publish: &Publish, intent: &Intent) -> Result<(), Problem> {
        let mut inputs = BTreeMap::new();
        let before = self.outputs.get(&intent.name).filter(|before| before.kind == publish.kind && !intent.anew);
        if let Some(before) = before {
            inputs = before.inputs.clone();
        }
        self.forget(&intent.name);
        for (name, state) in &inputs {
            debug_assert_eq!(name, &state.name);
            self.inputs.entry((publish.kind, name.clone())).or_default().insert(intent.name.clone());
        }
        self.outputs.insert(
            intent.name.clone(),
            Output {
                digest: Digest::from_wire("ledger intent.digest", &intent.digest)?,
                size: intent.size,
                attempt: publish.attempt,
                job: publish.job.clone(),
                kind: publish.kind,
                inputs,
            },
        );
        self.merge_inputs(publish, intent);
        Ok(())
    }

    fn merge_inputs(&mut self, publish: &Publish, intent: &Intent) {
        let Some(output) = self.outputs.get_mut(&intent.name) else { return };
        for input in &intent.inputs {
            let key = (output.kind, input.name.clone());
            if input.gone {
                output.inputs.remove(&input.name);
                if let Some(names) = self.inputs.get_mut(&key) {
                    names.remove(&intent.name);
                    if names.is_empty() {
                        self.inputs.remove(&key);
                    }
                }
                continue;
            }
            output.inputs.insert(
                input.name.clone(),
                InputState {
                    name: input.name.clone(),
                    size: input.size,
                    mtime_ns: input.mtime_ns,
                    content_digest: input.content_digest.clone(),
                    model: publish.model.clone(),
                    parameters: publish.parameters.clone(),
                    root: publish.root.clone(),
                    scanned_ms: publish.scanned_ms,
                    stale: false,
                },
            );
            self.inputs.entry(key).or_default().insert(intent.name.clone());
        }
    }

    fn forget(&mut self, name: &[u8]) {
        let Some(output) = self.outputs.remove(name) else { return };
        for input in output.inputs.into_keys() {
            let key = (output.kind, input);
            if let Some(names) = self.inputs.get_mut(&key) {
                names.remove(name);
                if names.is_empty() {
                    self.inputs.remove(&key);
                }
            }
        }
    }

    fn spoil(&mut self, publish: &Publish, intent: &Intent, fresh: &impl Fn(u32) -> bool) {
        for input in &intent.inputs {
            let Some(names) = self.inputs.get(&(publish.kind, input.name.clone())) else { continue };
            for name in names {
                let bucket = bucket_of(name);
                if fresh(bucket)
                    && let Some(state) = self.outputs.get_mut(name).and_then(|o| o.inputs.get_mut(&input.name))
                    // What another input's document gave is as good as before.
                    && (publish.root.is_none() || state.root == publish.root)
                {
                    state.stale = true;
                    self.dirty.insert(bucket);
                }
            }
        }
    }

    /// Takes a bucket's snapshot.
    ///
    /// # Errors
    /// `DIGEST_MISMATCH` if it holds a digest that isn't one.
    pub fn restore(&mut self, snapshot: record::Snapshot) -> Result<(), Problem> {
        for state in snapshot.outputs {
            for input in &state.inputs {
                self.inputs.entry((state.kind, input.name.clone())).or_default().insert(state.name.clone());
            }
            self.outputs.insert(
                state.name,
                Output {
                    digest: Digest::from_wire("ledger snapshot.digest", &state.digest)?,
                    size: state.size,
                    attempt: state.attempt,
                    job: state.job,
                    kind: state.kind,
                    inputs: state.inputs.into_iter().map(|input| (input.name.clone(), input)).collect(),
                },
            );
        }
        self.done.extend(snapshot.done.into_iter().map(|done| (done.key.clone(), done)));
        Ok(())
    }

    /// Buckets that changed since their snapshot.
    #[must_use]
    pub fn dirty(&self) -> BTreeSet<u32> {
        self.dirty.clone()
    }

    /// Their snapshots are durable.
    pub fn clean(&mut self) {
        self.dirty.clear();
    }

    /// Forgets publishes that were over before this moment (Unix milliseconds).
    pub fn forget_done_before(&mut self, unix_ms: i64) {
        let dirty = &mut self.dirty;
        self.done.retain(|key, done| {
            let stays = done.at_ms >= unix_ms;
            if !stays {
                dirty.insert(bucket_of(key.as_bytes()));
            }
            stays
        });
    }

    /// One bucket, whole.
    #[must_use]
    pub fn snapshot(&self, bucket: u32, seq: u64) -> record::Snapshot {
        let outputs = self.outputs.iter().filter(|(name, _)| bucket_of(name) == bucket);
        record::Snapshot {
            bucket,
            buckets: BUCKETS,
            seq,
            outputs: outputs
                .map(|(name, output)| OutputState {
                    name: name.clone(),
                    digest: output.digest.0.to_vec(),
                    size: output.size,
                    attempt: output.attempt,
                    job: output.job.clone(),
                    kind: output.kind,
                    inputs: output.inputs.values().cloned().collect(),
                })
                .collect(),
            done: self.done.values().filter(|done| bucket_of(done.key.as_bytes()) == bucket).cloned().collect(),
        }
    }
}
