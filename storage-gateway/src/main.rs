//! `ingle-gateway`: the storage gateway's program.

use std::process::ExitCode;

fn main() -> ExitCode {
    ingle_gateway::main()
}
