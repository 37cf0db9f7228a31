//! ReopenContainerLog: whoever writes the log, our shim or the daemon, opens its path again, after the kubelet renamed the file.

use crate::{Error, launcher::Clients, model::Id};

/// Returns when what the container writes from now on is in the new file.
pub(crate) async fn run(clients: Clients, id: Id) -> Result<(), Error> {
    let reopened = clients.streams.reopen_log(id.as_str()).await;
    reopened.map_err(|status| Error::failed(format!("reopen the log of container {id}"), status))
}
