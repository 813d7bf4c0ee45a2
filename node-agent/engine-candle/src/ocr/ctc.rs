//! From the recogniser's choice per time step to characters (connectionist temporal classification, Graves et al. 2006, read
//! greedily), with the steps where each one stands.

/// What the classes stand for: no text for class 0, then the model's own list, then the blank between words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Alphabet {
    texts: Vec<String>,
}

/// The most probable class of a time step, and its probability.
pub(crate) type Step = (usize, f32);

/// A character as read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Glyph<'a> {
    /// Mostly one character; some models' lists hold ligatures.
    pub(crate) text: &'a str,
    /// First and last of its time steps.
    pub(crate) first: usize,
    pub(crate) last: usize,
    /// Greatest probability among its steps.
    pub(crate) confidence: f32,
}

impl Alphabet {
    /// `texts` holds each class's.
    pub(crate) fn new(texts: Vec<String>) -> Self {
        Self { texts }
    }

    fn text(&self, class: usize) -> Option<&str> {
        self.texts.get(class).map(String::as_str).filter(|text| !text.is_empty())
    }

    /// Joins equal neighbours and leaves out nothing's class. A step is (class, probability).
    pub(crate) fn decode(&self, steps: &[Step]) -> Vec<Glyph<'_>> {
        let mut glyphs: Vec<Glyph<'_>> = Vec::new();
        let mut before = 0;
        for (step, (class, probability)) in steps.iter().enumerate() {
            match (self.text(*class), glyphs.last_mut()) {
                (Some(_), Some(glyph)) if *class == before => {
                    glyph.last = step;
                    glyph.confidence = glyph.confidence.max(*probability);
                }
                (Some(text), _) => glyphs.push(Glyph { text, first: step, last: step, confidence: *probability }),
                (None, _) => {}
            }
            before = *class;
        }
        glyphs
    }
}

/// Wide forms of ASCII (U+FF01 to U+FF5E) become plain ones where no ideograph stands beside them: the list holds both, and in Latin
/// text the wide ones are slips.
pub(crate) fn narrow(text: &str) -> String {
    let ideographic =
        |c: char| matches!(c, '\u{2e80}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}' | '\u{f900}'..='\u{faff}');
    if text.chars().any(ideographic) {
        return text.into();
    }
    let plain = |c: char| match c {
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(u32::from(c) - 0xfee0).unwrap_or(c),
        '\u{3000}' => ' ',
        '\u{3002}' => '.',
        c => c,
    };
    text.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alphabet() -> Alphabet {
        Alphabet::new(["", "a", "b", "ﬁ", " "].map(String::from).to_vec())
    }

    fn read(classes: &[usize]) -> String {
        let steps: Vec<Step> = classes.iter().map(|class| (*class, 0.5)).collect();
        alphabet().decode(&steps).iter().map(|glyph| glyph.text).collect()
    }

    #[test]
    fn neighbours_join_unless_nothing_stands_between() {
        for (classes, expected) in [
            (&[][..], ""),
            (&[0, 0, 0], ""),
            (&[1, 1, 0, 1, 2, 2], "aab"),
            (&[0, 1, 4, 4, 2], "a b"),
            (&[3, 0, 4, 0, 4], "ﬁ  "),
            // Beyond the list: nothing, whatever a broken model says.
            (&[1, 5, 1, 99], "aa"),
        ] {
            assert_eq!(read(classes), expected, "{classes:?}");
        }
    }

    #[test]
    fn glyphs_know_their_steps_and_confidence() {
        let alphabet = alphabet();
        let glyphs = alphabet.decode(&[(0, 0.9), (1, 0.4), (1, 0.8), (0, 0.9), (4, 0.7)]);
        assert_eq!((glyphs[0].first, glyphs[0].last, glyphs[0].confidence), (1, 2, 0.8));
        assert_eq!((glyphs[1].text, glyphs[1].first), (" ", 4));
    }

    #[test]
    fn wide_forms_narrow_only_in_latin_text() {
        assert_eq!(narrow("No．１２（a）：b，"), "No.12(a):b,");
        assert_eq!(narrow("价格：１２"), "价格：１２");
        assert_eq!(narrow("plain, §5"), "plain, §5");
    }
}
