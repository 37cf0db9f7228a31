//! Wire types of the two gRPC protocols that the daemon serves: CRI v1 and containerd's own API.
//!
//! Everything but `redact.rs` is generated from `proto/` by `build.rs`. Nothing here decides, converts or checks:
//! a message is what a peer said, and the edges in `cri-server` parse it into domain types.
//!
//! Invariant: no message prints a credential through `Debug`.

mod redact;

/// CRI v1 (protobuf package `runtime.v1`), as of cri-api 0.36.
#[expect(clippy::allow_attributes, reason = "tonic-prost-build writes `allow` into the services it generates")]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

/// containerd's gRPC API. The modules follow the protobuf packages, since generated code refers to them by that path.
pub mod containerd {
    /// Messages that several services use.
    pub mod types {
        tonic::include_proto!("containerd.types");
    }

    /// The task's messages, whose package has its version in the middle.
    pub mod v1 {
        pub mod types {
            tonic::include_proto!("containerd.v1.types");
        }
    }

    #[expect(clippy::allow_attributes, reason = "tonic-prost-build writes `allow` into the services it generates")]
    pub mod services {
        pub mod version {
            pub mod v1 {
                tonic::include_proto!("containerd.services.version.v1");
            }
        }
        pub mod namespaces {
            pub mod v1 {
                tonic::include_proto!("containerd.services.namespaces.v1");
            }
        }
        pub mod images {
            pub mod v1 {
                tonic::include_proto!("containerd.services.images.v1");
            }
        }
        pub mod containers {
            pub mod v1 {
                tonic::include_proto!("containerd.services.containers.v1");
            }
        }
        pub mod tasks {
            pub mod v1 {
                tonic::include_proto!("containerd.services.tasks.v1");
            }
        }
    }
}

/// The `FileDescriptorSet` of [`cri`], encoded.
pub const CRI_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cri.bin"));

/// The `FileDescriptorSet` of [`containerd`], encoded, with the well-known types that it imports.
pub const CONTAINERD_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/containerd.bin"));
