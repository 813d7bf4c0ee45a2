//! Which files are documents that jobs can take now, by name alone. Pure: nothing is opened.

use ingle_proto::v1::JobKind;

/// Extensions of text, markdown, source code, configuration and plain data, in lower case.
const TEXT: &[&str] = &[
    // Prose.
    "txt",
    "text",
    "md",
    "markdown",
    "mdown",
    "mkd",
    "rst",
    "adoc",
    "asciidoc",
    "org",
    "tex",
    "bib",
    "textile",
    "wiki",
    "log",
    "srt",
    "vtt",
    "typ", // Source code.
    "rs",
    "c",
    "h",
    "cc",
    "cpp",
    "cxx",
    "hh",
    "hpp",
    "hxx",
    "m",
    "mm",
    "cs",
    "java",
    "kt",
    "kts",
    "scala",
    "groovy",
    "gradle",
    "go",
    "py",
    "pyi",
    "rb",
    "php",
    "pl",
    "pm",
    "lua",
    "r",
    "jl",
    "js",
    "mjs",
    "cjs",
    "jsx",
    "ts",
    "mts",
    "cts",
    "tsx",
    "vue",
    "svelte",
    "swift",
    "dart",
    "zig",
    "nim",
    "ex",
    "exs",
    "erl",
    "hrl",
    "hs",
    "ml",
    "mli",
    "fs",
    "fsx",
    "clj",
    "cljs",
    "edn",
    "lisp",
    "el",
    "scm",
    "rkt",
    "d",
    "v",
    "sv",
    "vhd",
    "vhdl",
    "asm",
    "s",
    "f",
    "f90",
    "f95",
    "pas",
    "ada",
    "adb",
    "ads",
    "cob",
    "cbl",
    "vb",
    "bas",
    "sh",
    "bash",
    "zsh",
    "fish",
    "ps1",
    "psm1",
    "bat",
    "cmd",
    "awk",
    "sed",
    "sql",
    "proto",
    "thrift",
    "graphql",
    "gql",
    "tf",
    "nix",
    "cmake",
    "mk",
    "bzl",
    "sol",
    "cu",
    "cuh",
    "glsl",
    "wgsl",
    "hlsl",
    "metal",
    "diff",
    "patch", // The web.
    "html",
    "htm",
    "xhtml",
    "css",
    "scss",
    "sass",
    "less",
    "xml",
    "xsl",
    "xslt",
    "svelte", // Configuration and data.
    "json",
    "jsonl",
    "ndjson",
    "json5",
    "yaml",
    "yml",
    "toml",
    "ini",
    "cfg",
    "conf",
    "properties",
    "env",
    "csv",
    "tsv",
    "ics",
    "vcf",
    "eml",
    "service",
    "desktop",
    "plist",
];

/// Names without an extension that are text wherever they lie, in lower case.
const NAMES: &[&str] = &[
    "readme",
    "license",
    "licence",
    "copying",
    "authors",
    "contributors",
    "contributing",
    "changelog",
    "changes",
    "news",
    "todo",
    "notice",
    "install",
    "makefile",
    "gnumakefile",
    "dockerfile",
    "containerfile",
    "vagrantfile",
    "rakefile",
    "gemfile",
    "procfile",
    "justfile",
    "codeowners",
    "maintainers",
    "notes",
];

/// Pictures that the parser opens.
const PICTURES: &[&str] = &["png", "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp", "dib", "tif", "tiff"];

/// Kinds that people will look for, with what to tell them.
const KNOWN: &[(&[&str], &str)] = &[
    (&["djvu", "djv", "xps", "ps", "eps"], "scanned documents of this kind are not read yet"),
    (&["heic", "heif", "avif", "jxl", "jp2", "svg", "psd"], "pictures of this kind are not read yet"),
    (
        &["docx", "doc", "odt", "xlsx", "xls", "ods", "pptx", "ppt", "odp", "rtf", "epub"],
        "office documents are not read yet",
    ),
];

/// What kind of document a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text as it is.
    Text,
    /// Pages that may carry text: PDF.
    Pages,
    /// A picture.
    Picture,
}

/// What kind a file of this name is, if it is one of those that are read.
///
/// # Errors
/// The reason why not, for the listing.
pub fn kind(name: &[u8]) -> Result<Kind, String> {
    let lower = name.to_ascii_lowercase();
    let extension = match lower.iter().rposition(|b| *b == b'.') {
        Some(dot) if dot > 0 && dot + 1 < lower.len() => &lower[dot + 1..],
        _ => {
            return if NAMES.iter().any(|known| known.as_bytes() == lower) {
                Ok(Kind::Text)
            } else {
                Err("files without an extension are not read yet".to_owned())
            };
        }
    };
    let one_of = |known: &[&str]| known.iter().any(|known| known.as_bytes() == extension);
    if one_of(TEXT) {
        return Ok(Kind::Text);
    }
    if extension == b"pdf" {
        return Ok(Kind::Pages);
    }
    if one_of(PICTURES) {
        return Ok(Kind::Picture);
    }
    let shown = ingle_proto::storage::display_bytes(extension);
    match KNOWN.iter().find(|(extensions, _)| one_of(extensions)) {
        Some((_, reason)) => Err(format!("{reason} (.{shown})")),
        None => Err(format!("kind .{shown} is not read yet")),
    }
}

/// Whether a job takes a file of this name. `texts`: pictures may have their text elsewhere.
///
/// # Errors
/// The reason why not, for the listing.
pub fn taken(job: JobKind, name: &[u8], texts: bool) -> Result<Kind, String> {
    match (job, kind(name)?) {
        (JobKind::Ocr, Kind::Text) => Err("has text already: nothing to recognise".to_owned()),
        (JobKind::Ocr, kind) => Ok(kind),
        (_, Kind::Picture) if !texts => Err("a picture has no text of its own: run an OCR job over it, and name that \
                                            job's output as text_from (--text-from)"
            .to_owned()),
        (_, kind) => Ok(kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_go_by_name() {
        for (name, expected) in [
            ("a.txt", Kind::Text),
            ("README", Kind::Text),
            ("Makefile", Kind::Text),
            ("b.MD", Kind::Text),
            ("x.tar.md", Kind::Text),
            ("caf\u{e9}.json", Kind::Text),
            (".x.md", Kind::Text),
            ("scan.PDF", Kind::Pages),
            ("photo.jpeg", Kind::Picture),
            ("fax.TIF", Kind::Picture),
            ("a.webp", Kind::Picture),
        ] {
            assert_eq!(kind(name.as_bytes()), Ok(expected), "{name}");
        }
        assert_eq!(kind(b"caf\xe9.txt"), Ok(Kind::Text));
        for (name, word) in [
            ("letter.docx", "office"),
            ("phone.heic", "pictures of this kind"),
            ("logo.svg", "pictures of this kind"),
            ("a.xyz", "kind .xyz is not read yet"),
            ("noext", "without an extension"),
            ("dot.", "without an extension"),
            ("a.md.conflict-7", ".conflict-7"),
        ] {
            let reason = kind(name.as_bytes()).expect_err(name);
            assert!(reason.contains(word), "{name}: {reason}");
        }
    }

    #[test]
    fn each_kind_of_job_takes_what_it_can_use() {
        assert_eq!(taken(JobKind::Ocr, b"a.png", false), Ok(Kind::Picture));
        assert_eq!(taken(JobKind::Ocr, b"a.pdf", false), Ok(Kind::Pages));
        assert!(taken(JobKind::Ocr, b"a.md", false).unwrap_err().contains("has text already"));
        for job in [JobKind::Embed, JobKind::Generate] {
            assert_eq!(taken(job, b"a.md", false), Ok(Kind::Text));
            assert_eq!(taken(job, b"a.pdf", false), Ok(Kind::Pages));
            assert!(taken(job, b"a.png", false).unwrap_err().contains("--text-from"));
            assert_eq!(taken(job, b"a.png", true), Ok(Kind::Picture));
        }
    }
}
