//! The `ingle` binary as a person or script meets it: against a coordinator and a model hub played by this test.

mod chat;
mod coordinator;
mod doctor;
mod draining;
mod gateway;
mod help;
mod hub;
#[path = "../../../tests/src/ports.rs"]
#[allow(unreachable_pub, reason = "it is public where it lies")]
mod ports;
mod steering;
mod top;
mod waiting;

use std::process::{Command, Output};

/// `ingle` with these arguments, without anything of the surrounding environment that could steer it.
fn ingle(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ingle"));
    for variable in
        ["INGLE_COORDINATOR", "INGLE_TIMEOUT", "INGLE_TLS_CA", "INGLE_TLS_CERT", "INGLE_TLS_KEY", "HF_TOKEN"]
    {
        command.env_remove(variable);
    }
    for proxy in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(proxy);
    }
    command.args(arguments).stdin(std::process::Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    ingle(arguments).output().expect("the binary starts")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it was not killed")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text.trim()).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn usage_errors_exit_with_2() {
    for line in [
        &["submit", "embed", "./here", "--output", "nas://docs/x"][..],
        &["submit", "embed", "nas://docs/", "--output", "there"],
        &["submit", "embed", "nas://docs/../x", "--output", "nas://docs/x"],
        &["models", "pull", "../x", "--into", "/nowhere/at/all"],
        &["status", "--coordinator", "not an address"],
        &["status", "--coordinator", "http://192.0.2.1:7700"],
        &["status", "--tls-ca", "/nowhere/at/all"],
        &["no-such-command"],
        &["chat", ""],
    ] {
        let output = run(line);
        assert_eq!(code(&output), 2, "{line:?}: {}", stderr(&output));
        assert!(stderr(&output).starts_with("error: "), "{line:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
    assert!(!std::path::Path::new("/nowhere/at/all").exists(), "a refused command makes nothing");
}

#[test]
fn nobody_there_exits_with_3_and_says_what_to_do() {
    // Nobody listens there.
    let port = ports::port();
    let endpoint = format!("http://127.0.0.1:{port}");
    for line in [
        &["status"][..],
        &["jobs", "list"],
        &["jobs", "watch", "j-1"],
        &["nodes", "list"],
        &["models", "list"],
        &["embed", "a"],
        &["chat", "hello"],
        &["submit", "embed", "nas://docs/", "--output", "nas://docs/x", "--wait"],
    ] {
        let mut with: Vec<&str> = line.to_vec();
        with.extend(["--coordinator", &endpoint]);
        let output = run(&with);
        assert_eq!(code(&output), 3, "{line:?}: {}", stderr(&output));
        let said = stderr(&output);
        assert!(said.contains(&endpoint) && said.contains("hint: ") && said.contains("ingle up"), "{said}");
        with.push("--json");
        let said = json(&stderr(&run(&with)));
        assert_eq!(said["error"]["exit_code"], 3);
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error_message() {
    use std::io::Read as _;
    use std::process::Stdio;
    let mut child =
        ingle(&["completions", "zsh"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("UTF-8");
    child.wait().expect("it ends");
    assert_eq!(said, "");
}
