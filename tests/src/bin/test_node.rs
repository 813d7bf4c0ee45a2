//! `ingle-test-node`: the node as it is, with the deterministic engine of tests in it.

use std::process::ExitCode;
use std::sync::Arc;

use ingle_engine::fake::FakeEngine;

fn main() -> ExitCode {
    ingle_node_agent::main(|_threads| Arc::new(FakeEngine::new()))
}
