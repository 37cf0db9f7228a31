//! The wire messages, generated from `proto/`, under short names; and the packing of a message into an `Any`.
//!
//! Version 2 and 3 of the task service share one set of messages.

use prost::Name;
use prost_types::Any;

pub use prost_types::{Any as AnyMessage, Timestamp};
pub use wire::containerd::events;
pub use wire::containerd::runc::v1 as runc;
pub use wire::containerd::runtime::bootstrap::v1 as bootstrap;
pub use wire::containerd::services::events::ttrpc::v1 as forward;
pub use wire::containerd::task::v3 as task;
pub use wire::containerd::types;
pub use wire::containerd::v1::types as process;
pub use wire::google::rpc;
pub use wire::runtimeoptions::v1 as generic;
pub use wire::ttrpc;
pub use wire::windlass::shim::v1 as extension;

/// The names under which services are called.
pub mod service {
    pub const TASK_V2: &str = "containerd.task.v2.Task";
    pub const TASK_V3: &str = "containerd.task.v3.Task";
    pub const EVENTS: &str = "containerd.services.events.ttrpc.v1.Events";
    pub const EXTENSION: &str = "windlass.shim.v1.Extension";
}

/// What the extension service may say that it serves.
pub mod feature {
    /// The shim writes CRI logs by itself and serves Attach.
    pub const CRI_LOG: &str = "cri-log";
}

/// The ttrpc metadata key that carries the containerd namespace of a call.
pub const NAMESPACE_METADATA: &str = "containerd-namespace-ttrpc";

/// Packs a message the way containerd does: the type URL is the bare name, without a host part.
pub fn to_any<M: Name>(message: &M) -> Any {
    Any { type_url: M::full_name(), value: message.encode_to_vec() }
}

/// Unpacks a message if the `Any` is of that type. Whatever precedes the last slash of the type URL is ignored, as protobuf has it.
pub fn parse_any<M: Name + Default>(any: &Any) -> Option<Result<M, prost::DecodeError>> {
    is_type::<M>(any).then(|| M::decode(any.value.as_slice()))
}

/// Whether the `Any` says it holds an `M`.
pub fn is_type<M: Name>(any: &Any) -> bool {
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    name == M::full_name()
}

/// The packages as they nest on the wire; generated code refers to itself by these paths.
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/protocol.rs"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit() -> events::TaskExit {
        events::TaskExit {
            container_id: "c".into(),
            id: "c".into(),
            pid: 7,
            exit_status: 137,
            exited_at: Some(Timestamp { seconds: 1, nanos: 2 }),
        }
    }

    #[test]
    fn an_any_carries_the_bare_name() {
        assert_eq!(to_any(&exit()).type_url, "containerd.events.TaskExit");
    }

    #[test]
    fn an_any_is_unpacked_whatever_the_host_part() {
        let mut any = to_any(&exit());
        any.type_url = format!("type.googleapis.com/{}", any.type_url);
        assert_eq!(parse_any::<events::TaskExit>(&any), Some(Ok(exit())));
    }

    #[test]
    fn an_any_of_another_type_is_not_unpacked() {
        assert_eq!(parse_any::<events::TaskStart>(&to_any(&exit())), None);
    }
}
