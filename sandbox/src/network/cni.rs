//! CNI.
use std::{path::PathBuf, time::Duration};
use futures_util::future::BoxFuture;
use super::{Attachment, Network};
use crate::{error::Error, model::{Id, PodNetwork}};
/// Which of several addresses is the primary one (`ip_pref`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IpPreference {
    #[default]
    Ipv4,
    Ipv6,
    /// The order of the CNI result.
    Cni,
}

/// Where CNI's files are and how plugins are run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniConfig {
    pub conf_dir: PathBuf,
    /// Searched in this order.
    pub bin_dirs: Vec<PathBuf>,
    /// Networks to load, in the order of their file names; 0 is all.
    pub max_conf_num: usize,
    /// libcni's: `/var/lib/cni`, with the results in `results/`.
    pub cache_dir: PathBuf,
    pub ip_pref: IpPreference,
    /// One network after the other.
    pub setup_serially: bool,
    /// For each run of a plugin.
    pub deadline: Duration,
}

/// Pod networks by CNI plugins.
#[derive(Debug)]
pub struct Cni {
    config: CniConfig,
}

impl Cni {
    /// Nothing is read yet: a missing configuration is no error before it is needed.
    pub fn new(config: CniConfig) -> Cni { Cni { config } }
}
impl Network for Cni {
    fn ready(&self) -> BoxFuture<'_, Result<(), Error>> { unreachable!("{:?}", self.config) }
    fn attach(&self, _pod: Attachment) -> BoxFuture<'_, Result<PodNetwork, Error>> { unreachable!() }
    fn detach(&self, _pod: Attachment) -> BoxFuture<'_, Result<(), Error>> { unreachable!() }
    fn cached(&self) -> BoxFuture<'_, Result<Vec<Id>, Error>> { unreachable!() }
}
