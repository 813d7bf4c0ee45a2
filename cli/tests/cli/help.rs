//! The help texts, whole: a change of the command line shows in the change that makes it.

use super::{code, ingle, run, stdout};

/// Every command whose help is kept.
const COMMANDS: &[&str] = &[
    "",
    "up",
    "submit",
    "jobs",
    "jobs list",
    "jobs show",
    "jobs items",
    "jobs watch",
    "jobs cancel",
    "jobs pause",
    "jobs resume",
    "jobs explain",
    "nodes",
    "nodes list",
    "nodes show",
    "nodes drain",
    "nodes uncordon",
    "embed",
    "ocr",
    "chat",
    "models",
    "models list",
    "models show",
    "models load",
    "models unload",
    "models fit",
    "models explain",
    "models pull",
    "completions",
    "status",
    "top",
    "doctor",
];

#[test]
fn help_is_as_written_down() {
    let mut text = String::new();
    for command in COMMANDS {
        let mut arguments: Vec<&str> = command.split_whitespace().collect();
        arguments.push("--help");
        let output = ingle(&arguments).env("COLUMNS", "100").output().expect("the binary starts");
        assert_eq!(code(&output), 0, "{command}");
        text.push_str(&format!("$ ingle {}\n{}\n", arguments.join(" "), stdout(&output)));
    }
    let text: String = text.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/help.txt");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, &text).expect("room");
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    for (number, (now, then)) in text.lines().zip(written.lines()).enumerate() {
        assert_eq!(now, then, "line {} of help.txt; BLESS=1 writes it anew", number + 1);
    }
    assert_eq!(text.lines().count(), written.lines().count(), "BLESS=1 writes help.txt anew");
}

#[test]
fn help_says_the_exit_codes() {
    let text = stdout(&run(&["--help"]));
    for word in ["Exit codes:", "documents failed", "can't be reached", "not found", "INGLE_COORDINATOR"] {
        assert!(text.contains(word), "{word}");
    }
    assert!(stdout(&run(&["--version"])).starts_with("ingle "));
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert_eq!(code(&output), 0);
        assert!(stdout(&output).contains("uncordon"), "{shell}");
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let dir = tempfile::tempdir().expect("a directory");
    let folder = dir.path().join("man1");
    let output = run(&["man", "--into", folder.to_str().expect("UTF-8")]);
    assert_eq!(code(&output), 0);
    for command in COMMANDS {
        let name = format!("ingle {command}").trim_end().replace(' ', "-");
        let page =
            std::fs::read_to_string(folder.join(format!("{name}.1"))).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{name}: {page}");
    }
    assert!(!folder.join("ingle-man.1").exists(), "what help doesn't list has no page");
    assert!(!stdout(&run(&["--help"])).contains("ingle man"), "nor is it listed");
}
