//! `ctr`, the debug client: asks the daemon over containerd's gRPC API and prints what it says.
//!
//! It never touches the daemon's files, and never decides anything: what it prints is what a service answered.
//! Commands, flags and columns are those of the stock client, so that scripts need no change.

mod client;
mod containers;
mod error;
mod images;
mod namespaces;
mod table;
mod tasks;
mod version;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::client::Client;
use crate::error::Error;

#[derive(Parser)]
#[command(name = "ctr", version, about = "Debug client of the container runtime")]
struct Cli {
    /// Socket of the daemon's gRPC API
    #[arg(
        short,
        long,
        global = true,
        env = "CONTAINERD_ADDRESS",
        value_name = "SOCKET",
        default_value = "/run/containerd/containerd.sock"
    )]
    address: PathBuf,

    /// Namespace of the store to look into
    #[arg(short, long, global = true, env = "CONTAINERD_NAMESPACE", value_name = "NAME", default_value = "default")]
    namespace: String,

    #[command(subcommand)]
    noun: Noun,
}

#[derive(Subcommand)]
enum Noun {
    /// Print the versions of client and daemon
    Version,
    /// Manage namespaces of the store
    #[command(subcommand, visible_aliases = ["namespace", "ns"])]
    Namespaces(Verb<Quiet>),
    /// Manage images
    #[command(subcommand, visible_aliases = ["image", "i"])]
    Images(Verb<Filtered>),
    /// Manage containers
    #[command(subcommand, visible_aliases = ["container", "c"])]
    Containers(Verb<Filtered>),
    /// Manage tasks
    #[command(subcommand, visible_aliases = ["task", "t"])]
    Tasks(Verb<Quiet>),
}

#[derive(Subcommand)]
enum Verb<L: Args> {
    /// List them
    #[command(visible_alias = "ls")]
    List(L),
}

#[derive(Args)]
struct Quiet {
    /// Print names only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Args)]
struct Filtered {
    /// Print names only
    #[arg(short, long)]
    quiet: bool,
    /// List what matches any of these, as the daemon understands them
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let outcome = match run(Cli::parse()).await {
        Ok(text) => print(&text).map_err(Error::Print),
        Err(error) => Err(error),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ctr: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Unlike `print!`, fails without a panic when nobody reads on, as in `ctr … | head`.
fn print(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Runs one command and returns what it prints.
async fn run(cli: Cli) -> Result<String, Error> {
    let client = Client::connect(&cli.address, &cli.namespace).await?;
    match cli.noun {
        Noun::Version => version::print(&client).await,
        Noun::Namespaces(Verb::List(list)) => {
            let found = namespaces::list(&client).await?;
            Ok(if list.quiet { namespaces::names(&found) } else { namespaces::table(&found) })
        }
        Noun::Images(Verb::List(list)) => {
            let found = images::list(&client, list.filters).await?;
            Ok(if list.quiet { images::names(&found) } else { images::table(&found) })
        }
        Noun::Containers(Verb::List(list)) => {
            let found = containers::list(&client, list.filters).await?;
            Ok(if list.quiet { containers::names(&found) } else { containers::table(&found) })
        }
        Noun::Tasks(Verb::List(list)) => {
            let found = tasks::list(&client).await?;
            Ok(if list.quiet { tasks::names(&found) } else { tasks::table(&found) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_has_no_conflicting_names() {
        Cli::command().debug_assert();
    }

    #[test]
    fn ls_and_the_short_noun_mean_list() {
        let cli = Cli::try_parse_from(["ctr", "-n", "k8s.io", "c", "ls", "-q", "id==a"]).unwrap();
        assert_eq!(cli.namespace, "k8s.io");
        let Noun::Containers(Verb::List(list)) = cli.noun else { panic!("not the containers noun") };
        assert_eq!((list.quiet, list.filters), (true, vec!["id==a".to_owned()]));
    }
}
