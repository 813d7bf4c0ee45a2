//! Which files are documents that jobs can take now, by name alone. Pure: nothing is opened.

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

/// Kinds that people will look for, with what to tell them.
const KNOWN: &[(&[&str], &str)] = &[
    (&["pdf", "djvu"], "PDF and scanned documents are not read yet"),
    (&["png", "jpg", "jpeg", "tif", "tiff", "webp", "gif", "bmp", "heic", "avif", "svg"], "images are not read yet"),
    (
        &["docx", "doc", "odt", "xlsx", "xls", "ods", "pptx", "ppt", "odp", "rtf", "epub"],
        "office documents are not read yet",
    ),
];

/// Whether a file of this name is taken; if not, why not.
///
/// # Errors
/// The reason, for the listing.
pub fn taken(name: &[u8]) -> Result<(), String> {
    let lower = name.to_ascii_lowercase();
    let extension = match lower.iter().rposition(|b| *b == b'.') {
        Some(dot) if dot > 0 && dot + 1 < lower.len() => &lower[dot + 1..],
        _ => {
            return if NAMES.iter().any(|known| known.as_bytes() == lower) {
                Ok(())
            } else {
                Err("files without an extension are not read yet".to_owned())
            };
        }
    };
    if TEXT.iter().any(|known| known.as_bytes() == extension) {
        return Ok(());
    }
    let shown = ingle_proto::storage::display_bytes(extension);
    for (extensions, reason) in KNOWN {
        if extensions.iter().any(|known| known.as_bytes() == extension) {
            return Err(format!("{reason} (.{shown})"));
        }
    }
    Err(format!("kind .{shown} is not read yet"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_go_by_name() {
        for name in ["a.txt", "README", "Makefile", "b.MD", "x.tar.md", "main.rs", "caf\u{e9}.json", ".x.md"] {
            assert!(taken(name.as_bytes()).is_ok(), "{name}");
        }
        assert!(taken(b"caf\xe9.txt").is_ok());
        for (name, word) in [
            ("scan.PDF", "PDF"),
            ("photo.jpeg", "images"),
            ("letter.docx", "office"),
            ("a.xyz", "kind .xyz is not read yet"),
            ("noext", "without an extension"),
            ("dot.", "without an extension"),
            ("a.md.conflict-7", ".conflict-7"),
        ] {
            let reason = taken(name.as_bytes()).expect_err(name);
            assert!(reason.contains(word), "{name}: {reason}");
        }
    }
}
