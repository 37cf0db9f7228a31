//! Compiles `proto/` into Rust: protox parses (so no protoc is needed), tonic generates clients and servers.
//!
//! Each protocol becomes one descriptor set, and one Rust file per protobuf package, in `OUT_DIR`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message;

/// Messages whose derived `Debug` would print a secret. `src/redact.rs` writes theirs by hand; a message that only
/// contains one of them is safe.
const SECRET_MESSAGES: &[&str] = &[".runtime.v1.AuthConfig"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo did not set OUT_DIR")?);
    generate(&["runtime/v1/service.proto"], &out, "cri.bin")?;
    let containerd = [
        "containerd/services/version/v1/version.proto",
        "containerd/services/namespaces/v1/namespaces.proto",
        "containerd/services/images/v1/images.proto",
        "containerd/services/containers/v1/containers.proto",
        "containerd/services/tasks/v1/tasks.proto",
        "containerd/types/platform.proto",
    ];
    generate(&containerd, &out, "containerd.bin")
}

/// Compiles `files` and all they import, and stores their descriptors as `descriptors`.
fn generate(files: &[&str], out: &Path, descriptors: &str) -> Result<(), Box<dyn Error>> {
    let set = protox::compile(files, ["proto"])?;
    fs::write(out.join(descriptors), set.encode_to_vec())?;
    tonic_prost_build::configure().emit_rerun_if_changed(false).skip_debug(SECRET_MESSAGES).compile_fds(set)?;
    Ok(())
}
