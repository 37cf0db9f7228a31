//! What this node runs, in the terms of images (GOOS, GOARCH and variants of the architecture).
//!
//! Pure but for one look at the processor.

use crate::registry::Platform;

/// The platforms that run here, best first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) os: &'static str,
    pub(crate) architecture: &'static str,
    /// An image may leave its variant out.
    pub(crate) variants: &'static [&'static str],
}

impl Node {
    pub(crate) fn host() -> Node {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        let variants: &[&str] = match architecture {
            "amd64" => amd64_variants(),
            "arm64" => &["v8", ""],
            "arm" => &["v7", "", "v6", "v5"],
            _ => &[""],
        };
        Node { os: "linux", architecture, variants }
    }

    /// How well a platform fits, 0 best; `None` if it does not run here.
    pub(crate) fn rank(&self, platform: &Platform) -> Option<usize> {
        if platform.os != self.os || platform.architecture != self.architecture {
            return None;
        }
        let variant = platform.variant.as_deref().unwrap_or_default();
        self.variants.iter().position(|known| *known == variant)
    }
}

impl std::fmt::Display for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

/// The plain image first, as everywhere; those for newer processors are for images that have no other.
#[cfg(target_arch = "x86_64")]
fn amd64_variants() -> &'static [&'static str] {
    use std::arch::is_x86_feature_detected as has;
    // The levels of the x86-64 psABI, each by those of its features that can be told apart here.
    let v2 = has!("sse4.2") && has!("ssse3") && has!("popcnt") && has!("cmpxchg16b");
    let v3 = v2 && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("f16c") && has!("fma") && has!("lzcnt");
    let v4 = v3 && has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    match (v2, v3, v4) {
        (_, _, true) => &["", "v1", "v4", "v3", "v2"],
        (_, true, _) => &["", "v1", "v3", "v2"],
        (true, _, _) => &["", "v1", "v2"],
        (false, _, _) => &["", "v1"],
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_variants() -> &'static [&'static str] {
    &["", "v1"]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_fits_by_system_architecture_and_variant() {
        let node = Node { os: "linux", architecture: "amd64", variants: &["", "v1", "v2"] };
        let rank = |os: &str, architecture: &str, variant: Option<&str>| {
            node.rank(&Platform {
                os: os.into(),
                architecture: architecture.into(),
                variant: variant.map(str::to_owned),
                ..Platform::default()
            })
        };
        assert_eq!(rank("linux", "amd64", None), Some(0));
        assert_eq!(rank("linux", "amd64", Some("")), Some(0));
        assert_eq!(rank("linux", "amd64", Some("v2")), Some(2));
        assert_eq!(rank("linux", "amd64", Some("v3")), None);
        assert_eq!(rank("linux", "arm64", None), None);
        assert_eq!(rank("windows", "amd64", None), None);
    }
}
