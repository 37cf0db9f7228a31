//! The shim binary. All of it is in the library's `server`.

use std::process::ExitCode;

fn main() -> ExitCode {
    windlass_shim::server::main(std::env::args().skip(1))
}
