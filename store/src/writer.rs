//! The writer thread: the only connection that changes the file.
//!
//! It takes the first closure that waits, opens a transaction, runs it and whatever else waits by then, each in a
//! savepoint, commits once and answers all. So many small writes at once cost one commit, and none waits for a timer.
//!
//! Tables must not use deferred constraints: those fail at COMMIT, where one closure's mistake would undo its neighbours.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rusqlite::{Connection, Transaction, TransactionBehavior, ffi};
use tokio::sync::{mpsc, oneshot};

use crate::Error;
use crate::reserve::Reserve;

/// Closures that may wait; the next caller waits for a place.
const QUEUE: usize = 256;
/// Closures in one transaction, so that the first of them does not wait for an endless stream.
const FOLD: usize = 64;

#[derive(Clone)]
pub(crate) struct Writer {
    queue: mpsc::Sender<Message>,
}

enum Message {
    Write(Box<dyn Job>),
    Close(oneshot::Sender<Result<(), Error>>),
}

/// One closure with its answer, in a form that a queue can hold.
trait Job: Send {
    /// Runs the closure; true if what it did shall stay.
    fn run(&mut self, conn: &Connection) -> bool;
    /// Sends the answer. `undone` says why nothing was written, whatever the closure said.
    fn answer(self: Box<Self>, undone: Option<Error>);
}

struct Write<F, T, E> {
    closure: Option<F>,
    result: Option<Result<T, E>>,
    reply: oneshot::Sender<Result<T, E>>,
}

impl<F, T, E> Job for Write<F, T, E>
where
    F: FnOnce(&Connection) -> Result<T, E> + Send,
    T: Send,
    E: From<Error> + Send,
{
    fn run(&mut self, conn: &Connection) -> bool {
        let Some(closure) = self.closure.take() else { return false };
        let result = catch_unwind(AssertUnwindSafe(|| closure(conn)))
            .unwrap_or_else(|panic| Err(Error::failed("write to the store", panic_text(&*panic)).into()));
        self.result.insert(result).is_ok()
    }

    fn answer(self: Box<Self>, undone: Option<Error>) {
        let result = match (undone, self.result) {
            (None, Some(result)) => result,
            // A closure that failed by itself knows better why than the transaction around it.
            (Some(_), Some(Err(own))) => Err(own),
            (Some(error), _) => Err(error.into()),
            (None, None) => Err(Error::Closed.into()),
        };
        // The caller may have stopped waiting; what was committed stays.
        let _ = self.reply.send(result);
    }
}

impl Writer {
    pub(crate) fn start(conn: Connection, reserve: Reserve) -> Result<Writer, Error> {
        let (queue, messages) = mpsc::channel(QUEUE);
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || work(conn, reserve, messages))
            .map_err(|source| Error::failed("start the store's writer thread", source))?;
        Ok(Writer { queue })
    }

    pub(crate) async fn run<T, E>(&self, f: impl FnOnce(&Connection) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (message, answer) = pack(f);
        self.queue.send(message).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    pub(crate) fn run_blocking<T, E>(
        &self,
        f: impl FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (message, answer) = pack(f);
        self.queue.blocking_send(message).map_err(|_| Error::Closed)?;
        answer.blocking_recv().map_err(|_| Error::Closed)?
    }

    pub(crate) async fn close(&self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.queue.send(Message::Close(reply)).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }
}

fn pack<T, E>(
    f: impl FnOnce(&Connection) -> Result<T, E> + Send + 'static,
) -> (Message, oneshot::Receiver<Result<T, E>>)
where
    T: Send + 'static,
    E: From<Error> + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    (Message::Write(Box::new(Write { closure: Some(f), result: None, reply })), answer)
}

/// The thread: ends when the store is closed, or when the last handle is dropped and the queue is empty.
fn work(mut conn: Connection, mut reserve: Reserve, mut messages: mpsc::Receiver<Message>) {
    let mut closing = Vec::new();
    while let Some(message) = messages.blocking_recv() {
        reserve.prepare();
        match message {
            Message::Write(job) => fold(&mut conn, job, &mut messages, &mut closing),
            Message::Close(reply) => closing.push(reply),
        }
        if !closing.is_empty() {
            // Refuses new messages; those already queued are still delivered, and then the loop ends.
            messages.close();
        }
    }
    reserve.prepare();
    let mut closed = Some(close(conn));
    for reply in closing {
        // The caller may have stopped waiting; the store is closed all the same.
        let _ = reply.send(closed.take().unwrap_or(Ok(())));
    }
}

fn close(conn: Connection) -> Result<(), Error> {
    let busy: bool = conn
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
        .map_err(|source| Error::failed("checkpoint the store", source))?;
    if busy {
        // Nothing is lost: what stays in the log is read at the next open.
        tracing::warn!("another program has the store open, so its log was not emptied");
    }
    conn.close().map_err(|(_, source)| Error::failed("close the store", source))
}

/// One transaction: `first` and what waits behind it.
fn fold(
    conn: &mut Connection,
    first: Box<dyn Job>,
    messages: &mut mpsc::Receiver<Message>,
    closing: &mut Vec<oneshot::Sender<Result<(), Error>>>,
) {
    let mut tx = match conn.transaction_with_behavior(TransactionBehavior::Immediate) {
        Ok(tx) => tx,
        Err(source) => return first.answer(Some(Error::failed("begin a transaction in the store", source))),
    };
    let mut ran = vec![first];
    let mut intact = run_in_savepoint(&mut tx, &mut ran[0]);
    while intact.is_ok() && ran.len() < FOLD {
        match messages.try_recv() {
            Ok(Message::Write(mut job)) => {
                intact = run_in_savepoint(&mut tx, &mut job);
                ran.push(job);
            }
            Ok(Message::Close(reply)) => {
                closing.push(reply);
                break;
            }
            // Nothing waits now.
            Err(_) => break,
        }
    }
    // Dropping the transaction rolls back what is left of it, if SQLite has not done so.
    answer_all(ran, intact.and_then(|()| tx.commit()));
}

/// Runs one closure; an error means that the whole transaction is lost.
fn run_in_savepoint(tx: &mut Transaction<'_>, job: &mut Box<dyn Job>) -> rusqlite::Result<()> {
    let savepoint = tx.savepoint()?;
    let kept = job.run(&savepoint);
    if savepoint.is_autocommit() {
        // SQLite rolls back everything by itself when the disk is full or fails; the closure only saw its own error.
        return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_ABORT_ROLLBACK), None));
    }
    match kept {
        true => savepoint.commit(),
        false => savepoint.finish(),
    }
}

fn answer_all(ran: Vec<Box<dyn Job>>, outcome: rusqlite::Result<()>) {
    let Err(source) = outcome else { return ran.into_iter().for_each(|job| job.answer(None)) };
    let source = Arc::new(source);
    for job in ran {
        job.answer(Some(Error::failed("commit to the store", Arc::clone(&source))));
    }
}

/// What a panicking closure said, for its caller.
fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let said = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the closure panicked: {}", said.unwrap_or("no message"))
}
