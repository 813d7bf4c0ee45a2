//! A job's prompt template: minijinja, without includes, strict about names it doesn't know. The same reading at submission
//! and on the node, so that what is accepted can be rendered.

use minijinja::{Environment, ErrorKind, UndefinedBehavior, context};

use crate::error::Problem;

/// What a template sees.
pub const NAMES: [&str; 3] = ["document", "path", "name"];
/// The prompt of a job that gives none.
pub const DEFAULT: &str = "Summarise the following document in a few sentences.\n\n{{ document }}";
/// Name of the template in its environment.
pub const TEMPLATE: &str = "prompt";
/// Steps that a trial at submission may take: a template that needs more is tried on the node alone, per document.
const TRIAL_FUEL: u64 = 50_000;
/// How deep blocks and macros nest.
const DEPTH_MAX: usize = 64;
const FIELD: &str = "spec.generate.prompt";

/// Compiles a template under the name [`TEMPLATE`].
///
/// # Errors
/// `INVALID_ARGUMENT` says where the syntax is wrong, or which name is unknown.
pub fn compile(source: &str) -> Result<Environment<'static>, Problem> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_recursion_limit(DEPTH_MAX);
    environment.add_template_owned(TEMPLATE, source.to_owned()).map_err(|error| refused(&error))?;
    let template = environment.get_template(TEMPLATE).map_err(|error| refused(&error))?;
    let known = |name: &str| NAMES.contains(&name) || environment.globals().any(|(global, _)| global == name);
    if let Some(name) = template.undeclared_variables(false).into_iter().filter(|name| !known(name)).min() {
        return Err(refused(&format!("`{name}` is unknown")));
    }
    Ok(environment)
}

/// Whether a template that compiles shows the model anything of the document: the same answer for every document is rarely meant.
#[must_use]
pub fn reads_document(source: &str) -> bool {
    compile(source).is_ok_and(|environment| {
        let template = environment.get_template(TEMPLATE);
        template.is_ok_and(|template| template.undeclared_variables(false).contains(NAMES[0]))
    })
}

/// Whether a fault is the template's own, for every document, rather than one document's.
#[must_use]
pub fn of_template(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::SyntaxError
            | ErrorKind::TemplateNotFound
            | ErrorKind::UnknownFilter
            | ErrorKind::UnknownTest
            | ErrorKind::UnknownFunction
            | ErrorKind::UnknownMethod
            | ErrorKind::BadEscape
            | ErrorKind::BadInclude
    )
}

/// The template's own fault as it is told.
#[must_use]
pub fn refused(error: &impl std::fmt::Display) -> Problem {
    let words = format!("{error}; a prompt is a minijinja template that sees `document`, `path` and `name`");
    Problem::invalid(FIELD, words)
}

/// Checks a template as far as can be without a document: syntax, names, filters and functions.
///
/// # Errors
/// `INVALID_ARGUMENT` says what is wrong.
pub fn check(source: &str) -> Result<(), Problem> {
    if source.trim().is_empty() {
        return Err(Problem::invalid(FIELD, "is blank; leave it out for the default, a short summary"));
    }
    let mut environment = compile(source)?;
    environment.set_fuel(Some(TRIAL_FUEL));
    let values = context! { document => "text", path => "name", name => "name" };
    let template = environment.get_template(TEMPLATE).map_err(|error| refused(&error))?;
    match template.render_captured_to(values, Trial(0)) {
        Err(error) if of_template(error.kind()) => Err(refused(&error)),
        // What else goes wrong may not with a real document.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Counts what a trial writes, and ends one that writes too much.
struct Trial(usize);

impl std::io::Write for Trial {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        if self.0 > 1 << 20 { Err(std::io::Error::other("long enough")) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_reads_the_document_or_it_does_not() {
        for source in [DEFAULT, "{{ document|upper }}", "{% if name %}{{ document }}{% endif %}", "{{document[:9]}}"] {
            assert!(reads_document(source), "{source}");
        }
        for source in ["Summarise it.", "{{ name }}", "document", "{# {{ document }} #}", "{{ document"] {
            assert!(!reads_document(source), "{source}");
        }
    }

    #[test]
    fn templates_are_judged_without_a_document() {
        for good in [
            DEFAULT,
            "no placeholder at all",
            "{{ name }} in {{ path }}: {{ document|upper }}",
            "{% for i in range(2) %}{{ document }}{% endfor %}",
            "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, word) in [
            ("", "blank"),
            (" \n ", "blank"),
            ("{{ document", "syntax error"),
            ("{% if %}", "syntax error"),
            ("{{ documnet }}", "`documnet` is unknown"),
            ("{{ title }} {{ document }}", "`title` is unknown"),
            ("{{ document|nofilter }}", "nofilter"),
            ("{{ nofunction() }}", "nofunction"),
            ("{% include 'x' %}", "x"),
        ] {
            let problem = check(bad).expect_err(bad);
            assert_eq!(problem.field.as_deref(), Some(FIELD));
            assert!(problem.message.contains(word), "{bad}: {}", problem.message);
        }
    }
}
