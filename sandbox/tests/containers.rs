//! What a container's requests depend on besides its own state: its target, its image, and who removes it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[expect(dead_code, reason = "most of it is for the crash tests")]
mod fake;
mod wait;

use std::sync::Arc;

use fake::{Fault, Machine, Process, container_spec, image, pod_spec};
use wait::until;
use windlass_sandbox::{
    Error,
    model::{ContainerSpec, ContainerState, Id, Image, NamespaceMode, Namespaces},
};

/// The spec names the target's process by its pid, which the kernel may have given to another process by then.
#[tokio::test]
async fn a_container_is_not_started_in_the_pid_namespace_of_a_target_that_has_ended() {
    let machine = Machine::new();
    let pods = Process::new(&machine, Fault::default()).open().await;
    let id = pods.run(pod_spec("web"), image()).await.unwrap();
    let app = pods.create_container(id.as_str(), container_spec("app"), image()).await.unwrap();
    let namespaces = Namespaces { pid: NamespaceMode::Target, target: Some(app.to_string()), ..Namespaces::default() };
    let debug = ContainerSpec { namespaces, ..container_spec("debug") };
    let early = pods.create_container(id.as_str(), debug.clone(), image()).await.unwrap_err();
    assert_eq!(early.to_string(), format!("target container {:?} is not running", app.as_str()));
    pods.start_container(app.as_str()).await.unwrap();
    let debug = pods.create_container(id.as_str(), debug, image()).await.unwrap();
    machine.exit(&app, 0);
    let state = |id: &Id| pods.container(id.as_str()).unwrap().state.clone();
    until("the target has ended", || matches!(state(&app), ContainerState::Exited { .. })).await;
    let late = pods.start_container(debug.as_str()).await.unwrap_err();
    assert_eq!(late.to_string(), early.to_string());
    let ContainerState::Exited { started_at: None, exit } = state(&debug) else { panic!("{:?}", state(&debug)) };
    assert_eq!((exit.code, exit.reason.as_str(), exit.message), (128, "StartError", early.to_string()));
    assert!(!machine.state.lock().unwrap().tasks.contains_key(&debug));
    pods.remove(id.as_str()).await.unwrap();
    machine.assert_clean("after the remove");
}

/// An image may get and lose names at any time.
#[tokio::test]
async fn a_retry_is_known_by_its_image_whatever_that_is_called_now() {
    let pods = Process::new(&Machine::new(), Fault::default()).open().await;
    let renamed = || Image { name: "another".into(), digest: "another@sha256:1".into(), ..image() };
    let id = pods.run(pod_spec("web"), image()).await.unwrap();
    assert_eq!(pods.run(pod_spec("web"), renamed()).await.unwrap(), id);
    let app = pods.create_container(id.as_str(), container_spec("app"), image()).await.unwrap();
    assert_eq!(pods.create_container(id.as_str(), container_spec("app"), renamed()).await.unwrap(), app);
    let other = Image { id: "sha256:other".into(), ..image() };
    let refused = pods.create_container(id.as_str(), container_spec("app"), other).await;
    assert!(matches!(refused, Err(Error::AlreadyExists(_))));
}

#[tokio::test]
async fn a_container_that_is_being_removed_says_so() {
    let made = async |process: &Arc<Process>| {
        let pods = process.open().await;
        let id = pods.run(pod_spec("web"), image()).await.unwrap();
        let app = pods.create_container(id.as_str(), container_spec("app"), image()).await.unwrap();
        (pods, app)
    };
    let counted = Process::new(&Machine::new(), Fault::default());
    made(&counted).await;
    let first_of_the_remove = Fault { stop_after: Some(counted.effects() + 1), ..Fault::default() };
    let process = Process::new(&Machine::new(), first_of_the_remove);
    let (pods, app) = made(&process).await;
    assert!(!pods.container(app.as_str()).unwrap().removing);
    let removing = tokio::spawn({
        let (pods, app) = (pods.clone(), app.clone());
        async move { pods.remove_container(app.as_str()).await }
    });
    process.died.notified().await;
    assert!(pods.container(app.as_str()).unwrap().removing);
    removing.abort();
    process.release();
}
