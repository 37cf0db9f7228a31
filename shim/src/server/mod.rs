//! The shim binary: what each invocation does, and the long-lived server behind the task service.
//!
//! ```text
//! main ─► arguments ─► spawn   (start: prints the address of a server, new or running)
//!                  ├─► delete  (takes a container down without a server)
//!                  └─► serve ─► service ─► create, launch, kill, remove, control, tasks, attach
//!                                 └─ container ─ process ─ io, reaper
//! ```
//!
//! One thread; blocking work (mounts, files that can hang) goes to short-lived blocking threads as whole functions.

mod arguments;
mod attach;
mod bundle;
mod checkpoint;
mod container;
mod control;
mod create;
mod delete;
mod error;
mod events;
mod exit;
mod io;
mod kill;
mod launch;
mod oom;
mod process;
pub(crate) mod reaper;
mod record;
mod remove;
mod serve;
mod service;
mod spawn;
mod tasks;

use std::io::Write;
use std::process::ExitCode;

use arguments::{Action, Arguments};

/// Runs the binary; an error is one line on stderr, which the daemon shows.
pub fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    let outcome = match Arguments::parse(arguments) {
        Ok(arguments) => match arguments.action {
            Action::Version => print(&format!("containerd-shim-runc-v2 (windlass) {}\n", env!("CARGO_PKG_VERSION"))),
            Action::Start => spawn::start(&arguments),
            Action::Delete => delete::delete(&arguments),
            Action::Serve => serve::serve(&arguments),
        },
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// An error of an invocation; nobody decides on it, it is shown.
type Failure = Box<dyn std::error::Error>;

fn print(text: &str) -> Result<(), Failure> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        // Errors that show their source themselves would say it twice.
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

/// One line to the daemon's log.
pub(crate) fn say(line: &str) {
    // The log is a FIFO that may have no reader; a line that cannot be told is given up, the work goes on.
    let _ = std::io::stderr().write_all(format!("containerd-shim-runc-v2: {line}\n").as_bytes());
}

/// Runs a whole blocking function on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Blocking work is cancelled only by the end of the runtime, and with it nobody waits here.
            Err(_) => std::future::pending().await,
        },
    }
}
