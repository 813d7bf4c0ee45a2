//! From token bytes to decided text: characters and stop strings that are still open are held back, offsets are exact.

use crate::stop::StopMatcher;

/// Turns bytes that may break inside a character into text, holding back the open tail.
///
/// Bytes that can't be UTF-8 become U+FFFD, by the same rule as [`String::from_utf8_lossy`] on the whole.
#[derive(Debug, Clone, Default)]
pub struct Utf8Tail {
    open: Vec<u8>,
}

impl Utf8Tail {
    /// Text that is complete once `bytes` have come.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.open.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.open.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    let Some(bad) = error.error_len() else {
                        rest = after;
                        break;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &after[bad..];
                }
            }
        }
        self.open = rest.to_vec();
        text
    }

    /// What is left when no more bytes come.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.open)).into_owned()
    }
}

/// The text of one generation as it is decided, with byte offsets, resumable from the tokens alone.
#[derive(Debug, Clone)]
pub struct TextStream {
    tail: Utf8Tail,
    stops: StopMatcher,
    ready: String,
    /// Offset of `ready` in the whole decided text.
    offset: u64,
    /// Decided bytes still to be dropped because an earlier node delivered them.
    skip: u64,
}

impl TextStream {
    /// Begins an empty text that ends at any of `stop`.
    #[must_use]
    pub fn new(stop: &[String]) -> Self {
        Self { tail: Utf8Tail::default(), stops: StopMatcher::new(stop), ready: String::new(), offset: 0, skip: 0 }
    }

    /// Drops the first `delivered` bytes of the text, decided already or yet to come. Called once, before the first
    /// [`TextStream::take`].
    pub fn skip_delivered(&mut self, delivered: u64) {
        self.skip = delivered;
        self.drop_skipped();
    }

    /// Takes in a token's bytes; true once a stop string stands in the text. Nothing after it is decided.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        let text = self.tail.push(bytes);
        let decided = self.stops.push(&text);
        self.ready.push_str(&decided);
        self.drop_skipped();
        self.stops.stopped()
    }

    /// No more tokens come: what was held back is decided now, unless a stop string came before it.
    pub fn finish(&mut self) {
        let text = self.tail.finish();
        let decided = self.stops.push(&text);
        self.ready.push_str(&decided);
        let held = self.stops.finish();
        self.ready.push_str(&held);
        self.drop_skipped();
    }

    /// Text decided since the last call, and its byte offset.
    pub fn take(&mut self) -> (u64, String) {
        let at = self.offset;
        let text = std::mem::take(&mut self.ready);
        self.offset += text.len() as u64;
        (at, text)
    }

    fn drop_skipped(&mut self) {
        if self.skip == 0 || self.ready.is_empty() {
            return;
        }
        let wanted = usize::try_from(self.skip).unwrap_or(usize::MAX);
        // A delivered length that cuts a character is not ours; text goes on at the next whole one.
        let cut = if wanted >= self.ready.len() { self.ready.len() } else { ceil_boundary(&self.ready, wanted) };
        self.ready.drain(..cut);
        self.offset += cut as u64;
        self.skip = self.skip.saturating_sub(cut as u64);
    }
}

fn ceil_boundary(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(stream: &mut TextStream, parts: &[&[u8]]) -> Vec<(u64, String)> {
        let mut out: Vec<_> = parts
            .iter()
            .map(|part| {
                stream.push(part);
                stream.take()
            })
            .collect();
        stream.finish();
        out.push(stream.take());
        out
    }

    #[test]
    fn open_characters_are_held_back() {
        let mut stream = TextStream::new(&[]);
        let crab = "🦀".as_bytes();
        let got = pieces(&mut stream, &[b"a", &crab[..1], &crab[1..3], &crab[3..], b"b"]);
        assert_eq!(
            got,
            [
                (0, "a".into()),
                (1, String::new()),
                (1, String::new()),
                (1, "🦀".into()),
                (5, "b".into()),
                (6, String::new())
            ]
        );
    }

    #[test]
    fn an_open_character_at_the_end_becomes_a_replacement() {
        let mut stream = TextStream::new(&[]);
        assert_eq!(pieces(&mut stream, &[b"a", &[0xF0, 0x9F]]).last(), Some(&(1, "\u{FFFD}".to_string())));
    }

    #[test]
    fn a_resumed_stream_says_only_what_was_not_delivered() {
        let parts: [&[u8]; 4] = [b"one ", b"two ", b"three ", b"four"];
        for replayed in 0..=parts.len() {
            for delivered in 0..=18u64 {
                let mut stream = TextStream::new(&[]);
                stream.skip_delivered(delivered);
                for part in &parts[..replayed] {
                    stream.push(part);
                }
                let mut text = String::new();
                for part in &parts[replayed..] {
                    stream.push(part);
                    let (at, piece) = stream.take();
                    if !piece.is_empty() {
                        assert_eq!(at, delivered + text.len() as u64);
                    }
                    text.push_str(&piece);
                }
                stream.finish();
                text.push_str(&stream.take().1);
                assert_eq!(text, "one two three four"[usize::try_from(delivered).unwrap()..]);
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_read_as_the_whole(
            bytes in proptest::collection::vec(prop_oneof![any::<u8>(), 0xE0u8..0xF5, 0x80u8..0xC0], 0..64),
            cuts in proptest::collection::vec(1usize..6, 0..64),
        ) {
            let mut tail = Utf8Tail::default();
            let mut text = String::new();
            let mut rest = bytes.as_slice();
            for cut in cuts {
                let (head, after) = rest.split_at(cut.min(rest.len()));
                text.push_str(&tail.push(head));
                rest = after;
            }
            text.push_str(&tail.push(rest));
            text.push_str(&tail.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn offsets_are_contiguous_with_stop_strings(words in proptest::collection::vec("[ab ]{0,3}", 0..30)) {
            let whole: String = words.concat();
            let mut stream = TextStream::new(&["bab".to_string(), "aa b".to_string()]);
            let mut text = String::new();
            for word in &words {
                let stopped = stream.push(word.as_bytes());
                let (at, piece) = stream.take();
                prop_assert_eq!(at, text.len() as u64);
                text.push_str(&piece);
                if stopped {
                    break;
                }
            }
            stream.finish();
            text.push_str(&stream.take().1);
            let ends = ["bab", "aa b"].iter().filter_map(|s| whole.find(s).map(|at| (at + s.len(), at))).min();
            prop_assert_eq!(text.as_str(), ends.map_or(whole.as_str(), |(_, at)| &whole[..at]));
        }
    }
}
