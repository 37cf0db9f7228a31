//! `delete`: takes a container down when there may be no server any more, and prints how it ended.
//!
//! Called after every normal end as well, so everything missing is as good as removed.

use std::io::Write;

use prost::Message;

use crate::mount::unmount_all;
use crate::proto::task;

use super::Failure;
use super::arguments::Arguments;
use super::reaper::Reaper;
use super::record::Exit;

/// A container that nobody saw end was killed, by this very call.
const KILLED: u32 = 137;

pub(crate) fn delete(arguments: &Arguments) -> Result<(), Failure> {
    let bundle = super::spawn::bundle(arguments)?;
    let options = super::bundle::read_options(&bundle);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let runc = super::create::runtime(&options, &arguments.namespace, Reaper::default());
    let deleted = runtime.block_on(runc.delete(&arguments.id));
    // The mount goes even if the runtime failed; a second delete has less to do then.
    unmount_all(&bundle.join("rootfs"))?;
    deleted?;
    let exit = Exit::read(&bundle).unwrap_or_else(|| Exit::now(init_pid(&bundle), KILLED, false));
    let response = task::DeleteResponse { pid: exit.pid as u32, exit_status: exit.status, exited_at: Some(exit.at()) };
    Ok(std::io::stdout().write_all(&response.encode_to_vec())?)
}

fn init_pid(bundle: &std::path::Path) -> i32 {
    let text = std::fs::read_to_string(bundle.join("init.pid")).unwrap_or_default();
    // No file, no process: 0 is how the protocol says so.
    text.trim().parse().unwrap_or(0)
}
