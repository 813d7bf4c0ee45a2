//! The few methods of Python's strings and dictionaries that chat templates call, and the date they ask for.

use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

/// Called for methods that minijinja itself doesn't know.
pub(crate) fn call(_: &State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => text(value.as_str().unwrap_or_default(), method, args),
        ValueKind::Map => map(value, method, args),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn text(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let strip = |left: bool, right: bool| -> Result<Value, Error> {
        let (set,): (Option<String>,) = from_args(args)?;
        let goes = |c: char| set.as_ref().map_or_else(|| c.is_whitespace(), |set| set.contains(c));
        let text = if left { text.trim_start_matches(goes) } else { text };
        Ok(Value::from(if right { text.trim_end_matches(goes) } else { text }))
    };
    match method {
        "strip" => strip(true, true),
        "lstrip" => strip(true, false),
        "rstrip" => strip(false, true),
        "upper" => from_args(args).map(|()| Value::from(text.to_uppercase())),
        "lower" => from_args(args).map(|()| Value::from(text.to_lowercase())),
        "startswith" => from_args(args).map(|(start,): (String,)| Value::from(text.starts_with(&start))),
        "endswith" => from_args(args).map(|(end,): (String,)| Value::from(text.ends_with(&end))),
        "replace" => {
            let (from, to): (String, String) = from_args(args)?;
            if from.is_empty() {
                return Err(Error::new(ErrorKind::InvalidOperation, "replace of the empty text"));
            }
            Ok(Value::from(text.replace(&from, &to)))
        }
        "split" => {
            let (at,): (Option<String>,) = from_args(args)?;
            Ok(match at.as_deref() {
                None => text.split_whitespace().map(Value::from).collect(),
                Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "split at the empty text")),
                Some(at) => text.split(at).map(Value::from).collect(),
            })
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn map(value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let keys = || value.try_iter().map(|keys| keys.collect::<Vec<Value>>());
    match method {
        "get" => {
            let (key, default): (Value, Option<Value>) = from_args(args)?;
            let found = value.get_item(&key)?;
            Ok(if found.is_undefined() { default.unwrap_or(Value::from(())) } else { found })
        }
        "keys" => from_args(args).and_then(|()| Ok(keys()?.into_iter().collect())),
        "values" => {
            from_args(args).and_then(|()| keys()?.iter().map(|key| value.get_item(key)).collect::<Result<Value, _>>())
        }
        "items" => {
            let () = from_args(args)?;
            keys()?.into_iter().map(|key| Ok(Value::from(vec![key.clone(), value.get_item(&key)?]))).collect()
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// The date in UTC, in Python's format language as far as templates use it.
pub(crate) fn strftime_now(format: &str) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    strftime(format, now.as_secs())
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

fn strftime(format: &str, seconds: u64) -> String {
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[(days % 7) as usize];
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match rest.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&format!("{:02}", year % 100)),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('H') => out.push_str(&format!("{:02}", seconds % 86_400 / 3600)),
            Some('M') => out.push_str(&format!("{:02}", seconds % 3600 / 60)),
            Some('S') => out.push_str(&format!("{:02}", seconds % 60)),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// Year, month and day of a day counted from 1970-01-01: whole months of the proleptic Gregorian calendar, subtracted in turn.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    // 400 years have 146,097 days.
    let mut year = 1970 + 400 * (days / 146_097);
    days %= 146_097;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        assert_eq!(strftime("%Y-%m-%d %H:%M:%S %a", 0), "1970-01-01 00:00:00 Thu");
        assert_eq!(strftime("%d %b %Y, %A", 951_782_400), "29 Feb 2000, Tuesday");
        assert_eq!(strftime("%d %B %y %% %q %", 1_735_689_599), "31 December 24 % %q %");
    }
}
