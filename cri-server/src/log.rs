//! The daemon's log: structured, on stderr, at the configured level.

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{Log, LogFormat};

/// Starts logging. `RUST_LOG` refines the level by module, for debugging.
pub(crate) fn start(log: &Log) -> Result<(), String> {
    // The libraries below speak at debug for each frame; their warnings are kept.
    let own = ["windlass", "sandbox", "image_service", "snapshotter", "store", "shim"]
        .map(|name| format!("{name}={level},windlass_{name}={level}", level = log.level))
        .join(",");
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) if !directives.is_empty() => EnvFilter::try_new(&directives)
            .map_err(|error| format!("RUST_LOG {directives:?} is not a filter: {error}"))?,
        _ => EnvFilter::try_new(format!("warn,{own}"))
            .map_err(|error| format!("log level {:?} is not a level: {error}", log.level))?,
    };
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|error| format!("start the log: {error}"))
}
