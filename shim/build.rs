//! Generates the Rust messages from `proto/`, without protoc. Services are dispatched by name, so no service code is generated.

use std::error::Error;

const FILES: [&str; 12] = [
    "bootstrap.proto",
    "events.proto",
    "events_ttrpc.proto",
    "extension.proto",
    "process.proto",
    "rpc_status.proto",
    "runc.proto",
    "runtimeoptions.proto",
    "task_v2.proto",
    "task_v3.proto",
    "ttrpc.proto",
    "types.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    prost_build::Config::new().bytes(["."]).enable_type_names().include_file("protocol.rs").compile_fds(descriptors)?;
    Ok(())
}
