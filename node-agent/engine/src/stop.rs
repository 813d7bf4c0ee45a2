//! Stop strings over decided text: found across token borders, never part of what is said.

use crate::EngineError;

/// Most stop strings of one request.
pub const STOP_STRINGS_MAX: usize = 64;
/// Longest stop string in bytes.
pub const STOP_STRING_BYTES_MAX: usize = 1024;

/// Checks number and lengths of stop strings.
///
/// # Errors
/// [`EngineError::Input`] names the limit; an empty stop string would end every text at once and is refused.
pub fn validate_stop(stop: &[String]) -> Result<(), EngineError> {
    if stop.len() > STOP_STRINGS_MAX {
        return Err(EngineError::Input(format!("at most {STOP_STRINGS_MAX} stop strings, got {}", stop.len())));
    }
    for (index, text) in stop.iter().enumerate() {
        if text.is_empty() {
            return Err(EngineError::Input(format!("stop string {index} is empty")));
        }
        if text.len() > STOP_STRING_BYTES_MAX {
            return Err(EngineError::Input(format!(
                "stop string {index} has {} bytes, at most {STOP_STRING_BYTES_MAX} are taken",
                text.len()
            )));
        }
    }
    Ok(())
}

/// Holds back text that may be the beginning of a stop string, and cuts the text at the first one that completes.
///
/// Of several stop strings the one that ends first wins, and among those the longest: so the outcome doesn't depend on how the text
/// was cut into tokens.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl StopMatcher {
    /// Empty strings are ignored; [`validate_stop`] refuses them earlier.
    #[must_use]
    pub fn new(stop: &[String]) -> Self {
        let stops = stop.iter().filter(|text| !text.is_empty()).cloned().collect();
        Self { stops, held: String::new(), stopped: false }
    }

    /// Whether a stop string has been found.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Text that is certain after `text` has come.
    pub fn push(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        if self.stops.is_empty() {
            return text.to_string();
        }
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop).map(|at| (at + stop.len(), at))).min();
        if let Some((_, at)) = found {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keep = self.stops.iter().map(|stop| open_suffix(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// What was held back, once no more text comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest end of `text` that is a beginning of `stop`.
fn open_suffix(text: &str, stop: &str) -> usize {
    let longest = stop.len().min(text.len());
    (1..=longest)
        .rev()
        .find(|&n| stop.is_char_boundary(n) && text.as_bytes().ends_with(&stop.as_bytes()[..n]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], parts: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(ToString::to_string).collect();
        let mut matcher = StopMatcher::new(&stops);
        let mut out: Vec<String> = parts.iter().map(|part| matcher.push(part)).collect();
        out.push(matcher.finish());
        (out, matcher.stopped())
    }

    #[test]
    fn a_stop_string_across_tokens_is_not_said() {
        assert_eq!(
            run(&["\n\nUser:"], &["Hi", "\n", "\nUs", "er: no"]),
            (vec!["Hi".into(), String::new(), String::new(), String::new(), String::new()], true)
        );
    }

    #[test]
    fn a_false_start_is_said_after_all() {
        let (parts, stopped) = run(&["abcd"], &["xab", "c", "ab", "e"]);
        assert_eq!(parts.concat(), "xabcabe");
        assert!(!stopped);
        assert_eq!(parts[0], "x");
        assert_eq!(parts[2], "abc");
    }

    #[test]
    fn the_one_that_ends_first_wins_whatever_the_pieces() {
        for parts in [&["xabcd"][..], &["xa", "bcd"], &["xab", "c", "d"], &["x", "a", "b", "c", "d"]] {
            assert_eq!(run(&["abcd", "bc"], parts).0.concat(), "xa", "{parts:?}");
        }
    }

    #[test]
    fn held_text_comes_at_the_end() {
        assert_eq!(run(&["stop"], &["a st"]), (vec!["a ".into(), "st".into()], false));
    }

    #[test]
    fn limits_are_named() {
        assert!(validate_stop(&["ok".into()]).is_ok());
        assert!(validate_stop(&[String::new()]).unwrap_err().to_string().contains("empty"));
        assert!(validate_stop(&vec!["x".into(); 10_000]).unwrap_err().to_string().contains("64"));
        assert!(validate_stop(&["x".repeat(5000)]).unwrap_err().to_string().contains("1024"));
    }
}
