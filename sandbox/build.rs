//! Generates the messages of NRI from `proto/`, without protoc. Its services are dispatched by name.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["nri.proto"], ["proto"])?;
    // Ordered maps, so that what is written into a spec or shown in a test is the same each time.
    prost_build::Config::new().btree_map(["."]).include_file("nri.rs").compile_fds(descriptors)?;
    Ok(())
}
