//! What glyphs stand for, as plain text.

use hayro::hayro_interpret::font::PositionedGlyph;
use hayro::hayro_interpret::hayro_cmap::BfString;

/// What a glyph stands for; `None` for what no reader could name.
pub(super) fn meaning(glyph: &PositionedGlyph<'_>) -> Option<String> {
    match glyph.as_unicode()? {
        BfString::Char(c) => plain(&c.to_string()),
        BfString::String(text) => plain(&text),
    }
}

/// Ligatures taken apart, spaces made one blank, marks that only bullets use made bullets.
fn plain(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\u{fb00}' => plain.push_str("ff"),
            '\u{fb01}' => plain.push_str("fi"),
            '\u{fb02}' => plain.push_str("fl"),
            '\u{fb03}' => plain.push_str("ffi"),
            '\u{fb04}' => plain.push_str("ffl"),
            '\u{fb05}' | '\u{fb06}' => plain.push_str("st"),
            '\u{ad}' => plain.push('-'),
            // Symbol fonts keep their bullet in the private use area.
            '\u{f0b7}' | '\u{f0a7}' => plain.push('•'),
            // Marks of direction and joining have no width and no ink.
            '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' => {}
            c if c.is_whitespace() => plain.push(' '),
            c if c.is_control() || c == '\u{fffd}' => return None,
            '\u{e000}'..='\u{f8ff}' | '\u{f0000}'.. => return None,
            c => plain.push(c),
        }
    }
    if plain.is_empty() {
        return None;
    }
    // A glyph that means a blank and letters is letters.
    let trimmed = plain.split_whitespace().collect::<String>();
    Some(if trimmed.is_empty() { " ".into() } else { trimmed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meanings() {
        let check = |text: &str, expect: Option<&str>| assert_eq!(plain(text).as_deref(), expect, "{text:?}");
        check("a", Some("a"));
        check("\u{fb03}", Some("ffi"));
        check("\u{a0}", Some(" "));
        check(" a", Some("a"));
        check("\u{f0b7}", Some("•"));
        check("\u{e123}", None);
        check("\u{fffd}", None);
        check("\u{1}", None);
        check("", None);
        check("\u{200b}", None);
        check("漢", Some("漢"));
    }
}
