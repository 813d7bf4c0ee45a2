//! Flat batches: token ids of many texts in one vector with cumulative lengths, and the plan that packs texts into small batches.

/// Token ids of several texts, one after another, without padding.
///
/// `starts` has one entry more than there are texts: text `i` is `ids[starts[i]..starts[i + 1]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedTokens {
    ids: Vec<u32>,
    starts: Vec<usize>,
}

impl PackedTokens {
    /// Packs the texts in the order given.
    pub fn new<'a>(texts: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut ids = Vec::new();
        let mut starts = vec![0];
        for text in texts {
            ids.extend_from_slice(text);
            starts.push(ids.len());
        }
        Self { ids, starts }
    }

    /// Number of texts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether there is no text at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All ids, text after text.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Cumulative lengths, from 0 to the number of ids.
    #[must_use]
    pub fn starts(&self) -> &[usize] {
        &self.starts
    }

    /// Ids of text `index`, or nothing past the end.
    #[must_use]
    pub fn text(&self, index: usize) -> Option<&[u32]> {
        let range = *self.starts.get(index)?..*self.starts.get(index + 1)?;
        self.ids.get(range)
    }

    /// Position of each id within its own text, from 0.
    #[must_use]
    pub fn positions(&self) -> Vec<u32> {
        let mut positions = Vec::with_capacity(self.ids.len());
        for pair in self.starts.windows(2) {
            positions.extend((0..pair[1] - pair[0]).map(|at| u32::try_from(at).unwrap_or(u32::MAX)));
        }
        positions
    }

    /// Runs of neighbouring texts of equal length, as (first text, number of texts, length): attention works run by run.
    #[must_use]
    pub fn runs(&self) -> Vec<(usize, usize, usize)> {
        let mut runs: Vec<(usize, usize, usize)> = Vec::new();
        for (index, pair) in self.starts.windows(2).enumerate() {
            let length = pair[1] - pair[0];
            match runs.last_mut() {
                Some((_, count, last)) if *last == length => *count += 1,
                _ => runs.push((index, 1, length)),
            }
        }
        runs
    }
}

/// Sorts texts by length, longest first, and packs neighbours into batches of at most `budget_tokens` tokens and `max_items` texts.
///
/// Returns indices into `lengths`. Each index is in exactly one batch; a text longer than the budget is alone in its own.
/// Zero for either bound counts as one, so that every text is placed.
#[must_use]
pub fn plan_by_tokens(lengths: &[usize], budget_tokens: usize, max_items: usize) -> Vec<Vec<usize>> {
    let max_items = max_items.max(1);
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    // Equal lengths stay in their order, so that the plan depends on the input alone.
    order.sort_by_key(|&index| std::cmp::Reverse(lengths[index]));
    let mut plan: Vec<Vec<usize>> = Vec::new();
    let mut used = 0usize;
    for index in order {
        let length = lengths[index];
        match plan.last_mut() {
            Some(batch) if batch.len() < max_items && used.saturating_add(length) <= budget_tokens => {
                batch.push(index);
                used += length;
            }
            _ => {
                plan.push(vec![index]);
                used = length;
            }
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn packs_texts_without_padding() {
        let packed = PackedTokens::new([&[1, 2, 3][..], &[][..], &[4][..], &[5][..]]);
        assert_eq!(packed.ids(), [1, 2, 3, 4, 5]);
        assert_eq!(packed.starts(), [0, 3, 3, 4, 5]);
        assert_eq!(packed.text(2), Some(&[4][..]));
        assert_eq!(packed.text(4), None);
        assert_eq!(packed.positions(), [0, 1, 2, 0, 0]);
        assert_eq!(packed.runs(), [(0, 1, 3), (1, 1, 0), (2, 2, 1)]);
        assert!(PackedTokens::new([]).is_empty());
    }

    #[test]
    fn a_text_over_the_budget_is_alone() {
        assert_eq!(plan_by_tokens(&[3, 500, 4, 3], 10, 8), [vec![1], vec![2, 0, 3]]);
        assert_eq!(plan_by_tokens(&[], 10, 8), Vec::<Vec<usize>>::new());
    }

    proptest! {
        #[test]
        fn every_text_is_placed_once_and_bounds_hold(
            lengths in proptest::collection::vec(0usize..600, 0..200),
            budget in 0usize..2000,
            max_items in 0usize..40,
        ) {
            let plan = plan_by_tokens(&lengths, budget, max_items);
            let mut seen: Vec<usize> = plan.iter().flatten().copied().collect();
            let flat: Vec<usize> = seen.iter().map(|&i| lengths[i]).collect();
            prop_assert!(flat.windows(2).all(|pair| pair[0] >= pair[1]), "longest first");
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for batch in &plan {
                prop_assert!(!batch.is_empty() && batch.len() <= max_items.max(1));
                let tokens: usize = batch.iter().map(|&i| lengths[i]).sum();
                prop_assert!(tokens <= budget || batch.len() == 1);
            }
            // No batch could have taken the first text of the next one.
            for pair in plan.windows(2) {
                let tokens: usize = pair[0].iter().map(|&i| lengths[i]).sum();
                prop_assert!(pair[0].len() == max_items.max(1) || tokens + lengths[pair[1][0]] > budget);
            }
        }

        #[test]
        fn packing_loses_nothing(texts in proptest::collection::vec(proptest::collection::vec(0u32..9, 0..9), 0..9)) {
            let packed = PackedTokens::new(texts.iter().map(Vec::as_slice));
            prop_assert_eq!(packed.len(), texts.len());
            for (index, text) in texts.iter().enumerate() {
                prop_assert_eq!(packed.text(index), Some(text.as_slice()));
            }
            prop_assert_eq!(packed.runs().iter().map(|run| run.1).sum::<usize>(), texts.len());
        }
    }
}
