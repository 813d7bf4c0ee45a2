//! Compiles the contract with a pure-Rust protobuf compiler and keeps the descriptor set for reflection.
use std::path::PathBuf;

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let services = ["types", "registry", "storage", "jobs", "inference", "node", "cluster"];
    let files: Vec<String> = services.iter().map(|name| format!("ingle/v1/{name}.proto")).collect();
    for file in &files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(&files, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("ingle.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Chunks are sliced from what arrived, not copied.
        .bytes(".")
        .build_transport(true)
        .compile_fds(descriptors)?;
    Ok(())
}
