//! The store as a caller sees it.

mod full;

use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc;

use rusqlite::params;
use tempfile::TempDir;

use super::*;

const NUMBERS: Schema =
    Schema { name: "numbers", migrations: &["CREATE TABLE number (n INTEGER PRIMARY KEY, note TEXT) STRICT"] };

const NUMBERS_TWICE: Schema = Schema {
    name: "numbers",
    migrations: &[
        NUMBERS.migrations[0],
        "ALTER TABLE number ADD COLUMN twice INTEGER; UPDATE number SET twice = 2 * n",
    ],
};

fn open() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("root/store.db"), &[NUMBERS]).unwrap();
    (dir, store)
}

fn insert(conn: &Connection, n: i64) -> Result<(), Error> {
    conn.execute("INSERT INTO number (n) VALUES (?1)", [n])?;
    Ok(())
}

fn all(conn: &Connection) -> Result<Vec<i64>, Error> {
    let mut statement = conn.prepare("SELECT n FROM number ORDER BY n")?;
    Ok(statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
}

/// Holds the writer in a closure until the returned sender is dropped, so that what follows is folded.
fn hold_the_writer(store: &Store) -> mpsc::Sender<()> {
    let (release, held) = mpsc::channel::<()>();
    let (entered, wait) = mpsc::channel();
    let store = store.clone();
    std::thread::spawn(move || {
        store.write_blocking(move |_| {
            entered.send(()).unwrap();
            held.recv().unwrap_err();
            Ok::<_, Error>(())
        })
    });
    wait.recv().unwrap();
    release
}

#[test]
fn what_is_acknowledged_is_read() {
    let (_dir, store) = open();
    store.write_blocking(|conn| insert(conn, 7)).unwrap();
    assert_eq!(store.read_blocking(all).unwrap(), [7]);
}

#[test]
fn only_the_owner_may_look_at_the_files() {
    let (dir, store) = open();
    store.write_blocking(|conn| insert(conn, 1)).unwrap();
    let mode = |name: &str| dir.path().join(name).metadata().unwrap().permissions().mode() & 0o7777;
    let modes = ["root", "root/store.db", "root/store.db-wal", "root/store.db-shm"].map(mode);
    assert_eq!(modes, [0o700, 0o600, 0o600, 0o600]);
}

#[test]
fn a_closure_that_fails_or_panics_undoes_only_itself() {
    let (_dir, store) = open();
    let outcomes = std::thread::scope(|scope| {
        let release = hold_the_writer(&store);
        let calls: Vec<_> = (0..9)
            .map(|n: i64| {
                let store = &store;
                scope.spawn(move || {
                    store.write_blocking(move |conn| {
                        insert(conn, n)?;
                        match n % 3 {
                            0 => Ok(n),
                            1 => insert(conn, n).map(|()| n),
                            _ => panic!("closure {n}"),
                        }
                    })
                })
            })
            .collect();
        drop(release);
        calls.into_iter().map(|call| call.join().unwrap().map_err(|e| e.to_string())).collect::<Vec<_>>()
    });
    for (n, outcome) in outcomes.into_iter().enumerate() {
        let want = match n % 3 {
            0 => Ok(n as i64),
            1 => Err("run a statement in the store".to_owned()),
            _ => Err("write to the store".to_owned()),
        };
        assert_eq!(outcome, want, "closure {n}");
    }
    assert_eq!(store.read_blocking(all).unwrap(), [0, 3, 6]);
}

#[tokio::test]
async fn closures_that_wait_together_share_one_transaction() {
    let (_dir, store) = open();
    let release = hold_the_writer(&store);
    let mut waiting: Vec<_> = (0..20)
        .map(|n| {
            let mut call = Box::pin(store.write(move |conn| insert(conn, n)));
            assert!(poll_once(call.as_mut()).is_pending());
            call
        })
        .collect();
    let reader = store.clone();
    let mut last = Box::pin(store.write(move |conn| Ok::<_, Error>((all(conn)?, reader.read_blocking(all)?))));
    assert!(poll_once(last.as_mut()).is_pending());
    drop(release);

    // Before the commit the last closure sees the rows of its neighbours, and nobody else does.
    let rows: Vec<i64> = (0..20).collect();
    assert_eq!(last.await.unwrap(), (rows.clone(), vec![]));
    for call in waiting.drain(..) {
        call.await.unwrap();
    }
    assert_eq!(store.read(all).await.unwrap(), rows);
}

#[tokio::test]
async fn a_caller_that_stops_waiting_does_not_undo_its_write() {
    let (_dir, store) = open();
    let release = hold_the_writer(&store);
    {
        let mut call = Box::pin(store.write(|conn| insert(conn, 5)));
        assert!(poll_once(call.as_mut()).is_pending());
    }
    drop(release);
    store.write(|conn| insert(conn, 6)).await.unwrap();
    assert_eq!(store.read(all).await.unwrap(), [5, 6]);
}

fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> std::task::Poll<F::Output> {
    future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
}

#[tokio::test]
async fn a_read_sees_one_state_from_start_to_end() {
    let (_dir, store) = open();
    store.write(|conn| insert(conn, 1)).await.unwrap();
    let writer = store.clone();
    let seen = store
        .read(move |conn| {
            let before = all(conn)?;
            writer.write_blocking(|conn| insert(conn, 2))?;
            Ok::<_, Error>((before, all(conn)?))
        })
        .await
        .unwrap();
    assert_eq!(seen, (vec![1], vec![1]));
    assert_eq!(store.read(all).await.unwrap(), [1, 2]);
}

#[tokio::test]
async fn a_read_cannot_write() {
    let (_dir, store) = open();
    let error = store.read(|conn| insert(conn, 1)).await.unwrap_err();
    assert!(matches!(error, Error::Failed { .. }), "{error:?}");
    assert_eq!(store.read(all).await.unwrap(), Vec::<i64>::new());
}

#[tokio::test]
async fn a_read_that_panics_gives_its_connection_back() {
    let (_dir, store) = open();
    for _ in 0..READERS + 1 {
        let store = store.clone();
        let call = tokio::spawn(async move { store.read(|_| -> Result<(), Error> { panic!("on purpose") }).await });
        assert!(call.await.unwrap_err().is_panic());
    }
    assert_eq!(store.read(all).await.unwrap(), Vec::<i64>::new());
}

#[tokio::test]
async fn closing_finishes_what_is_queued_and_refuses_the_rest() {
    let (dir, store) = open();
    let release = hold_the_writer(&store);
    let mut queued = Box::pin(store.write(|conn| insert(conn, 1)));
    assert!(poll_once(queued.as_mut()).is_pending());
    drop(release);
    store.close().await.unwrap();

    queued.await.unwrap();
    assert!(matches!(store.write(|conn| insert(conn, 2)).await, Err(Error::Closed)));
    assert!(matches!(store.read(all).await, Err(Error::Closed)));
    assert!(matches!(store.close().await, Err(Error::Closed)));
    let path = dir.path().join("root/store.db");
    assert!(!path.with_extension("db-wal").exists(), "the log was not moved into the file");
    let again = Store::open(&path, &[NUMBERS]).unwrap();
    assert_eq!(again.read(all).await.unwrap(), [1]);
}

#[test]
fn an_older_file_is_brought_up_to_date_and_keeps_its_rows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = Store::open(&path, &[NUMBERS]).unwrap();
    store.write_blocking(|conn| insert(conn, 1)).unwrap();
    drop(store);

    let store = Store::open(&path, &[NUMBERS_TWICE]).unwrap();
    let twice = |conn: &Connection| Ok::<i64, Error>(conn.query_row("SELECT twice FROM number", [], |row| row.get(0))?);
    assert_eq!(store.read_blocking(twice).unwrap(), 2);
    drop(store);

    match Store::open(&path, &[NUMBERS]).err().unwrap() {
        Error::TooNew { path: named, schema, found, known } => {
            assert_eq!((named, schema.as_str(), found, known), (path, "numbers", 2, 1));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_migration_that_fails_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    drop(Store::open(&path, &[NUMBERS]).unwrap());
    let bad = Schema { name: "more", migrations: &["CREATE TABLE more (n) ; CREATE TABLE number (again)"] };
    let error = Store::open(&path, &[NUMBERS, bad]).err().unwrap();
    assert_eq!(error.to_string(), format!("take \"more\" to version 1 in store {}", path.display()));

    let store = Store::open(&path, &[NUMBERS]).unwrap();
    let tables = |conn: &Connection| {
        let sql = "SELECT count(*) FROM sqlite_schema WHERE name = 'more'";
        Ok::<i64, Error>(conn.query_row(sql, [], |row| row.get(0))?)
    };
    assert_eq!(store.read_blocking(tables).unwrap(), 0);
}

#[test]
fn a_file_that_is_no_database_is_called_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    std::fs::write(&path, "not a database ".repeat(1000)).unwrap();
    match Store::open(&path, &[NUMBERS]).err().unwrap() {
        Error::Corrupt { path: named, .. } => assert_eq!(named, path),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_row_must_not_point_at_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let schema = Schema {
        name: "tree",
        migrations: &["CREATE TABLE tree (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES tree (id)) STRICT"],
    };
    let store = Store::open(&dir.path().join("store.db"), &[schema]).unwrap();
    let error = store
        .write_blocking(|conn| Ok::<_, Error>(conn.execute("INSERT INTO tree VALUES (?1, ?2)", params![1, 9])?))
        .unwrap_err();
    assert!(matches!(error, Error::Failed { .. }), "{error:?}");
}
