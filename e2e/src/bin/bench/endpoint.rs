//! One CRI endpoint: its connection, which process serves it, where its CPU time is counted, and the removal of what a run
//! made there.
//!
//! Invariant: every call ends within [`CALL`].

use std::{
    collections::HashMap,
    future::Future,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use api::cri;
use tokio::time::{sleep, timeout};
use windlass_e2e::client::{Answer, Client};

use crate::{Arguments, cpu::CpuGroup, error::BenchError, memory, workload::LABEL};

/// No verb takes longer than this where anything works.
const CALL: Duration = Duration::from_secs(120);
/// How long a daemon that was just started may take to serve.
const BOOT: Duration = Duration::from_secs(60);
/// How long the removal of what a run made may take, all pods together.
const CLEAN: Duration = Duration::from_secs(300);

/// `NAME=VALUE` of the command line.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    name: String,
    value: String,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Named, String> {
        let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=VALUE"))?;
        Ok(Named { name: name.into(), value: value.into() })
    }
}

#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) name: String,
    /// What it says of itself.
    pub(crate) version: String,
    pub(crate) socket: PathBuf,
    pub(crate) daemon: u32,
    pub(crate) cpu: Option<CpuGroup>,
    pub(crate) client: Client,
}

/// Connects to all endpoints of the command line; those that do not serve yet are waited for.
pub(crate) async fn connect_all(arguments: &Arguments) -> Result<Vec<Arc<Endpoint>>, BenchError> {
    if arguments.endpoints.len() > 2 {
        return Err(BenchError::Usage("more than two endpoints cannot be compared".into()));
    }
    let mut endpoints = Vec::new();
    for Named { name, value } in &arguments.endpoints {
        let socket = PathBuf::from(value.strip_prefix("unix://").unwrap_or(value));
        let client = connect(name, &socket).await?;
        let daemon = match named(&arguments.daemons, name) {
            Some(pid) => pid.parse().map_err(|_| BenchError::Usage(format!("{pid:?} is no process id")))?,
            None => memory::peer(&socket)?,
        };
        let cpu = named(&arguments.cgroups, name).map(CpuGroup::find).transpose()?;
        let version = version(&client)
            .await
            .map_err(|status| BenchError::failed(format!("asking {name} for its version"), status))?;
        endpoints.push(Arc::new(Endpoint { name: name.clone(), version, socket, daemon, cpu, client }));
    }
    Ok(endpoints)
}

fn named<'a>(values: &'a [Named], name: &str) -> Option<&'a str> {
    values.iter().find(|value| value.name == name).map(|value| value.value.as_str())
}

async fn version(client: &Client) -> Answer<String> {
    let answer = client.runtime.clone().version(cri::VersionRequest::default()).await?.into_inner();
    Ok(format!("{} {}", answer.runtime_name, answer.runtime_version))
}

async fn connect(name: &str, socket: &Path) -> Result<Client, BenchError> {
    let end = Instant::now() + BOOT;
    loop {
        let error = match Client::connect(socket).await {
            Ok(client) => match client.pods().await {
                Ok(_) => return Ok(client),
                Err(status) => status.to_string(),
            },
            Err(error) => crate::error::chain(&error),
        };
        if Instant::now() > end {
            return Err(BenchError::failed(format!("connecting to {name} at {}", socket.display()), error));
        }
        sleep(Duration::from_millis(100)).await;
    }
}

impl Endpoint {
    /// The answer of a call that has to succeed, and how long it took.
    pub(crate) fn timed<T>(
        &self,
        verb: &'static str,
        call: impl Future<Output = Answer<T>>,
    ) -> impl Future<Output = Result<(T, Duration), BenchError>> {
        // Boxed before anything waits: a call is some kilobytes, and would be held by every future around it.
        let call = Box::pin(call);
        async move {
            let start = Instant::now();
            match timeout(CALL, call).await {
                Ok(Ok(answer)) => Ok((answer, start.elapsed())),
                Ok(Err(status)) => {
                    Err(BenchError::Call { endpoint: self.name.clone(), verb, status: Box::new(status) })
                }
                Err(_) => Err(BenchError::NoAnswer { endpoint: self.name.clone(), verb, after: CALL }),
            }
        }
    }

    pub(crate) async fn pull(&self, image: &str) -> Result<(), BenchError> {
        let (present, _) = self.timed("ImageStatus", self.client.image(image)).await?;
        if present.is_none() {
            self.timed("PullImage", self.client.pull(image)).await?;
        }
        Ok(())
    }

    /// Removes every pod with the run's label. A call that the run gave up may still be under way in the daemon, so it is
    /// over when nothing was found twice.
    pub(crate) async fn remove_labelled(&self, run: &str) -> Result<(), BenchError> {
        let end = Instant::now() + CLEAN;
        let mut empty = 0;
        let mut last = None;
        while empty < 2 {
            if Instant::now() > end {
                let why = last.unwrap_or_else(|| "pods keep appearing".to_owned());
                return Err(BenchError::failed(format!("removing the pods of {run} at {}", self.name), why));
            }
            let (pods, _) = self.timed("ListPodSandbox", self.labelled(run)).await?;
            empty = if pods.is_empty() { empty + 1 } else { 0 };
            for pod in pods {
                let id = pod.id.as_str();
                // Removing stops first; a daemon that refuses to remove what it could not stop says so here.
                let stopped = self.timed("StopPodSandbox", self.client.stop_pod(id)).await;
                let removed = self.timed("RemovePodSandbox", self.client.remove_pod(id)).await;
                last = stopped.and(removed).err().map(|error| error.to_string()).or(last);
            }
            sleep(Duration::from_millis(300)).await;
        }
        Ok(())
    }

    async fn labelled(&self, run: &str) -> Answer<Vec<cri::PodSandbox>> {
        let filter = cri::PodSandboxFilter {
            label_selector: HashMap::from([(LABEL.to_owned(), run.to_owned())]),
            ..cri::PodSandboxFilter::default()
        };
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        Ok(self.client.runtime.clone().list_pod_sandbox(request).await?.into_inner().items)
    }
}
