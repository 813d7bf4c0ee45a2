//! Admission by bytes: what a model needs, whether it fits, and which idle models make room. Pure.

use std::collections::BTreeMap;

use ingle_engine::ModelCard;

/// Tokens that one step computes at most, for the estimate of activations.
const STEP_TOKENS: u64 = 512;
/// Rows of the residual's width alive per token while a layer computes: queries, keys, values, scores, two of the MLP's four.
const ROWS_PER_TOKEN: u64 = 16;

/// What a model needs, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Weights × 1.05.
    pub weights: u64,
    /// KV cache of context × slots.
    pub kv: u64,
    /// Buffers of one step.
    pub activations: u64,
    /// All of it with 10 % on top.
    pub total: u64,
}

/// fit = weights × 1.05 + KV(context × slots) + activations + 10 %.
///
/// `context` is cut to the model's own; encoders keep no KV cache.
#[must_use]
pub fn need(card: &ModelCard, context: u32, slots: u32) -> Need {
    let context = u64::from(context.min(card.context));
    // An engine may hold weights wider than they are stored: a dense model reads all it holds for each token.
    let held = card.weight_bytes.max(card.bytes_per_token);
    let weights = held.saturating_add(held / 20);
    let kv = card.kv_bytes_per_token.saturating_mul(context).saturating_mul(u64::from(slots));
    let activations =
        STEP_TOKENS.saturating_mul(ROWS_PER_TOKEN).saturating_mul(u64::from(card.width)).saturating_mul(4);
    let sum = weights.saturating_add(kv).saturating_add(activations);
    Need { weights, kv, activations, total: sum.saturating_add(sum / 10) }
}

/// Whether a model fits beside what is reserved: `need ≤ budget − reserved`.
#[must_use]
pub fn fit(need: &Need, budget: u64, reserved: u64) -> bool {
    need.total <= budget.saturating_sub(reserved)
}

/// A model that is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    /// Memory it takes.
    pub bytes: u64,
    /// Order of last use: greater is later.
    pub last_used: u64,
    /// Somebody uses it.
    pub busy: bool,
}

/// Why a model isn't taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not even alone.
    Never,
    /// Once models in use are done.
    Busy,
}

/// Which models to unload so that `need` bytes fit into `budget`: idle ones, least recently used first, no more than needed.
///
/// # Errors
/// [`Refusal`]: models in use are never unloaded.
pub fn admit<K: Ord + Clone>(residents: &BTreeMap<K, Resident>, need: u64, budget: u64) -> Result<Vec<K>, Refusal> {
    if need > budget {
        return Err(Refusal::Never);
    }
    let mut reserved: u64 = residents.values().map(|resident| resident.bytes).sum();
    let mut idle: Vec<(&K, &Resident)> = residents.iter().filter(|(_, resident)| !resident.busy).collect();
    idle.sort_by_key(|(_, resident)| resident.last_used);
    let mut evict = Vec::new();
    for (key, resident) in idle {
        if reserved.saturating_add(need) <= budget {
            break;
        }
        reserved = reserved.saturating_sub(resident.bytes);
        evict.push(key.clone());
    }
    if reserved.saturating_add(need) <= budget { Ok(evict) } else { Err(Refusal::Busy) }
}

#[cfg(test)]
mod tests {
    use ingle_engine::Task;
    use proptest::prelude::*;

    use super::*;

    fn card(weight_bytes: u64, kv: u64) -> ModelCard {
        ModelCard {
            task: Task::Generate,
            architecture: "llama".into(),
            quantisation: "Q4_1".into(),
            parameters: 1,
            weight_bytes,
            bytes_per_token: weight_bytes,
            kv_bytes_per_token: kv,
            context: 2048,
            dimensions: 0,
            layers: 30,
            width: 576,
        }
    }

    #[test]
    fn needs_follow_the_formula() {
        let need = need(&card(100_000_000, 1000), 8192, 4);
        assert_eq!(need.weights, 105_000_000);
        assert_eq!(need.kv, 2048 * 4 * 1000, "the model's context bounds ours");
        assert_eq!(need.activations, 512 * 16 * 576 * 4);
        let sum = need.weights + need.kv + need.activations;
        assert_eq!(need.total, sum + sum / 10);
        assert!(fit(&need, need.total + 5, 5));
        assert!(!fit(&need, need.total + 5, 6));
    }

    #[test]
    fn absurd_cards_saturate() {
        let need = need(&card(u64::MAX, u64::MAX), u32::MAX, u32::MAX);
        assert_eq!(need.total, u64::MAX);
        assert!(!fit(&need, u64::MAX - 1, 0));
    }

    #[test]
    fn idle_models_make_room_oldest_first() {
        let resident = |bytes, last_used, busy| Resident { bytes, last_used, busy };
        let residents = BTreeMap::from([
            ("a", resident(40, 3, false)),
            ("b", resident(30, 1, true)),
            ("c", resident(30, 2, false)),
        ]);
        assert_eq!(admit(&residents, 0, 100), Ok(vec![]));
        assert_eq!(admit(&residents, 20, 100), Ok(vec!["c"]));
        assert_eq!(admit(&residents, 70, 100), Ok(vec!["c", "a"]));
        assert_eq!(admit(&residents, 71, 100), Err(Refusal::Busy));
        assert_eq!(admit(&residents, 101, 100), Err(Refusal::Never));
    }

    proptest! {
        #[test]
        fn what_is_reserved_never_exceeds_the_budget(
            sizes in proptest::collection::vec((0u64..100, any::<bool>(), 0u64..9), 0..12),
            need in 0u64..150,
            slack in 0u64..100,
        ) {
            let residents: BTreeMap<usize, Resident> = sizes
                .iter()
                .enumerate()
                .map(|(key, &(bytes, busy, last_used))| (key, Resident { bytes, last_used, busy }))
                .collect();
            let total: u64 = residents.values().map(|r| r.bytes).sum();
            let busy: u64 = residents.values().filter(|r| r.busy).map(|r| r.bytes).sum();
            let budget = total + slack;
            match admit(&residents, need, budget) {
                Ok(evict) => {
                    prop_assert!(evict.iter().all(|key| !residents[key].busy));
                    let left: u64 = residents.iter().filter(|(key, _)| !evict.contains(key)).map(|(_, r)| r.bytes).sum();
                    prop_assert!(left + need <= budget);
                }
                Err(Refusal::Never) => prop_assert!(need > budget),
                Err(Refusal::Busy) => prop_assert!(busy + need > budget),
            }
        }
    }
}
