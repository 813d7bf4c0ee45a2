//! Whether a page's own text is good enough to stand for the page.

use super::gather::Seen;
use crate::page::PageWords;

/// Most glyphs that may stand for nothing known: one in this many.
const BAD_ONE_IN: usize = 20;
/// Least part of the characters that are letters or digits, leaders of lists of contents not counted.
const LETTERS_MIN: f64 = 0.3;
/// A page covered this far by pictures is a scan, unless its text covers it too.
const SCAN: f64 = 0.5;
/// A picture of this size may hold text of its own.
const PICTURE: f64 = 0.1;
/// Fewer characters than this beside a picture are a page number or a stamp.
const CHARACTERS_MIN: usize = 50;
/// Curves per character above which the page's text is drawn as shapes, and characters that settle it the other way.
const CURVES_PER_CHARACTER: usize = 40;
const CHARACTERS_PLENTY: usize = 200;
/// More edges and curves than this on a page without text may be text drawn as shapes.
const CURVES_OF_FORMS: usize = 1_000;
/// Strips into which a page is cut to know how much of its height text covers.
const STRIPS: usize = 100;

/// Judges a page by its words and by what else it draws. No words on a page that draws nothing is good: it is empty.
pub(super) fn is_good(words: &PageWords, seen: &Seen, height: u16) -> bool {
    let all = seen.good + seen.bad;
    if seen.overflow {
        return false;
    }
    if all == 0 {
        return seen.pictures == 0.0 && seen.curves <= CURVES_OF_FORMS;
    }
    if seen.bad * BAD_ONE_IN > all || letters(words) < LETTERS_MIN || !is_language(words) {
        return false;
    }
    let spread = spread(words, height);
    if seen.hidden * 2 > seen.good {
        // Somebody's OCR, under the scan or invisible upon it.
        return seen.good >= CHARACTERS_MIN && seen.bad == 0 && spread >= 0.1 && like_words(words) >= 0.8;
    }
    if seen.pictures > SCAN {
        return seen.good >= 2 * CHARACTERS_MIN && spread >= 0.25;
    }
    if seen.pictures > PICTURE {
        return seen.good >= CHARACTERS_MIN;
    }
    seen.good >= CHARACTERS_PLENTY || seen.curves <= CURVES_PER_CHARACTER * seen.good
}

fn texts(words: &PageWords) -> impl Iterator<Item = &str> {
    words.lines.iter().flat_map(|line| &line.words).map(|word| word.text.as_str())
}

fn letters(words: &PageWords) -> f64 {
    let (mut letters, mut all) = (0_usize, 0_usize);
    for c in texts(words).flat_map(str::chars).filter(|c| !matches!(c, '.' | '…' | '·' | '_' | '-' | '–')) {
        all += 1;
        letters += usize::from(c.is_alphanumeric());
    }
    letters as f64 / all.max(1) as f64
}

/// Whether it can be language at all. Fonts whose table of meanings is shifted give letters that make no words: a quarter to
/// two thirds of the letters of European languages are vowels. Words taken apart by wrong widths give single letters.
fn is_language(words: &PageWords) -> bool {
    let (mut letters, mut vowels, mut single, mut all) = (0_usize, 0_usize, 0_usize, 0_usize);
    for word in texts(words) {
        let count = word.chars().count();
        let latin = word.chars().all(|c| c.is_ascii_alphabetic());
        all += 1;
        single += usize::from(count == 1 && latin);
        if count >= 4 && latin {
            letters += count;
            vowels += word.chars().filter(|c| is_vowel(*c)).count();
        }
    }
    let shifted = letters >= 100 && !(letters..=letters * 8 / 3).contains(&(vowels * 4));
    let scattered = all >= 50 && single * 10 > all * 6;
    !shifted && !scattered
}

fn is_vowel(c: char) -> bool {
    matches!(c.to_ascii_lowercase(), 'a' | 'e' | 'i' | 'o' | 'u' | 'y')
}

/// Part of the words of two and more characters that a dictionary might hold, or a number.
fn like_words(words: &PageWords) -> f64 {
    let (mut like, mut all) = (0_usize, 0_usize);
    for word in texts(words) {
        let core = word.trim_matches(|c: char| !c.is_alphanumeric());
        if word.chars().count() < 2 {
            continue;
        }
        all += 1;
        like += usize::from(is_word(core) || is_number(core));
    }
    if all == 0 { 0.0 } else { like as f64 / all as f64 }
}

/// Letters, perhaps with an apostrophe or hyphen between; not of changing case; with a vowel if it is ASCII.
fn is_word(core: &str) -> bool {
    let is_part = |c: char| c.is_alphabetic() || matches!(c, '\'' | '’' | '-');
    let case_changes =
        core.chars().zip(core.chars().skip(1)).filter(|(a, b)| a.is_lowercase() && b.is_uppercase()).count();
    let count = core.chars().count();
    let spoken = !core.is_ascii() || count < 4 || core.chars().any(is_vowel);
    count > 0 && count <= 40 && core.chars().all(is_part) && case_changes <= 1 && spoken
}

fn is_number(core: &str) -> bool {
    core.chars().any(|c| c.is_ascii_digit())
        && core.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | ',' | ':' | '/' | '-' | '%'))
}

/// Part of the page's height on which text stands.
fn spread(words: &PageWords, height: u16) -> f64 {
    let mut strips = [false; STRIPS];
    let strip = |y: f32| ((y / f32::from(height.max(1)) * STRIPS as f32) as usize).min(STRIPS - 1);
    for line in &words.lines {
        let ys = line.corners.map(|[_, y]| y);
        let (least, most) = (ys.iter().copied().fold(f32::MAX, f32::min), ys.iter().copied().fold(0.0, f32::max));
        strips[strip(least.min(most))..=strip(most)].fill(true);
    }
    strips.iter().filter(|covered| **covered).count() as f64 / STRIPS as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::{Line, Word};

    const PROSE: &str =
        "It was a bright cold day in April and the clocks were striking thirteen while a wind blew dust along";

    /// Lines of prose, one below the other from the top of a page of 1,000 rows, 20 rows each.
    fn page(lines: &[&str]) -> PageWords {
        let place = |index: usize| {
            let (above, below) = (index as f32 * 20.0, index as f32 * 20.0 + 15.0);
            [[0.0, above], [500.0, above], [500.0, below], [0.0, below]]
        };
        let line = |(index, text): (usize, &&str)| Line {
            words: text.split(' ').map(|word| Word { text: word.into(), corners: place(index) }).collect(),
            corners: place(index),
        };
        PageWords { lines: lines.iter().enumerate().map(line).collect() }
    }

    fn seen(words: &PageWords) -> Seen {
        Seen { good: texts(words).map(|word| word.chars().count()).sum(), ..Seen::default() }
    }

    #[test]
    fn born_digital_pages_are_good() {
        let prose = page(&[PROSE; 30]);
        assert!(is_good(&prose, &seen(&prose), 1_000));
        assert!(is_good(&prose, &Seen { pictures: 0.4, curves: 5_000, ..seen(&prose) }, 1_000), "with a figure");
        assert!(is_good(&prose, &Seen { pictures: 1.0, ..seen(&prose) }, 1_000), "with a picture behind all of it");
        let title = page(&["Annual Report", "2024"]);
        assert!(is_good(&title, &seen(&title), 1_000));
        let table = page(&["12.50 13.75 99.00 1,204.10", "EUR 44.00 ........ 3"]);
        assert!(is_good(&table, &seen(&table), 1_000));
        let contents =
            page(&["Introduction ........................................................................ 1"; 9]);
        assert!(is_good(&contents, &seen(&contents), 1_000));
        let empty = page(&[]);
        assert!(is_good(&empty, &seen(&empty), 1_000), "nothing is on it");
    }

    #[test]
    fn scans_are_not() {
        let number = page(&["17"]);
        assert!(!is_good(&number, &Seen { pictures: 0.95, ..seen(&number) }, 1_000), "a page number on a scan");
        assert!(!is_good(&number, &Seen { pictures: 0.3, ..seen(&number) }, 1_000), "and on half a scan");
        let stamp = page(&[PROSE; 2]);
        assert!(!is_good(&stamp, &Seen { pictures: 0.95, ..seen(&stamp) }, 1_000), "a library's stamp");
        let empty = page(&[]);
        assert!(!is_good(&empty, &Seen { pictures: 0.9, ..seen(&empty) }, 1_000));
        assert!(!is_good(&empty, &Seen { curves: 20_000, ..seen(&empty) }, 1_000), "text as shapes");
        assert!(!is_good(&number, &Seen { curves: 20_000, ..seen(&number) }, 1_000), "text as shapes, but the number");
    }

    #[test]
    fn hidden_text_must_look_like_words() {
        let prose = page(&[PROSE; 20]);
        let hidden = |words: &PageWords| Seen { pictures: 1.0, hidden: seen(words).good, ..seen(words) };
        assert!(is_good(&prose, &hidden(&prose), 1_000));
        let junk = page(&["tl1e qu!ck brOwN f0x jvmp5 0v3r tbe 1azy d0g~ @nd r|n"; 20]);
        assert!(!is_good(&junk, &hidden(&junk), 1_000));
        let few = page(&["Seventeen pages"]);
        assert!(!is_good(&few, &hidden(&few), 1_000));
        let one_unknown = Seen { bad: 1, ..hidden(&prose) };
        assert!(!is_good(&prose, &one_unknown, 1_000));
    }

    #[test]
    fn broken_fonts_are_found() {
        let prose = page(&[PROSE; 10]);
        assert!(!is_good(&prose, &Seen { bad: 100, ..seen(&prose) }, 1_000), "glyphs without meaning");
        assert!(!is_good(&prose, &Seen { overflow: true, ..seen(&prose) }, 1_000));
        let shifted: String = PROSE.chars().map(|c| if c == ' ' { c } else { char::from(c as u8 - 30) }).collect();
        let shifted = page(&[shifted.as_str(); 10]);
        assert!(!is_good(&shifted, &seen(&shifted), 1_000));
        let vowelless =
            page(&["Jgnnq vjg swkem dtqyp hqz lworgf qxgt vjg ncba fqi cpf tcp".to_lowercase().as_str(); 6]);
        assert!(!is_good(&vowelless, &seen(&vowelless), 1_000));
        let scattered = page(&["T h e q u i c k b r o w n f o x j u m p s"; 10]);
        assert!(!is_good(&scattered, &seen(&scattered), 1_000));
        let signs = page(&["!!! ??? %%% $$$ ((( ))) === +++ *** ///"; 10]);
        assert!(!is_good(&signs, &seen(&signs), 1_000));
    }
}
