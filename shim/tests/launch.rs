//! How a shim's binary is run, with shell scripts in place of shims.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use prost::Message;
use windlass_shim::{
    bootstrap::{Bootstrap, Protocol},
    launch::{Launch, LaunchError},
    proto::{bootstrap::BootstrapParams, runc, task, to_any},
};

/// A bundle next to a script that plays the shim.
struct Fake {
    directory: tempfile::TempDir,
}

impl Fake {
    fn new(script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("bundle")).unwrap();
        write_script(&directory.path().join("shim"), script);
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn launch(&self) -> Launch {
        Launch {
            binary: self.path("shim"),
            namespace: "k8s.io".into(),
            id: "c1".into(),
            bundle: self.path("bundle"),
            grpc_address: "/run/c.sock".into(),
            ttrpc_address: "/run/c.sock.ttrpc".into(),
            debug: true,
            options: Some(to_any(&runc::Options { binary_name: "crun".into(), ..Default::default() })),
            deadline: Duration::from_secs(30),
        }
    }
}

/// Another process writes the script: a test that forks meanwhile would inherit a file open for writing, and it could not be run.
fn write_script(path: &Path, script: &str) {
    let mut writer = std::process::Command::new("sh")
        .args(["-c", r#"cat > "$0" && chmod 755 "$0""#])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    writer.stdin.take().unwrap().write_all(format!("#!/bin/sh\n{script}").as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success());
}

fn running(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    // A zombie waits for its parent only.
    !stat.is_empty() && !stat.contains(") Z ")
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "{what} within 20 s");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

const RECORD: &str = r#"
pwd > ../cwd
echo "$@" > ../args
echo "$NAMESPACE $TTRPC_ADDRESS $GRPC_ADDRESS $MAX_SHIM_VERSION $GOMAXPROCS" > ../env
cat > ../stdin
"#;

#[tokio::test]
async fn start_keeps_to_the_contract() {
    let fake = Fake::new(&format!("{RECORD}\necho unix:///run/containerd/s/ab"));
    let bootstrap = fake.launch().start().await.unwrap();
    let expected = Bootstrap { version: 2, address: "unix:///run/containerd/s/ab".into(), protocol: Protocol::Ttrpc };
    assert_eq!(bootstrap, expected);
    assert_eq!(Bootstrap::read(&fake.path("bundle")).unwrap(), Some(expected));

    let publish = std::env::current_exe().unwrap().display().to_string();
    assert_eq!(fake.text("cwd"), format!("{}\n", fake.path("bundle").display()));
    assert_eq!(
        fake.text("args"),
        format!("-namespace k8s.io -address /run/c.sock -publish-binary {publish} -id c1 -debug start\n")
    );
    assert_eq!(fake.text("env"), "k8s.io /run/c.sock.ttrpc /run/c.sock 2 2\n");
    let params = BootstrapParams::decode(fs::read(fake.path("stdin")).unwrap().as_slice()).unwrap();
    assert_eq!((params.instance_id.as_str(), params.namespace.as_str()), ("c1", "k8s.io"));
    assert_eq!(params.extensions[0].value, fake.launch().options);
}

#[tokio::test]
async fn delete_gives_what_the_shim_printed() {
    // pid 5, exit status 137: two varint fields.
    let fake = Fake::new(&format!("{RECORD}\nprintf '\\010\\005\\020\\211\\001'"));
    let deleted = fake.launch().delete().await.unwrap();
    assert_eq!(deleted, task::DeleteResponse { pid: 5, exit_status: 137, exited_at: None });
    let bundle = fake.path("bundle");
    assert!(fake.text("args").ends_with(&format!("-id c1 -debug -bundle {} delete\n", bundle.display())));
}

#[tokio::test]
async fn a_shim_that_fails_is_quoted() {
    let fake = Fake::new("echo 'no cgroup for you' >&2; exit 3");
    let error = fake.launch().start().await.unwrap_err();
    let expected = format!("shim {} start failed with exit status: 3: no cgroup for you", fake.path("shim").display());
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn a_shim_that_knows_no_parameters_gets_the_options_alone() {
    // The input begins with the length of its first field: of the id, or of the type URL.
    let script = r#"
        head -c 4 | tail -c 2 | grep -q co || { echo "type with url c1: not found" >&2; exit 1; }
        echo unix:///run/containerd/s/ab"#;
    let fake = Fake::new(script);
    assert_eq!(fake.launch().start().await.unwrap().version, 2);
}

#[tokio::test]
async fn a_shim_that_fails_on_both_inputs_is_quoted_on_both() {
    let fake = Fake::new("wc -c >&2; exit 1");
    let Err(LaunchError::Exited { stderr, .. }) = fake.launch().start().await else { panic!("it exits") };
    let legacy = fake.launch().options.unwrap().encoded_len();
    let (first, second) = stderr.split_once("; then, with the options alone as its input: ").unwrap();
    assert!(first.parse::<usize>().unwrap() > legacy, "{stderr}");
    assert_eq!(second, legacy.to_string());
}

#[tokio::test]
async fn a_shim_that_prints_no_address_is_an_error_of_its_own() {
    let fake = Fake::new("echo confused >&2");
    let error = fake.launch().start().await.unwrap_err();
    assert!(matches!(&error, LaunchError::Bootstrap { stderr, .. } if stderr == "confused"), "{error:?}");
    assert_eq!(Bootstrap::read(&fake.path("bundle")).unwrap(), None);
}

#[tokio::test]
async fn a_missing_shim_is_named() {
    let fake = Fake::new("");
    let launch = Launch { binary: "/nonexistent/containerd-shim-nope-v1".into(), ..fake.launch() };
    let error = launch.start().await.unwrap_err();
    assert!(matches!(&error, LaunchError::Missing { binary } if *binary == launch.binary), "{error:?}");
    assert_eq!(
        error.to_string(),
        "shim /nonexistent/containerd-shim-nope-v1 is not installed: \
         install it, or name another one as the runtime's type or path in the configuration"
    );
}

#[tokio::test]
async fn a_missing_bundle_is_not_taken_for_a_missing_shim() {
    let fake = Fake::new("");
    let launch = Launch { bundle: fake.path("nowhere"), ..fake.launch() };
    let error = launch.delete().await.unwrap_err();
    assert!(matches!(error, LaunchError::Failed { .. }), "{error:?}");
}

#[tokio::test]
async fn a_shim_that_hangs_is_given_up_at_the_deadline() {
    let fake = Fake::new("exec sleep 1000");
    let launch = Launch { deadline: Duration::from_millis(50), ..fake.launch() };
    let error = launch.start().await.unwrap_err();
    assert!(matches!(error, LaunchError::TimedOut { verb: "start", .. }), "{error:?}");
}

#[tokio::test]
async fn a_start_that_nobody_awaits_any_more_dies_with_its_children() {
    let fake = Fake::new("sleep 1000 & echo $! > ../pid.tmp; mv ../pid.tmp ../pid; wait");
    let launch = fake.launch();
    let starting = tokio::spawn(async move { launch.start().await });
    until("the child runs", || fake.path("pid").exists()).await;
    let pid = fake.text("pid");
    assert!(running(&pid));
    starting.abort();
    until("the child is killed", || !running(&pid)).await;
}

#[tokio::test]
async fn a_process_that_keeps_the_output_open_does_not_hold_up_the_start() {
    let fake = Fake::new("echo unix:///run/containerd/s/ab; sleep 1000 & echo $! > ../pid");
    let bootstrap = fake.launch().start().await;
    let pid = fake.text("pid");
    assert!(running(&pid), "what start leaves behind is not killed");
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert_eq!(bootstrap.unwrap().address, "unix:///run/containerd/s/ab");
}
