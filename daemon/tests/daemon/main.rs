//! What all daemons share, from outside: gRPC with its bounds, TLS, spans through a hop, and the frame of a process.

mod frame;
#[path = "../../../tests/src/ports.rs"]
#[allow(unreachable_pub, reason = "it is public where it lies")]
mod ports;
mod provider;
mod rpc;
mod secure;
mod spans;
mod supervised;
