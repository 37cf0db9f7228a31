//! NRI's messages, generated from `proto/nri.proto`, and the names and marks that go with them.

pub use wire::nri::pkg::api::v1alpha1::*;

/// The names under which services are called.
pub mod service {
    /// Served by the plugin.
    pub const PLUGIN: &str = "nri.pkg.api.v1alpha1.Plugin";
    /// Served by the daemon.
    pub const RUNTIME: &str = "nri.pkg.api.v1alpha1.Runtime";
}

/// The version of NRI whose messages these are, as plugins are told.
pub const VERSION: &str = "v0.12.2";

/// Every event there is, as a mask.
pub const ALL_EVENTS: u32 = (1 << Event::ValidateContainerAdjustment as u32) - 1;

impl Event {
    /// Its bit in the mask of a subscription.
    pub fn bit(self) -> u32 {
        match self {
            Event::Unknown => 0,
            known => 1 << (known as u32 - 1),
        }
    }

    /// The call that carries it.
    pub fn method(self) -> &'static str {
        match self {
            Event::Unknown => "Unknown",
            Event::RunPodSandbox => "RunPodSandbox",
            Event::StopPodSandbox => "StopPodSandbox",
            Event::RemovePodSandbox => "RemovePodSandbox",
            Event::CreateContainer => "CreateContainer",
            Event::PostCreateContainer => "PostCreateContainer",
            Event::StartContainer => "StartContainer",
            Event::PostStartContainer => "PostStartContainer",
            Event::UpdateContainer => "UpdateContainer",
            Event::PostUpdateContainer => "PostUpdateContainer",
            Event::StopContainer => "StopContainer",
            Event::RemoveContainer => "RemoveContainer",
            Event::UpdatePodSandbox => "UpdatePodSandbox",
            Event::PostUpdatePodSandbox => "PostUpdatePodSandbox",
            Event::ValidateContainerAdjustment => "ValidateContainerAdjustment",
        }
    }
}

/// What is to be removed, if `name` is marked so.
pub fn removed(name: &str) -> Option<&str> {
    name.strip_prefix('-')
}

/// `name`, marked for removal.
pub fn mark_removed(name: &str) -> String {
    format!("-{name}")
}

/// The package as it nests on the wire.
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/nri.rs"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_has_a_bit_for_each_event() {
        assert_eq!(Event::RunPodSandbox.bit(), 1);
        assert_eq!(Event::ValidateContainerAdjustment.bit(), 1 << 13);
        let all = (1..=14).map(|number| Event::try_from(number).unwrap().bit()).fold(0, |mask, bit| mask | bit);
        assert_eq!(all, ALL_EVENTS);
    }
}
