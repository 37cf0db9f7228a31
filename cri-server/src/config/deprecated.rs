//! What the configuration uses that containerd will do away with, under the ids that `ignore_deprecation_warnings` knows.

use std::{collections::BTreeMap, path::Path};

use super::Config;

/// By id, what to do instead. Those that the configuration ignores are left out.
pub(crate) fn deprecations(config: &Config) -> BTreeMap<String, String> {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let older = |way| config.images.older_ways.contains(way);
    let used = [
        (
            older("mirrors"),
            "cri-registry-mirrors",
            "registry.mirrors: write a hosts.toml for each host below registry.config_path",
        ),
        (
            older("configs"),
            "cri-registry-configs",
            "registry.configs: use the kubelet's image pull secrets or its credential providers, and a hosts.toml for TLS",
        ),
        (
            older("auths"),
            "cri-registry-auths",
            "registry.auths: use the kubelet's image pull secrets or its credential providers",
        ),
        (
            !config.runtime.enable_cdi,
            "enable-cdi",
            "enable_cdi: CDI cannot be turned off for ever; leave devices out of cdi_spec_dirs instead",
        ),
        (config.runtime.cni.single_bin_dir, "cri-cni-bin-dir", "cni.bin_dir: use cni.bin_dirs, which is a list"),
        (!unified, "cgroup-v1", "cgroup version 1: boot the host with version 2 alone"),
    ];
    let told = used.into_iter().filter(|(used, ..)| *used);
    let named = told.map(|(_, id, text)| (format!("io.containerd.deprecation/{id}"), text.to_owned()));
    named.filter(|(id, _)| !config.runtime.ignored_deprecations.contains(id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::parsed;

    #[test]
    fn what_will_go_is_told_by_containerds_id() {
        let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
        let told = |text: &str| -> Vec<String> {
            let config = parsed(&format!("version = 2\n{text}")).unwrap().config;
            let ids = deprecations(&config).into_keys().filter(|id| !id.ends_with("/cgroup-v1"));
            ids.map(|id| id.trim_start_matches("io.containerd.deprecation/").to_owned()).collect()
        };
        let table = [
            (String::new(), None),
            (format!("[{cri}.registry.mirrors.\"a\"]\nendpoint = [\"https://b\"]\n"), Some("cri-registry-mirrors")),
            (format!("[{cri}.registry.configs.\"a\".tls]\nca_file = \"/c\"\n"), Some("cri-registry-configs")),
            (format!("[{cri}.registry.configs.\"a\".auth]\nusername = \"u\"\n"), Some("cri-registry-configs")),
            (format!("[{cri}.registry.auths.\"https://a\"]\nauth = \"dTpw\"\n"), Some("cri-registry-auths")),
            (format!("[{cri}.cni]\nbin_dir = \"/x\"\n"), Some("cri-cni-bin-dir")),
            (format!("[{cri}]\nenable_cdi = false\n"), Some("enable-cdi")),
            (format!("[{cri}]\nenable_cdi = true\n"), None),
        ];
        for (text, id) in table {
            assert_eq!(told(&text), id.into_iter().collect::<Vec<_>>(), "{text}");
        }
    }

    #[test]
    fn what_is_ignored_is_not_told() {
        let mut config = Config::default();
        config.runtime.cni.single_bin_dir = true;
        let id = "io.containerd.deprecation/cri-cni-bin-dir";
        assert!(deprecations(&config).contains_key(id));
        config.runtime.ignored_deprecations = vec![id.to_owned()];
        assert!(!deprecations(&config).contains_key(id));
    }
}
