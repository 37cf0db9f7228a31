//! The daemon: reads its configuration, builds its parts, recovers, serves, and drains.

mod app;
mod config;
mod cri;
mod log;
mod serve;
mod streaming;
mod wiring;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

/// What `windlass --version` and CRI's Version answer.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A Kubernetes node runtime: CRI on a unix socket, in place of containerd.
#[derive(Parser)]
#[command(name = "windlass", version)]
struct Arguments {
    /// The configuration file, in containerd's format.
    #[arg(short, long, global = true, default_value = "/etc/containerd/config.toml")]
    config: PathBuf,
    /// The log level, in place of the file's.
    #[arg(short, long)]
    log_level: Option<String>,
    /// The socket, in place of the file's.
    #[arg(short, long)]
    address: Option<PathBuf>,
    /// The persistent directory, in place of the file's.
    #[arg(long)]
    root: Option<PathBuf>,
    /// The volatile directory, in place of the file's.
    #[arg(long)]
    state: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// About the configuration file.
    Config {
        #[command(subcommand)]
        what: ConfigCommand,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Prints every key with its default.
    Default,
    /// Reads the file and says what has no effect in it.
    Check,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("windlass: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), String> {
    match arguments.command {
        Some(Command::Config { what: ConfigCommand::Default }) => {
            print!("{}", config::DEFAULT_TOML);
            Ok(())
        }
        Some(Command::Config { what: ConfigCommand::Check }) => check(&arguments.config),
        None => serve(arguments),
    }
}

fn check(path: &Path) -> Result<(), String> {
    if !path.exists() {
        return Err(format!("{} does not exist; the daemon would start with the defaults", path.display()));
    }
    let loaded = config::load(path).map_err(|error| cri::chain(&error))?;
    for warning in &loaded.warnings {
        println!("{warning}");
    }
    streaming::tls::check(&loaded.config.streaming.tls).map_err(|error| cri::chain(&error))?;
    println!("{}: {} warnings", path.display(), loaded.warnings.len());
    Ok(())
}

fn serve(arguments: Arguments) -> Result<(), String> {
    let config::Loaded { mut config, warnings } =
        config::load(&arguments.config).map_err(|error| cri::chain(&error))?;
    if let Some(level) = arguments.log_level {
        config.log.level = level;
    }
    if let Some(address) = arguments.address {
        config.ttrpc_address = PathBuf::from(format!("{}.ttrpc", address.display()));
        config.grpc.address = address;
    }
    config.root = arguments.root.unwrap_or(config.root);
    config.state = arguments.state.unwrap_or(config.state);
    log::start(&config.log)?;
    for warning in warnings {
        tracing::warn!(file = %arguments.config.display(), "{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 4)))
        .enable_all()
        .build()
        .map_err(|error| format!("start the async runtime: {error}"))?;
    runtime.block_on(app::run(config)).map_err(|error| cri::chain(&error))
}
