//! The shape of the workspace: who may depend on whom, and where unsafe code may be.

#![expect(clippy::unwrap_used, reason = "the functions that tests share are test code as well")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use windlass_e2e::command;

/// ARCHITECTURE.md's picture: an arrow a line, `(dev)` for what only tests use.
const EDGES: &str = "\
    cri-server -> api, cri-server -> image-service, cri-server -> sandbox, cri-server -> snapshotter, cri-server -> store,
    ctr -> api,
    e2e -> api, e2e -> sandbox (dev), e2e -> shim (dev),
    image-service -> snapshotter, image-service -> store,
    sandbox -> shim, sandbox -> snapshotter, sandbox -> store,
    snapshotter -> store, snapshotter -> shim (dev)";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn metadata() -> Value {
    let manifest = root().join("Cargo.toml");
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let arguments = ["metadata", "--no-deps", "--offline", "--format-version", "1", "--manifest-path"];
    let text = command::run(&cargo, &[&arguments[..], &[manifest.to_str().unwrap()]].concat());
    serde_json::from_str(&text).unwrap()
}

/// A crate is called by its folder.
fn short(package: &str) -> &str {
    package.strip_prefix("windlass-").unwrap_or(package)
}

#[test]
fn the_workspace_has_exactly_the_edges_of_its_architecture() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let ours: BTreeSet<&str> = packages.iter().map(|package| package["name"].as_str().unwrap()).collect();
    assert_eq!(ours.len(), 9, "{ours:?}");
    let mut edges = BTreeSet::new();
    for package in packages {
        let from = short(package["name"].as_str().unwrap());
        for dependency in package["dependencies"].as_array().unwrap() {
            let to = dependency["name"].as_str().unwrap();
            let for_tests = dependency["kind"] == "dev";
            // A crate may name itself for its own tests; that is no edge.
            if ours.contains(to) && short(to) != from {
                edges.insert(format!("{from} -> {}{}", short(to), if for_tests { " (dev)" } else { "" }));
            }
        }
    }
    let expected: BTreeSet<String> =
        EDGES.split(',').map(|edge| edge.trim().to_owned()).filter(|edge| !edge.is_empty()).collect();
    assert_eq!(edges, expected);
}

#[test]
fn unsafe_code_is_only_in_files_named_sys() {
    let mut found = Vec::new();
    let metadata = metadata();
    let mut files = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        let dir = Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap();
        for part in ["src", "tests", "benches", "build.rs"] {
            rust_files(&dir.join(part), &mut files);
        }
    }
    assert!(files.len() > 100, "only {} files were looked at", files.len());
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().enumerate().filter(|(_, line)| lifts_safety(line));
        let is_sys = path.ends_with("src/sys.rs");
        found.extend(
            lines.filter(|_| !is_sys).map(|(number, line)| format!("{}:{}: {line}", path.display(), number + 1)),
        );
    }
    assert_eq!(found, Vec::<String>::new());
}

/// Whether code on this line opens unsafe code, or lifts the lint against it.
fn lifts_safety(line: &str) -> bool {
    let code = line.split("//").next().unwrap();
    let opens = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe trait", "unsafe("];
    let lifts = code.trim_start().starts_with('#') && code.contains("(unsafe_code");
    lifts || opens.iter().any(|form| code.contains(form)) && !code.contains('"')
}

fn rust_files(path: &Path, files: &mut Vec<PathBuf>) {
    if path.is_dir() {
        let mut entries: Vec<PathBuf> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for entry in entries {
            rust_files(&entry, files);
        }
    } else if path.is_file() && path.extension().is_some_and(|extension| extension == "rs") {
        files.push(path.to_owned());
    }
}

#[test]
fn unsafe_code_is_found_where_it_is_and_not_in_text() {
    let check = |line: &str, expected: bool| assert_eq!(lifts_safety(line), expected, "{line}");
    check("    let x = unsafe { call() };", true);
    check("unsafe impl Send for X {}", true);
    check("#![expect(unsafe_code, reason = \"a syscall\")]", true);
    check("// unsafe { call() }", false);
    check("let text = \"unsafe { }\";", false);
    check("let unsafe_name = 1;", false);
}
