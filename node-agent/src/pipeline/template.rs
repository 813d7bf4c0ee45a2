//! A job's prompt template: minijinja with fuel, without includes, strict about names it doesn't know.

use ingle_proto::ErrorCode;
use ingle_proto::prompt::{self, TEMPLATE, of_template};
use minijinja::{Environment, context};

use super::manifest::NoResult;
use crate::error::Failure;
use crate::limits;

/// A template that compiles.
pub struct Template {
    environment: Environment<'static>,
}

/// What a template sees of a document.
#[derive(Debug, Clone, Copy)]
pub struct Variables<'a> {
    /// The text.
    pub document: &'a str,
    /// The document's name below the input.
    pub path: &'a str,
}

impl Template {
    /// Compiles a template.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` says where the syntax is wrong.
    pub fn new(source: &str) -> Result<Self, Failure> {
        let mut environment = prompt::compile(source).map_err(Failure::input)?;
        environment.set_fuel(Some(limits::TEMPLATE_FUEL));
        let template = Self { environment };
        // Filters and functions that don't exist show at once, not once per document.
        template.render(Variables { document: "text", path: "name" }).or_else(|error| match error {
            RenderError::Template(failure) => Err(failure),
            RenderError::Document(_) => Ok(String::new()),
        })?;
        Ok(template)
    }

    /// Renders it for a document.
    ///
    /// # Errors
    /// [`RenderError`]: the template's own fault, or this document's.
    pub fn render(&self, variables: Variables<'_>) -> Result<String, RenderError> {
        let name = variables.path.rsplit('/').next().unwrap_or_default();
        let mut out = Bounded(Vec::new());
        let values = context! { document => variables.document, path => variables.path, name };
        let rendered = self
            .environment
            .get_template(TEMPLATE)
            .and_then(|template| template.render_captured_to(values, &mut out).map(|_| ()));
        match rendered {
            Ok(()) => String::from_utf8(out.0).map_err(|_| {
                RenderError::Document(NoResult::failed(ErrorCode::InvalidArgument, "the prompt isn't UTF-8"))
            }),
            Err(error) if of_template(error.kind()) => Err(RenderError::Template(refused(&error))),
            Err(error) => Err(RenderError::Document(NoResult::failed(
                ErrorCode::InvalidArgument,
                format!("the prompt can't be rendered: {error}"),
            ))),
        }
    }
}

/// Why a prompt can't be rendered.
#[derive(Debug)]
pub enum RenderError {
    /// For no document: the job's fault.
    Template(Failure),
    /// For this document.
    Document(NoResult),
}

fn refused(error: &minijinja::Error) -> Failure {
    Failure::input(prompt::refused(error))
}

/// Takes no more than a prompt may have.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > limits::TEXT_BYTES_MAX as usize * 2 {
            return Err(std::io::Error::other("the prompt grows too large"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, document: &str) -> Result<String, RenderError> {
        Template::new(source).map_err(RenderError::Template)?.render(Variables { document, path: "a/b.md" })
    }

    #[test]
    fn variables_are_filled_in_and_markup_stays() {
        let text =
            render("{{ name }} of {{ path }}: {{ document }}{% if document %}!{% endif %}", "<b> & {{ x }}").unwrap();
        assert_eq!(text, "b.md of a/b.md: <b> & {{ x }}!");
    }

    #[test]
    fn the_templates_own_faults_are_the_jobs() {
        for bad in ["{{ document", "{% if %}", "{{ documnet }}", "{{ document|nofilter }}", "{% include 'x' %}"] {
            match render(bad, "x") {
                Err(RenderError::Template(failure)) => {
                    assert_eq!(failure.kind, ingle_proto::v1::FailureKind::Input);
                    assert!(failure.problem.message.contains("spec.generate.prompt"), "{failure}");
                }
                other => panic!("{bad}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_one_document_lacks_is_that_documents_fault() {
        let template =
            "{{ document.splitlines()[3] if document else '' }}{{ range(2)|list|length }}{{ document|last }}";
        assert!(Template::new("{{ document|last }}{% for i in range(2) %}{{ i }}{% endfor %}").is_ok());
        assert!(matches!(render("{{ document|last }}", ""), Err(RenderError::Document(_))));
        assert!(Template::new(template).is_err(), "methods of strings aren't built in");
    }

    #[test]
    fn endless_templates_run_out_of_fuel() {
        let loops = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
        assert!(matches!(render(loops, "x"), Err(RenderError::Document(_))));
    }
}
