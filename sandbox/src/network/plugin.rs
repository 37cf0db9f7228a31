//! What plugins are asked, verb by verb: the configuration each one is given, and what its answer means.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Map, Value, json};

use super::{
    config::{NetworkList, Plugin},
    exec::{self, Failure, Run, Target, Verb},
    result,
};
use crate::error::Error;

/// CNI error code: the version of the configuration is not supported by the plugin.
const INCOMPATIBLE_VERSION: u64 = 1;
/// CNI error code: what the environment asks for cannot be, as a verb that the plugin does not have.
const INVALID_ENVIRONMENT: u64 = 4;

/// Where the plugins are, and how long one run may take.
#[derive(Clone, Debug)]
pub(super) struct Plugins {
    pub(super) bin_dirs: Vec<PathBuf>,
    pub(super) deadline: Duration,
}

/// The attachment that plugins are asked about.
#[derive(Clone, Debug)]
pub(super) struct Subject<'a> {
    pub(super) container: &'a str,
    pub(super) netns: &'a str,
    pub(super) interface: String,
    pub(super) args: String,
    /// All that a plugin may ask for.
    pub(super) capabilities: &'a Map<String, Value>,
}

impl Plugins {
    /// ADD; gives the answer in the network's version.
    pub(super) async fn add(
        &self,
        network: &NetworkList,
        plugin: &Plugin,
        subject: &Subject<'_>,
        previous: Option<&Value>,
    ) -> Result<Value, Error> {
        let written = self.run(Verb::Add, network, plugin, Some(subject), previous).await?;
        let answer: Value = serde_json::from_slice(&written).map_err(|error| {
            let shown: String = String::from_utf8_lossy(&written).chars().take(200).collect();
            failed(Verb::Add, network, plugin, &format!("its answer is not JSON: {error}: {shown:?}"))
        })?;
        result::convert(answer, network.version)
            .map_err(|reason| failed(Verb::Add, network, plugin, &format!("its answer {reason}")))
    }

    /// DEL. That there is nothing to delete is success.
    pub(super) async fn delete(
        &self,
        network: &NetworkList,
        plugin: &Plugin,
        subject: &Subject<'_>,
        previous: Option<&Value>,
    ) -> Result<(), Error> {
        match self.try_run(Verb::Del, network, plugin, Some(subject), previous, self.deadline).await? {
            Ok(_) => Ok(()),
            // The specification has DEL succeed then. Older plugins fail instead, with no code of their own, and other
            // runtimes have always gone by their words.
            Err(Failure::Reported { text, .. })
                if text.contains("not found") || (subject.netns.is_empty() && text.contains("no such file")) =>
            {
                Ok(())
            }
            Err(failure) => Err(self.explain(Verb::Del, network, plugin, failure).await),
        }
    }

    /// CHECK, with the result of the attachment.
    pub(super) async fn check(
        &self,
        network: &NetworkList,
        plugin: &Plugin,
        subject: &Subject<'_>,
        previous: &Value,
    ) -> Result<(), Error> {
        self.run(Verb::Check, network, plugin, Some(subject), Some(previous)).await.map(drop)
    }

    /// STATUS.
    pub(super) async fn status(&self, network: &NetworkList, plugin: &Plugin, deadline: Duration) -> Result<(), Error> {
        match self.try_run(Verb::Status, network, plugin, None, None, deadline.min(self.deadline)).await? {
            Ok(_) => Ok(()),
            Err(failure) => Err(self.explain(Verb::Status, network, plugin, failure).await),
        }
    }

    /// GC: the plugin frees what it holds for attachments that are not `valid`, objects of `containerID` and `ifname`. One
    /// that has not got the verb frees nothing.
    pub(super) async fn collect(
        &self,
        network: &NetworkList,
        plugin: &Plugin,
        valid: &[Value],
        deadline: Duration,
    ) -> Result<(), Error> {
        let executable = self.find(&plugin.kind)?;
        let mut conf = configuration(network, plugin, None, None);
        conf["cni.dev/valid-attachments"] = valid.into();
        // The specification's text calls them so; libcni, and with it other runtimes, send both.
        conf["cni.dev/attachments"] = valid.into();
        let stdin = conf.to_string().into_bytes();
        let deadline = deadline.min(self.deadline);
        let run =
            Run { verb: Verb::Gc, executable: &executable, bin_dirs: &self.bin_dirs, target: None, stdin, deadline };
        match exec::run(&run).await {
            Ok(_) | Err(Failure::Reported { code: INVALID_ENVIRONMENT, .. }) => Ok(()),
            Err(failure) => Err(self.explain(Verb::Gc, network, plugin, failure).await),
        }
    }

    async fn run(
        &self,
        verb: Verb,
        network: &NetworkList,
        plugin: &Plugin,
        subject: Option<&Subject<'_>>,
        previous: Option<&Value>,
    ) -> Result<Vec<u8>, Error> {
        match self.try_run(verb, network, plugin, subject, previous, self.deadline).await? {
            Ok(written) => Ok(written),
            Err(failure) => Err(self.explain(verb, network, plugin, failure).await),
        }
    }

    /// The outer error is ours, the inner one the plugin's.
    async fn try_run(
        &self,
        verb: Verb,
        network: &NetworkList,
        plugin: &Plugin,
        subject: Option<&Subject<'_>>,
        previous: Option<&Value>,
        deadline: Duration,
    ) -> Result<Result<Vec<u8>, Failure>, Error> {
        let executable = self.find(&plugin.kind)?;
        let capabilities = subject.map(|subject| subject.capabilities);
        let target = subject.map(|subject| Target {
            container: subject.container,
            netns: subject.netns,
            interface: &subject.interface,
            args: &subject.args,
        });
        let stdin = configuration(network, plugin, capabilities, previous).to_string().into_bytes();
        let run = Run { verb, executable: &executable, bin_dirs: &self.bin_dirs, target, stdin, deadline };
        Ok(exec::run(&run).await)
    }

    fn find(&self, kind: &str) -> Result<PathBuf, Error> {
        let executable =
            |path: &Path| path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
        let mut places = self.bin_dirs.iter().map(|dir| dir.join(kind));
        places.find(|path| executable(path)).ok_or_else(|| {
            let dirs: Vec<String> = self.bin_dirs.iter().map(|dir| dir.display().to_string()).collect();
            Error::Unavailable(format!("cni plugin {kind:?} not found in {}: install it there", dirs.join(", ")))
        })
    }

    async fn explain(&self, verb: Verb, network: &NetworkList, plugin: &Plugin, failure: Failure) -> Error {
        let reason = match failure {
            Failure::Reported { code, text } if code == INCOMPATIBLE_VERSION => {
                let speaks = self.versions(network, plugin).await;
                format!("{text} (configured: cniVersion {}; the plugin speaks {speaks})", network.version.as_str())
            }
            Failure::Reported { code, text } => format!("{text} (code {code})"),
            Failure::Died(text) => text,
            Failure::Deadline(deadline) => {
                let text = format!("no answer within {deadline:?}, so it was killed");
                return Error::Deadline(prefix(verb, network, plugin) + &text);
            }
            Failure::Io(error) => return Error::failed(prefix(verb, network, plugin) + "cannot run it", error),
        };
        failed(verb, network, plugin, &reason)
    }

    /// The versions a plugin says it speaks, for an error's text.
    async fn versions(&self, network: &NetworkList, plugin: &Plugin) -> String {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Answer {
            supported_versions: Vec<String>,
        }
        let Ok(executable) = self.find(&plugin.kind) else { return "nothing".into() };
        let run = Run {
            verb: Verb::Version,
            executable: &executable,
            bin_dirs: &self.bin_dirs,
            target: None,
            stdin: json!({ "cniVersion": network.version.as_str() }).to_string().into_bytes(),
            deadline: self.deadline,
        };
        let answer = exec::run(&run).await.ok().and_then(|text| serde_json::from_slice::<Answer>(&text).ok());
        answer.map_or("versions that it does not tell".into(), |answer| answer.supported_versions.join(", "))
    }
}

/// What a plugin reads: its own configuration, the network's name and version, what it asked for of what the runtime
/// has, and what the plugins before it made.
fn configuration(
    network: &NetworkList,
    plugin: &Plugin,
    capabilities: Option<&Map<String, Value>>,
    previous: Option<&Value>,
) -> Value {
    let mut conf = plugin.conf.clone();
    conf.insert("name".into(), json!(network.name));
    conf.insert("cniVersion".into(), json!(network.version.as_str()));
    let wanted: Map<String, Value> = capabilities
        .into_iter()
        .flatten()
        .filter(|(name, _)| plugin.wants(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !wanted.is_empty() {
        conf.insert("runtimeConfig".into(), Value::Object(wanted));
    }
    if let Some(previous) = previous {
        conf.insert("prevResult".into(), previous.clone());
    }
    Value::Object(conf)
}

fn prefix(verb: Verb, network: &NetworkList, plugin: &Plugin) -> String {
    format!("plugin type={:?} name={:?} failed ({}): ", plugin.kind, network.name, verb.as_str().to_lowercase())
}

fn failed(verb: Verb, network: &NetworkList, plugin: &Plugin, reason: &str) -> Error {
    Error::plain(prefix(verb, network, plugin) + reason)
}
