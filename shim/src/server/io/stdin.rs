//! The way into a process: a pipe or its terminal, fed by a FIFO or by Attach streams.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::request::Input;
use super::{PipeOwner, console_or_end, ended_or_gone, pipe};
use crate::sys::WatchedFd;

type Console = watch::Receiver<Option<Arc<WatchedFd>>>;

pub(crate) struct Stdin {
    /// Whether the first Attach stream with stdin closes it when it ends.
    pub(crate) once: bool,
    console: Option<Console>,
    held: Mutex<Held>,
}

/// What keeps the process from seeing the end of its input.
#[derive(Default)]
struct Held {
    /// The write end of the pipe, for Attach streams.
    pipe: Option<Arc<WatchedFd>>,
    /// The write end of the client's FIFO, so that a client may leave and come back until CloseIO.
    fifo: Option<OwnedFd>,
    feeder: Option<Feeder>,
}

impl Stdin {
    /// A pipe for a process without a terminal, and its read end; no end is /dev/null.
    pub(super) fn pipe(input: &Input, owner: PipeOwner) -> io::Result<(Self, Option<OwnedFd>)> {
        let mut stdin = Self { once: is_once(input), console: None, held: Mutex::default() };
        let held = stdin.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        let child = match input {
            Input::Null => None,
            Input::Fifo(path) => match open_fifo(path)? {
                None => None,
                Some((fifo, keep)) => {
                    let (read, write) = pipe(owner)?;
                    held.fifo = Some(keep);
                    held.feeder = Some(Feeder { fifo, target: Target::Pipe(WatchedFd::new(write)?) });
                    Some(read)
                }
            },
            Input::Attach { .. } => {
                let (read, write) = pipe(owner)?;
                held.pipe = Some(Arc::new(WatchedFd::new(write)?));
                Some(read)
            }
        };
        Ok((stdin, child))
    }

    pub(super) fn terminal(input: &Input, console: Console) -> io::Result<Self> {
        let mut held = Held::default();
        if let Input::Fifo(path) = input
            && let Some((fifo, keep)) = open_fifo(path)?
        {
            held.fifo = Some(keep);
            held.feeder = Some(Feeder { fifo, target: Target::Console(console.clone()) });
        }
        let console = matches!(input, Input::Attach { .. }).then_some(console);
        Ok(Self { once: is_once(input), console, held: Mutex::new(held) })
    }

    pub(super) fn feeder(&self) -> Option<Feeder> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).feeder.take()
    }

    /// Where an Attach stream writes; nothing if stdin is closed or not attachable.
    pub(crate) async fn target(&self, ended: watch::Receiver<bool>) -> Option<Arc<WatchedFd>> {
        if let Some(console) = &self.console {
            return console_or_end(console.clone(), ended).await;
        }
        self.held.lock().unwrap_or_else(PoisonError::into_inner).pipe.clone()
    }

    /// CloseIO. What a client has written to its FIFO is still delivered. A terminal stays open.
    pub(crate) fn close(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.pipe = None;
        held.fifo = None;
    }
}

fn is_once(input: &Input) -> bool {
    matches!(input, Input::Attach { once: true })
}

/// Copies a client's FIFO into the process until all its writers are gone.
pub(super) struct Feeder {
    fifo: WatchedFd,
    target: Target,
}

enum Target {
    Pipe(WatchedFd),
    Console(Console),
}

impl Feeder {
    pub(super) async fn run(self, mut ended: watch::Receiver<bool>) {
        let seen = ended.clone();
        tokio::select! {
            () = ended_or_gone(&mut ended) => {}
            () = self.copy(seen) => {}
        }
    }

    async fn copy(self, ended: watch::Receiver<bool>) {
        let console;
        let target = match &self.target {
            Target::Pipe(pipe) => pipe,
            Target::Console(receiver) => match console_or_end(receiver.clone(), ended).await {
                Some(master) => {
                    console = master;
                    &*console
                }
                None => return,
            },
        };
        let mut buffer = vec![0; 4096];
        while let Ok(count) = self.fifo.read(&mut buffer).await {
            if count == 0 || target.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    }
}

/// The read end, and a write end of our own that keeps it from ending.
fn open_fifo(path: &Path) -> io::Result<Option<(WatchedFd, OwnedFd)>> {
    let is_fifo = match std::fs::metadata(path) {
        Ok(metadata) => metadata.file_type().is_fifo(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !is_fifo {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "stdin must be a FIFO"));
    }
    let open =
        |read: bool| std::fs::OpenOptions::new().read(read).write(!read).custom_flags(libc::O_NONBLOCK).open(path);
    let fifo = WatchedFd::new(open(true)?.into())?;
    Ok(Some((fifo, open(false)?.into())))
}
