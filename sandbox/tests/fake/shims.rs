//! The machine's shims and their tasks.

use std::sync::Arc;

use futures_util::{FutureExt, future::BoxFuture};
use oci_spec::runtime::LinuxResources;
use windlass_sandbox::{
    Error,
    launcher::{Bundle, Clients, Launcher, NewTask, Shim, TaskExit, TaskState},
    model::Id,
};

use super::{Process, Seams, State, Task, end};

impl Launcher for Seams {
    fn launch(&self, bundle: Bundle) -> BoxFuture<'_, Result<Arc<dyn Shim>, Error>> {
        async move {
            assert!(bundle.path.join("config.json").exists());
            let id = bundle.id.clone();
            let launch = |state: &mut State| {
                state.sockets.insert(bundle.id.clone());
                state.shims.insert(bundle.id);
                Ok(())
            };
            self.0.wait("launch".into(), launch).await?;
            Ok(Arc::new(FakeShim { process: Arc::clone(&self.0), id }) as Arc<dyn Shim>)
        }
        .boxed()
    }

    fn reconnect(&self, bundle: Bundle) -> BoxFuture<'_, Result<Option<Arc<dyn Shim>>, Error>> {
        async move {
            let there = self.0.machine.state.lock().unwrap().shims.contains(&bundle.id);
            let shim = FakeShim { process: Arc::clone(&self.0), id: bundle.id };
            Ok(there.then(|| Arc::new(shim) as Arc<dyn Shim>))
        }
        .boxed()
    }

    fn clean_up(&self, bundle: Bundle) -> BoxFuture<'_, Result<(), Error>> {
        async move {
            let clean = |state: &mut State| {
                state.tasks.remove(&bundle.id);
                if !state.shims.contains(&bundle.id) {
                    state.sockets.remove(&bundle.id);
                }
                Ok(())
            };
            self.0.wait(format!("clean up {}", bundle.id), clean).await
        }
        .boxed()
    }

    fn remove_socket(&self, pod: &Id) -> Result<(), Error> {
        self.0.block("remove socket".into(), |state| {
            if !state.shims.contains(pod) {
                state.sockets.remove(pod);
            }
            Ok(())
        })
    }
}

struct FakeShim {
    process: Arc<Process>,
    id: Id,
}

impl FakeShim {
    fn lost(&self) -> Error {
        Error::Unavailable(format!("shim {} is gone", self.id))
    }

    fn task(&self, id: &Id) -> Result<Option<TaskState>, Error> {
        let state = self.process.machine.state.lock().unwrap();
        match state.shims.contains(&self.id) {
            true => Ok(state.tasks.get(id).map(|task| task.state.clone())),
            false => Err(self.lost()),
        }
    }

    async fn act<T>(&self, name: &str, effect: impl FnOnce(&mut State) -> Result<T, Error>) -> Result<T, Error> {
        let act = |state: &mut State| match state.shims.contains(&self.id) {
            true => effect(state),
            false => Err(self.lost()),
        };
        self.process.wait(name.to_owned(), act).await
    }
}

impl Shim for FakeShim {
    fn create(&self, task: NewTask) -> BoxFuture<'_, Result<i32, Error>> {
        async move {
            assert!(task.bundle.join("config.json").exists());
            let id = Id::parse(&task.id).unwrap();
            let create = |state: &mut State| {
                if !state.mounts.contains(&task.bundle.join("rootfs")) {
                    state.violations.push("a task is made without a root file system".into());
                }
                let task = Task { shim: self.id.clone(), state: TaskState::Created, memory_limit: None };
                match state.tasks.insert(id, task) {
                    None => Ok(1),
                    Some(_) => Err(Error::plain("the task is there already")),
                }
            };
            self.act("create task", create).await
        }
        .boxed()
    }

    fn start<'a>(&'a self, id: &'a Id) -> BoxFuture<'a, Result<i32, Error>> {
        async move {
            let start = |state: &mut State| {
                let task = state.tasks.get_mut(id).ok_or_else(|| Error::plain("no such task"))?;
                task.state = TaskState::Running { pid: 7 };
                Ok(7)
            };
            self.act("start task", start).await
        }
        .boxed()
    }

    fn state<'a>(&'a self, id: &'a Id) -> BoxFuture<'a, Result<Option<TaskState>, Error>> {
        async move { self.task(id) }.boxed()
    }

    fn wait<'a>(&'a self, id: &'a Id) -> BoxFuture<'a, Result<TaskExit, Error>> {
        async move {
            let mut changes = self.process.machine.tasks.subscribe();
            loop {
                match self.task(id)? {
                    Some(TaskState::Stopped(exit)) => return Ok(exit),
                    Some(_) => changes.changed().await.unwrap(),
                    None => return Err(Error::plain("no such task")),
                }
            }
        }
        .boxed()
    }

    fn kill<'a>(&'a self, id: &'a Id, signal: i32) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let kill = |state: &mut State| {
                // The fake app ignores everything that can be ignored.
                if signal == 9 {
                    end(state, id, 137);
                }
                Ok(())
            };
            self.act(&format!("kill {signal}"), kill).await
        }
        .boxed()
    }

    fn update<'a>(&'a self, id: &'a Id, limits: LinuxResources) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let update = |state: &mut State| {
                if let Some(task) = state.tasks.get_mut(id) {
                    let limit = limits.memory().as_ref().and_then(|memory| memory.limit());
                    task.memory_limit = limit.or(task.memory_limit);
                }
                Ok(())
            };
            self.act("update task", update).await
        }
        .boxed()
    }

    fn delete<'a>(&'a self, id: &'a Id) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let delete = |state: &mut State| {
                if state.tasks.get(id).is_some_and(|task| !matches!(task.state, TaskState::Stopped(_))) {
                    return Err(Error::plain("the task lives"));
                }
                state.tasks.remove(id);
                Ok(())
            };
            self.act("delete task", delete).await
        }
        .boxed()
    }

    fn shutdown<'a>(&'a self, id: &'a Id) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let shutdown = |state: &mut State| {
                if !state.tasks.values().any(|task| task.shim == *id) {
                    state.shims.remove(id);
                    if !state.die_at_shutdown {
                        state.sockets.remove(id);
                    }
                }
                Ok(())
            };
            self.act("shutdown", shutdown).await
        }
        .boxed()
    }

    fn clients(&self) -> Option<Clients> {
        None
    }
}
