//! Calls that must be refused, and that must change nothing.

use std::{fs, future::Future};

use api::cri;
use tonic::{Code, Status};

use crate::{
    node::TestNode,
    wait::{self, SOON},
};

/// What was expected of a call and did not come. All are told at the end.
#[derive(Debug, Default)]
pub struct Wrong(pub Vec<String>);

impl Wrong {
    /// The call must be refused with the code, and by a message that starts so.
    pub fn unless_refused<'a, T>(
        &'a mut self,
        what: &'a str,
        code: Code,
        start: &'a str,
        call: impl Future<Output = Result<T, Status>> + 'a,
    ) -> impl Future<Output = ()> + 'a {
        // Calls are large futures, and tests make many.
        let call = Box::pin(tokio::time::timeout(SOON, call));
        async move {
            match call.await {
                Err(_) => self.0.push(format!("{what}: no answer, expected {code:?} {start}")),
                Ok(Ok(_)) => self.0.push(format!("{what}: it was done, expected {code:?} {start}")),
                Ok(Err(status)) if status.code() != code || !status.message().starts_with(start) => {
                    self.0.push(format!("{what}: {:?} {}, expected {code:?} {start}", status.code(), status.message()));
                }
                Ok(Err(_)) => {}
            }
        }
    }

    pub fn unless_invalid<'a, T>(
        &'a mut self,
        what: &'a str,
        start: &'a str,
        call: impl Future<Output = Result<T, Status>> + 'a,
    ) -> impl Future<Output = ()> + 'a {
        self.unless_refused(what, Code::InvalidArgument, start, call)
    }

    /// The call must be answered, with anything.
    pub fn unless_done<'a, T>(
        &'a mut self,
        what: &'a str,
        call: impl Future<Output = Result<T, Status>> + 'a,
    ) -> impl Future<Output = ()> + 'a {
        let call = Box::pin(tokio::time::timeout(SOON, call));
        async move {
            match call.await {
                Err(_) => self.0.push(format!("{what}: no answer")),
                Ok(Err(status)) => self.0.push(format!("{what}: {:?} {}", status.code(), status.message())),
                Ok(Ok(_)) => {}
            }
        }
    }

    pub fn assert_nothing(self) {
        assert!(self.0.is_empty(), "{} calls went wrong:\n{}", self.0.len(), self.0.join("\n"));
    }
}

/// The daemon's open files.
pub fn files(node: &TestNode) -> usize {
    fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap().count()
}

/// The daemon answers, and has as many files open as before.
pub async fn assert_unmoved(node: &TestNode, before: usize) {
    let version = node.client().runtime.clone().version(cri::VersionRequest { version: "v1".into() }).await.unwrap();
    assert_eq!(version.into_inner().runtime_api_version, "v1");
    wait::until_ok("no file is left open", SOON, || match files(node) {
        now if now <= before => Ok(()),
        now => Err(format!("{now} files, and {before} before")),
    })
    .await;
}
