//! The model's own chat template, rendered with fuel and a limit on its length.
//!
//! Templates come with models and are foreign code: they get no files, no clock but a date, and so many instructions.

use std::io::Write;

use ingle_engine::{EngineError, Message};
use minijinja::{Environment, Error, ErrorKind, context};

use super::pymethods;
use super::vocabulary::Vocabulary;
use crate::weights::HeaderError;
use crate::weights::gguf::Header;

/// Instructions of one rendering; a template of a few hundred over thousands of messages stays below.
const FUEL: u64 = 5_000_000;
/// Longest template text in bytes.
const TEMPLATE_BYTES_MAX: usize = 1 << 20;
/// Longest rendering in bytes; messages have at most half of that.
const RENDERED_BYTES_MAX: usize = 16 << 20;
const NAME: &str = "chat";

/// A parsed template, if the model has one.
pub(crate) struct Template {
    environment: Option<Environment<'static>>,
    begin: Option<u32>,
    end: Option<u32>,
}

/// Text with the mark that keeps a person's words from reading as control tokens.
pub(crate) struct Rendered {
    pub(crate) text: String,
    pub(crate) mark: char,
}

impl Template {
    /// Parses `tokenizer.chat_template`.
    pub(crate) fn read(header: &Header) -> Result<Self, HeaderError> {
        let environment = header.text("tokenizer.chat_template").map(environment).transpose()?;
        let begin = header.number("tokenizer.ggml.bos_token_id");
        Ok(Self { environment, begin, end: header.number("tokenizer.ggml.eos_token_id") })
    }

    /// The conversation as the model expects it, with the opening of its own turn.
    ///
    /// # Errors
    /// [`EngineError::Input`] if the model has no template, or the template refuses the messages.
    pub(crate) fn render(&self, messages: &[Message], vocabulary: &Vocabulary) -> Result<Rendered, EngineError> {
        let Some(environment) = &self.environment else {
            return Err(EngineError::Input(
                "the model has no chat template: it completes text and can't answer messages".into(),
            ));
        };
        let mark = mark(messages)?;
        let specials: Vec<&str> = vocabulary.specials().collect();
        let marked: Vec<_> = messages
            .iter()
            .map(|message| context! { role => message.role, content => defuse(&message.content, &specials, mark) })
            .collect();
        let values = context! {
            messages => marked,
            add_generation_prompt => true,
            bos_token => vocabulary.spelling(self.begin),
            eos_token => vocabulary.spelling(self.end),
        };
        let mut out = Limited(Vec::new());
        let template = environment.get_template(NAME).map_err(|error| refused(&error))?;
        template.render_captured_to(values, &mut out).map_err(|error| refused(&error))?;
        let text =
            String::from_utf8(out.0).map_err(|_| EngineError::Input("the chat template cut a character".into()))?;
        Ok(Rendered { text, mark })
    }
}

fn refused(error: &Error) -> EngineError {
    let detail = error.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
    EngineError::Input(format!("the model's chat template refuses these messages: {}{detail}", error.kind()))
}

fn environment(source: &str) -> Result<Environment<'static>, HeaderError> {
    if source.len() > TEMPLATE_BYTES_MAX {
        return Err(HeaderError(format!(
            "the chat template has {} bytes, at most {TEMPLATE_BYTES_MAX} are run",
            source.len()
        )));
    }
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(64);
    // As the ecosystem's templates are written for.
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_unknown_method_callback(pymethods::call);
    environment.add_function("raise_exception", |text: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, text))
    });
    environment.add_function("strftime_now", pymethods::strftime_now);
    environment
        .add_template_owned(NAME, source.to_string())
        .map_err(|error| HeaderError(format!("the chat template can't be parsed: {error}")))?;
    Ok(environment)
}

/// A character that no message holds: one of Unicode's noncharacters, which no vocabulary spells.
fn mark(messages: &[Message]) -> Result<char, EngineError> {
    ('\u{FDD0}'..='\u{FDEF}')
        .find(|mark| messages.iter().all(|message| !message.content.contains(*mark)))
        .ok_or_else(|| EngineError::Input("the messages hold all of Unicode's noncharacters".into()))
}

/// Puts a mark after the first character of every control token's spelling in a person's text, and after a beginning of one at
/// the text's end, which the template's own text might complete. The marks go when the pieces between control tokens are tokenised.
fn defuse(content: &str, specials: &[&str], mark: char) -> String {
    let mut out = String::with_capacity(content.len());
    for (at, c) in content.char_indices() {
        out.push(c);
        let rest = &content[at..];
        if specials.iter().any(|special| rest.starts_with(special) || special.starts_with(rest)) {
            out.push(mark);
        }
    }
    out
}

/// Refuses to grow beyond the limit.
struct Limited(Vec<u8>);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > RENDERED_BYTES_MAX {
            return Err(std::io::Error::other("the rendering is too long"));
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

    fn run(source: &str, value: &str) -> Result<String, String> {
        let environment = environment(source).map_err(|error| error.0)?;
        let mut out = Limited(Vec::new());
        let template = environment.get_template(NAME).unwrap();
        template
            .render_captured_to(
                context! { value, messages => vec![context! { role => "user", content => value }] },
                &mut out,
            )
            .map_err(|error| refused(&error).to_string())?;
        Ok(String::from_utf8(out.0).unwrap())
    }

    #[test]
    fn a_template_without_end_runs_out_of_fuel() {
        let endless = "{% for a in range(10000) %}{% for b in range(10000) %}{{ a }}{% endfor %}{% endfor %}";
        let error = run(endless, "").unwrap_err();
        assert!(error.contains("fuel"), "{error}");
    }

    #[test]
    fn a_template_that_grows_is_stopped() {
        let error = run("{% for a in range(100000) %}{{ value }}{% endfor %}", &"x".repeat(10_000)).unwrap_err();
        assert!(error.contains("write"), "{error}");
    }

    #[test]
    fn a_template_may_refuse_and_its_reason_is_told() {
        let error = run("{{ raise_exception('roles must alternate') }}", "").unwrap_err();
        assert!(error.contains("roles must alternate"), "{error}");
        assert!(environment("{% if %}").is_err());
    }

    #[test]
    fn blocks_take_their_line_end_with_them() {
        assert_eq!(run("{% if true %}\n  a\n  {% endif %}\nb", "").unwrap(), "  a\nb");
    }

    #[test]
    fn python_methods_of_the_ecosystems_templates_work() {
        for (source, expected) in [
            ("{{ value.strip() }}", "Hi there"),
            ("{{ value.rstrip() }}|{{ value.lstrip() }}", " Hi there|Hi there  "),
            ("{{ value.upper() }}{{ value.lower() }}", " HI THERE   hi there  "),
            ("{{ value.startswith(' H') }} {{ value.endswith('x') }}", "True False"),
            ("{{ value.split('t')[0] }}", " Hi "),
            ("{{ value.strip().split()[1] }}", "there"),
            ("{{ value.replace('Hi', 'Ho') }}", " Ho there  "),
            ("{{ value.strip('Hi ') }}", "there"),
            ("{{ messages[0].get('role') }}{{ messages[0].get('x', '-') }}", "user-"),
            ("{% for k, v in messages[0].items() %}{{ k }} {% endfor %}", "role content "),
            ("{{ messages[0]['content'] | trim }}", "Hi there"),
            ("{{ strftime_now('%Y') | length }}", "4"),
        ] {
            assert_eq!(run(source, " Hi there  ").as_deref(), Ok(expected), "{source}");
        }
    }

    #[test]
    fn control_tokens_in_a_persons_text_are_broken() {
        let specials = ["<|im_start|>", "<|im_end|>"];
        let m = '\u{FDD0}';
        assert_eq!(defuse("a <|im_end|> b", &specials, m), format!("a <{m}|im_end|> b"));
        assert_eq!(defuse("<|im_", &specials, m), format!("<{m}|im_"));
        assert_eq!(defuse("a < b", &specials, m), "a < b");
        let taken = Message { role: "user".into(), content: "\u{FDD0}".into() };
        assert_eq!(mark(&[taken]).unwrap(), '\u{FDD1}');
    }
}
