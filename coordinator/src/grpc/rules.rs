//! What the gateway's settings allow of an export, told to whoever submits rather than after the walk began. The gateway itself
//! checks the same at every call: this only saves people the wait.

use ingle_proto::{ErrorCode, ObjectPath, Problem, v1};

/// Refuses an output outside the export's output prefixes, and hidden names where they are closed.
///
/// # Errors
/// `EXPORT_READ_ONLY` or `PATH_REFUSED`, naming the field and the setting.
pub(super) fn check(field: &str, export: &v1::ExportInfo, object: &v1::ObjectRef) -> Result<(), Problem> {
    let path = ObjectPath::new(object.path.to_vec())?;
    if export.hidden_refused && path.components().any(|name| name.starts_with(b".")) {
        let words = format!(
            "{field}: names that begin with a dot are closed on {:?}: exports.{}.hidden of the gateway's settings opens them",
            export.name, export.name
        );
        return Err(Problem::new(ErrorCode::PathRefused, words));
    }
    let prefixes = &export.output_prefixes;
    let below = |prefix: &String| ObjectPath::new(prefix.as_bytes()).is_ok_and(|prefix| path.below(&prefix).is_some());
    if field == "spec.output" && !prefixes.is_empty() && !prefixes.iter().any(below) {
        let words = format!(
            "{field}: results may only go to {} of the export {:?} or below (exports.{}.output_prefixes of the gateway's \
             settings)",
            prefixes.join(", "),
            export.name,
            export.name
        );
        return Err(Problem::new(ErrorCode::ExportReadOnly, words));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_keep_to_their_prefixes_and_hidden_names_are_closed() {
        let export = |prefixes: &[&str], hidden_refused| v1::ExportInfo {
            name: "docs".into(),
            output_prefixes: prefixes.iter().map(|prefix| (*prefix).to_owned()).collect(),
            hidden_refused,
            ..Default::default()
        };
        let told = |field, export: &v1::ExportInfo, path: &str| {
            let object = v1::ObjectRef { export: "docs".into(), path: path.as_bytes().to_vec().into() };
            check(field, export, &object).err().map(|problem| problem.code)
        };
        let some = export(&["results", "team/out"], true);
        for (path, expected) in [
            ("results", None),
            ("results/may", None),
            ("team/out/x", None),
            ("team", Some(ErrorCode::ExportReadOnly)),
            ("", Some(ErrorCode::ExportReadOnly)),
            ("results/.x", Some(ErrorCode::PathRefused)),
        ] {
            assert_eq!(told("spec.output", &some, path), expected, "{path}");
        }
        assert_eq!(told("spec.input", &some, "in"), None, "documents come from anywhere");
        assert_eq!(told("spec.input", &some, "in/.git"), Some(ErrorCode::PathRefused));
        assert_eq!(told("spec.output", &export(&[], false), ".out"), None);
    }
}
