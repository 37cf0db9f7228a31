//! The life of a pod with one container, verb by verb, and the phase that measures it one pod at a time.

use std::time::Duration;

use api::cri;

use crate::{
    Bench,
    endpoint::Endpoint,
    error::BenchError,
    report::{Figure, Report},
    workload::Workload,
};

/// The grace that StopContainer gives; the container ends at once when it is asked to.
const GRACE_SECONDS: i64 = 10;

/// How long each verb took, in the order of the calls.
pub(crate) type Times = Vec<(&'static str, Duration)>;

/// A pod whose container runs.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) container: String,
}

/// The phase: `rounds` × `pods` life cycles, the endpoints in turn.
pub(crate) async fn measure(bench: &Bench, report: &mut Report) -> Result<(), BenchError> {
    for number in 0..bench.arguments.rounds * bench.arguments.pods {
        for (index, endpoint) in bench.turn(number) {
            let times = whole(&endpoint, &bench.workload).await?;
            for (verb, time) in &times {
                report.add(Figure::latency("verbs, one pod at a time", *verb), index, milliseconds(*time));
            }
            let total = times.iter().map(|(_, time)| *time).sum();
            report.add(Figure::latency("verbs, one pod at a time", "all of them"), index, milliseconds(total));
        }
    }
    Ok(())
}

/// A whole life: every verb once.
pub(crate) async fn whole(endpoint: &Endpoint, workload: &Workload) -> Result<Times, BenchError> {
    let (pod, mut times) = start(endpoint, workload).await?;
    times.push(("ExecSync", exec(endpoint, &pod.container).await?));
    times.extend(end(endpoint, &pod).await?);
    Ok(times)
}

/// From nothing to a running container.
pub(crate) async fn start(endpoint: &Endpoint, workload: &Workload) -> Result<(Pod, Times), BenchError> {
    start_with(endpoint, workload.pod(endpoint)?, &workload.waiting()).await
}

pub(crate) async fn start_with(
    endpoint: &Endpoint,
    config: cri::PodSandboxConfig,
    container: &cri::ContainerConfig,
) -> Result<(Pod, Times), BenchError> {
    let client = &endpoint.client;
    let (id, run) = endpoint.timed("RunPodSandbox", client.run_pod(&config)).await?;
    let (container, create) = endpoint.timed("CreateContainer", client.create(&id, container, &config)).await?;
    let ((), start) = endpoint.timed("StartContainer", client.start(&container)).await?;
    let times = vec![("RunPodSandbox", run), ("CreateContainer", create), ("StartContainer", start)];
    Ok((Pod { id, container }, times))
}

/// One command that does nothing.
pub(crate) async fn exec(endpoint: &Endpoint, container: &str) -> Result<Duration, BenchError> {
    let call = endpoint.client.exec(container, &["/bin/true"], 60);
    let (answer, time) = endpoint.timed("ExecSync", call).await?;
    match answer.exit_code {
        0 => Ok(time),
        code => {
            let said = String::from_utf8_lossy(&answer.stderr).into_owned();
            Err(BenchError::failed(format!("/bin/true at {} (exit code {code})", endpoint.name), said))
        }
    }
}

/// From a running container to nothing.
pub(crate) async fn end(endpoint: &Endpoint, pod: &Pod) -> Result<Times, BenchError> {
    let client = &endpoint.client;
    let ((), stop) = endpoint.timed("StopContainer", client.stop(&pod.container, GRACE_SECONDS)).await?;
    let ((), remove) = endpoint.timed("RemoveContainer", client.remove(&pod.container)).await?;
    let ((), stop_pod) = endpoint.timed("StopPodSandbox", client.stop_pod(&pod.id)).await?;
    let ((), remove_pod) = endpoint.timed("RemovePodSandbox", client.remove_pod(&pod.id)).await?;
    Ok(vec![
        ("StopContainer", stop),
        ("RemoveContainer", remove),
        ("StopPodSandbox", stop_pod),
        ("RemovePodSandbox", remove_pod),
    ])
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
