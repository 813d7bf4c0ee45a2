//! The node's binary: hands the library its engine.

use std::process::ExitCode;
use std::sync::Arc;

fn main() -> ExitCode {
    ingle_node_agent::stamp(option_env!("INGLE_STAMP"));
    ingle_node_agent::main(|threads| Arc::new(ingle_engine_candle::CandleEngine::new(threads)))
}
