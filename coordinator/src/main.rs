//! `ingle-coordinator`: the coordinator's program.

use std::process::ExitCode;

fn main() -> ExitCode {
    ingle_daemon::version::stamp(option_env!("INGLE_STAMP"));
    ingle_coordinator::main()
}
