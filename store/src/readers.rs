//! The reader connections: lent one at a time, each read in a transaction of its own so that it sees one state.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;
use tokio::sync::Semaphore;

use crate::Error;

pub(crate) struct Readers {
    /// Bounds how many blocking threads async readers may hold.
    waiting: Semaphore,
    /// Guards the list of idle connections for the few lines that lend and return one.
    pool: Mutex<Pool>,
    returned: Condvar,
}

struct Pool {
    idle: Vec<Connection>,
    lent: usize,
    closed: bool,
}

impl Readers {
    pub(crate) fn new(idle: Vec<Connection>) -> Readers {
        let waiting = Semaphore::new(idle.len());
        Readers { waiting, pool: Mutex::new(Pool { idle, lent: 0, closed: false }), returned: Condvar::new() }
    }

    pub(crate) async fn run<T, E>(
        self: Arc<Self>,
        f: impl FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let _permit = self.waiting.acquire().await.map_err(|_| Error::Closed)?;
        let readers = Arc::clone(&self);
        match tokio::task::spawn_blocking(move || readers.run_blocking(f)).await {
            Ok(result) => result,
            Err(join) if join.is_panic() => resume_unwind(join.into_panic()),
            Err(join) => Err(Error::failed("read from the store", join).into()),
        }
    }

    pub(crate) fn run_blocking<T, E: From<Error>>(&self, f: impl FnOnce(&Connection) -> Result<T, E>) -> Result<T, E> {
        let mut conn = self.lend()?;
        // A connection that is not given back would make `close` wait for ever, so a panic is held up on its way.
        let outcome = catch_unwind(AssertUnwindSafe(|| read(&mut conn, f)));
        self.give_back(conn);
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Ends reading: waits for the connections that are lent and closes all.
    pub(crate) fn close(&self) {
        let mut pool = self.lock();
        pool.closed = true;
        self.waiting.close();
        self.returned.notify_all();
        while pool.lent > 0 {
            pool = self.returned.wait(pool).unwrap_or_else(PoisonError::into_inner);
        }
        pool.idle.clear();
    }

    fn lend(&self) -> Result<Connection, Error> {
        let mut pool = self.lock();
        loop {
            if pool.closed {
                return Err(Error::Closed);
            }
            if let Some(conn) = pool.idle.pop() {
                pool.lent += 1;
                return Ok(conn);
            }
            pool = self.returned.wait(pool).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give_back(&self, conn: Connection) {
        let mut pool = self.lock();
        pool.idle.push(conn);
        pool.lent -= 1;
        self.returned.notify_all();
    }

    /// Nothing panics while it holds this lock, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read<T, E: From<Error>>(conn: &mut Connection, f: impl FnOnce(&Connection) -> Result<T, E>) -> Result<T, E> {
    let view = conn.transaction().map_err(Error::from)?;
    let result = f(&view);
    view.finish().map_err(Error::from)?;
    result
}
