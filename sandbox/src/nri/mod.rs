//! The Node Resource Interface: plugins that follow pods and containers and change containers as they are made.
//!
//! ```text
//! serve.rs    a plugin connects, or is started (launch.rs) ─► registers, is configured, joins (registry.rs), is told what there is
//! events.rs   an operation of a pod's owner ─► each plugin in turn (plugin.rs) ─► merge.rs ─► spec.rs, updates.rs
//! ```
//!
//! Wire: ttrpc in both directions over one socket (`mux.rs`), messages in `proto/nri.proto`.
//! Nothing here decides about a pod's state. Events are told by the operations and owners of pods, never by an RPC's
//! future; other pods, lists and statuses wait for no plugin. Calls of one plugin may run at the same time, one for each
//! operation. Without NRI in the configuration every function returns at once; without plugins it costs a look-up.

use std::sync::{Arc, OnceLock, Weak};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::shared::Shared;

mod config;
mod events;
mod launch;
mod limits;
mod merge;
pub mod mux;
mod objects;
mod owners;
mod plugin;
pub mod proto;
mod registry;
mod serve;
mod spec;
mod updates;
mod validator;

pub use config::{Config, ValidatorConfig};
pub(crate) use events::Adjustment;
pub(crate) use limits::apply as apply_limits;
pub(crate) use registry::Admission;
pub(crate) use spec::HostLimits;
pub(crate) use updates::LimitChange;

/// How operations reach plugins; `None` if the configuration turns them off. Clones are handles of the same.
#[derive(Clone, Default)]
pub(crate) struct Nri(Option<Arc<Hub>>);

/// All that there is of NRI.
pub(crate) struct Hub {
    config: Config,
    registry: Arc<registry::Registry>,
    /// Whose containers plugins update. Set once, after recovery.
    pods: OnceLock<Weak<Shared>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Nri {
    pub(crate) fn new(config: Option<Config>) -> Nri {
        Nri(config.map(|config| {
            Arc::new(Hub {
                config,
                registry: Arc::default(),
                pods: OnceLock::new(),
                tasks: TaskTracker::new(),
                shutdown: CancellationToken::new(),
            })
        }))
    }
}
