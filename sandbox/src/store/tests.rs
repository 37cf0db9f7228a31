use std::{path::PathBuf, time::SystemTime};

use super::*;
use crate::{
    machine::{PodPhase, PodVerb},
    model::{ContainerName, ContainerSpec, ContainerUser, Image, PodName, PodNetwork, PodSpec, SecurityProfile},
};

fn id(digit: char) -> Id {
    Id::parse(&digit.to_string().repeat(64)).unwrap()
}

fn image() -> Image {
    Image {
        requested: "pause:3".into(),
        id: "sha256:1".into(),
        name: "pause:3".into(),
        digest: "pause@sha256:3".into(),
        chain_id: "sha256:2".into(),
        ..Image::default()
    }
}

pub(crate) fn pod() -> PodRecord {
    PodRecord {
        version: VERSION,
        id: id('a'),
        spec: PodSpec {
            name: PodName { name: "web".into(), namespace: "default".into(), uid: "u".into(), attempt: 0 },
            hostname: "web".into(),
            log_directory: "/var/log/pods/web".into(),
            cgroup_parent: "/kubepods/pod1".into(),
            readonly_rootfs: true,
            ..PodSpec::default()
        },
        image: image(),
        handler: "runc".into(),
        snapshotter: "overlayfs".into(),
        phase: PodPhase::Ready,
        intent: Some(PodVerb::Stop),
        created_at: SystemTime::UNIX_EPOCH,
        boot: "boot".into(),
        network_owed: true,
        selinux_level: String::new(),
        network: PodNetwork { ips: vec!["10.0.0.2".into()], result: serde_json::json!({"ips": []}) },
        updated: None,
        pid: Some(7),
        oci_spec: serde_json::json!({"process": {}}),
    }
}

pub(crate) fn container() -> ContainerRecord {
    ContainerRecord {
        version: VERSION,
        id: id('b'),
        pod: id('a'),
        spec: ContainerSpec {
            name: ContainerName { name: "app".into(), attempt: 1 },
            command: vec!["sleep".into()],
            args: vec!["1".into()],
            env: vec![("A".into(), "1".into())],
            log_path: "app/1.log".into(),
            no_new_privs: true,
            seccomp: SecurityProfile::RuntimeDefault,
            ..ContainerSpec::default()
        },
        image: image(),
        state: None,
        intent: None,
        created_at: SystemTime::UNIX_EPOCH,
        log_path: Some(PathBuf::from("/var/log/pods/web/app/1.log")),
        user: ContainerUser::default(),
        oci_spec: serde_json::Value::Null,
        limits: None,
        restore: None,
        began: None,
    }
}

fn open() -> (tempfile::TempDir, Rows, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("db"), &[SCHEMA]).unwrap();
    (dir, Rows::new(store.clone(), Namespace::k8s()), store)
}

#[tokio::test]
async fn rows_come_back_as_they_were_written_and_go_with_their_pod() {
    let (_dir, rows, _store) = open();
    rows.put(Some(&pod()), &[&container()]).await.unwrap();
    let loaded = rows.load().await.unwrap();
    assert_eq!(loaded.pods.into_values().collect::<Vec<_>>(), [(pod(), vec![container()])]);
    rows.delete_pod(&id('a')).await.unwrap();
    let loaded = rows.load().await.unwrap();
    assert!(loaded.pods.is_empty() && loaded.unreadable.is_empty());
}

#[tokio::test]
async fn a_record_of_a_newer_program_is_reported_and_left_alone() {
    let (_dir, rows, _store) = open();
    rows.put(Some(&PodRecord { version: VERSION + 1, ..pod() }), &[&container()]).await.unwrap();
    let loaded = rows.load().await.unwrap();
    assert!(loaded.pods.is_empty());
    let ids: Vec<String> = loaded.unreadable.into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, ["a".repeat(64), "b".repeat(64)]);
}

/// A row as version 1 wrote it. It must load for as long as there are stores that hold one.
#[test]
fn golden_rows_of_version_1_still_load() {
    let golden = include_str!("golden_v1.json");
    let (pod_json, container_json) = golden.trim().split_once('\n').unwrap();
    // Not known then.
    let image = Image { digest: String::new(), ..image() };
    assert_eq!(parse::<PodRecord>(pod_json).unwrap(), PodRecord { image: image.clone(), ..pod() });
    assert_eq!(parse::<ContainerRecord>(container_json).unwrap(), ContainerRecord { image, ..container() });
}
