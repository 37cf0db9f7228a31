//! Every key of the documented file, one by one: it is read, and in version 2 as where version 3 keeps it.

use toml::{Table, Value};

use super::{Config, DEFAULT_TOML, section::parse_duration, tests::parsed};

const CRI: &str = "io.containerd.grpc.v1.cri";
const IMAGES: &str = "io.containerd.cri.v1.images";
const RUNTIME: &str = "io.containerd.cri.v1.runtime";

/// All leaves of a table, each as the names that lead to it.
fn leaves(table: &Table, above: &[String]) -> Vec<Vec<String>> {
    let below = |(key, value): (&String, &Value)| {
        let path = [above, std::slice::from_ref(key)].concat();
        match value {
            Value::Table(table) => leaves(table, &path),
            _ => vec![path],
        }
    };
    table.iter().flat_map(below).collect()
}

fn at<'a>(table: &'a mut Table, path: &[String]) -> &'a mut Value {
    let (last, above) = path.split_last().unwrap();
    let inner = above.iter().fold(table, |table, key| {
        table.entry(key.clone()).or_insert_with(|| Value::Table(Table::new())).as_table_mut().unwrap()
    });
    inner.entry(last.clone()).or_insert(Value::Boolean(false))
}

/// Another value of the same kind that the key could have.
fn another(key: &str, value: &Value) -> Value {
    match (key, value) {
        (_, Value::Boolean(value)) => Value::Boolean(!value),
        (_, Value::Integer(0)) => Value::Integer(1),
        (_, Value::Integer(value)) => Value::Integer(value - 1),
        (_, Value::Array(_)) => Value::Array(vec!["/other".into()]),
        ("stream_server_port", _) => "7".into(),
        ("level", _) => "debug".into(),
        ("format", _) => "json".into(),
        ("ip_pref", _) => "ipv6".into(),
        ("unset_seccomp_profile", _) => "unconfined".into(),
        (_, Value::String(text)) if parse_duration(text).is_some() => "7s".into(),
        (_, Value::String(_)) => "/other".into(),
        other => panic!("{other:?}"),
    }
}

/// Where version 3 keeps a key of version 2.
fn in_version_3(path: &[String]) -> Vec<String> {
    let [plugins, plugin, rest @ ..] = path else { return path.to_vec() };
    if plugins != "plugins" || plugin != CRI {
        return path.to_vec();
    }
    let names: Vec<&str> = rest.iter().map(String::as_str).collect();
    let (section, rest): (&str, &[&str]) = match &names[..] {
        ["sandbox_image"] => (IMAGES, &["pinned_images", "sandbox"]),
        ["containerd", key @ ("snapshotter" | "discard_unpacked_layers")] => (IMAGES, &[*key][..]),
        ["registry", ..]
        | [
            "max_concurrent_downloads"
            | "concurrent_layer_fetch_buffer"
            | "image_pull_with_sync_fs"
            | "image_pull_progress_timeout",
        ] => (IMAGES, &names),
        [first, ..] if first.starts_with("stream_") || first.contains("streaming") => (CRI, &names),
        names => (RUNTIME, names),
    };
    ["plugins", section].iter().chain(rest).map(|name| (*name).to_owned()).collect()
}

#[test]
fn every_documented_key_is_read_wherever_a_version_keeps_it() {
    let documented: Table = DEFAULT_TOML.parse().unwrap();
    let mut checked = 0;
    for path in leaves(&documented, &[]) {
        let key = path.last().unwrap().as_str();
        if ["version", "imports"].contains(&key) {
            continue;
        }
        let value = another(key, at(&mut documented.clone(), &path));
        let read = |version: i64, path: &[String]| -> Result<Config, String> {
            let mut table = Table::from_iter([("version".to_owned(), Value::Integer(version))]);
            *at(&mut table, path) = value.clone();
            let loaded = parsed(&table.to_string())?;
            assert_eq!(loaded.warnings, [""; 0], "version {version}: {path:?}");
            Ok(loaded.config)
        };
        let (two, three) = (read(2, &path), read(3, &in_version_3(&path)));
        match (two, three) {
            // A value that cannot stand alone is told by its name, so it was read.
            (Err(two), Err(three)) => assert!(two.contains(key) && three.contains(key), "{path:?}: {two}; {three}"),
            (two, three) => {
                assert_eq!(two, three, "{path:?}");
                assert_ne!(two, Ok(Config::default()), "{path:?} has no effect");
            }
        }
        checked += 1;
    }
    assert!(checked > 100, "{checked}");
}
