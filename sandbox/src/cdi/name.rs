//! Qualified names of devices, `vendor.com/class=device`, and which of them a container asks for.

use std::{fmt, str::FromStr};

use crate::{error::Error, model::StringMap};

/// Annotations of a container that name devices, for device plugins of before CRI had a field for it.
const ANNOTATION: &str = "cdi.k8s.io/";

/// A device's name in its only form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// `vendor/class`.
    kind: String,
    device: String,
}

impl Name {
    pub(super) fn new(kind: &str, device: &str) -> Result<Name, String> {
        check_kind(kind)?;
        check_device(device)?;
        Ok(Name { kind: kind.to_owned(), device: device.to_owned() })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Name, String> {
        let (kind, device) = text.split_once('=').ok_or("a CDI device's name has the form vendor.com/class=device")?;
        Name::new(kind, device)
    }
}

/// `vendor/class`: both begin with a letter and end with a letter or digit (SPEC.md, "Kind").
pub(super) fn check_kind(kind: &str) -> Result<(), String> {
    let (vendor, class) = kind.split_once('/').ok_or_else(|| format!("kind {kind:?} has not the form vendor/class"))?;
    for (what, part) in [("vendor", vendor), ("class", class)] {
        let starts = part.starts_with(|c: char| c.is_ascii_alphabetic());
        if !starts || !is_word(part, "_-.") {
            return Err(format!("{what} {part:?} of kind {kind:?} is not letters, digits and _-. from a letter on"));
        }
    }
    Ok(())
}

pub(super) fn check_device(device: &str) -> Result<(), String> {
    if is_word(device, "_-.:") {
        return Ok(());
    }
    Err(format!("device name {device:?} is not letters, digits and _-.: with a letter or digit at both ends"))
}

/// Not empty, of ASCII letters, digits and `between`, which are neither first nor last.
fn is_word(text: &str, between: &str) -> bool {
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    end(text.chars().next())
        && end(text.chars().next_back())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || between.contains(c))
}

/// The devices of `ContainerConfig.CDI_devices`, then those of the annotations, each once.
pub(super) fn requested(field: &[String], annotations: &StringMap) -> Result<Vec<Name>, Error> {
    let mut found: Vec<Name> = Vec::new();
    let mut add = |place: &str, text: &str| -> Result<(), Error> {
        let name: Name = text.parse().map_err(|why| Error::Invalid(format!("{place}: {text:?}: {why}")))?;
        if !found.contains(&name) {
            found.push(name);
        }
        Ok(())
    };
    for name in field {
        add("CDI_devices", name)?;
    }
    for (key, value) in annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION)) {
        for name in value.split(',') {
            add(&format!("annotation {key}"), name.trim())?;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_vendor_class_and_device() {
        for good in ["vendor.com/net=eth0", "v/c=0", "nvidia.com/gpu=all", "a.b/c_d-e.f=x:y.z_1-2"] {
            assert_eq!(good.parse::<Name>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "gpu",
            "vendor.com/gpu",
            "vendor.com=gpu",
            "/gpu=0",
            "vendor.com/=0",
            "vendor.com/gpu=",
            "1v/c=0",
            "v/1c=0",
            "v-/c=0",
            "v/c=-0",
            "v/c=0-",
            "v/c=a b",
            "v/c=a/b",
            "v/c=ä",
            "v/c=a\n",
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_container_asks_by_the_field_and_by_annotations() {
        let annotations: StringMap =
            [("cdi.k8s.io/a", "v/c=2, v/c=1"), ("other.io/a", "nonsense")].map(|(k, v)| (k.into(), v.into())).into();
        let names = requested(&["v/c=1".into(), "v/c=1".into()], &annotations).unwrap();
        assert_eq!(names.iter().map(Name::to_string).collect::<Vec<_>>(), ["v/c=1", "v/c=2"]);
        let bad: StringMap = [("cdi.k8s.io/a".to_owned(), "v/c=1,,v/c=2".to_owned())].into();
        let error = requested(&[], &bad).unwrap_err().to_string();
        assert_eq!(error, "annotation cdi.k8s.io/a: \"\": a CDI device's name has the form vendor.com/class=device");
        assert!(requested(&["gpu0".into()], &bad).unwrap_err().to_string().starts_with("CDI_devices: \"gpu0\": "));
    }
}
