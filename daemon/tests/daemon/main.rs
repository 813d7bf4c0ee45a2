//! What all daemons share, from outside: gRPC with its bounds, TLS, spans through a hop, and the frame of a process.

mod frame;
mod provider;
mod rpc;
mod secure;
mod spans;
mod supervised;
