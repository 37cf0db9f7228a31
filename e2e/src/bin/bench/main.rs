//! Measures a CRI endpoint, or two beside each other, through whole pod life cycles.
//!
//! ```text
//! main ─► arguments, one connection an endpoint, warm-up
//!         verbs   each verb's latency, one pod at a time
//!         load    pods a second, several side by side, and the CPU time that a pod costs
//!         crowd   list and status calls, and memory, with many pods there
//!         stream  ExecSync calls a second, and how fast a container's log is written
//!         pull    images that are not there yet (only when asked for)
//! ```
//!
//! Two endpoints take turns in every phase, and who goes first changes by the round, so that what else the machine does
//! falls on both. Every pod carries the run's label, and all that carry it are removed at the end: also after an error,
//! SIGINT, SIGTERM, or when the time is up. Every call and the whole run have a deadline.

mod cpu;
mod crowd;
mod endpoint;
mod error;
mod life;
mod load;
mod memory;
mod pull;
mod report;
mod stream;
mod synthetic;
mod workload;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};
use serde_json::{Value, json};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};
use windlass_e2e::registry::Registry;

use crate::{
    cpu::Idle,
    endpoint::{Endpoint, Named},
    error::BenchError,
    report::Report,
    workload::Workload,
};

/// Drives CRI endpoints through pod life cycles and says what each costs.
#[derive(Parser, Debug)]
#[command(name = "bench", args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// An endpoint, as NAME=unix:///path. Given twice, the two are compared.
    #[arg(long = "endpoint", value_name = "NAME=ADDRESS", required = true)]
    endpoints: Vec<Named>,
    /// The cgroup that the endpoint's daemon is below; pods are put there as well, and its CPU time is what they cost.
    #[arg(long = "cgroup", value_name = "NAME=/PATH")]
    cgroups: Vec<Named>,
    /// The daemon's process, if it is not the one that made the socket.
    #[arg(long = "daemon-pid", value_name = "NAME=PID")]
    daemons: Vec<Named>,
    /// A reference of a busybox image; it is pulled where it is missing.
    #[arg(long, required = true)]
    image: Option<String>,
    /// Pods in a round of the phases `verbs` and `load`.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
    pods: u32,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How many pods or calls are under way at once in the phases `load` and `stream`.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    parallel: u32,
    /// How many pods are there when lists and memory are measured, each count in turn.
    #[arg(long, default_values_t = [20, 100], value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=500))]
    crowd: Vec<u32>,
    /// Calls of each list and status verb at each count.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    samples: u32,
    /// ExecSync calls in a round.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    execs: u32,
    /// What a container writes to its log in a round.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    log_mib: u32,
    /// The phases to run.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Phase::Verbs, Phase::Load, Phase::Crowd, Phase::Stream])]
    phases: Vec<Phase>,
    /// Where the phase `pull` pushes the images that it makes: the address of a registry that both endpoints take for
    /// docker.io.
    #[arg(long, value_name = "IP:PORT")]
    registry: Option<SocketAddr>,
    /// Where all figures go, every sample included.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The seconds after which the run ends with what it has.
    #[arg(long, default_value_t = 3600)]
    deadline: u64,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Serves the images of the end-to-end tests on loopback, prints the address, and ends with its standard input.
    Images,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Phase {
    Verbs,
    Load,
    Crowd,
    Stream,
    Pull,
}

/// A signal that follows another one within this time is the same one.
const ECHO: Duration = Duration::from_secs(2);

/// What every phase works with.
pub(crate) struct Bench {
    pub(crate) arguments: Arguments,
    pub(crate) endpoints: Vec<Arc<Endpoint>>,
    pub(crate) workload: Arc<Workload>,
    pub(crate) idle: Idle,
}

impl Bench {
    /// The endpoints with their index, in the order of this turn: who was first is last the next time.
    pub(crate) fn turn(&self, number: u32) -> Vec<(usize, Arc<Endpoint>)> {
        let mut order: Vec<_> = self.endpoints.iter().cloned().enumerate().collect();
        if !number.is_multiple_of(2) {
            order.reverse();
        }
        order
    }

    async fn run(&self, report: &mut Report) -> Result<(), BenchError> {
        for phase in [Phase::Verbs, Phase::Load, Phase::Crowd, Phase::Stream, Phase::Pull] {
            if !self.arguments.phases.contains(&phase) {
                continue;
            }
            eprintln!("bench: {phase:?}");
            match phase {
                Phase::Verbs => Box::pin(life::measure(self, report)).await?,
                Phase::Load => Box::pin(load::measure(self, report)).await?,
                Phase::Crowd => Box::pin(crowd::measure(self, report)).await?,
                Phase::Stream => Box::pin(stream::measure(self, report)).await?,
                Phase::Pull => Box::pin(pull::measure(self, report)).await?,
            }
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("bench: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = match arguments.command {
        Some(Command::Images) => serve_images(),
        None => runtime.block_on(compare(arguments)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {}", error::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn serve_images() -> Result<(), BenchError> {
    println!("{}", Registry::shared().address);
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())
        .map_err(|error| BenchError::failed("stdin", error))?;
    Ok(())
}

async fn compare(arguments: Arguments) -> Result<(), BenchError> {
    let endpoints = endpoint::connect_all(&arguments).await?;
    let image = arguments.image.clone().ok_or_else(|| BenchError::Usage("--image is missing".into()))?;
    let workload = Arc::new(Workload::new(image, u64::from(arguments.log_mib))?);
    let json = arguments.json.clone();
    let deadline = Duration::from_secs(arguments.deadline);
    let mut report = Report::new(endpoints.iter().map(|endpoint| endpoint.name.clone()).collect());
    let bench = tokio::select! {
        biased;
        why = stopped() => Err(why),
        () = sleep(deadline) => Err(BenchError::TimeUp(deadline)),
        result = Box::pin(warm_up_and_run(arguments, &endpoints, &workload, &mut report)) => result,
    };
    let cleaned = tokio::select! {
        result = Box::pin(remove_all(&endpoints, &workload)) => result,
        // A second signal says that the first one was meant. A terminal and a wrapper may both pass on the first.
        why = async { sleep(ECHO).await; stopped().await } => Err(why),
    };
    for endpoint in &endpoints {
        println!("{} is {} at {}", endpoint.name, endpoint.version, endpoint.socket.display());
    }
    print!("{}", report.to_text());
    if let Some(path) = json {
        let text = serde_json::to_vec_pretty(&record(&endpoints, &report))
            .map_err(|error| BenchError::failed("the report", error))?;
        std::fs::write(&path, text).map_err(|error| BenchError::failed(path.display(), error))?;
    }
    bench.and(cleaned)
}

async fn warm_up_and_run(
    arguments: Arguments,
    endpoints: &[Arc<Endpoint>],
    workload: &Arc<Workload>,
    report: &mut Report,
) -> Result<(), BenchError> {
    for endpoint in endpoints {
        endpoint.pull(&workload.image).await?;
        if arguments.phases == [Phase::Pull] {
            continue;
        }
        // The first pod pulls the pause image and fills every cache: it is no sample.
        Box::pin(life::whole(endpoint, workload)).await?;
    }
    let idle = Idle::measure().await?;
    let bench = Bench { arguments, endpoints: endpoints.to_vec(), workload: workload.clone(), idle };
    bench.run(report).await
}

/// The figures with what they depend on.
fn record(endpoints: &[Arc<Endpoint>], report: &Report) -> Value {
    let versions: Vec<_> =
        endpoints.iter().map(|endpoint| json!({"name": endpoint.name, "version": endpoint.version})).collect();
    json!({
        "endpoints": versions,
        "arguments": std::env::args().skip(1).collect::<Vec<_>>(),
        // Neither is worth an error: a reader sees that it is missing.
        "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "figures": report.to_json(),
    })
}

/// Both endpoints are tried, whatever the first one says.
async fn remove_all(endpoints: &[Arc<Endpoint>], workload: &Workload) -> Result<(), BenchError> {
    let mut result = Ok(());
    for endpoint in endpoints {
        result = result.and(endpoint.remove_labelled(&workload.run).await);
    }
    result
}

/// Ends with the first signal that asks for the end.
async fn stopped() -> BenchError {
    let signals = signal(SignalKind::interrupt()).and_then(|int| Ok((int, signal(SignalKind::terminate())?)));
    let (mut interrupt, mut terminate) = match signals {
        Ok(signals) => signals,
        Err(error) => return BenchError::failed("the signal handler", error),
    };
    tokio::select! {
        _ = interrupt.recv() => BenchError::Stopped("SIGINT"),
        _ = terminate.recv() => BenchError::Stopped("SIGTERM"),
    }
}
