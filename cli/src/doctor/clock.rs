//! How far another machine's clock is from ours, by the date that its answers carry. Pure, but for the clock itself.

use tonic::metadata::MetadataMap;

use super::Check;

/// From here on it is worth a look: deadlines and settled documents are off by as much.
const WARN_MS: i64 = 2_000;
/// From here on things break: deadlines pass before they begin, certificates aren't valid yet.
const FAIL_MS: i64 = 60_000;

/// When a question was asked and answered, by our clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) sent_ms: i64,
    pub(super) heard_ms: i64,
}

impl Asked {
    /// How far the other clock is before ours at least, in milliseconds: negative if it is behind, 0 if it can't be told apart from
    /// ours. `None` for answers without a date.
    pub(super) fn skew_ms(self, answer: &MetadataMap) -> Option<i64> {
        let seconds = unix_seconds(answer.get("date")?.to_str().ok()?)?;
        // The date has whole seconds: it was made in one of the thousand milliseconds that follow.
        let (earliest, latest) = (seconds * 1000, seconds * 1000 + 999);
        Some(if earliest > self.heard_ms {
            earliest - self.heard_ms
        } else if latest < self.sent_ms {
            latest - self.sent_ms
        } else {
            0
        })
    }
}

/// What a skew means.
pub(super) fn judge(who: &str, skew_ms: i64) -> Check {
    let way = if skew_ms > 0 { "before" } else { "behind" };
    let far = crate::human::duration(std::time::Duration::from_millis(skew_ms.unsigned_abs()));
    let said = format!("{who} is {far} {way} this machine");
    let todo = "let both machines take their time from the same place: `timedatectl set-ntp true`";
    match skew_ms.abs() {
        FAIL_MS.. => Check::fail("clocks", said, todo),
        WARN_MS.. => Check::warn("clocks", said, todo),
        _ => Check::ok("clocks", format!("{who} has the time of this machine")),
    }
}

/// `Mon, 23 Nov 2026 03:18:53 GMT`, the one form that HTTP still writes.
fn unix_seconds(date: &str) -> Option<i64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = date.split(' ').collect();
    let [_, day, month, year, time, "GMT"] = words.as_slice() else { return None };
    let month = i64::try_from(MONTHS.iter().position(|name| name == month)?).ok()? + 1;
    let (day, year): (i64, i64) = (day.parse().ok()?, year.parse().ok()?);
    let parts: Vec<i64> = time.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let [hour, minute, second] = parts.as_slice() else { return None };
    let fine = (1970..=9999).contains(&year)
        && (1..=31).contains(&day)
        && (0..24).contains(hour)
        && (0..60).contains(minute)
        && (0..=60).contains(second);
    if !fine {
        return None;
    }
    // Days since 1970, counted in years that begin in March.
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn dates_are_read() {
        assert_eq!(unix_seconds("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(unix_seconds("Mon, 23 Nov 2026 12:00:00 GMT"), Some(1_795_435_200));
        assert_eq!(unix_seconds("Tue, 29 Feb 2000 00:00:00 GMT"), Some(951_782_400));
        for bad in ["", "Mon, 23 Nov 2026 12:00:00", "Mon, 23 Foo 2026 12:00:00 GMT", "Mon, 23 Nov 2026 25:00:00 GMT"] {
            assert_eq!(unix_seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_what_must_be_a_skew_is_one() {
        let skew = |sent_ms, heard_ms, date: &str| {
            let mut answer = MetadataMap::new();
            answer.insert("date", date.parse().expect("ASCII"));
            Asked { sent_ms, heard_ms }.skew_ms(&answer)
        };
        let noon = 1_795_435_200_000;
        let date = "Mon, 23 Nov 2026 12:00:00 GMT";
        assert_eq!(skew(noon + 10, noon + 20, date), Some(0));
        assert_eq!(skew(noon - 5, noon, date), Some(0), "as it may be");
        assert_eq!(skew(noon + 999, noon + 1_500, date), Some(0));
        assert_eq!(skew(noon - 5_010, noon - 5_000, date), Some(5_000));
        assert_eq!(skew(noon + 3_999, noon + 4_100, date), Some(-3_000));
        assert_eq!(skew(noon, noon, "yesterday"), None);
        assert_eq!(Asked { sent_ms: 0, heard_ms: 0 }.skew_ms(&MetadataMap::new()), None);
    }

    #[test]
    fn what_a_skew_means() {
        for (skew, verdict) in [
            (0, Verdict::Ok),
            (-1_999, Verdict::Ok),
            (2_000, Verdict::Warn),
            (-2_000, Verdict::Warn),
            (60_000, Verdict::Fail),
        ] {
            assert_eq!(judge("n-1", skew).verdict, verdict, "{skew}");
        }
        assert!(judge("n-1", -61_000).said.contains("behind"));
    }
}
