//! stub
mod config;
mod serve;
fn main() {
    let _ = config::load(std::path::Path::new("/x"));
    let _ = config::DEFAULT_TOML;
}
