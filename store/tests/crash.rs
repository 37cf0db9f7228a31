//! The store under `kill -9`, and with a write-ahead log that was torn.
//!
//! The writing process is this test binary, run again for the ignored test below.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use windlass_store::rusqlite::Connection;
use windlass_store::{Error, Schema, Store};

const PAIRS: Schema = Schema {
    name: "pairs",
    migrations: &["CREATE TABLE one (n INTEGER PRIMARY KEY, pad TEXT) STRICT;
         CREATE TABLE two (n INTEGER PRIMARY KEY REFERENCES one (n)) STRICT;"],
};

const DIR: &str = "WINDLASS_CRASH_TEST_DIR";
const ROUNDS: usize = 24;
const WRITERS: i64 = 4;
const STRIDE: i64 = 1_000_000_000;

fn insert_pair(conn: &Connection, n: i64) -> Result<(), Error> {
    conn.execute("INSERT INTO one VALUES (?1, ?2)", (n, "x".repeat(n.unsigned_abs() as usize % 700)))?;
    conn.execute("INSERT INTO two VALUES (?1)", [n])?;
    Ok(())
}

fn column(conn: &Connection, sql: &str) -> Result<Vec<i64>, Error> {
    Ok(conn.prepare(sql)?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
}

fn pairs(store: &Store) -> (Vec<i64>, Vec<i64>) {
    let read = |conn: &Connection| {
        Ok::<_, Error>((column(conn, "SELECT n FROM one ORDER BY n")?, column(conn, "SELECT n FROM two ORDER BY n")?))
    };
    store.read_blocking(read).unwrap()
}

fn integrity(store: &Store) -> String {
    store.read_blocking(|conn| Ok::<_, Error>(conn.query_row("PRAGMA integrity_check", [], |row| row.get(0))?)).unwrap()
}

/// Writes until it is killed, and prints each number after its write was acknowledged.
#[test]
#[ignore = "the child process of every_acknowledged_row_survives_kill_9"]
fn child_that_writes() {
    let dir = std::env::var_os(DIR).expect("run by its parent");
    let store = Store::open(&Path::new(&dir).join("store.db"), &[PAIRS]).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let store = &store;
            scope.spawn(move || {
                let (low, high) = (writer * STRIDE, (writer + 1) * STRIDE);
                let sql = "SELECT coalesce(max(n), ?1) + 1 FROM one WHERE n > ?1 AND n < ?2";
                let next = |conn: &Connection| Ok::<i64, Error>(conn.query_row(sql, [low, high], |row| row.get(0))?);
                for n in store.read_blocking(next).unwrap().. {
                    store.write_blocking(move |conn| insert_pair(conn, n)).unwrap();
                    // One write call, so that no line is torn by the kill.
                    print_at_once(&format!("ack {n}\n"));
                }
            });
        }
    });
}

fn print_at_once(line: &str) {
    use std::io::Write;
    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
}

#[test]
fn every_acknowledged_row_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_writes", "--ignored", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acks = lines.by_ref().filter_map(|line| line.unwrap().strip_prefix("ack ")?.parse::<i64>().ok());
        // Another moment in each round: from the first commits to past a checkpoint of the log.
        let before = acknowledged.len();
        acknowledged.extend(acks.by_ref().take(1 + round * 37));
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged.extend(acks);
        assert!(acknowledged.len() > before, "the child of round {round} wrote nothing");

        let store = Store::open(&dir.path().join("store.db"), &[PAIRS]).unwrap();
        assert_eq!(integrity(&store), "ok", "round {round}");
        let (one, two) = pairs(&store);
        assert_eq!(one, two, "half of a transaction, round {round}");
        let lost: Vec<_> = acknowledged.iter().filter(|n| one.binary_search(n).is_err()).collect();
        assert_eq!(lost, Vec::<&i64>::new(), "round {round}");
    }
}

/// A store whose rows are all in the log, as a power cut would find it: `pairs` transactions after the tables.
fn torn_source(dir: &Path, pairs: i64) -> (Vec<u8>, Vec<u8>) {
    let path = dir.join("source.db");
    let store = Store::open(&path, &[PAIRS]).unwrap();
    for n in 1..=pairs {
        store.write_blocking(move |conn| insert_pair(conn, n)).unwrap();
    }
    let copies = (fs::read(&path).unwrap(), fs::read(path.with_extension("db-wal")).unwrap());
    drop(store);
    copies
}

/// Opens a damaged copy; what it holds must be the first so many transactions, whole, and it must go on working.
fn check_opens_with_a_prefix(dir: &Path, main: &[u8], wal: &[u8], written: i64, what: &str) -> usize {
    let path = dir.join("torn.db");
    for extension in ["db-wal", "db-shm"] {
        // Left by the case before, if it was refused.
        let _ = fs::remove_file(path.with_extension(extension));
    }
    fs::write(&path, main).unwrap();
    fs::write(path.with_extension("db-wal"), wal).unwrap();
    let store = match Store::open(&path, &[PAIRS]) {
        Ok(store) => store,
        Err(Error::Corrupt { path: named, .. }) => {
            assert_eq!(named, path, "{what}");
            return 0;
        }
        Err(other) => panic!("{what}: {other:?}"),
    };
    assert_eq!(integrity(&store), "ok", "{what}");
    let (one, two) = pairs(&store);
    assert_eq!(one, two, "{what}");
    assert_eq!(one, (1..=one.len() as i64).collect::<Vec<_>>(), "{what}");
    assert!(one.len() as i64 <= written, "{what}");
    store.write_blocking(move |conn| insert_pair(conn, written + 1)).unwrap();
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(store.close()).unwrap();
    one.len()
}

#[test]
fn a_log_cut_short_anywhere_leaves_the_transactions_before_the_cut() {
    let dir = tempfile::tempdir().unwrap();
    let written = 12;
    let (main, wal) = torn_source(dir.path(), written);
    let mut kept = Vec::new();
    for part in 0..=60 {
        let len = wal.len() * part / 60;
        kept.push(check_opens_with_a_prefix(dir.path(), &main, &wal[..len], written, &format!("cut at {len}")));
    }
    assert!(kept.is_sorted(), "{kept:?}");
    assert_eq!((kept[0], kept[60]), (0, written as usize), "{kept:?}");
    assert!(kept.iter().any(|count| (1..written as usize).contains(count)), "no cut fell between: {kept:?}");
}

#[test]
fn a_log_with_a_flipped_byte_leaves_the_transactions_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let written = 12;
    let (main, wal) = torn_source(dir.path(), written);
    // The header byte by byte, then a prime step, so that pages, frame headers and checksums are all hit.
    let offsets = (0..56).chain((57..wal.len()).step_by(1009));
    let mut kept = Vec::new();
    for offset in offsets {
        let mut torn = wal.clone();
        torn[offset] ^= 0x40;
        kept.push(check_opens_with_a_prefix(dir.path(), &main, &torn, written, &format!("flip at {offset}")));
    }
    assert!(kept.iter().any(|count| (1..written as usize).contains(count)), "no flip fell between: {kept:?}");
}
