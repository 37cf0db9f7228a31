//! `ctr containers`: the records of containers, whether or not they run.

use api::containerd::services::containers::v1::{Container, ListContainersRequest};
use tonic::Code;

use crate::client::Client;
use crate::error::Error;
use crate::table::{self, Layout, Table};

/// Asks for a stream, which has no limit of size, and falls back to the single answer for daemons without one.
pub(crate) async fn list(client: &Client, filters: Vec<String>) -> Result<Vec<Container>, Error> {
    let request = ListContainersRequest { filters };
    match list_stream(client, request.clone()).await {
        Err(Error::Rpc(status)) if status.code() == Code::Unimplemented => {
            Ok(client.containers().list(client.request(request)).await?.into_inner().containers)
        }
        outcome => outcome,
    }
}

async fn list_stream(client: &Client, request: ListContainersRequest) -> Result<Vec<Container>, Error> {
    let mut stream = client.containers().list_stream(client.request(request)).await?.into_inner();
    let mut containers = Vec::new();
    while let Some(message) = stream.message().await? {
        containers.extend(message.container);
    }
    Ok(containers)
}

pub(crate) fn names(containers: &[Container]) -> String {
    table::names(containers.iter().map(|container| container.id.as_str()))
}

pub(crate) fn table(containers: &[Container]) -> String {
    let mut table = Table::new(Layout::WIDE, &["CONTAINER", "IMAGE", "RUNTIME"]);
    for container in containers {
        let image = if container.image.is_empty() { "-" } else { container.image.as_str() };
        let runtime = container.runtime.clone().unwrap_or_default().name;
        table.row(vec![container.id.clone(), image.to_owned(), runtime]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::containerd::services::containers::v1::container::Runtime;

    #[test]
    fn a_container_without_an_image_shows_a_dash() {
        let runtime = Some(Runtime { name: "io.containerd.runc.v2".into(), options: None });
        let with = Container { id: "web".into(), image: "nginx:1".into(), runtime, ..Container::default() };
        let without = Container { id: "b".into(), ..Container::default() };
        assert_eq!(
            table(&[with, without]),
            "CONTAINER    IMAGE      RUNTIME                  \n\
             web          nginx:1    io.containerd.runc.v2    \n\
             b            -                                   \n"
        );
    }

    #[test]
    fn quiet_prints_ids() {
        assert_eq!(names(&[Container { id: "web".into(), ..Container::default() }]), "web\n");
    }
}
