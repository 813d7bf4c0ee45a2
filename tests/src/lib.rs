//! What tests of whole clusters stand on: clusters in one process, real processes, shares, clients and patience.

pub mod client;
pub mod cluster;
pub mod etcd;
pub mod eventually;
pub mod held;
pub mod history;
pub mod hosts;
pub mod models;
pub mod nas;
pub mod papers;
pub mod parquet;
pub mod ports;
pub mod process;
pub mod prometheus;
pub mod relay;
pub mod share;
pub mod tgt;
