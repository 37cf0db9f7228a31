//! Registry configurations in a directory of their own.

use std::path::PathBuf;

/// A root of registry configurations that is removed in the end.
pub struct TestHosts {
    directory: tempfile::TempDir,
}

impl TestHosts {
    pub fn new() -> TestHosts {
        TestHosts { directory: tempfile::tempdir().expect("temporary directories can be made") }
    }

    pub fn root(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// Makes the directory of a registry.
    pub fn directory(&self, registry: &str) -> PathBuf {
        let path = self.directory.path().join(registry);
        std::fs::create_dir_all(&path).expect("a test's directory is writable");
        path
    }

    /// Writes the `hosts.toml` of a registry.
    pub fn write(&self, registry: &str, text: &str) {
        let path = self.directory(registry).join("hosts.toml");
        std::fs::write(path, text).expect("a test's directory is writable");
    }
}
