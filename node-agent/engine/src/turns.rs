//! Whose turn it is: interactive before batch, and round-robin within a class.

use crate::{Class, RequestId};

/// Requests of a batch in their order of turns.
#[derive(Debug, Clone, Default)]
pub struct Turns {
    waiting: std::collections::VecDeque<(RequestId, Class)>,
}

impl Turns {
    /// Puts a request at the end of the round.
    pub fn join(&mut self, id: RequestId, class: Class) {
        self.waiting.push_back((id, class));
    }

    /// Takes a request out; unknown ids are no error.
    pub fn leave(&mut self, id: RequestId) {
        self.waiting.retain(|(other, _)| *other != id);
    }

    /// The request whose turn it is, moved to the end of the round. Batch requests have none while an interactive one is there.
    pub fn next_turn(&mut self) -> Option<RequestId> {
        let at = self.waiting.iter().position(|(_, class)| *class == Class::Interactive).unwrap_or(0);
        let turn = self.waiting.remove(at)?;
        self.waiting.push_back(turn);
        Some(turn.0)
    }

    /// Number of requests.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether no request is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interactive_goes_first_and_each_class_takes_turns() {
        let mut turns = Turns::default();
        let take = |turns: &mut Turns, n: usize| (0..n).map(|_| turns.next_turn().unwrap().0).collect::<Vec<_>>();
        assert_eq!(turns.next_turn(), None);
        turns.join(RequestId(1), Class::Batch);
        turns.join(RequestId(2), Class::Batch);
        assert_eq!(take(&mut turns, 4), [1, 2, 1, 2]);
        turns.join(RequestId(3), Class::Interactive);
        turns.join(RequestId(4), Class::Interactive);
        assert_eq!(take(&mut turns, 4), [3, 4, 3, 4]);
        turns.leave(RequestId(3));
        turns.leave(RequestId(4));
        turns.leave(RequestId(99));
        assert_eq!(take(&mut turns, 3), [1, 2, 1]);
        assert_eq!(turns.len(), 2);
    }
}
