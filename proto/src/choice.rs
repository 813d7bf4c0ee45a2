//! Enum fields as they come over the wire: a number that names none of our values is refused with those that would do.

use crate::error::Problem;

/// Our enums are numbered from 0 on, and 0 says that no value was given.
const NUMBERS: std::ops::Range<i32> = 1..256;

/// Reads an enum field, for which one value that means something must be given. `name` gives the values' names.
///
/// # Errors
/// `INVALID_ARGUMENT` names the field, the value and what would do.
pub fn choice<E: Copy + TryFrom<i32>>(field: &str, value: i32, name: fn(&E) -> &'static str) -> Result<E, Problem> {
    let known = E::try_from(value).ok();
    if let Some(known) = known.filter(|_| NUMBERS.contains(&value)) {
        return Ok(known);
    }
    let got = known.map_or_else(|| value.to_string(), |known| format!("{} ({value})", name(&known)));
    let all: Vec<&str> = NUMBERS.filter_map(|number| E::try_from(number).ok()).map(|value| name(&value)).collect();
    Err(Problem::invalid(field, format!("expected {}, got {got}", alternatives(&all))))
}

/// [`choice`] for each value of a repeated field.
///
/// # Errors
/// As [`choice`]; the field is named with the position.
pub fn choices<E: Copy + TryFrom<i32>>(
    field: &str,
    values: &[i32],
    name: fn(&E) -> &'static str,
) -> Result<(), Problem> {
    let all = |(at, value): (usize, &i32)| choice(&format!("{field}[{at}]"), *value, name).map(|_| ());
    values.iter().enumerate().try_for_each(all)
}

fn alternatives(names: &[&str]) -> String {
    match names {
        [] => "nothing".to_owned(),
        [only] => (*only).to_owned(),
        [rest @ .., last] => format!("{} or {last}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::Priority;

    #[test]
    fn what_is_not_allowed_is_told_with_what_is() {
        let read = |value| choice("spec.priority", value, Priority::as_str_name);
        assert_eq!(read(2).unwrap(), Priority::Batch);
        let problem = read(99).unwrap_err();
        assert_eq!(problem.message, "spec.priority: expected PRIORITY_INTERACTIVE or PRIORITY_BATCH, got 99");
        assert_eq!(problem.field.as_deref(), Some("spec.priority"));
        assert!(read(0).unwrap_err().message.ends_with("got PRIORITY_UNSPECIFIED (0)"));
        assert!(read(-1).is_err() && read(i32::MIN).is_err());
        assert!(choices("states", &[1, 2], Priority::as_str_name).is_ok());
        assert!(choices("states", &[1, 7], Priority::as_str_name).unwrap_err().message.starts_with("states[1]:"));
    }
}
