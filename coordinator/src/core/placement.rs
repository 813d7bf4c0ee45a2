//! Where work goes: expected finish time over the nodes that fit, with speeds measured rather than configured. Pure arithmetic.

use std::collections::BTreeMap;

use ingle_proto::{NodeId, v1};

/// Terms of the decision, in milliseconds; ordered by `finish`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Terms {
    /// Until the node is through with what it has.
    pub backlog: f64,
    /// Loading the weights, if it doesn't hold them.
    pub load: f64,
    /// Reading the input.
    pub prefill: f64,
    /// Producing the output.
    pub output: f64,
}

impl Terms {
    /// When it would be done.
    #[must_use]
    pub fn finish(&self) -> f64 {
        self.backlog + self.load + self.prefill + self.output
    }
}

/// Why work went where it went.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Decision {
    /// Of the node it went to.
    pub terms: Terms,
    /// The next best, and when it would have been done there.
    pub next: Option<(NodeId, f64)>,
    /// Nodes that could have taken it.
    pub of: usize,
}

/// Size of a piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Size {
    /// Documents or texts.
    pub items: u32,
    /// Bytes of them.
    pub bytes: u64,
    /// Tokens each may produce.
    pub output_tokens: u32,
    /// Pages of them; 0 where nobody has counted.
    pub pages: u32,
}

/// A running mean that forgets: each sample weighs a fifth.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Mean(f64);

impl Mean {
    fn add(slot: &mut Option<Self>, sample: f64) {
        if sample.is_finite() && sample > 0.0 {
            *slot = Some(Self(slot.map_or(sample, |mean| mean.0 + (sample - mean.0) * 0.2)));
        }
    }
}

/// What was measured of one model on one node.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Speed {
    ms_per_kib: Option<Mean>,
    ms_per_item: Option<Mean>,
    ms_per_page: Option<Mean>,
}

/// Measured speeds by node and model, and on what hardware.
#[derive(Debug, Default)]
pub struct Speeds {
    measured: BTreeMap<NodeId, BTreeMap<String, Speed>>,
    /// Outlives a node's entry among the nodes: it may have left to be given other hardware.
    hardware: BTreeMap<NodeId, Hardware>,
}

/// What makes a machine another one: nothing that merely varies from one measurement to the next.
#[derive(Debug, Clone, PartialEq)]
struct Hardware {
    cpu: String,
    cores: u32,
    memory_bytes: u64,
    instruction_sets: Vec<String>,
    devices: Vec<String>,
    backend: String,
}

/// Machines whose speeds are remembered, attached or not.
const MACHINES_MAX: usize = 2 * crate::limits::NODES_MAX;
/// Bytes per token of ordinary text: good enough for an estimate that measurement replaces.
const BYTES_PER_TOKEN: f64 = 4.0;
/// Share of the measured peak that engines reach before they are measured.
const EFFICIENCY: f64 = 0.3;
/// Arithmetic of reading a page, and how large pages are on the average: guesses for what nobody has measured.
const FLOP_PER_PAGE: f64 = 100e9;
const KIB_PER_PAGE: f64 = 100.0;
/// Reading weights from a NAS over gigabit Ethernet, bytes per millisecond.
const LOAD_BYTES_PER_MS: f64 = 110_000.0;

impl Speeds {
    /// Learns from a batch that took `busy_ms`.
    pub fn learn(&mut self, node: &NodeId, model: &str, size: Size, busy_ms: f64) {
        let speed = self.measured.entry(node.clone()).or_default().entry(model.to_owned()).or_default();
        if size.bytes > 0 {
            Mean::add(&mut speed.ms_per_kib, busy_ms / (size.bytes as f64 / 1024.0));
        }
        if size.items > 0 {
            Mean::add(&mut speed.ms_per_item, busy_ms / f64::from(size.items));
        }
        if size.pages > 0 {
            Mean::add(&mut speed.ms_per_page, busy_ms / f64::from(size.pages));
        }
    }

    /// A node says what it has: on other hardware than before, nothing that was learned holds any more.
    pub fn runs_on(&mut self, node: &NodeId, capacity: &v1::Capacity) {
        let hardware = Hardware {
            cpu: capacity.cpu.clone(),
            cores: capacity.cores,
            memory_bytes: capacity.memory_bytes,
            instruction_sets: capacity.instruction_sets.clone(),
            devices: capacity.devices.clone(),
            backend: capacity.backend.clone(),
        };
        if self.hardware.get(node) == Some(&hardware) {
            return;
        }
        self.measured.remove(node);
        if self.hardware.len() >= MACHINES_MAX && !self.hardware.contains_key(node) {
            // Nodes that never come back would add up: whoever is dropped is measured anew.
            if let Some((dropped, _)) = self.hardware.pop_first() {
                self.measured.remove(&dropped);
            }
        }
        self.hardware.insert(node.clone(), hardware);
    }

    /// Whether this model has run on this node.
    #[must_use]
    pub fn measured(&self, node: &NodeId, model: &str) -> bool {
        self.measured.get(node).is_some_and(|models| models.contains_key(model))
    }

    /// Milliseconds of (input, output) for work of this size.
    #[must_use]
    pub fn estimate(
        &self,
        node: &NodeId,
        capacity: &v1::Capacity,
        model: &v1::ModelInfo,
        loaded: Option<&v1::LoadedModel>,
        size: Size,
    ) -> (f64, f64) {
        let name = model.model.as_ref().map_or("", |m| m.name.as_str());
        let speed = self.measured.get(node).and_then(|models| models.get(name)).copied().unwrap_or_default();
        let kib = size.bytes as f64 / 1024.0;
        if model.kind() == v1::JobKind::Generate {
            if let Some(per_item) = speed.ms_per_item {
                return (0.0, per_item.0 * f64::from(size.items.max(1)));
            }
            let (prefill, decode) = llm_speed(capacity, model, loaded);
            let tokens = size.bytes as f64 / BYTES_PER_TOKEN + 32.0 * f64::from(size.items.max(1));
            let output = f64::from(size.output_tokens) * f64::from(size.items.max(1));
            return (1e3 * tokens / prefill, 1e3 * output / decode);
        }
        if let Some(per_page) = speed.ms_per_page.filter(|_| size.pages > 0) {
            return (per_page.0 * f64::from(size.pages), 0.0);
        }
        if let Some(per_kib) = speed.ms_per_kib {
            return (per_kib.0 * kib, 0.0);
        }
        if model.kind() == v1::JobKind::Ocr {
            let pages =
                if size.pages > 0 { f64::from(size.pages) } else { (kib / KIB_PER_PAGE).max(f64::from(size.items)) };
            return (1e3 * pages * FLOP_PER_PAGE / (capacity.compute_f32.max(1e9) * EFFICIENCY), 0.0);
        }
        let flops = 2.0 * model.parameters.max(1) as f64 * size.bytes as f64 / BYTES_PER_TOKEN;
        (1e3 * flops / (capacity.compute_f32.max(1e9) * EFFICIENCY), 0.0)
    }

    /// Milliseconds to load a model where it isn't loaded.
    #[must_use]
    pub fn load_ms(model: &v1::ModelInfo, loaded: bool) -> f64 {
        if loaded { 0.0 } else { model.weight_bytes as f64 / LOAD_BYTES_PER_MS }
    }
}

/// Tokens per second (prefill, decode): measured, or predicted: decode is bound by bandwidth, prefill by arithmetic.
#[must_use]
pub fn llm_speed(capacity: &v1::Capacity, model: &v1::ModelInfo, loaded: Option<&v1::LoadedModel>) -> (f64, f64) {
    let bandwidth = capacity.memory_bandwidth.max(1e9);
    let decode = bandwidth * 0.5 / model.bytes_per_token.max(1) as f64;
    let prefill = capacity.compute_f32.max(1e9) * EFFICIENCY / (2.0 * model.parameters.max(1) as f64);
    let pick = |measured: Option<f64>, predicted: f64| measured.filter(|m| *m > 0.0).unwrap_or(predicted);
    (
        pick(loaded.map(|l| l.prefill_tokens_per_second), prefill.max(1.0)),
        pick(loaded.map(|l| l.decode_tokens_per_second), decode.max(0.1)),
    )
}

/// The arithmetic of memory: weights × 1.05 + KV (context × slots) + activations, and 10 % on top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    /// Weights as held × 1.05, bytes: an engine may widen what is stored narrow.
    pub weights: u64,
    /// KV cache, bytes.
    pub kv: u64,
    /// Activations, bytes.
    pub activations: u64,
    /// The sum with 10 % on top, bytes.
    pub needed: u64,
}

/// What a model takes with a context of `context` tokens in `slots` slots.
#[must_use]
pub fn fit(model: &v1::ModelInfo, context: u32, slots: u32) -> Fit {
    let held = model.weight_bytes.max(model.bytes_per_token);
    let weights = held.saturating_add(held / 20);
    let context = if model.context == 0 { context } else { context.min(model.context) };
    let kv = model.kv_bytes_per_token.saturating_mul(u64::from(context)).saturating_mul(u64::from(slots.max(1)));
    // A chunk of 512 tokens, some eight vectors of the model's width in f32 per token.
    let activations = 512u64 * u64::from(model.width) * 4 * 8;
    let sum = weights.saturating_add(kv).saturating_add(activations);
    Fit { weights, kv, activations, needed: sum.saturating_add(sum / 10) }
}

/// Ties are broken by a hash of both, so that equal nodes share: the same inputs give the same choice.
#[must_use]
pub fn tie(seed: u64, node: &NodeId) -> u64 {
    let hash = blake3::Hasher::new().update(&seed.to_le_bytes()).update(node.as_str().as_bytes()).finalize();
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a digest has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::parse(name).unwrap()
    }

    fn model(kind: v1::JobKind) -> v1::ModelInfo {
        v1::ModelInfo {
            model: Some(v1::ModelRef { name: "m".into(), ..Default::default() }),
            kind: kind.into(),
            parameters: 1_000_000_000,
            weight_bytes: 800_000_000,
            bytes_per_token: 800_000_000,
            kv_bytes_per_token: 65_536,
            context: 4096,
            width: 2048,
            ..Default::default()
        }
    }

    #[test]
    fn decode_is_bound_by_bandwidth() {
        let capacity = v1::Capacity { memory_bandwidth: 16e9, compute_f32: 400e9, ..Default::default() };
        let (_, decode) = llm_speed(&capacity, &model(v1::JobKind::Generate), None);
        assert!((decode - 10.0).abs() < 1e-9, "{decode}");
        let loaded = v1::LoadedModel { decode_tokens_per_second: 18.5, ..Default::default() };
        let (_, decode) = llm_speed(&capacity, &model(v1::JobKind::Generate), Some(&loaded));
        assert!((decode - 18.5).abs() < 1e-9, "measurement replaces prediction: {decode}");
    }

    #[test]
    fn measurement_replaces_the_guess_and_is_forgotten_with_the_hardware() {
        let mut speeds = Speeds::default();
        let capacity = v1::Capacity { compute_f32: 400e9, cores: 4, cpu: "a".into(), ..Default::default() };
        speeds.runs_on(&node("n-1"), &capacity);
        let size = Size { items: 4, bytes: 8192, ..Size::default() };
        let info = model(v1::JobKind::Embed);
        let guess = speeds.estimate(&node("n-1"), &capacity, &info, None, size);
        speeds.learn(&node("n-1"), "m", size, 80.0);
        let measured = speeds.estimate(&node("n-1"), &capacity, &info, None, size);
        assert_ne!(guess, measured);
        assert!((measured.0 - 80.0).abs() < 1e-9);
        // Measured again at its next start, and the same machine.
        speeds.runs_on(&node("n-1"), &v1::Capacity { compute_f32: 390e9, ..capacity.clone() });
        assert_eq!(speeds.estimate(&node("n-1"), &capacity, &info, None, size), measured);
        for other in [
            v1::Capacity { cores: 8, ..capacity.clone() },
            v1::Capacity { cpu: "b".into(), ..capacity.clone() },
            v1::Capacity { memory_bytes: 1 << 30, ..capacity.clone() },
            v1::Capacity { devices: vec!["gpu".into()], ..capacity.clone() },
            v1::Capacity { backend: "another".into(), ..capacity.clone() },
        ] {
            speeds.runs_on(&node("n-1"), &capacity);
            speeds.learn(&node("n-1"), "m", size, 80.0);
            speeds.runs_on(&node("n-1"), &other);
            assert_eq!(speeds.estimate(&node("n-1"), &capacity, &info, None, size), guess, "{other:?}");
        }
    }

    #[test]
    fn pages_cost_by_their_number_once_they_were_measured() {
        let mut speeds = Speeds::default();
        let capacity = v1::Capacity { compute_f32: 200e9, ..Default::default() };
        let info = model(v1::JobKind::Ocr);
        let size = |pages: u32, bytes: u64| Size { bytes, pages, ..Size::default() };
        let cost = |speeds: &Speeds, size| speeds.estimate(&node("n-1"), &capacity, &info, None, size).0;
        assert!(cost(&speeds, size(8, 10)) > 7.0 * cost(&speeds, size(1, 10)), "guessed by their number too");
        speeds.learn(&node("n-1"), "m", size(10, 1 << 20), 5000.0);
        assert!((cost(&speeds, size(4, 9 << 20)) - 2000.0).abs() < 1e-6);
        assert!((cost(&speeds, size(0, 2 << 20)) - 10_000.0).abs() < 1e-6, "documents by their bytes");
    }

    #[test]
    fn nonsense_samples_are_not_learned() {
        let mut speeds = Speeds::default();
        let size = Size { items: 1, bytes: 1024, ..Size::default() };
        speeds.learn(&node("n-1"), "m", size, 10.0);
        for bad in [0.0, -5.0, f64::NAN, f64::INFINITY] {
            speeds.learn(&node("n-1"), "m", size, bad);
        }
        let capacity = v1::Capacity::default();
        let (prefill, _) = speeds.estimate(&node("n-1"), &capacity, &model(v1::JobKind::Embed), None, size);
        assert!((prefill - 10.0).abs() < 1e-9);
    }

    #[test]
    fn fit_adds_up_and_does_not_overflow() {
        let fit_ = fit(&model(v1::JobKind::Generate), 8192, 2);
        assert_eq!(fit_.weights, 840_000_000);
        assert_eq!(fit_.kv, 65_536 * 4096 * 2, "context is cut to the model's");
        assert!(fit_.needed > fit_.weights + fit_.kv);
        let huge = v1::ModelInfo { weight_bytes: u64::MAX, kv_bytes_per_token: u64::MAX, ..Default::default() };
        assert_eq!(fit(&huge, u32::MAX, u32::MAX).needed, u64::MAX);
    }
}
