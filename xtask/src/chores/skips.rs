//! What tests say they skipped: lines that begin with `skipped:`, in whatever case, taken from nextest's report.

/// `TEST: reason` for each such line, once each, in the order of the report.
pub(super) fn from_junit(report: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut test = "";
    for line in report.lines() {
        if let Some(rest) = line.split_once("<testcase name=\"").map(|(_, rest)| rest) {
            test = rest.split('"').next().unwrap_or_default();
        }
        // The first line of a test's words stands behind the tag that opens them.
        let words = line.trim_start().trim_start_matches("<system-out>").trim_start_matches("<system-err>").trim();
        const MARK: &str = "skipped:";
        if words.get(..MARK.len()).is_some_and(|start| start.eq_ignore_ascii_case(MARK)) {
            let reason = &words[MARK.len()..];
            let reason = reason.split("</system-").next().unwrap_or_default().trim();
            let entry = format!("{}: {}", plain(test), plain(reason));
            if !found.contains(&entry) {
                found.push(entry);
            }
        }
    }
    found
}

fn plain(text: &str) -> String {
    text.replace("&quot;", "\"").replace("&apos;", "'").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_with_their_test() {
        let report = "<testsuites>\n  <testcase name=\"a::b\" time=\"1\">\n    <system-out>running 1 test\nskipped: no \
                      &lt;etcd&gt; here\n</system-out>\n    <system-err>SKIPPED: no NFS</system-err>\n  </testcase>\n  \
                      <testcase name=\"c\">\n    <system-out>it skipped: nothing</system-out>\n  </testcase>\n";
        assert_eq!(from_junit(report), ["a::b: no <etcd> here", "a::b: no NFS"]);
        assert!(from_junit("").is_empty());
    }
}
