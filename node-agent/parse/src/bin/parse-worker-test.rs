//! The child that this crate's tests start: nothing but the worker.

fn main() {
    ingle_parse::worker::main();
}
