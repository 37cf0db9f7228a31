//! The daemon's side of FIFOs against a shim's side played by the test.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Duration,
};

use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    client::Output,
    proto::{service, task},
    ttrpc::{BoxFuture, Call, Client, Handler, Stream as TtrpcStream, serve_connection},
};

/// Answers Wait at once with 7, and counts CloseIO.
#[derive(Default)]
struct Shim(Mutex<Vec<String>>);

impl Handler for Shim {
    fn unary(self: Arc<Self>, call: Call) -> BoxFuture<'static, Result<Vec<u8>, Status>> {
        Box::pin(async move {
            use prost::Message;
            match (call.service.as_str(), call.method.as_str()) {
                (service::TASK_V3, "Wait") => {
                    Ok(task::WaitResponse { exit_status: 7, exited_at: None }.encode_to_vec())
                }
                (service::TASK_V3, "CloseIO") => {
                    let request: task::CloseIoRequest = call.decode()?;
                    self.0.lock().unwrap().push(format!("{}/{}", request.id, request.exec_id));
                    Ok(Vec::new())
                }
                _ => Err(call.unimplemented()),
            }
        })
    }

    fn stream(self: Arc<Self>, call: Call, _: TtrpcStream) -> BoxFuture<'static, Result<(), Status>> {
        Box::pin(async move { Err(call.unimplemented()) })
    }

    fn is_stream(&self, _: &str, _: &str) -> bool {
        false
    }
}

fn fifos() -> (Fifos, Arc<Shim>) {
    let (near, far) = UnixStream::pair().unwrap();
    let shim = Arc::new(Shim::default());
    tokio::spawn(serve_connection(far, shim.clone(), CancellationToken::new()));
    (Fifos::new(TaskClient::new(Client::from_socket(near), "k8s.io", 3), |_| ()), shim)
}

fn stdio(bundle: &Path) -> TaskStdio {
    TaskStdio {
        id: "c".into(),
        bundle: bundle.to_owned(),
        stdin: true,
        log: Some(bundle.join("0.log")),
        max_line: 4,
        cgroup: "no-such-cgroup".into(),
        ..TaskStdio::default()
    }
}

/// As Go's shims open an output: for writing, and for reading as well, so that their writes outlive a reader.
fn shim_opens(path: &Path) -> (File, File) {
    let write = OpenOptions::new().write(true).open(path).unwrap();
    (write, OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap())
}

/// The records without their times.
fn records(bundle: &Path) -> Vec<String> {
    let text = fs::read_to_string(bundle.join("0.log")).unwrap_or_default();
    text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_whole_when_the_exit_is_told() {
    let bundle = tempfile::tempdir().unwrap();
    let (fifos, _shim) = fifos();
    let urls = fifos.prepare(stdio(bundle.path())).await.unwrap();
    let (mut out, mut err) = (shim_opens(Path::new(&urls.stdout)), shim_opens(Path::new(&urls.stderr)));
    out.0.write_all(b"abcdef\nxy").unwrap();
    drop(out);
    let waiting = tokio::spawn({
        let fifos = fifos.clone();
        async move { fifos.wait("c", "").await.unwrap().exit_status }
    });
    until("stdout is logged", || records(bundle.path()).len() == 3).await;
    err.0.write_all(b"late\n").unwrap();
    drop(err);
    assert_eq!(waiting.await.unwrap(), 7);
    let mut logged = records(bundle.path());
    logged.sort();
    assert_eq!(logged, ["stderr F late", "stdout F ef", "stdout P abcd", "stdout P xy"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_daemon_reads_on_where_the_first_one_died() {
    let bundle = tempfile::tempdir().unwrap();
    let (first, _shim) = fifos();
    let urls = first.prepare(stdio(bundle.path())).await.unwrap();
    let (mut out, err) = (shim_opens(Path::new(&urls.stdout)), shim_opens(Path::new(&urls.stderr)));
    out.0.write_all(b"one\n").unwrap();
    until("the first daemon logs", || records(bundle.path()) == ["stdout F one"]).await;
    first.containers().get("c").unwrap().stop.cancel();
    first.forget("c").await;
    out.0.write_all(b"two\n").unwrap();
    let (second, _shim) = fifos();
    second.resume(stdio(bundle.path()), true).await.unwrap();
    out.0.write_all(b"tri\n").unwrap();
    drop((out, err));
    second.wait("c", "").await.unwrap();
    assert_eq!(records(bundle.path()), ["stdout F one", "stdout F two", "stdout F tri"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_had_ended_before_is_not_waited_for() {
    let bundle = tempfile::tempdir().unwrap();
    let (fifos, _shim) = fifos();
    fifos.resume(stdio(bundle.path()), true).await.unwrap();
    let drained = fifos.containers().get("c").unwrap().drained.clone();
    until("the copies end by themselves", || *drained.borrow()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_renamed_goes_on_in_a_new_file() {
    let bundle = tempfile::tempdir().unwrap();
    let (fifos, _shim) = fifos();
    let urls = fifos.prepare(TaskStdio { terminal: true, ..stdio(bundle.path()) }).await.unwrap();
    assert_eq!(urls.stderr, "");
    let mut out = shim_opens(Path::new(&urls.stdout));
    out.0.write_all(b"one\n").unwrap();
    until("it is logged", || records(bundle.path()).len() == 1).await;
    fs::rename(bundle.path().join("0.log"), bundle.path().join("old")).unwrap();
    fifos.reopen_log("c").await.unwrap();
    out.0.write_all(b"two\n").unwrap();
    until("it is logged anew", || records(bundle.path()) == ["stdout F two"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_attaches_gets_copies_and_stdin_stays_open_unless_it_is_for_once() {
    for once in [false, true] {
        let bundle = tempfile::tempdir().unwrap();
        let (fifos, shim) = fifos();
        let urls = fifos.prepare(TaskStdio { stdin_once: once, ..stdio(bundle.path()) }).await.unwrap();
        let mut out = shim_opens(Path::new(&urls.stdout));
        let to = AttachTo { id: "c".into(), stdin: true, stdout: true, ..AttachTo::default() };
        let mut attached = fifos.attach(&to).await.unwrap();
        attached.stdin.write("hello".into()).await.unwrap();
        let mut input = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&urls.stdin).unwrap();
        let mut got = [0; 16];
        assert_eq!(input.read(&mut got).unwrap(), 5);
        out.0.write_all(b"out\n").unwrap();
        assert_eq!(attached.output.next().await.unwrap(), Some(Output::Stdout("out\n".into())));
        drop(attached);
        // A call that comes after it on the same connection is answered after it.
        until("the end of stdin is told", || !once || !shim.0.lock().unwrap().is_empty()).await;
        fifos.wait("c", "x").await.unwrap();
        assert_eq!(*shim.0.lock().unwrap(), if once { vec!["c/"] } else { vec![] });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_has_fifos_of_its_own_which_go_with_it() {
    let bundle = tempfile::tempdir().unwrap();
    let (fifos, shim) = fifos();
    fifos.prepare(stdio(bundle.path())).await.unwrap();
    let id = || ("c".to_owned(), "e".to_owned());
    let exec = ExecStdio { id: id().0, exec_id: id().1, stdin: true, stdout: true, stderr: true, ..Default::default() };
    let urls = fifos.prepare_exec(exec).await.unwrap();
    let to = AttachTo { id: "c".into(), exec_id: "e".into(), ..AttachTo::default() };
    let mut attached = fifos.attach(&to).await.unwrap();
    assert!(fifos.attach(&to).await.is_err());
    let (mut out, mut err) = (shim_opens(Path::new(&urls.stdout)), shim_opens(Path::new(&urls.stderr)));
    err.0.write_all(b"no").unwrap();
    assert_eq!(attached.output.next().await.unwrap(), Some(Output::Stderr("no".into())));
    drop(err);
    out.0.write_all(b"yes").unwrap();
    drop(out);
    assert_eq!(attached.output.next().await.unwrap(), Some(Output::Stdout("yes".into())));
    assert_eq!(attached.output.next().await.unwrap(), None);
    attached.stdin.close().await.unwrap();
    until("the end of stdin is told", || *shim.0.lock().unwrap() == ["c/e"]).await;
    fifos.forget_exec("c", "e");
    for path in [urls.stdin, urls.stdout, urls.stderr] {
        assert!(!Path::new(&path).exists(), "{path}");
    }
}
