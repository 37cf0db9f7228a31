//! What the configuration says about NRI, with containerd's defaults.

use std::{path::PathBuf, time::Duration};

/// The keys of `plugins."io.containerd.nri.v1.nri"`, validated by whoever read them. The socket on which plugins connect is
/// bound by whoever starts them ([`crate::Pods::start_plugins`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Pre-installed plugins: executables called `NN-name`.
    pub plugin_path: PathBuf,
    /// Their configuration: `NN-name.conf`, or `name.conf`.
    pub plugin_config_path: PathBuf,
    /// From a plugin's connection until it is synchronised, each step.
    pub registration_timeout: Duration,
    /// One event's call of one plugin.
    pub request_timeout: Duration,
    pub validator: ValidatorConfig,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            plugin_path: "/opt/nri/plugins".into(),
            plugin_config_path: "/etc/nri/conf.d".into(),
            registration_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(2),
            validator: ValidatorConfig::default(),
        }
    }
}

/// What the built-in validator refuses (`default_validator`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ValidatorConfig {
    pub enable: bool,
    pub reject_hooks: bool,
    /// Seccomp policies of plugins, by the profile that the client asked for.
    pub reject_runtime_default_seccomp: bool,
    pub reject_unconfined_seccomp: bool,
    pub reject_custom_seccomp: bool,
    pub reject_namespaces: bool,
    pub reject_sysctls: bool,
    /// Plugins without which no container is made.
    pub required_plugins: Vec<String>,
    /// A pod's annotation that lets its containers be made without them; empty is none.
    pub tolerate_missing_annotation: String,
}
