//! Verifiers that are shell scripts: what they are told, and what their end means.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::digest::Digest;
use crate::registry::media_type;

struct Node {
    directory: tempfile::TempDir,
    config: PolicyConfig,
}

impl Node {
    /// With these scripts, by name. `$DIR` is a directory for what they leave.
    fn with(scripts: &[(&str, &str)]) -> Node {
        let directory = tempfile::tempdir().unwrap();
        let bin_dir = directory.path().join("bin");
        fs::create_dir(&bin_dir).unwrap();
        for (name, script) in scripts {
            let path = bin_dir.join(name);
            fs::write(&path, format!("#!/bin/sh\nDIR={}\n{script}\n", directory.path().display())).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let config = PolicyConfig { bin_dir, max_verifiers: Some(10), per_verifier_timeout: Duration::from_secs(20) };
        Node { directory, config }
    }

    async fn verify(&self) -> Result<(), PolicyError> {
        verify(&self.config, "docker.io/library/app:1", &descriptor()).await
    }

    fn left(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.directory.path().join(name)).ok()
    }
}

fn descriptor() -> Descriptor {
    Descriptor::new(media_type::OCI_INDEX, Digest::sha256_of(b"image"), 5)
}

#[tokio::test]
async fn a_verifier_is_told_name_digest_and_descriptor() {
    let node = Node::with(&[("one", "echo \"$@\" > $DIR/arguments; cat > $DIR/stdin; pwd > $DIR/pwd")]);
    node.verify().await.unwrap();
    let digest = Digest::sha256_of(b"image");
    assert_eq!(
        node.left("arguments").unwrap(),
        format!(
            "-name docker.io/library/app:1 -digest {digest} -stdin-media-type application/vnd.oci.descriptor.v1+json\n"
        )
    );
    let stdin = node.left("stdin").unwrap();
    assert_eq!(stdin, format!("{{\"mediaType\":\"{}\",\"digest\":\"{digest}\",\"size\":5}}\n", media_type::OCI_INDEX));
}

#[tokio::test]
async fn without_verifiers_every_image_may_be_pulled() {
    let mut node = Node::with(&[]);
    node.verify().await.unwrap();
    node.config.bin_dir = node.directory.path().join("absent");
    node.verify().await.unwrap();
}

#[tokio::test]
async fn all_are_asked_by_name_until_one_rejects() {
    let node = Node::with(&[
        ("20-no", "echo 20 >> $DIR/order; echo '  not signed  '; exit 3"),
        ("10-yes", "echo 10 >> $DIR/order; echo fine"),
        ("30-late", "echo 30 >> $DIR/order"),
    ]);
    let error = node.verify().await.unwrap_err();
    let digest = Digest::sha256_of(b"image");
    assert_eq!(error.to_string(), format!("image verifier 20-no rejected {digest} (exit code 3): not signed"));
    assert_eq!(node.left("order").unwrap(), "10\n20\n");
}

#[tokio::test]
async fn no_more_are_asked_than_wanted() {
    let mut node = Node::with(&[("1", "echo 1 >> $DIR/order"), ("2", "exit 1")]);
    node.config.max_verifiers = Some(1);
    node.verify().await.unwrap();
    node.config.max_verifiers = Some(0);
    node.verify().await.unwrap();
    assert_eq!(node.left("order").unwrap(), "1\n");
    node.config.max_verifiers = None;
    assert!(matches!(node.verify().await, Err(PolicyError::Rejected { code: 1, .. })));
}

#[tokio::test]
async fn an_end_that_is_no_verdict_is_no_permission() {
    let check = async |script: &str, expected: &str| {
        let node = Node::with(&[("one", script)]);
        let text = node.verify().await.unwrap_err().to_string();
        assert!(text.starts_with("image verifier one gave no verdict on sha256:"), "{text}");
        assert!(text.contains(expected), "{text}");
    };
    check("kill -TERM $$", "signal: 15").await;
    let node = Node::with(&[]);
    fs::write(node.config.bin_dir.join("not-a-program"), "x").unwrap();
    let text = node.verify().await.unwrap_err().to_string();
    assert!(text.contains("it cannot be run: Permission denied"), "{text}");
}

#[tokio::test]
async fn a_verifier_that_takes_too_long_is_killed_with_all_that_it_started() {
    let mut node = Node::with(&[("slow", "sleep 1000 & echo $! > $DIR/child; wait")]);
    node.config.per_verifier_timeout = Duration::from_millis(500);
    let text = node.verify().await.unwrap_err().to_string();
    assert!(text.ends_with("it took longer than 0.5 s"), "{text}");
    let child = node.left("child").unwrap();
    let path = PathBuf::from("/proc").join(child.trim());
    let gone = async {
        while fs::read_to_string(path.join("stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
}

#[tokio::test]
async fn a_verdict_counts_though_what_was_started_holds_the_outputs() {
    let mut node = Node::with(&[("daemon", "sleep 1000 & exit 0")]);
    node.config.per_verifier_timeout = Duration::from_secs(1);
    node.verify().await.unwrap();
    let mut node = Node::with(&[("daemon", "sleep 1000 & exit 7")]);
    node.config.per_verifier_timeout = Duration::from_secs(1);
    assert!(matches!(node.verify().await, Err(PolicyError::Rejected { code: 7, .. })));
}

#[tokio::test]
async fn a_flood_of_output_is_read_and_cut() {
    let node = Node::with(&[("loud", "head -c 1000000 /dev/zero | tr '\\0' x; head -c 1000000 /dev/zero >&2; exit 1")]);
    let Err(PolicyError::Rejected { reason, .. }) = node.verify().await else { panic!("it rejects") };
    assert!(reason.ends_with("… (stdout truncated)"), "{}", reason.len());
    assert!(reason.len() < MAX_REASON + 100, "{}", reason.len());
}

#[tokio::test]
async fn a_verifier_need_not_read_its_input_and_its_reason_is_one_line() {
    let node = Node::with(&[("one", "exec 0<&-; printf 'a\\nb\\033[2J'; exit 1")]);
    let Err(PolicyError::Rejected { reason, .. }) = node.verify().await else { panic!("it rejects") };
    assert_eq!(reason, "a b [2J");
}
