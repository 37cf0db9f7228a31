//! Cold pulls: each of an image of which the endpoint has nothing.
//!
//! - one image of six layers, about 117 MB compressed;
//! - eight images at once that have nothing in common;
//! - one image of sixty small layers.
//!
//! Each round pulls another variant, and removes none: ext4 does not use inodes again that were deleted in the last minute,
//! and looking for others costs more than the pull.
//!
//! The clock stops with the answer. CPU time and memory are read once everything is on disk, so that what an endpoint puts
//! off until behind its answer counts as well.

use std::{sync::Arc, time::Instant};

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
    synthetic::{self, Made},
};

const AT_ONCE: u64 = 8;
const MB: f64 = 1e6;

/// Images that are pulled together.
struct Scene {
    title: String,
    /// By their repositories.
    images: Vec<(String, Made)>,
}

pub(crate) async fn measure(bench: &Bench, report: &mut Report) -> Result<(), BenchError> {
    let registry = bench
        .arguments
        .registry
        .ok_or_else(|| BenchError::Usage("the phase `pull` needs --registry, where its images are pushed to".into()))?;
    let pusher = Pusher { registry };
    eprintln!("bench: making images");
    for scene in blocking(scenes).await? {
        let scene = Arc::new(scene);
        // The first pull of each is no sample: it opens connections.
        for round in 0..=bench.arguments.rounds {
            let pushed = Arc::clone(&scene);
            blocking(move || {
                pushed.images.iter().try_for_each(|(repository, image)| image.push(round, &pusher, repository))
            })
            .await?;
            for (index, endpoint) in bench.turn(round) {
                once(bench, report, &scene, index, &endpoint, round).await?;
            }
        }
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BenchError> + Send + 'static,
) -> Result<T, BenchError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| BenchError::failed("making the images", error))?
}

fn scenes() -> Result<Vec<Scene>, BenchError> {
    let large = synthetic::large()?;
    let title = format!("pull of 6 layers, {:.0} MB", large.size() as f64 / MB);
    let large = Scene { title, images: vec![("bench/large".into(), large)] };
    let mut images = Vec::new();
    for number in 0..AT_ONCE {
        images.push((format!("bench/medium-{number}"), synthetic::medium(number)?));
    }
    let size: usize = images.iter().map(|(_, image)| image.size()).sum();
    let medium = Scene { title: format!("{AT_ONCE} pulls at once, together {:.0} MB", size as f64 / MB), images };
    let images = vec![("bench/thin".to_owned(), synthetic::thin()?)];
    Ok(vec![large, medium, Scene { title: "pull of 60 small layers".into(), images }])
}

async fn once(
    bench: &Bench,
    report: &mut Report,
    scene: &Scene,
    index: usize,
    endpoint: &Arc<Endpoint>,
    round: u32,
) -> Result<(), BenchError> {
    let title = &scene.title;
    sync().await?;
    let memory = memory::Peak::start(endpoint.daemon)?;
    let before = Reading::take(endpoint.cpu.as_ref())?;
    let start = Instant::now();
    let mut pulls = JoinSet::new();
    for (repository, _) in &scene.images {
        let (endpoint, reference) = (endpoint.clone(), format!("docker.io/{repository}:{round}"));
        pulls.spawn(async move { endpoint.timed("PullImage", endpoint.client.pull(&reference)).await.map(drop) });
    }
    while let Some(pulled) = pulls.join_next().await {
        pulled.map_err(|error| BenchError::failed("a pull", error))??;
    }
    let wall = start.elapsed();
    sync().await?;
    let used = Reading::take(endpoint.cpu.as_ref())?.since(&before, &bench.idle);
    let growth = memory.growth()?;
    if round > 0 {
        report.add(Figure::latency(title, "until the answer"), index, milliseconds(wall));
        add_cpu(report, title, "pull", index, &used, 1);
        report.add(Figure::new(title, "memory: highest above before", "MiB", Better::Lower), index, growth);
    }
    Ok(())
}

/// Waits until nothing is left to be written, so that no endpoint pays for the other.
async fn sync() -> Result<(), BenchError> {
    let syncing = tokio::task::spawn_blocking(rustix::fs::sync);
    syncing.await.map_err(|error| BenchError::failed("sync", error))
}
