//! Limits of huge pages, by what the host's cgroups can do: written, left out, or refused.

use std::{fs, path::Path};

use api::cri;
use tonic::Code;
use windlass_e2e::{
    client::container,
    node::{BUSYBOX, TestNode},
};

#[tokio::test(flavor = "multi_thread")]
async fn privileged_huge_pages_are_limited_where_the_host_can_and_else_as_configured() {
    let unified = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let limited = unified.contains("hugetlb") || Path::new("/sys/fs/cgroup/hugetlb/cgroup.procs").exists();
    let mut node = TestNode::prepare().await;
    for tolerated in [true, false] {
        node.settings.cri = format!("tolerate_missing_hugetlb_controller = {tolerated}");
        node.boot().await;
        let client = node.client();
        client.pull(BUSYBOX).await.unwrap();
        let pod_config = node.pod("pages");
        let pod = client.run_pod(&pod_config).await.unwrap();
        let mut config = container("app", BUSYBOX, &["sleep", "1000"]);
        let limits = |size: &str| cri::LinuxContainerResources {
            hugepage_limits: vec![cri::HugepageLimit { page_size: size.into(), limit: 4 << 20 }],
            ..Default::default()
        };
        config.linux.get_or_insert_default().resources = Some(limits("2MB"));
        let created = client.create(&pod, &config, &pod_config).await;
        if !limited && !tolerated {
            let refused = created.unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
            assert!(refused.message().contains("tolerate_missing_hugetlb_controller = true"), "{refused}");
        } else {
            let app = created.unwrap();
            client.start(&app).await.unwrap();
            let cgroups = node.leakcheck.cgroups().into_iter().filter(|path| path.ends_with(&app));
            let files =
                cgroups.flat_map(|path| [path.join("hugetlb.2MB.limit_in_bytes"), path.join("hugetlb.2MB.max")]);
            let written: Vec<String> = files.filter_map(|file| fs::read_to_string(file).ok()).collect();
            let expected: &[&str] = if limited { &["4194304\n"] } else { &[] };
            assert_eq!(written, expected);
            let told = client.status(&app).await.unwrap().resources.unwrap().linux.unwrap();
            assert_eq!(told.hugepage_limits, limits("2MB").hugepage_limits, "status says what was asked for");
            let mut odd = container("odd", BUSYBOX, &["true"]);
            odd.linux.get_or_insert_default().resources = Some(limits("3MB"));
            let created = client.create(&pod, &odd, &pod_config).await;
            match created {
                Err(refused) if limited => {
                    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
                    assert!(refused.message().contains("no huge pages of \"3MB\""), "{refused}");
                }
                created => assert!(!limited && created.is_ok(), "{created:?}"),
            }
        }
        node.remove_all_pods().await;
        node.terminate().await;
    }
    node.boot().await;
    node.finish().await;
}
