//! Chooses a token from logits: bias and penalties, then temperature, top-k, top-p and min-p, then one random number.

use std::collections::HashMap;

use ingle_engine::{EngineError, Sampling};

/// What has been read and said, for penalties.
#[derive(Debug, Clone, Copy)]
pub(crate) struct History<'a> {
    pub(crate) prompt: &'a [u32],
    pub(crate) emitted: &'a [u32],
}

/// The token for these logits. `uniform` in [0, 1) decides among candidates; ties in probability go to the lower id, so that
/// the choice depends on the arguments alone.
///
/// # Errors
/// [`EngineError::Compute`] if no logit is a number.
pub(crate) fn choose(
    logits: &[f32],
    sampling: &Sampling,
    history: History<'_>,
    uniform: f64,
) -> Result<u32, EngineError> {
    let mut logits = logits.to_vec();
    adjust(&mut logits, sampling, history);
    let best = best(&logits).ok_or_else(|| EngineError::Compute("the model's logits are no numbers".into()))?;
    if sampling.temperature <= 0.0 {
        return Ok(best);
    }
    let most = logits[best as usize];
    let mut candidates: Vec<(u32, f64)> = logits
        .iter()
        .enumerate()
        .map(|(id, logit)| (id as u32, f64::from((logit - most) / sampling.temperature).exp()))
        .filter(|(_, weight)| *weight > 0.0)
        .collect();
    top_k(&mut candidates, sampling.top_k as usize);
    top_p(&mut candidates, f64::from(sampling.top_p));
    // The best one's weight is 1.
    candidates.retain(|(_, weight)| *weight >= f64::from(sampling.min_p));
    candidates.sort_unstable_by_key(|(id, _)| *id);
    let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
    let mut left = uniform * total;
    for (id, weight) in &candidates {
        left -= weight;
        if left < 0.0 {
            return Ok(*id);
        }
    }
    // Rounding may leave a crumb: it belongs to the last one.
    Ok(candidates.last().map_or(best, |(id, _)| *id))
}

fn adjust(logits: &mut [f32], sampling: &Sampling, history: History<'_>) {
    for (token, bias) in &sampling.logit_bias {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit += bias;
        }
    }
    if sampling.repetition_penalty != 1.0 {
        let window = match sampling.repetition_window {
            0 => usize::MAX,
            window => window as usize,
        };
        let mut seen: Vec<u32> =
            history.emitted.iter().rev().chain(history.prompt.iter().rev()).take(window).copied().collect();
        seen.sort_unstable();
        seen.dedup();
        for token in seen {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if *logit > 0.0 {
                    *logit / sampling.repetition_penalty
                } else {
                    *logit * sampling.repetition_penalty
                };
            }
        }
    }
    if sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0 {
        let mut counts: HashMap<u32, f32> = HashMap::new();
        for token in history.emitted {
            *counts.entry(*token).or_default() += 1.0;
        }
        for (token, count) in counts {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit -= sampling.presence_penalty + sampling.frequency_penalty * count;
            }
        }
    }
}

/// The highest logit's id, the lowest id among equals; what isn't a number never wins.
fn best(logits: &[f32]) -> Option<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (id, logit) in logits.iter().enumerate() {
        if logit.is_finite() && best.is_none_or(|(_, most)| *logit > most) {
            best = Some((id as u32, *logit));
        }
    }
    best.map(|(id, _)| id)
}

fn heavier(a: &(u32, f64), b: &(u32, f64)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

fn top_k(candidates: &mut Vec<(u32, f64)>, k: usize) {
    if k > 0 && k < candidates.len() {
        candidates.select_nth_unstable_by(k - 1, heavier);
        candidates.truncate(k);
    }
}

fn top_p(candidates: &mut Vec<(u32, f64)>, p: f64) {
    if p >= 1.0 {
        return;
    }
    let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
    // All that are lighter than this weigh less than 1 − p together: the set is found without them, and sorting is cheap.
    let crumb = total * (1.0 - p) / candidates.len() as f64;
    candidates.retain(|(_, weight)| *weight >= crumb);
    candidates.sort_unstable_by(heavier);
    let mut sum = 0.0;
    let mut keep = candidates.len();
    for (index, (_, weight)) in candidates.iter().enumerate() {
        sum += weight;
        if sum >= p * total {
            keep = index + 1;
            break;
        }
    }
    candidates.truncate(keep);
}

/// Log-probabilities of `chosen` and of the `count` most probable tokens, as the model gave them.
pub(crate) fn logprobs(logits: &[f32], chosen: u32, count: usize) -> Vec<(u32, f32)> {
    let most = logits.iter().copied().filter(|logit| logit.is_finite()).fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().filter(|logit| logit.is_finite()).map(|logit| f64::from(logit - most).exp()).sum();
    let log = |id: u32| {
        let logit = logits.get(id as usize).copied().filter(|logit| logit.is_finite()).unwrap_or(f32::MIN);
        ((f64::from(logit) - f64::from(most) - sum.ln()) as f32).clamp(f32::MIN, 0.0)
    };
    let mut ids: Vec<u32> = (0..logits.len() as u32).filter(|id| logits[*id as usize].is_finite()).collect();
    let count = count.min(ids.len());
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if count > 0 && count < ids.len() {
        ids.select_nth_unstable_by(count - 1, order);
    }
    ids.truncate(count);
    ids.sort_unstable_by(order);
    std::iter::once(chosen).chain(ids).map(|id| (id, log(id))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: History<'_> = History { prompt: &[], emitted: &[] };

    fn warm() -> Sampling {
        Sampling { temperature: 1.0, ..Sampling::default() }
    }

    fn chosen(logits: &[f32], sampling: &Sampling, history: History<'_>) -> Vec<u32> {
        let mut found: Vec<u32> =
            (0..1000).map(|step| choose(logits, sampling, history, f64::from(step) / 1000.0).unwrap()).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    #[test]
    fn greedy_takes_the_highest_and_the_lowest_id_of_equals() {
        assert_eq!(choose(&[0.0, 3.0, 3.0], &Sampling::default(), NONE, 0.9).unwrap(), 1);
        assert_eq!(choose(&[f32::NAN, -3.0, f32::INFINITY], &Sampling::default(), NONE, 0.9).unwrap(), 1);
        assert!(choose(&[f32::NAN, f32::NEG_INFINITY], &Sampling::default(), NONE, 0.0).is_err());
    }

    #[test]
    fn frequencies_are_the_probabilities() {
        let logits = [0.5f32.ln(), 0.25f32.ln(), 0.125f32.ln(), 0.125f32.ln()];
        let mut counts = [0; 4];
        for step in 0..8000 {
            counts[choose(&logits, &warm(), NONE, f64::from(step) / 8000.0).unwrap() as usize] += 1;
        }
        for (count, expected) in counts.into_iter().zip([4000i32, 2000, 1000, 1000]) {
            assert!((count - expected).abs() <= 2, "{counts:?}");
        }
    }

    #[test]
    fn filters_keep_what_they_say() {
        let logits = [0.4f32.ln(), 0.3f32.ln(), 0.2f32.ln(), 0.1f32.ln()];
        assert_eq!(chosen(&logits, &warm(), NONE), [0, 1, 2, 3]);
        assert_eq!(chosen(&logits, &Sampling { top_k: 2, ..warm() }, NONE), [0, 1]);
        assert_eq!(chosen(&logits, &Sampling { top_p: 0.65, ..warm() }, NONE), [0, 1]);
        assert_eq!(chosen(&logits, &Sampling { top_p: 0.75, ..warm() }, NONE), [0, 1, 2]);
        assert_eq!(chosen(&logits, &Sampling { top_p: 1e-6, ..warm() }, NONE), [0]);
        assert_eq!(chosen(&logits, &Sampling { min_p: 0.45, ..warm() }, NONE), [0, 1, 2]);
        assert_eq!(chosen(&logits, &Sampling { min_p: 1.0, ..warm() }, NONE), [0]);
        assert_eq!(chosen(&[1.0; 9], &Sampling { top_k: 3, ..warm() }, NONE), [0, 1, 2], "ties go to lower ids");
    }

    #[test]
    fn penalties_and_bias_move_the_choice() {
        let greedy = Sampling::default();
        let check = |logits: &[f32], sampling: Sampling, prompt: &[u32], emitted: &[u32], expected: u32| {
            assert_eq!(choose(logits, &sampling, History { prompt, emitted }, 0.0).unwrap(), expected, "{sampling:?}");
        };
        check(&[2.0, 1.5], Sampling { repetition_penalty: 2.0, ..greedy.clone() }, &[0], &[], 1);
        check(&[-1.0, -1.5], Sampling { repetition_penalty: 2.0, ..greedy.clone() }, &[], &[0], 1);
        check(&[2.0, 1.5], Sampling { repetition_penalty: 2.0, repetition_window: 1, ..greedy.clone() }, &[0], &[1], 0);
        check(&[2.0, 1.5], Sampling { repetition_penalty: 2.0, repetition_window: 0, ..greedy.clone() }, &[0], &[7], 1);
        check(&[2.0, 1.5], Sampling { presence_penalty: 1.0, ..greedy.clone() }, &[0], &[], 0);
        check(&[2.0, 1.5], Sampling { presence_penalty: 1.0, ..greedy.clone() }, &[], &[0], 1);
        check(&[2.0, 0.5], Sampling { frequency_penalty: 1.0, ..greedy.clone() }, &[], &[0], 0);
        check(&[2.0, 0.5], Sampling { frequency_penalty: 1.0, ..greedy.clone() }, &[], &[0, 0], 1);
        check(&[2.0, 1.5], Sampling { logit_bias: vec![(0, -100.0), (99, 5.0)], ..greedy }, &[], &[], 1);
    }

    #[test]
    fn logprobs_are_of_the_models_own_distribution() {
        let logits = [0.5f32.ln(), 0.25f32.ln(), 0.25f32.ln(), f32::NEG_INFINITY];
        let found = logprobs(&logits, 2, 2);
        assert_eq!(found.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [2, 0, 1]);
        assert!((found[0].1 - 0.25f32.ln()).abs() < 1e-6 && (found[1].1 - 0.5f32.ln()).abs() < 1e-6);
        assert!(logprobs(&logits, 3, 0)[0].1.is_finite());
    }
}
