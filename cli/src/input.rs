//! What a person names as INPUT: an object, a tree, a glob below an export, or texts given at once. Pure.

use std::io::Read;

use ingle_proto::storage::{Object, export_name};
use ingle_proto::v1::{self, input_spec::Input};
use ingle_proto::{ObjectPath, Problem, job};

use crate::exit::Failure;

/// Where the first wildcard stands tells what of a path is the glob's base.
const WILDCARDS: &[char] = &['*', '?', '[', '{'];

/// Reads INPUT. `stdin` is read only for `-`.
pub(crate) fn parse(text: &str, stdin: impl Read) -> Result<v1::InputSpec, Failure> {
    let input = if text == "-" {
        Input::Inline(v1::InlineInput { texts: lines(stdin)? })
    } else if let Some(inline) = text.strip_prefix("text:") {
        if inline.trim().is_empty() {
            return Err(Failure::usage("INPUT text: holds no text"));
        }
        Input::Inline(v1::InlineInput { texts: vec![inline.to_owned()] })
    } else if let Some(rest) = text.strip_prefix("nas://") {
        match rest.find(WILDCARDS) {
            Some(_) => Input::Glob(glob(rest)?),
            // Whether it is a file or a directory only the gateway can see: a `tree` that names a file is that file.
            None => Input::Tree((&Object::parse(text)?).into()),
        }
    } else {
        return Err(not_nas("INPUT", text));
    };
    Ok(v1::InputSpec { input: Some(input) })
}

/// Reads `--output`.
pub(crate) fn output(text: &str) -> Result<v1::ObjectRef, Failure> {
    directory("--output", text)
}

/// Reads `--text-from`.
pub(crate) fn text_from(text: &str) -> Result<v1::ObjectRef, Failure> {
    directory("--text-from", text)
}

fn directory(option: &str, text: &str) -> Result<v1::ObjectRef, Failure> {
    if !text.starts_with("nas://") {
        return Err(not_nas(option, text));
    }
    if text.contains(WILDCARDS) {
        return Err(Failure::usage(format!("{option} {text:?} holds a wildcard; name one directory")));
    }
    Ok((&Object::parse(text)?).into())
}

fn not_nas(what: &str, text: &str) -> Failure {
    let failure = Failure::usage(format!("{what} is nas://EXPORT/path, got {text:?}"));
    if text.starts_with('.') || text.starts_with('/') || text.starts_with('~') || std::path::Path::new(text).exists() {
        failure
            .hint("documents are read through a gateway: `ingle up --share docs=DIR` serves a directory as nas://docs/")
    } else {
        failure.hint("write `text:…` for a text itself, or `-` for lines from standard input")
    }
}

/// Splits `EXPORT/a/b/*.md` at the longest part without wildcards.
fn glob(rest: &str) -> Result<v1::Glob, Failure> {
    let (export, path) = rest.split_once('/').unwrap_or((rest, ""));
    let export = export_name(export)?;
    let components: Vec<&str> = path.split('/').collect();
    let first = components.iter().position(|c| c.contains(WILDCARDS)).unwrap_or(0);
    let base: Vec<Vec<u8>> = components[..first].iter().map(|component| decode(component).0).collect();
    let base = ObjectPath::new(base.join(&b'/'))?;
    let mut pattern = Vec::new();
    for component in &components[first..] {
        if !pattern.is_empty() {
            pattern.push(b'/');
        }
        let (bytes, escaped) = decode(component);
        if matches!(bytes.as_slice(), b"" | b"." | b"..") {
            return Err(Problem::invalid("INPUT", format!("{rest:?} has an empty component, '.' or '..'")).into());
        }
        for (byte, escaped) in bytes.iter().zip(escaped) {
            // A wildcard that was percent-encoded means itself.
            if escaped && matches!(byte, b'*' | b'?' | b'[' | b'{') {
                pattern.extend([b'[', *byte, b']']);
            } else {
                pattern.push(*byte);
            }
        }
    }
    let pattern = String::from_utf8(pattern)
        .map_err(|_| Failure::usage(format!("INPUT {rest:?}: the part with wildcards is not UTF-8")))?;
    let base = Object { export, path: base };
    Ok(v1::Glob { base: Some((&base).into()), pattern })
}

/// Percent-decodes a component and tells which bytes were encoded.
fn decode(component: &str) -> (Vec<u8>, Vec<bool>) {
    let hex = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let bytes = component.as_bytes();
    let (mut out, mut escaped, mut at) = (Vec::with_capacity(bytes.len()), Vec::with_capacity(bytes.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        let pair = bytes.get(at + 1).copied().and_then(hex).zip(bytes.get(at + 2).copied().and_then(hex));
        match (byte, pair) {
            (b'%', Some((high, low))) => {
                out.push(high << 4 | low);
                escaped.push(true);
                at += 3;
            }
            _ => {
                out.push(byte);
                escaped.push(false);
                at += 1;
            }
        }
    }
    (out, escaped)
}

/// One text per line that isn't empty, within a job's bounds.
pub(crate) fn lines(stdin: impl Read) -> Result<Vec<String>, Failure> {
    let mut text = String::new();
    let most = job::INLINE_BYTES_MAX as u64;
    stdin
        .take(most + 1)
        .read_to_string(&mut text)
        .map_err(|error| Failure::usage(format!("standard input can't be read as UTF-8 text: {error}")))?;
    if text.len() as u64 > most {
        return Err(Failure::usage(format!("standard input holds more than {}", crate::human::bytes(most)))
            .hint("put the texts into files on an export and name that as INPUT"));
    }
    let texts: Vec<String> = text.lines().filter(|l| !l.trim().is_empty()).map(str::to_owned).collect();
    match texts.len() {
        0 => Err(Failure::usage("standard input holds no text")),
        n if n > job::INLINE_TEXTS_MAX => Err(Failure::usage(format!(
            "standard input holds {n} lines; at most {} can be given",
            job::INLINE_TEXTS_MAX
        ))),
        _ => Ok(texts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    fn parsed(text: &str) -> Input {
        parse(text, std::io::empty()).expect(text).input.expect("an input")
    }

    fn tree(path: &[u8]) -> Input {
        Input::Tree(v1::ObjectRef { export: "docs".into(), path: path.to_vec().into() })
    }

    fn globbed(base: &str, pattern: &str) -> Input {
        let base = v1::ObjectRef { export: "docs".into(), path: base.as_bytes().to_vec().into() };
        Input::Glob(v1::Glob { base: Some(base), pattern: pattern.into() })
    }

    #[test]
    fn trees_and_objects() {
        assert_eq!(parsed("nas://docs"), tree(b""));
        assert_eq!(parsed("nas://docs/"), tree(b""));
        assert_eq!(parsed("nas://docs/a/b"), tree(b"a/b"));
        assert_eq!(parsed("nas://docs/a/b/"), tree(b"a/b"));
        assert_eq!(parsed("nas://docs/caf%E9.md"), tree(b"caf\xe9.md"));
        assert_eq!(parsed("nas://docs/what%3F"), tree(b"what?"), "an encoded wildcard is a character");
    }

    #[test]
    fn globs_split_at_the_longest_part_without_wildcards() {
        assert_eq!(parsed("nas://docs/*.md"), globbed("", "*.md"));
        assert_eq!(parsed("nas://docs/a/b/**/*.md"), globbed("a/b", "**/*.md"));
        assert_eq!(parsed("nas://docs/a/b?/c.md"), globbed("a", "b?/c.md"));
        assert_eq!(parsed("nas://docs/{a,b}/c"), globbed("", "{a,b}/c"));
        assert_eq!(parsed("nas://docs/my%20notes/[a-c]*"), globbed("my notes", "[a-c]*"));
        assert_eq!(parsed("nas://docs/100%25/*%2A"), globbed("100%", "*[*]"));
    }

    #[test]
    fn texts() {
        let inline =
            |texts: &[&str]| Input::Inline(v1::InlineInput { texts: texts.iter().map(|t| (*t).into()).collect() });
        assert_eq!(parsed("text:good morning"), inline(&["good morning"]));
        let read = parse("-", "one\n\n  \ntwo\r\n".as_bytes()).expect("lines").input.expect("an input");
        assert_eq!(read, inline(&["one", "two"]));
    }

    #[test]
    fn bad_inputs_are_usage_errors() {
        for bad in [
            "docs/a",
            "./docs",
            "/etc",
            "file:///etc",
            "nas://",
            "nas:///a",
            "nas://docs/../x",
            "nas://docs/%2e%2e/x",
            "nas://docs//a",
            "nas://docs/../*",
            "nas://docs/a//*.md",
            "nas://docs/*/../x",
            "nas://docs/*/%2e%2e",
            "nas://d*cs/a",
            "nas://docs/%FF*",
            "text:",
            "text:  ",
        ] {
            let failure = parse(bad, std::io::empty()).expect_err(bad);
            assert_eq!(failure.exit, Exit::Usage, "{bad}: {}", failure.message);
        }
        assert!(parse("-", "\n\n".as_bytes()).is_err());
        assert!(parse("-", [0xff, 0xfe].as_slice()).is_err(), "not UTF-8");
        assert!(parse("-", std::io::repeat(b'x')).is_err(), "endless input is bounded");
        let many = "x\n".repeat(job::INLINE_TEXTS_MAX + 1);
        assert!(parse("-", many.as_bytes()).is_err());
        let local = parse("/etc", std::io::empty()).expect_err("a local path");
        assert!(local.hint.is_some_and(|h| h.contains("--share")));
    }

    #[test]
    fn outputs() {
        assert_eq!(output("nas://docs/index/").expect("fine").path.as_ref(), b"index");
        for bad in ["index", "nas://docs/*", "nas://docs/../x"] {
            assert_eq!(output(bad).expect_err(bad).exit, Exit::Usage);
        }
    }
}
