//! What the configuration uses that containerd will do away with, under the ids that `ignore_deprecation_warnings` knows.

use std::{collections::BTreeMap, path::Path};

use super::Config;

/// By id, what to do instead. Those that the configuration ignores are left out.
pub(crate) fn deprecations(config: &Config) -> BTreeMap<String, String> {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let used = [
        (
            !config.images.mirrors.is_empty(),
            "cri-registry-mirrors",
            "registry.mirrors: write a hosts.toml for each host below registry.config_path",
        ),
        (
            !config.images.auths.is_empty(),
            "cri-registry-configs",
            "registry.configs and registry.auths: use the kubelet's image pull secrets or its credential providers",
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
