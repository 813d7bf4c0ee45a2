//! Which build this is: the workspace's version, and the stamp of a build that differs in nothing else.

use std::sync::OnceLock;

/// The workspace's version.
const PLAIN: &str = env!("CARGO_PKG_VERSION");
static STAMPED: OnceLock<String> = OnceLock::new();

/// Says how this binary was stamped (`INGLE_STAMP` when it was built). Every `main` hands it in before all else, and reads it
/// there and nowhere else, so that a new stamp builds nothing but the mains anew.
pub fn stamp(stamp: Option<&'static str>) {
    if let Some(stamp) = stamp.filter(|stamp| !stamp.is_empty()) {
        STAMPED.get_or_init(|| format!("{PLAIN}+{stamp}"));
    }
}

/// `0.2.0`, or `0.2.0+STAMP`: what `--version`, metrics and members' records tell.
#[must_use]
pub fn version() -> &'static str {
    STAMPED.get().map_or(PLAIN, String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_added_once() {
        stamp(None);
        stamp(Some(""));
        assert_eq!(version(), PLAIN, "no stamp, no plus");
        stamp(Some("next"));
        assert_eq!(version(), format!("{PLAIN}+next"));
        stamp(Some("later"));
        assert_eq!(version(), format!("{PLAIN}+next"), "the first word counts");
    }
}
