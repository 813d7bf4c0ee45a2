//! Numbers for people: sizes, durations, rates, ages. Pure.

use std::time::Duration;

/// Bytes in binary units: `0 B`, `1.5 KiB`, `87 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = count as f64;
    let mut unit = 0;
    // 1023.95 would be printed as 1024.0: go on to the next unit first.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{} {}", short(value), UNITS[unit]) }
}

/// A count with a decimal prefix: `950`, `135 M`, `1.2 G`.
pub(crate) fn count(value: u64) -> String {
    const UNITS: [&str; 7] = ["", " k", " M", " G", " T", " P", " E"];
    let mut scaled = value as f64;
    let mut unit = 0;
    while scaled >= 999.95 && unit + 1 < UNITS.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    if unit == 0 { value.to_string() } else { format!("{}{}", short(scaled), UNITS[unit]) }
}

/// A length of time: `850 ms`, `1.5 s`, `42 s`, `3 min 20 s`, `2 h 05 min`, `3 d 04 h`.
pub(crate) fn duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    let seconds = (duration.as_secs_f64()).round() as u64;
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..9950 => format!("{:.1} s", duration.as_secs_f64()),
        9950..59_500 => format!("{seconds} s"),
        _ if seconds < 3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ if seconds < 86_400 => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {:02} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Documents per second; per minute or hour where that reads better.
pub(crate) fn rate(per_second: f64) -> String {
    if !per_second.is_finite() || per_second <= 0.0 {
        return "–".into();
    }
    match per_second {
        r if r >= 1.0 => format!("{}/s", short(r)),
        r if r * 60.0 >= 1.0 => format!("{}/min", short(r * 60.0)),
        r => format!("{}/h", short(r * 3600.0)),
    }
}

/// How long ago a Unix time in milliseconds was; `–` for 0.
pub(crate) fn age(then_ms: i64, now_ms: i64) -> String {
    if then_ms <= 0 {
        return "–".into();
    }
    let gone = Duration::from_millis(u64::try_from(now_ms.saturating_sub(then_ms)).unwrap_or(0));
    if gone < Duration::from_secs(1) { "now".into() } else { format!("{} ago", duration(gone)) }
}

/// Unix milliseconds now.
pub(crate) fn now_ms() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// The first `limit` characters of the first line; `…` says that there was more.
pub(crate) fn cut(text: &str, limit: usize) -> String {
    let line = text.lines().find(|l| !l.trim().is_empty()).unwrap_or_default().trim();
    let line: String = line.chars().filter(|c| !c.is_control()).collect();
    if line.chars().count() <= limit {
        return line;
    }
    let mut cut: String = line.chars().take(limit.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// A path within `limit` characters: its middle goes, for the end tells most and the beginning where it is.
pub(crate) fn cut_middle(path: &str, limit: usize) -> String {
    let length = path.chars().count();
    if length <= limit {
        return path.to_owned();
    }
    let kept = limit.saturating_sub(1);
    let head = kept / 3;
    let begin: String = path.chars().take(head).collect();
    let end: String = path.chars().skip(length - (kept - head)).collect();
    format!("{begin}…{end}")
}

/// Reads `500ms`, `10s`, `5m`, `2h`, `1d`; a bare number is seconds. At most 366 days.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("expected a length of time such as 500ms, 10s, 5m, 2h or 1d, got {text:?}");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| expected())?;
    let seconds = match unit.trim() {
        "ms" => number / 1000.0,
        "" | "s" => number,
        "m" | "min" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86_400.0,
        _ => return Err(expected()),
    };
    if !(seconds > 0.0 && seconds <= 366.0 * 86_400.0) {
        return Err(format!("expected more than nothing and at most 366 days, got {text:?}"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Three digits: `1.5`, `42`, `870`.
fn short(value: f64) -> String {
    if value < 9.95 { format!("{value:.1}") } else { format!("{value:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (value, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (10 * 1024, "10 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (98_362_432, "94 MiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(bytes(value), text);
        }
        assert_eq!(count(134_515_008), "135 M");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_200_000_000), "1.2 G");
    }

    #[test]
    fn times() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1500, "1.5 s"),
            (9_960, "10 s"),
            (59_400, "59 s"),
            (59_700, "1 min 00 s"),
            (200_000, "3 min 20 s"),
            (7_500_000, "2 h 05 min"),
            (273_600_000, "3 d 04 h"),
        ] {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
        assert_eq!(age(0, 5), "–");
        assert_eq!(age(1_000, 6_000), "5.0 s ago");
        assert_eq!(age(9_000, 6_000), "now", "a clock that runs behind is no panic");
    }

    #[test]
    fn rates() {
        assert_eq!(rate(0.0), "–");
        assert_eq!(rate(f64::NAN), "–");
        assert_eq!(rate(3.21), "3.2/s");
        assert_eq!(rate(0.5), "30/min");
        assert_eq!(rate(0.001), "3.6/h");
    }

    #[test]
    fn lengths_of_time_are_read() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("2h"), Ok(Duration::from_secs(7200)));
        for bad in ["", "s", "-1s", "0", "5 parsecs", "inf", "nan", "1e9", "400d", "9999999999999999999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn paths_lose_their_middle() {
        assert_eq!(cut_middle("a/b.md", 10), "a/b.md");
        assert_eq!(cut_middle("letters/2019/spring/to-aunt.md", 16), "lette…to-aunt.md");
        assert_eq!(cut_middle("äöüßäöüß", 5), "ä…öüß");
        assert_eq!(cut_middle("abc", 0), "…");
    }

    #[test]
    fn texts_are_cut_to_a_line_without_control_characters() {
        assert_eq!(cut("\n  hello\x1b[31m there\nmore", 40), "hello[31m there");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("äöüß", 4), "äöüß");
    }
}
