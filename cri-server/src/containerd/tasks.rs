//! Tasks: the first processes of containers that live. As with containerd's CRI plugin, what has ended has none any more.

use api::containerd::{
    services::tasks::v1::{
        CheckpointTaskRequest, CheckpointTaskResponse, CloseIoRequest, CreateTaskRequest, CreateTaskResponse,
        DeleteProcessRequest, DeleteResponse, DeleteTaskRequest, ExecProcessRequest, GetRequest, GetResponse,
        KillRequest, ListPidsRequest, ListPidsResponse, ListTasksRequest, ListTasksResponse, MetricsRequest,
        MetricsResponse, PauseTaskRequest, ResizePtyRequest, ResumeTaskRequest, StartRequest, StartResponse,
        UpdateTaskRequest, WaitRequest, WaitResponse, tasks_server::Tasks,
    },
    v1::types::{self, Process},
};
use sandbox::model::{ContainerState, ContainerView, PodView};
use tonic::{Request, Response, Status};

use super::{Containerd, read_only};

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Tasks for Containerd {
    async fn get(&self, request: Request<GetRequest>) -> Answer<GetResponse> {
        let ours = self.is_ours(&request)?;
        let GetRequest { container_id: id, exec_id } = request.into_inner();
        if !exec_id.is_empty() {
            return read_only("exec_id: looking at an exec");
        }
        let container = || self.pods.container(&id).ok().filter(|container| container.id.as_str() == id);
        let pod = || self.pods.pod(&id).ok().filter(|pod| pod.id.as_str() == id);
        let found = match ours {
            true => {
                container().and_then(|found| of_container(&found)).or_else(|| pod().and_then(|found| of_pod(&found)))
            }
            false => None,
        };
        let process = found.ok_or_else(|| Status::not_found(format!("task {id} not found: not found")))?;
        Ok(Response::new(GetResponse { process: Some(process) }))
    }

    async fn list(&self, request: Request<ListTasksRequest>) -> Answer<ListTasksResponse> {
        if !self.is_ours(&request)? {
            return Ok(Response::new(ListTasksResponse::default()));
        }
        let pods = self.pods.pods();
        let containers = self.pods.containers();
        let containers = containers.iter().filter_map(|container| of_container(container));
        let tasks = pods.iter().filter_map(|pod| of_pod(pod)).chain(containers).collect();
        Ok(Response::new(ListTasksResponse { tasks }))
    }

    async fn create(&self, _: Request<CreateTaskRequest>) -> Answer<CreateTaskResponse> {
        read_only("Tasks.Create")
    }

    async fn start(&self, _: Request<StartRequest>) -> Answer<StartResponse> {
        read_only("Tasks.Start")
    }

    async fn delete(&self, _: Request<DeleteTaskRequest>) -> Answer<DeleteResponse> {
        read_only("Tasks.Delete")
    }

    async fn delete_process(&self, _: Request<DeleteProcessRequest>) -> Answer<DeleteResponse> {
        read_only("Tasks.DeleteProcess")
    }

    async fn kill(&self, _: Request<KillRequest>) -> Answer<()> {
        read_only("Tasks.Kill")
    }

    async fn exec(&self, _: Request<ExecProcessRequest>) -> Answer<()> {
        read_only("Tasks.Exec")
    }

    async fn resize_pty(&self, _: Request<ResizePtyRequest>) -> Answer<()> {
        read_only("Tasks.ResizePty")
    }

    async fn close_io(&self, _: Request<CloseIoRequest>) -> Answer<()> {
        read_only("Tasks.CloseIO")
    }

    async fn pause(&self, _: Request<PauseTaskRequest>) -> Answer<()> {
        read_only("Tasks.Pause")
    }

    async fn resume(&self, _: Request<ResumeTaskRequest>) -> Answer<()> {
        read_only("Tasks.Resume")
    }

    async fn list_pids(&self, _: Request<ListPidsRequest>) -> Answer<ListPidsResponse> {
        read_only("Tasks.ListPids")
    }

    async fn checkpoint(&self, _: Request<CheckpointTaskRequest>) -> Answer<CheckpointTaskResponse> {
        read_only("Tasks.Checkpoint")
    }

    async fn update(&self, _: Request<UpdateTaskRequest>) -> Answer<()> {
        read_only("Tasks.Update")
    }

    async fn metrics(&self, _: Request<MetricsRequest>) -> Answer<MetricsResponse> {
        read_only("Tasks.Metrics")
    }

    async fn wait(&self, _: Request<WaitRequest>) -> Answer<WaitResponse> {
        read_only("Tasks.Wait")
    }
}

fn of_pod(pod: &PodView) -> Option<Process> {
    Some(running(pod.id.as_str(), pod.pid?, false))
}

fn of_container(container: &ContainerView) -> Option<Process> {
    match &container.state {
        ContainerState::Running { pid, .. } => Some(running(container.id.as_str(), *pid, container.spec.tty)),
        ContainerState::Created | ContainerState::Exited { .. } | ContainerState::Unknown => None,
    }
}

fn running(id: &str, pid: i32, terminal: bool) -> Process {
    let status = types::Status::Running as i32;
    Process { id: id.to_owned(), pid: pid.unsigned_abs(), status, terminal, ..Process::default() }
}
