//! What follows the end of a process: record, order, event.
//!
//! Order: start before exit for every process; an OOM before the exit that it caused; exits of execs before init's.

use std::sync::Arc;

use super::container::Container;
use super::process::Process;
use super::record::Exit;
use super::tasks::Tasks;

pub(crate) async fn watch_init(tasks: Arc<Tasks>, container: Arc<Container>) {
    let Some(child) = container.init.child().cloned() else { return };
    let status = child.wait().await;
    let exit = Exit::now(child.pid, status, container.oom_killed(tasks.kills.of(&container.id), true));
    if let Err(error) = exit.write(&container.bundle) {
        super::say(&format!("cannot record the exit of {} in its bundle: {error}", container.id));
    }
    container.init.settled().await;
    if container.shares_pids {
        super::kill::kill_rest(&container).await;
    }
    let mut running = container.running_execs.subscribe();
    // An error cannot come: the container holds the sender.
    let _ = running.wait_for(|running| *running == 0).await;
    tasks.events.exit(&container.id, &container.id, &exit);
    container.init.exited(exit);
}

pub(crate) async fn watch_exec(tasks: Arc<Tasks>, container: Arc<Container>, exec: Arc<Process>) {
    let Some(child) = exec.child().cloned() else { return };
    let status = child.wait().await;
    let exit = Exit::now(child.pid, status, container.oom_killed(tasks.kills.of(&container.id), false));
    tasks.events.exit(&container.id, &exec.id, &exit);
    exec.exited(exit);
    container.running_execs.send_modify(|running| *running -= 1);
}
