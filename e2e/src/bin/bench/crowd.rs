//! Many pods at once: what lists and statuses cost then, and how much memory the daemon and its shims take.
//!
//! A call that fails, or that answers about fewer things than there are, is shown as such in place of its times.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use api::cri;
use tokio::time::sleep;
use windlass_e2e::client::Answer;

use crate::{
    Bench,
    endpoint::Endpoint,
    error::BenchError,
    life::{self, Pod, milliseconds},
    load::{self, side_by_side},
    memory,
    report::{Better, Figure, Report},
};

/// After this long nothing of a start is under way any more.
const SETTLE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
enum Call {
    ListPodSandbox,
    ListContainers,
    PodSandboxStatus,
    ContainerStatus,
    ListContainerStats,
}

const CALLS: [Call; 5] = [
    Call::ListPodSandbox,
    Call::ListContainers,
    Call::PodSandboxStatus,
    Call::ContainerStatus,
    Call::ListContainerStats,
];

impl Call {
    fn name(self) -> &'static str {
        match self {
            Call::ListPodSandbox => "ListPodSandbox",
            Call::ListContainers => "ListContainers",
            Call::PodSandboxStatus => "PodSandboxStatus",
            Call::ContainerStatus => "ContainerStatus",
            Call::ListContainerStats => "ListContainerStats",
        }
    }
}

/// The phase: the endpoints are filled to each count, measured in turn, and emptied at the end.
pub(crate) async fn measure(bench: &Bench, report: &mut Report) -> Result<(), BenchError> {
    let mut sizes = bench.arguments.crowd.clone();
    sizes.sort_unstable();
    let mut pods: Vec<Vec<Pod>> = bench.endpoints.iter().map(|_| Vec::new()).collect();
    add_memory(bench, report, 0)?;
    for size in sizes {
        for (index, endpoint) in bench.turn(0) {
            let missing = size.saturating_sub(pods[index].len() as u32);
            pods[index].extend(load::start_many(bench, &endpoint, missing).await?);
        }
        sleep(SETTLE).await;
        add_memory(bench, report, size)?;
        for call in CALLS {
            add_times(bench, report, call, &pods, size).await;
        }
    }
    for (endpoint, pods) in bench.endpoints.iter().zip(pods) {
        end_many(endpoint, pods, bench.arguments.parallel).await?;
    }
    Ok(())
}

async fn add_times(bench: &Bench, report: &mut Report, call: Call, pods: &[Vec<Pod>], size: u32) {
    let figure = Figure::latency(&format!("calls with {size} pods"), call.name());
    let mut failed = vec![false; bench.endpoints.len()];
    for number in 0..bench.arguments.samples {
        for (index, endpoint) in bench.turn(number) {
            if failed[index] {
                continue;
            }
            let start = Instant::now();
            let one = &pods[index][number as usize % pods[index].len()];
            let answer = endpoint.timed(call.name(), ask(&endpoint, call, one)).await;
            let time = start.elapsed();
            match answer {
                Ok((count, _)) if count.is_none_or(|count| count >= size as usize) => {
                    report.add(figure.clone(), index, milliseconds(time));
                }
                Ok((count, _)) => {
                    failed[index] = true;
                    report.fail(figure.clone(), index, format!("answered {} of {size}", count.unwrap_or_default()));
                }
                Err(error) => {
                    failed[index] = true;
                    report.fail(figure.clone(), index, error.to_string());
                }
            }
        }
    }
}

/// How many things a list has; `None` for what is no list.
async fn ask(endpoint: &Endpoint, call: Call, pod: &Pod) -> Answer<Option<usize>> {
    let client = &endpoint.client;
    match call {
        Call::ListPodSandbox => Ok(Some(client.pods().await?.len())),
        Call::ListContainers => Ok(Some(client.containers().await?.len())),
        Call::PodSandboxStatus => client.pod_status(&pod.id).await.map(|_| None),
        Call::ContainerStatus => client.status(&pod.container).await.map(|_| None),
        Call::ListContainerStats => {
            let request = cri::ListContainerStatsRequest { filter: None };
            let answer = client.runtime.clone().list_container_stats(request).await?.into_inner();
            // An answer without figures is none: a runtime may list what it could not read.
            Ok(Some(answer.stats.iter().filter(|stats| stats.cpu.is_some() && stats.memory.is_some()).count()))
        }
    }
}

fn add_memory(bench: &Bench, report: &mut Report, size: u32) -> Result<(), BenchError> {
    let section = format!("memory with {size} pods");
    let figure = |name: &str| Figure::new(&section, name, "MiB", Better::Lower);
    for (index, endpoint) in bench.turn(0) {
        let daemon = memory::of(endpoint.daemon)?;
        report.add(figure("daemon, RSS"), index, daemon.rss);
        report.add(figure("daemon, PSS"), index, daemon.pss);
        let mut sum = daemon.pss;
        for shim in memory::shims(&endpoint)? {
            // A shim may end between being found and being read, when its pod was removed just now.
            let Ok(shim) = memory::of(shim) else { continue };
            report.add(figure("one shim, RSS"), index, shim.rss);
            report.add(figure("one shim, PSS"), index, shim.pss);
            sum += shim.pss;
        }
        report.add(figure("daemon and all shims, PSS"), index, sum);
    }
    Ok(())
}

async fn end_many(endpoint: &Arc<Endpoint>, pods: Vec<Pod>, parallel: u32) -> Result<(), BenchError> {
    let count = pods.len() as u32;
    let left = Arc::new(std::sync::Mutex::new(pods));
    let ended = side_by_side(count, parallel, || {
        let (endpoint, left) = (endpoint.clone(), left.clone());
        async move {
            // The lock guards the list for one pop. It is poisoned only by a panic of this very line.
            let pod = left.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).pop();
            match pod {
                Some(pod) => life::end(&endpoint, &pod).await.map(drop),
                None => Ok(()),
            }
        }
    });
    ended.await.map(drop)
}
