//! Plugins of containerd's that this daemon has no options for, and top-level keys of the same kind.
//!
//! Dumps of containerd's configuration carry all of them: at their defaults they are no news, and all else is a warning that
//! says why it has no effect. Nothing here is ever an error.

use toml::{Table, Value};

use super::{
    Config,
    section::{Section, is_off},
};

const NO_SNAPSHOTTER: &str = "this daemon has the snapshotters overlayfs and native";
const NO_TRACES: &str = "the daemon sends no traces";
const NO_METRICS: &str = "metrics of the daemon itself are not built yet";
const NOT_TUNABLE: &str = "garbage is collected when it arises";

/// A plugin's name, why what is set there has no effect, and the keys whose default is not "off", with it.
type Plugin = (&'static str, &'static str, &'static [(&'static str, Usual)]);

const PLUGINS: &[Plugin] = &[
    ("io.containerd.differ.v1.erofs", NO_SNAPSHOTTER, &[]),
    (
        "io.containerd.gc.v1.scheduler",
        NOT_TUNABLE,
        &[
            ("pause_threshold", Usual::Fraction(0.02)),
            ("mutation_threshold", Usual::Number(100)),
            ("schedule_delay", Usual::Text("0s")),
            ("startup_delay", Usual::Text("100ms")),
        ],
    ),
    ("io.containerd.internal.v1.opt", "there is no `ctr install` here", &[("path", Usual::Text("/opt/containerd"))]),
    ("io.containerd.internal.v1.restart", NO_RESTARTS, &[("interval", Usual::Text("10s"))]),
    ("io.containerd.internal.v1.tracing", NO_TRACES, &[]),
    ("io.containerd.metadata.v1.bolt", STORE, &[("content_sharing_policy", Usual::Text("shared"))]),
    ("io.containerd.metrics.v1.grpc-prometheus", NO_METRICS, &[]),
    ("io.containerd.monitor.container.v1.restart", NO_RESTARTS, &[("interval", Usual::Text("10s"))]),
    // Whether metrics of containers are kept from an endpoint that is not there.
    ("io.containerd.monitor.task.v1.cgroups", NO_METRICS, &[("no_prometheus", Usual::Any)]),
    ("io.containerd.monitor.v1.cgroups", NO_METRICS, &[("no_prometheus", Usual::Any)]),
    ("io.containerd.mount-handler.v1.erofs", NO_SNAPSHOTTER, &[]),
    (
        "io.containerd.runtime.v1.linux",
        "shims of version 1 are no more",
        &[("shim", Usual::Text("containerd-shim")), ("runtime", Usual::Text("runc"))],
    ),
    (
        "io.containerd.runtime.v2.task",
        "containers are of the node's own platform, and share cores as the kernel likes",
        &[("platforms", Usual::Any)],
    ),
    ("io.containerd.server.v1.debug", "there is no debug socket", &[("uid", Usual::Any), ("gid", Usual::Any)]),
    (
        "io.containerd.server.v1.grpc-tcp",
        "the API is served on the unix socket alone",
        &[("max_recv_message_size", Usual::Any), ("max_send_message_size", Usual::Any)],
    ),
    ("io.containerd.server.v1.metrics", NO_METRICS, &[]),
    (
        "io.containerd.service.v1.diff-service",
        "layers are written in one way; image_pull_with_sync_fs waits for the disk",
        &[("default", Usual::Texts(&["walking"]))],
    ),
    (
        "io.containerd.shim.v1.manager",
        "shims get the environment that they need, and sockets where containerd has them",
        &[],
    ),
    ("io.containerd.snapshotter.v1.aufs", NO_SNAPSHOTTER, &[]),
    ("io.containerd.snapshotter.v1.blockfile", NO_SNAPSHOTTER, &[]),
    ("io.containerd.snapshotter.v1.btrfs", NO_SNAPSHOTTER, &[]),
    ("io.containerd.snapshotter.v1.devmapper", NO_SNAPSHOTTER, &[]),
    ("io.containerd.snapshotter.v1.erofs", NO_SNAPSHOTTER, &[]),
    ("io.containerd.snapshotter.v1.native", "it is kept below root and has no options", &[]),
    ("io.containerd.snapshotter.v1.overlayfs", "it is kept below root and has no options", &[]),
    ("io.containerd.snapshotter.v1.zfs", NO_SNAPSHOTTER, &[]),
    ("io.containerd.tracing.processor.v1.otlp", NO_TRACES, &[]),
    (
        "io.containerd.transfer.v1.local",
        "pulls are configured with CRI's images",
        &[
            ("max_concurrent_uploaded_layers", Usual::Number(3)),
            // Layers are unpacked side by side, however many there are.
            ("max_concurrent_unpacks", Usual::Any),
            ("unpack_config", Usual::Any),
        ],
    ),
];

const NO_RESTARTS: &str = "nothing here starts containers but its clients";
const STORE: &str = "content is stored once for all, and flushed as the store needs it";

/// The value of a key that is no news.
#[derive(Clone, Copy)]
enum Usual {
    /// Whatever it is, it changes nothing.
    Any,
    Text(&'static str),
    Texts(&'static [&'static str]),
    Number(i64),
    Fraction(f64),
}

impl Usual {
    fn is(self, value: &Value) -> bool {
        match self {
            Usual::Any => true,
            Usual::Text(text) => value.as_str() == Some(text),
            Usual::Texts(texts) => value
                .as_array()
                .is_some_and(|values| values.iter().map(Value::as_str).eq(texts.iter().copied().map(Some))),
            Usual::Number(number) => value.as_integer() == Some(number),
            Usual::Fraction(fraction) => value.as_float() == Some(fraction),
        }
    }
}

/// Top-level keys that are read elsewhere, or ask for what is the case anyway. Stream processors decrypt layers, and an
/// encrypted layer is refused by name when it is pulled.
const ACCEPTED: &[&str] = &["imports", "stream_processors"];

/// `timeouts`, with containerd's defaults. Everything here has a deadline of its own.
const TIMEOUTS: [(&str, &str); 7] = [
    ("io.containerd.timeout.bolt.open", "0s"),
    ("io.containerd.timeout.cri.defercleanup", "1m0s"),
    ("io.containerd.timeout.metrics.shimstats", "2s"),
    ("io.containerd.timeout.shim.cleanup", "5s"),
    ("io.containerd.timeout.shim.load", "5s"),
    ("io.containerd.timeout.shim.shutdown", "3s"),
    ("io.containerd.timeout.task.state", "2s"),
];

/// What is left below `plugins` when all that has an effect was read.
pub(super) fn plugins(mut plugins: Section, warnings: &mut Vec<String>) -> Result<(), String> {
    for (name, why, keys) in PLUGINS {
        let plugin = plugins.section(name)?;
        for (key, value) in plugin.left() {
            let usual = keys.iter().find(|(known, _)| *known == key).map(|(_, usual)| *usual);
            if !(is_off(value) || usual.is_some_and(|usual| usual.is(value))) {
                warnings.push(format!("{} has no effect: {why}", plugin.path(key)));
            }
        }
    }
    plugins.drop_off();
    plugins.unknown(warnings);
    Ok(())
}

/// Top-level keys that containerd acts on and this daemon does not; at their defaults they are no news.
pub(super) fn top(mut top: Section, config: &mut Config, warnings: &mut Vec<String>) -> Result<(), String> {
    top.accept(ACCEPTED);
    top.fixed("temp", "", "set TMPDIR for the service instead", warnings);
    top.fixed("plugin_dir", "", "plugins cannot be loaded into this daemon", warnings);
    top.fixed(
        "proxy_plugins",
        Table::new(),
        "snapshotters and content stores of other processes are not supported",
        warnings,
    );
    disabled(&mut top, config, warnings)?;
    required(&mut top, warnings)?;
    let mut metrics = top.section("metrics")?;
    metrics.fixed("address", "", NO_METRICS, warnings);
    metrics.accept(&["grpc_histogram"]);
    metrics.unknown(warnings);
    let mut cgroup = top.section("cgroup")?;
    cgroup.fixed("path", "", "the service manager puts the daemon into its cgroup", warnings);
    cgroup.unknown(warnings);
    let mut timeouts = top.section("timeouts")?;
    for (name, default) in TIMEOUTS {
        timeouts.fixed(name, default, "deadlines are fixed", warnings);
    }
    timeouts.unknown(warnings);
    top.unknown(warnings);
    Ok(())
}

/// `disabled_plugins`: NRI can be done without, CRI cannot, and of all others nothing is there to be disabled.
fn disabled(top: &mut Section, config: &mut Config, warnings: &mut Vec<String>) -> Result<(), String> {
    let mut names = Vec::new();
    top.strings("disabled_plugins", &mut names)?;
    for name in names {
        match name.as_str() {
            "nri" | "io.containerd.nri.v1.nri" => config.nri.disable = true,
            "cri" | "io.containerd.grpc.v1.cri" | "io.containerd.cri.v1.images" | "io.containerd.cri.v1.runtime" => {
                warnings.push(format!(
                    "disabled_plugins names CRI ({name}), which is what this daemon is for: it is served all the same"
                ));
            }
            "io.containerd.image-verifier.v1.bindir" => warnings.push(format!(
                "disabled_plugins names {name}, whose verifiers are asked all the same; a bin_dir that is not there asks none"
            )),
            _ => {}
        }
    }
    Ok(())
}

/// `required_plugins`: what of containerd's this daemon is or has. containerd does not start without the others.
fn required(top: &mut Section, warnings: &mut Vec<String>) -> Result<(), String> {
    const HERE: [&str; 8] = [
        "cri",
        "io.containerd.grpc.v1.cri",
        "io.containerd.cri.v1.images",
        "io.containerd.cri.v1.runtime",
        "io.containerd.image-verifier.v1.bindir",
        "io.containerd.nri.v1.nri",
        "io.containerd.snapshotter.v1.native",
        "io.containerd.snapshotter.v1.overlayfs",
    ];
    let mut names = Vec::new();
    top.strings("required_plugins", &mut names)?;
    for name in names.iter().filter(|name| !HERE.contains(&name.as_str())) {
        warnings
            .push(format!("required_plugins names {name}, which has no effect: this daemon has no plugins to load"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::config::tests::parsed;

    #[test]
    fn plugins_that_are_not_here_are_no_news_until_they_are_set_to_something() {
        let table = [
            (
                r#""io.containerd.snapshotter.v1.overlayfs"]"#,
                "root_path = \"/data\"",
                "it is kept below root and has no options",
            ),
            (r#""io.containerd.snapshotter.v1.devmapper"]"#, "pool_name = \"p\"", "this daemon has the snapshotters"),
            (r#""io.containerd.gc.v1.scheduler"]"#, "pause_threshold = 0.5", "garbage is collected when it arises"),
            (r#""io.containerd.metadata.v1.bolt"]"#, "content_sharing_policy = \"isolated\"", "content is stored once"),
            (r#""io.containerd.server.v1.metrics"]"#, "address = \"127.0.0.1:1338\"", "metrics of the daemon itself"),
            (
                r#""io.containerd.server.v1.grpc-tcp"]"#,
                "address = \"127.0.0.1:1\"",
                "the API is served on the unix socket alone",
            ),
            (
                r#""io.containerd.service.v1.diff-service"]"#,
                "default = [\"erofs\", \"walking\"]",
                "layers are written in one way",
            ),
            (r#""io.containerd.tracing.processor.v1.otlp"]"#, "endpoint = \"http://x\"", "the daemon sends no traces"),
            (r#""io.containerd.shim.v1.manager"]"#, "env = [\"A=b\"]", "shims get the environment"),
        ];
        for (plugin, line, why) in table {
            let warnings = parsed(&format!("version = 4\n[plugins.{plugin}\n{line}\n")).unwrap().warnings;
            let key = line.split_once(' ').unwrap().0;
            let start = format!("plugins.{}.{key} has no effect: {why}", plugin.trim_end_matches(']'));
            assert!(matches!(&warnings[..], [one] if one.starts_with(&start)), "{start}: {warnings:?}");
        }
        let usual = "version = 3\n[plugins.\"io.containerd.gc.v1.scheduler\"]\npause_threshold = 0.02\ndeletion_threshold = 0\n\
                     [plugins.\"io.containerd.service.v1.diff-service\"]\ndefault = [\"walking\"]\nsync_fs = false\n";
        assert_eq!(parsed(usual).unwrap().warnings, [""; 0]);
    }

    #[test]
    fn a_plugin_that_nobody_knows_warns_with_the_nearest_name() {
        let warnings =
            parsed("version = 3\n[plugins.\"io.containerd.cri.v1.runtme\"]\nenable_selinux = true\n").unwrap().warnings;
        assert_eq!(
            warnings,
            [
                "unknown key plugins.\"io.containerd.cri.v1.runtme\" has no effect; did you mean io.containerd.cri.v1.runtime?"
            ]
        );
        let empty = "version = 3\n[plugins.\"io.containerd.later.v1.x\"]\na = \"\"\n[plugins.\"io.containerd.later.v1.x\".b]\nc = []\n";
        assert_eq!(parsed(empty).unwrap().warnings, [""; 0]);
    }

    #[test]
    fn a_required_plugin_that_is_not_here_is_told() {
        let required = |name: &str| parsed(&format!("version = 2\nrequired_plugins = [{name:?}]\n")).unwrap().warnings;
        assert_eq!(required("io.containerd.grpc.v1.cri"), [""; 0]);
        let zfs = required("io.containerd.snapshotter.v1.zfs");
        assert!(
            matches!(&zfs[..], [one] if one.starts_with("required_plugins names io.containerd.snapshotter.v1.zfs"))
        );
    }

    #[test]
    fn nri_can_be_disabled_as_a_plugin_and_cri_cannot() {
        let text = |name: &str| parsed(&format!("version = 2\ndisabled_plugins = [{name:?}]\n")).unwrap();
        let nri = text("io.containerd.nri.v1.nri");
        assert_eq!((nri.config.nri.disable, nri.warnings), (true, vec![]));
        let cri = text("io.containerd.cri.v1.runtime").warnings;
        assert!(matches!(&cri[..], [one] if one.contains("it is served all the same")), "{cri:?}");
        let verifiers = text("io.containerd.image-verifier.v1.bindir").warnings;
        assert!(matches!(&verifiers[..], [one] if one.contains("asked all the same")), "{verifiers:?}");
        assert_eq!(text("io.containerd.snapshotter.v1.zfs").warnings, [""; 0]);
    }
}
