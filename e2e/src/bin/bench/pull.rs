//! Cold pulls: the image's content and snapshots are gone before each.
//!
//! - one image of six layers, about 117 MB compressed;
//! - eight images at once that have nothing in common;
//! - one image of sixty small layers.
//!
//! The clock stops with the answer. CPU time and memory are read once everything is on disk, so that what an endpoint puts
//! off until behind its answer counts as well.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use tokio::task::JoinSet;
use windlass_e2e::push::Pusher;

use crate::{
    Bench,
    cpu::Reading,
    endpoint::Endpoint,
    error::BenchError,
    life::milliseconds,
    load::add_cpu,
    memory,
    report::{Better, Figure, Report},
    synthetic,
};

const AT_ONCE: u64 = 8;
const MB: f64 = 1e6;

/// Images that are pulled together, by their references.
struct Scene {
    title: String,
    references: Vec<String>,
}

pub(crate) async fn measure(bench: &Bench, report: &mut Report) -> Result<(), BenchError> {
    let registry = bench
        .arguments
        .registry
        .ok_or_else(|| BenchError::Usage("the phase `pull` needs --registry, where its images are pushed to".into()))?;
    let making = tokio::task::spawn_blocking(move || scenes(registry));
    let scenes = making.await.map_err(|error| BenchError::failed("making the images", error))??;
    for scene in &scenes {
        // The first pull of each is no sample: it opens connections and warms the registry's cache.
        for round in 0..=bench.arguments.rounds {
            for (index, endpoint) in bench.turn(round) {
                once(bench, report, scene, index, &endpoint, round > 0).await?;
            }
        }
    }
    Ok(())
}

fn scenes(registry: SocketAddr) -> Result<Vec<Scene>, BenchError> {
    eprintln!("bench: making images");
    let pusher = Pusher { registry };
    let reference = |repository: &str| format!("docker.io/{repository}:1");
    let (_, size) = synthetic::push(&synthetic::large()?, &pusher, "bench/large");
    let large = Scene {
        title: format!("pull of 6 layers, {:.0} MB", size as f64 / MB),
        references: vec![reference("bench/large")],
    };
    let (mut references, mut sum) = (Vec::new(), 0);
    for number in 0..AT_ONCE {
        let repository = format!("bench/medium-{number}");
        sum += synthetic::push(&synthetic::medium(number)?, &pusher, &repository).1;
        references.push(reference(&repository));
    }
    let title = format!("{AT_ONCE} pulls at once, together {:.0} MB", sum as f64 / MB);
    let medium = Scene { title, references };
    synthetic::push(&synthetic::thin()?, &pusher, "bench/thin");
    let thin = Scene { title: "pull of 60 small layers".into(), references: vec![reference("bench/thin")] };
    Ok(vec![large, medium, thin])
}

async fn once(
    bench: &Bench,
    report: &mut Report,
    scene: &Scene,
    index: usize,
    endpoint: &Arc<Endpoint>,
    counts: bool,
) -> Result<(), BenchError> {
    let Scene { title, references } = scene;
    for reference in references {
        endpoint.timed("RemoveImage", endpoint.client.remove_image(reference)).await?;
    }
    sync().await?;
    let memory = memory::Peak::start(endpoint.daemon)?;
    let before = Reading::take(endpoint.cpu.as_ref())?;
    let start = Instant::now();
    let mut pulls = JoinSet::new();
    for reference in references {
        let (endpoint, reference) = (endpoint.clone(), reference.clone());
        pulls.spawn(async move { endpoint.timed("PullImage", endpoint.client.pull(&reference)).await.map(drop) });
    }
    while let Some(pulled) = pulls.join_next().await {
        pulled.map_err(|error| BenchError::failed("a pull", error))??;
    }
    let wall = start.elapsed();
    sync().await?;
    let used = Reading::take(endpoint.cpu.as_ref())?.since(&before, &bench.idle);
    let growth = memory.growth()?;
    if counts {
        report.add(Figure::latency(title, "until the answer"), index, milliseconds(wall));
        add_cpu(report, title, "pull", index, &used, 1);
        report.add(Figure::new(title, "memory: highest above before", "MiB", Better::Lower), index, growth);
    }
    for reference in references {
        endpoint.timed("RemoveImage", endpoint.client.remove_image(reference)).await?;
    }
    Ok(())
}

/// Waits until nothing is left to be written, so that no endpoint pays for the other.
async fn sync() -> Result<(), BenchError> {
    let syncing = tokio::task::spawn_blocking(rustix::fs::sync);
    syncing.await.map_err(|error| BenchError::failed("sync", error))
}
