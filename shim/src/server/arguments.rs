//! The command line that containerd gives to every shim: Go's flag syntax, then an optional action.

use std::path::PathBuf;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) action: Action,
    pub(crate) namespace: String,
    pub(crate) id: String,
    /// The daemon's gRPC socket; part of the name of ours.
    pub(crate) address: String,
    pub(crate) bundle: Option<PathBuf>,
    pub(crate) debug: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Action {
    #[default]
    Serve,
    Start,
    Delete,
    Version,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UsageError {
    #[error("flag -{0} needs a value")]
    NoValue(String),
    #[error("unknown flag -{0}")]
    Unknown(String),
    #[error("unknown action {0:?}; it is start or delete")]
    Action(String),
    #[error("flag -{0} is missing")]
    Missing(&'static str),
}

impl Arguments {
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, UsageError> {
        let mut parsed = Self::default();
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
                parsed.action = match word.as_str() {
                    "start" => Action::Start,
                    "delete" => Action::Delete,
                    _ => return Err(UsageError::Action(word)),
                };
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            match name {
                "debug" => parsed.debug = value.is_none_or(|value| value == "true"),
                "v" | "version" => parsed.action = Action::Version,
                _ => parsed.set(name, value.or_else(|| words.next()))?,
            }
        }
        parsed.check()
    }

    fn set(&mut self, name: &str, value: Option<String>) -> Result<(), UsageError> {
        let value = || value.ok_or_else(|| UsageError::NoValue(name.to_owned()));
        match name {
            "namespace" => self.namespace = value()?,
            "id" => self.id = value()?,
            "address" => self.address = value()?,
            "bundle" => self.bundle = Some(value()?.into()),
            // Part of the contract, but only the daemon's own binary or a debug socket would use them.
            "publish-binary" | "socket" => drop(value()?),
            _ => return Err(UsageError::Unknown(name.to_owned())),
        }
        Ok(())
    }

    fn check(self) -> Result<Self, UsageError> {
        if self.action != Action::Version {
            if self.namespace.is_empty() {
                return Err(UsageError::Missing("namespace"));
            }
            if self.id.is_empty() {
                return Err(UsageError::Missing("id"));
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, UsageError> {
        Arguments::parse(line.split_ascii_whitespace().map(str::to_owned))
    }

    #[test]
    fn containerd_starts_a_shim_with_single_dashes() {
        let line = "-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id abc -debug start";
        let expected = Arguments {
            action: Action::Start,
            namespace: "k8s.io".to_owned(),
            id: "abc".to_owned(),
            address: "/run/c.sock".to_owned(),
            bundle: None,
            debug: true,
        };
        assert_eq!(parse(line), Ok(expected));
    }

    #[test]
    fn go_accepts_two_dashes_and_an_equals_sign() {
        let parsed = parse("--namespace=n --id=i -debug=false -bundle=/b delete").unwrap();
        assert_eq!((parsed.action, parsed.debug, parsed.bundle), (Action::Delete, false, Some("/b".into())));
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(parse("-namespace n start"), Err(UsageError::Missing("id")));
        assert_eq!(parse("-namespace n -id"), Err(UsageError::NoValue("id".to_owned())));
        assert_eq!(parse("-colour red"), Err(UsageError::Unknown("colour".to_owned())));
        assert_eq!(parse("-namespace n -id i dance"), Err(UsageError::Action("dance".to_owned())));
    }

    #[test]
    fn the_version_needs_nothing_else() {
        assert_eq!(parse("-v").map(|parsed| parsed.action), Ok(Action::Version));
    }
}
