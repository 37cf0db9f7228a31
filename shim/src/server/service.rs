//! The ttrpc edge: finds the operation by name, decodes, runs it, encodes.
//!
//! Every operation runs on a task of the shim's own, so a client that gives up stops waiting and nothing else.

use std::sync::Arc;

use prost::Message;

use crate::proto::{extension, feature::CRI_LOG, service, task};
use crate::ttrpc::{BoxFuture, Call, Handler, Status, Stream};

use super::error::TaskError;
use super::tasks::Tasks;

pub(crate) struct Service {
    pub(crate) tasks: Arc<Tasks>,
}

impl Handler for Service {
    fn unary(self: Arc<Self>, call: Call) -> BoxFuture<'static, Result<Vec<u8>, Status>> {
        let running = self.tasks.io.tasks.spawn({
            let tasks = self.tasks.clone();
            async move {
                match call.service.as_str() {
                    service::TASK_V2 | service::TASK_V3 => run_task(&tasks, &call).await,
                    service::EXTENSION => run_extension(&tasks, &call).await,
                    _ => Err(call.unimplemented()),
                }
            }
        });
        Box::pin(async move { running.await.unwrap_or_else(|error| Err(Status::internal(error))) })
    }

    fn stream(self: Arc<Self>, _call: Call, stream: Stream) -> BoxFuture<'static, Result<(), Status>> {
        // A stream ends with its client: nothing of it must go on alone.
        Box::pin(async move { super::attach::attach(&self.tasks, stream).await })
    }

    fn is_stream(&self, service: &str, method: &str) -> bool {
        (service, method) == (service::EXTENSION, "Attach")
    }
}

async fn run_task(tasks: &Arc<Tasks>, call: &Call) -> Result<Vec<u8>, Status> {
    match call.method.as_str() {
        "Create" => {
            let pid = done(Box::pin(super::create::create(tasks, call.decode()?)).await)?;
            encode(task::CreateTaskResponse { pid })
        }
        "Start" => {
            let pid = done(Box::pin(super::launch::start(tasks, &call.decode()?)).await)?;
            encode(task::StartResponse { pid })
        }
        "Exec" => empty(super::create::add_exec(tasks, &call.decode()?)),
        "Wait" => {
            let request: task::WaitRequest = call.decode()?;
            let exit = done(tasks.process(&request.id, &request.exec_id))?.wait().await;
            encode(task::WaitResponse { exit_status: exit.status, exited_at: Some(exit.at()) })
        }
        "Kill" => empty(super::kill::kill(tasks, &call.decode()?).await),
        "Delete" => encode(done(super::remove::delete(tasks, &call.decode()?).await)?),
        "State" => {
            let request = call.decode::<task::StateRequest>()?;
            tasks.settled(&request.id).await;
            encode(done(tasks.query(&request))?)
        }
        "Pids" => encode(done(tasks.pids(&call.decode()?))?),
        "Pause" => empty(super::control::pause(tasks, &call.decode::<task::PauseRequest>()?.id).await),
        "Resume" => empty(super::control::resume(tasks, &call.decode::<task::ResumeRequest>()?.id).await),
        "Update" => empty(super::control::update(tasks, &call.decode()?).await),
        "Checkpoint" => empty(Box::pin(super::checkpoint::checkpoint(tasks, &call.decode()?)).await),
        "ResizePty" => empty(tasks.resize(&call.decode()?)),
        "CloseIO" => empty(tasks.close_io(&call.decode()?)),
        "Connect" => encode(tasks.connect(&call.decode()?)),
        "Shutdown" => {
            tasks.shut_down();
            Ok(Vec::new())
        }
        // Stats is answered so as well: it is not served yet.
        _ => Err(call.unimplemented()),
    }
}

async fn run_extension(tasks: &Arc<Tasks>, call: &Call) -> Result<Vec<u8>, Status> {
    match call.method.as_str() {
        "Info" => encode(extension::InfoResponse { features: vec![CRI_LOG.to_owned()] }),
        "ReopenLog" => empty(tasks.reopen_log(&call.decode::<extension::ReopenLogRequest>()?.id).await),
        "Wait" => {
            let request: extension::WaitRequest = call.decode()?;
            let exit = done(tasks.process(&request.id, &request.exec_id))?.wait().await;
            encode(extension::WaitResponse {
                exit_status: exit.status,
                exited_at: Some(exit.at()),
                oom_killed: exit.oom_killed,
            })
        }
        _ => Err(call.unimplemented()),
    }
}

fn done<T>(result: Result<T, TaskError>) -> Result<T, Status> {
    result.map_err(|error| error.to_status())
}

fn empty(result: Result<(), TaskError>) -> Result<Vec<u8>, Status> {
    done(result).map(|()| Vec::new())
}

fn encode(message: impl Message) -> Result<Vec<u8>, Status> {
    Ok(message.encode_to_vec())
}
