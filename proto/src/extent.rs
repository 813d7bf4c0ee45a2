//! How far a job reaches: until when it may run, and what of its input it leaves out.

use crate::error::Problem;
use crate::job::{bounded, no_nul};

/// Most globs of what a job doesn't take, and most bytes of one.
pub const EXCLUDE_MAX: (usize, usize) = (64, 1024);
/// How far ahead a deadline may lie, milliseconds.
pub const DEADLINE_AHEAD_MS: i64 = 366 * 86_400_000;

/// Checks a new job's deadline against the time it is submitted at, both Unix milliseconds.
///
/// # Errors
/// `INVALID_ARGUMENT` with the range.
pub fn validate_deadline(deadline_ms: i64, now_ms: i64) -> Result<(), Problem> {
    let latest = now_ms.saturating_add(DEADLINE_AHEAD_MS);
    if deadline_ms == 0 || (deadline_ms > now_ms && deadline_ms <= latest) {
        return Ok(());
    }
    let what = if deadline_ms <= now_ms { "lies in the past" } else { "lies more than 366 days ahead" };
    let words = format!(
        "{deadline_ms} {what}; expected Unix milliseconds after now ({now_ms}) and at most {latest}, or 0 for none"
    );
    Err(Problem::invalid("spec.deadline_ms", words))
}

/// Checks globs of what a job doesn't take: their number, length and syntax.
///
/// # Errors
/// `INVALID_ARGUMENT` names the pattern and what was expected.
pub fn validate_exclude(field: &str, patterns: &[String]) -> Result<(), Problem> {
    bounded(field, patterns.len(), 0, EXCLUDE_MAX.0)?;
    for (index, pattern) in patterns.iter().enumerate() {
        let field = format!("{field}[{index}]");
        bounded(&format!("{field} (bytes)"), pattern.len(), 1, EXCLUDE_MAX.1)?;
        no_nul(&field, pattern)?;
        let mut parts = pattern.trim_end_matches('/').split('/');
        if parts.any(|part| matches!(part, "" | "." | "..")) {
            let words =
                format!("{pattern:?}: expected a glob below the input, without a leading '/', '//', '.' or '..'");
            return Err(Problem::invalid(field, words));
        }
        validate_glob(&field, pattern)?;
    }
    Ok(())
}

/// Checks a glob's syntax.
///
/// # Errors
/// `INVALID_ARGUMENT` says what is wrong with it.
pub fn validate_glob(field: &str, pattern: &str) -> Result<(), Problem> {
    let glob = globset::Glob::new(pattern);
    glob.map(|_| ()).map_err(|error| Problem::invalid(field, format!("{pattern:?}: {}", error.kind())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclusions_are_bounded_and_stay_below_the_input() {
        let check = |patterns: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
            validate_exclude("spec.exclude", &patterns)
        };
        assert!(
            check(&[]).is_ok() && check(&["*.log", "node_modules", "drafts/", "a/**/b.md", "{a,b}/[c-d]?"]).is_ok()
        );
        assert!(check(&["a"; EXCLUDE_MAX.0]).is_ok() && check(&["a"; EXCLUDE_MAX.0 + 1]).is_err());
        for bad in ["[a", "{a", "", "/", "/a", "../a", "a/..", "a//b", "./a", "a\0", &"x".repeat(EXCLUDE_MAX.1 + 1)] {
            let problem = check(&["fine", bad]).expect_err(bad);
            assert!(problem.message.starts_with("spec.exclude[1]"), "{bad:.20}: {}", problem.message);
        }
    }

    #[test]
    fn deadlines_lie_ahead_and_not_too_far() {
        let now = 1_700_000_000_000;
        for good in [0, now + 1, now + DEADLINE_AHEAD_MS] {
            assert!(validate_deadline(good, now).is_ok(), "{good}");
        }
        for bad in [1, -1, 3600, now, now + DEADLINE_AHEAD_MS + 1, i64::MAX, i64::MIN] {
            let problem = validate_deadline(bad, now).expect_err("out of range");
            assert_eq!(problem.field.as_deref(), Some("spec.deadline_ms"));
            assert!(problem.message.contains(&bad.to_string()), "{}", problem.message);
        }
    }
}
