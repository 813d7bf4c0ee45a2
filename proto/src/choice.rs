//! Enum fields as they come over the wire: a number that names no value we take is refused with those that would do.

use crate::error::Problem;

/// Reads an enum field. `allowed` are the values that the field takes, `name` gives their names.
///
/// # Errors
/// `INVALID_ARGUMENT` names the field, the value and what is allowed.
pub fn choice<E>(field: &str, value: i32, allowed: &[E], name: fn(&E) -> &'static str) -> Result<E, Problem>
where
    E: Copy + PartialEq + TryFrom<i32>,
{
    let known = E::try_from(value).ok();
    if let Some(known) = known.filter(|known| allowed.contains(known)) {
        return Ok(known);
    }
    let got = known.map_or_else(|| value.to_string(), |known| format!("{} ({value})", name(&known)));
    let expected: Vec<&str> = allowed.iter().map(name).collect();
    Err(Problem::invalid(field, format!("expected {}, got {got}", alternatives(&expected))))
}

/// [`choice`] for each value of a repeated field.
///
/// # Errors
/// As [`choice`]; the field is named with the position.
pub fn choices<E>(field: &str, values: &[i32], allowed: &[E], name: fn(&E) -> &'static str) -> Result<(), Problem>
where
    E: Copy + PartialEq + TryFrom<i32>,
{
    values
        .iter()
        .enumerate()
        .try_for_each(|(at, value)| choice(&format!("{field}[{at}]"), *value, allowed, name).map(|_| ()))
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
        let both = [Priority::Interactive, Priority::Batch];
        let read = |value| choice("spec.priority", value, &both, Priority::as_str_name);
        assert_eq!(read(2).unwrap(), Priority::Batch);
        let problem = read(99).unwrap_err();
        assert_eq!(problem.message, "spec.priority: expected PRIORITY_INTERACTIVE or PRIORITY_BATCH, got 99");
        assert_eq!(problem.field.as_deref(), Some("spec.priority"));
        assert!(read(0).unwrap_err().message.ends_with("got PRIORITY_UNSPECIFIED (0)"));
        assert!(read(-1).is_err() && read(i32::MIN).is_err());
        assert!(choices("states", &[1, 2], &both, Priority::as_str_name).is_ok());
        assert!(
            choices("states", &[1, 7], &both, Priority::as_str_name).unwrap_err().message.starts_with("states[1]:")
        );
    }
}
