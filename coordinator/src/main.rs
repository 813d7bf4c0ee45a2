//! `ingle-coordinator`: the coordinator's program.

use std::process::ExitCode;

fn main() -> ExitCode {
    ingle_coordinator::main()
}
