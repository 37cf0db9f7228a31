//! Several pods side by side: how many a second, how long one then takes to start, and what CPU time one costs.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{task::JoinSet, time::sleep};

use crate::{
    Bench,
    cpu::{CpuUse, Reading},
    endpoint::Endpoint,
    error::BenchError,
    life::{self, milliseconds},
    report::{Better, Figure, Report},
};

/// What a daemon or shim does behind its answers belongs to the work that was asked for.
const SETTLE: Duration = Duration::from_millis(700);

/// The phase: in each round each endpoint runs `pods` whole lives, `parallel` at once.
pub(crate) async fn measure(bench: &Bench, report: &mut Report) -> Result<(), BenchError> {
    let Bench { arguments, workload, .. } = bench;
    let section = format!("load, {} pods side by side", arguments.parallel);
    let rate = Figure::new(&section, "whole lives a second", "pods/s", Better::Higher);
    for round in 0..arguments.rounds {
        for (index, endpoint) in bench.turn(round) {
            let before = Reading::take(endpoint.cpu.as_ref())?;
            let start = Instant::now();
            let lives = side_by_side(arguments.pods, arguments.parallel, || {
                let (endpoint, workload) = (endpoint.clone(), workload.clone());
                async move { life::whole(&endpoint, &workload).await }
            });
            let lives = lives.await?;
            let wall = start.elapsed();
            sleep(SETTLE).await;
            let used = Reading::take(endpoint.cpu.as_ref())?.since(&before, &bench.idle);
            report.add(rate.clone(), index, f64::from(arguments.pods) / wall.as_secs_f64());
            for times in &lives {
                let started = times.iter().take(3).map(|(_, time)| *time).sum();
                report.add(
                    Figure::latency(&section, "from nothing to a running container"),
                    index,
                    milliseconds(started),
                );
            }
            add_cpu(report, &section, "pod", index, &used, arguments.pods);
        }
    }
    Ok(())
}

/// The CPU time of one of `count` things, by each way of counting that there is.
pub(crate) fn add_cpu(report: &mut Report, section: &str, thing: &str, index: usize, used: &CpuUse, count: u32) {
    let each = |time: Duration| milliseconds(time) / f64::from(count);
    if let Some(time) = used.group {
        let name = format!("CPU a {thing}, daemon and all its children (cgroup)");
        report.add(Figure::new(section, &name, "ms", Better::Lower), index, each(time));
    }
    if let Some(time) = used.machine {
        let name = format!("CPU a {thing}, whole machine above idle (/proc/stat)");
        report.add(Figure::new(section, &name, "ms", Better::Lower), index, each(time));
    }
}

/// Runs `count` operations, `parallel` at once. The first error ends the others.
pub(crate) async fn side_by_side<T, F>(count: u32, parallel: u32, make: impl Fn() -> F) -> Result<Vec<T>, BenchError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, BenchError>> + Send + 'static,
{
    let mut running = JoinSet::new();
    let mut left = count;
    let mut done = Vec::new();
    loop {
        while left > 0 && running.len() < parallel as usize {
            running.spawn(make());
            left -= 1;
        }
        match running.join_next().await {
            Some(Ok(result)) => done.push(result?),
            Some(Err(error)) => return Err(BenchError::failed("an operation of the benchmark", error)),
            None => return Ok(done),
        }
    }
}

/// Runs one life's first half `count` times, `parallel` at once.
pub(crate) async fn start_many(
    bench: &Bench,
    endpoint: &Arc<Endpoint>,
    count: u32,
) -> Result<Vec<life::Pod>, BenchError> {
    let started = side_by_side(count, bench.arguments.parallel, || {
        let (endpoint, workload) = (endpoint.clone(), bench.workload.clone());
        async move { Ok(life::start(&endpoint, &workload).await?.0) }
    });
    started.await
}
