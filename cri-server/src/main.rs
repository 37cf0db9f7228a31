//! The daemon: reads its configuration, builds its parts, recovers, serves, and drains.

mod app;
mod config;
mod containerd;
mod cri;
mod log;
mod offline;
mod serve;
mod streaming;
mod sys;
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
    #[arg(short, long, global = true)]
    log_level: Option<String>,
    /// The socket, in place of the file's.
    #[arg(short, long)]
    address: Option<PathBuf>,
    /// The persistent directory, in place of the file's.
    #[arg(long, global = true)]
    root: Option<PathBuf>,
    /// The volatile directory, in place of the file's.
    #[arg(long, global = true)]
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
    /// Images of a node whose daemon does not run, such as one whose disk is being prepared.
    Image {
        #[command(subcommand)]
        what: offline::ImageCommand,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Prints every key with its default.
    Default,
    /// Reads the file and says what has no effect in it, and which runtimes this host does not have.
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

fn run(mut arguments: Arguments) -> Result<(), String> {
    sys::share_arenas();
    match arguments.command.take() {
        Some(Command::Image { what }) => {
            let config = configure(&mut arguments)?;
            runtime()?.block_on(offline::run(config, what))
        }
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
    let unusable = wiring::unusable_handlers(&loaded.config).map_err(|error| error.chain())?;
    let warnings: Vec<String> = loaded.warnings.into_iter().chain(unusable.iter().map(sandbox::Error::chain)).collect();
    for warning in &warnings {
        println!("{warning}");
    }
    streaming::tls::check(&loaded.config.streaming.tls).map_err(|error| cri::chain(&error))?;
    println!("{}: {} warnings", path.display(), warnings.len());
    Ok(())
}

fn serve(mut arguments: Arguments) -> Result<(), String> {
    sys::keep_inherited_descriptors().map_err(|error| format!("mark inherited descriptors: {error}"))?;
    let config = configure(&mut arguments)?;
    runtime()?.block_on(app::run(config)).map_err(|error| cri::chain(&error))
}

/// The configuration of file and arguments, with logs going where it says.
fn configure(arguments: &mut Arguments) -> Result<config::Config, String> {
    let config::Loaded { mut config, warnings } =
        config::load(&arguments.config).map_err(|error| cri::chain(&error))?;
    if let Some(level) = arguments.log_level.take() {
        config.log.level = level;
    }
    if let Some(address) = arguments.address.take() {
        config.ttrpc_address = PathBuf::from(format!("{}.ttrpc", address.display()));
        config.grpc.address = address;
    }
    config.root = arguments.root.take().unwrap_or(config.root);
    config.state = arguments.state.take().unwrap_or(config.state);
    log::start(&config.log)?;
    for warning in warnings {
        tracing::warn!(file = %arguments.config.display(), "{warning}");
    }
    Ok(config)
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 4)))
        .enable_all()
        .build()
        .map_err(|error| format!("start the async runtime: {error}"))
}
