//! StartContainer: the task made in the pod's shim, then started.

use std::{path::Path, sync::Arc};

use crate::{
    Error,
    launcher::{NewTask, Shim},
    record::{ContainerRecord, PodRecord},
    teardown,
    world::{Operation, World},
};

/// Starts the container and answers its pid, or ends what there is of it. Its file system stays for the remove.
pub(crate) async fn run(
    world: Arc<World>,
    pod: PodRecord,
    container: ContainerRecord,
    shim: Arc<dyn Shim>,
    operation: Operation,
) -> Result<i32, Error> {
    let task = new_task(&world, &pod, &container);
    let (starting, id) = (Arc::clone(&shim), container.id.clone());
    let started = operation.step(async move {
        starting.create(task).await?;
        starting.start(&id).await
    });
    let started = operation.until_interrupted(started).await;
    if started.is_err() {
        // The start's own error is the one that counts; what is left of the task goes with the container.
        if let Err(error) = teardown::end_task(&world, &pod, &container.id, Some(shim.as_ref())).await {
            tracing::warn!(container = %container.id, error = error.chain(), "a task that did not start is left");
        }
    }
    started
}

fn new_task(world: &World, pod: &PodRecord, container: &ContainerRecord) -> NewTask {
    let bundle = world.bundle(pod, &container.id);
    let output = log_uri(container.log_path.as_deref(), world.config.max_log_line);
    let once = u8::from(container.spec.stdin_once);
    NewTask {
        id: container.id.to_string(),
        bundle: bundle.path,
        handler: bundle.handler,
        terminal: container.spec.tty,
        stdin: if container.spec.stdin { format!("attach://?once={once}") } else { String::new() },
        stdout: output.clone(),
        // A terminal has one stream.
        stderr: if container.spec.tty { String::new() } else { output },
        io_owner: pod.root_on_host(),
    }
}

/// `cri://<path>?max_line=<n>`: the shim writes the log, so that it goes on without the daemon.
fn log_uri(path: Option<&Path>, max_line: usize) -> String {
    let mut uri = String::from("cri://");
    for byte in path.map(|path| path.as_os_str().as_encoded_bytes()).unwrap_or_default() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => uri.push(char::from(*byte)),
            other => uri.push_str(&format!("%{other:02X}")),
        }
    }
    uri + &format!("?max_line={max_line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_path_is_escaped_in_its_uri() {
        assert_eq!(
            log_uri(Some(Path::new("/var/log/pods/a b?/0.log")), 16384),
            "cri:///var/log/pods/a%20b%3F/0.log?max_line=16384"
        );
        assert_eq!(log_uri(None, 1), "cri://?max_line=1");
    }
}
