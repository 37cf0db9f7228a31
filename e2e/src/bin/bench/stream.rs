//! What goes through a running container: commands a second, and how fast its output becomes its log.

use std::{
    fs,
    io::{self, BufRead, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use tokio::time::sleep;

use crate::{
    Bench,
    cpu::Reading,
    endpoint::Endpoint,
    error::BenchError,
    life::{self, Pod, milliseconds},
    load::{add_cpu, side_by_side},
    report::{Better, Figure, Report},
};

/// How long the whole log may take.
const LOG: Duration = Duration::from_secs(300);
/// How long a started container may take to reach its first line.
const READY: Duration = Duration::from_secs(30);
/// The last line as it is in a CRI log, behind its timestamp.
const LAST: &[u8] = b" stdout F END\n";

pub(crate) async fn measure(bench: &Bench, report: &mut Report) -> Result<(), BenchError> {
    for round in 0..bench.arguments.rounds {
        for (index, endpoint) in bench.turn(round) {
            execs(bench, report, index, &endpoint).await?;
            log(bench, report, index, &endpoint).await?;
        }
    }
    Ok(())
}

async fn execs(bench: &Bench, report: &mut Report, index: usize, endpoint: &Arc<Endpoint>) -> Result<(), BenchError> {
    let (count, parallel) = (bench.arguments.execs, bench.arguments.parallel);
    let section = format!("ExecSync, {parallel} side by side");
    let (pod, _) = life::start(endpoint, &bench.workload).await?;
    let before = Reading::take(endpoint.cpu.as_ref())?;
    let start = Instant::now();
    let times = side_by_side(count, parallel, || {
        let (endpoint, container) = (endpoint.clone(), pod.container.clone());
        async move { life::exec(&endpoint, &container).await }
    });
    let times = times.await?;
    let wall = start.elapsed();
    let used = Reading::take(endpoint.cpu.as_ref())?.since(&before, &bench.idle);
    let rate = Figure::new(&section, "calls a second", "calls/s", Better::Higher);
    report.add(rate, index, f64::from(count) / wall.as_secs_f64());
    for time in times {
        report.add(Figure::latency(&section, "one call"), index, milliseconds(time));
    }
    add_cpu(report, &section, "call", index, &used, count);
    life::end(endpoint, &pod).await.map(drop)
}

async fn log(bench: &Bench, report: &mut Report, index: usize, endpoint: &Arc<Endpoint>) -> Result<(), BenchError> {
    let workload = &bench.workload;
    let config = workload.pod(endpoint)?;
    let directory = PathBuf::from(&config.log_directory);
    let go = directory.join("go");
    let failed = |error: io::Error| BenchError::failed(directory.display(), error);
    fs::hard_link(workload.payload()?, directory.join("payload")).map_err(failed)?;
    rustix::fs::mknodat(CWD, &go, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).map_err(|error| failed(error.into()))?;
    let container = workload.writing(&config.log_directory);
    let (pod, _) = life::start_with(endpoint, config, &container).await?;
    let log = directory.join(&container.log_path);
    let mut pipe = open_for_writing(&go).await?;
    let before = Reading::take(endpoint.cpu.as_ref())?;
    let start = Instant::now();
    pipe.write_all(b"go\n").map_err(failed)?;
    wait_for_last_line(&log).await?;
    let wall = start.elapsed();
    let used = Reading::take(endpoint.cpu.as_ref())?.since(&before, &bench.idle);
    check_lines(&log, workload.payload_lines() + 1)?;
    let section = format!("log of {} MiB in lines of {} bytes", workload.payload_mib(), crate::workload::LINE);
    let speed = Figure::new(&section, "until it is whole", "MiB/s", Better::Higher);
    report.add(speed, index, workload.payload_mib() / wall.as_secs_f64());
    add_cpu(report, &section, "log", index, &used, 1);
    finish(endpoint, &pod, &directory).await
}

/// Removes the pod and the log, which nobody wants to keep at this size.
async fn finish(endpoint: &Endpoint, pod: &Pod, directory: &Path) -> Result<(), BenchError> {
    life::end(endpoint, pod).await?;
    fs::remove_dir_all(directory).map_err(|error| BenchError::failed(directory.display(), error))
}

/// A pipe can be opened for writing once somebody reads it: the container has come to its first line.
async fn open_for_writing(pipe: &Path) -> Result<fs::File, BenchError> {
    let end = Instant::now() + READY;
    loop {
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        match fs::OpenOptions::new().write(true).custom_flags(flags).open(pipe) {
            Ok(file) => return Ok(file),
            Err(error) if Instant::now() > end => return Err(BenchError::failed(pipe.display(), error)),
            Err(_) => sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn wait_for_last_line(log: &Path) -> Result<(), BenchError> {
    let end = Instant::now() + LOG;
    loop {
        if ends_with_last_line(log).map_err(|error| BenchError::failed(log.display(), error))? {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(BenchError::failed(log.display(), "the last line did not come"));
        }
        sleep(Duration::from_millis(2)).await;
    }
}

fn ends_with_last_line(log: &Path) -> io::Result<bool> {
    let mut file = fs::File::open(log)?;
    let length = file.metadata()?.len();
    if length < LAST.len() as u64 {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-(LAST.len() as i64)))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    Ok(tail.ends_with(LAST))
}

/// A log that lost lines is no result.
fn check_lines(log: &Path, expected: u64) -> Result<(), BenchError> {
    let failed = |error: io::Error| BenchError::failed(log.display(), error);
    let mut reader = io::BufReader::with_capacity(1 << 20, fs::File::open(log).map_err(failed)?);
    let mut count = 0;
    loop {
        let bytes = reader.fill_buf().map_err(failed)?;
        if bytes.is_empty() {
            break;
        }
        count += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        let length = bytes.len();
        reader.consume(length);
    }
    if count != expected {
        return Err(BenchError::failed(log.display(), format!("it has {count} lines, not {expected}")));
    }
    Ok(())
}
