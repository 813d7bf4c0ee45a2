//! Texts of 10 to 256 tokens, the same on every machine for the same seed.

/// Everyday words: one token each in the vocabularies of both starter models.
const WORDS: &[&str] = &[
    "the", "old", "house", "stands", "near", "a", "river", "and", "its", "garden", "was", "full", "of", "apple",
    "trees", "when", "winter", "came", "people", "walked", "over", "ice", "to", "market", "with", "bread", "wood",
    "they", "spoke", "about", "work", "money", "children", "school", "road", "music", "light", "paper", "letter",
    "office", "contract", "signed", "year", "month", "company", "report", "shows", "that", "number", "growth", "water",
    "energy", "heat", "small", "machine", "reads", "every", "page", "before", "evening", "after", "long", "day",
    "quiet", "room", "table", "chair",
];

/// A small generator of numbers (SplitMix64): enough for shuffling words, and the same everywhere.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap_or(0)
    }
}

/// `count` texts of 8 to 250 words, evenly spread. With two special tokens and some full stops: 10 to 256 tokens.
pub(crate) fn texts(count: usize, seed: u64) -> Vec<String> {
    let mut numbers = Numbers(seed);
    (0..count)
        .map(|_| {
            let words = 8 + numbers.below(227);
            let mut text = String::new();
            for index in 0..words {
                if index > 0 {
                    // A full stop every so often; it is a token too.
                    text.push_str(if index % 16 == 0 { ". " } else { " " });
                }
                text.push_str(WORDS[numbers.below(WORDS.len())]);
            }
            text
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_texts() {
        assert_eq!(texts(5, 1), texts(5, 1));
        assert_ne!(texts(5, 1), texts(5, 2));
        assert_eq!(texts(3, 1), texts(5, 1)[..3]);
    }

    #[test]
    fn lengths_spread_over_the_range() {
        let lengths: Vec<usize> =
            texts(500, 7).iter().map(|text| 2 + text.split(' ').count() + text.matches('.').count()).collect();
        assert!(lengths.iter().all(|length| (10..=256).contains(length)), "{lengths:?}");
        assert!(lengths.iter().any(|length| *length < 30) && lengths.iter().any(|length| *length > 230));
    }
}
