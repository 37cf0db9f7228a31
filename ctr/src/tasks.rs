//! `ctr tasks`: the containers that have a process.

use api::containerd::services::tasks::v1::ListTasksRequest;
use api::containerd::v1::types::{Process, Status};

use crate::client::Client;
use crate::error::Error;
use crate::table::{self, Layout, Table};

pub(crate) async fn list(client: &Client) -> Result<Vec<Process>, Error> {
    let request = client.request(ListTasksRequest::default());
    Ok(client.tasks().list(request).await?.into_inner().tasks)
}

pub(crate) fn names(tasks: &[Process]) -> String {
    table::names(tasks.iter().map(|task| task.id.as_str()))
}

pub(crate) fn table(tasks: &[Process]) -> String {
    let mut table = Table::new(Layout::WIDE_WITH_TAIL, &["TASK", "PID", "STATUS"]);
    for task in tasks {
        table.row(vec![task.id.clone(), task.pid.to_string(), status(task.status)]);
    }
    table.render()
}

/// The status by name; a number that this protocol does not know stays a number.
fn status(number: i32) -> String {
    Status::try_from(number).map_or_else(|_| number.to_string(), |status| status.as_str_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(id: &str, pid: u32, status: i32) -> Process {
        Process { id: id.into(), pid, status, ..Process::default() }
    }

    #[test]
    fn a_task_shows_its_pid_and_status() {
        assert_eq!(
            table(&[task("web", 4321, Status::Running as i32), task("db", 7, Status::Stopped as i32)]),
            "TASK    PID     STATUS    \nweb     4321    RUNNING\ndb      7       STOPPED\n"
        );
    }

    #[test]
    fn a_status_of_a_later_protocol_is_shown_by_number() {
        assert_eq!(table(&[task("a", 1, 42)]), "TASK    PID    STATUS    \na       1      42\n");
    }

    #[test]
    fn quiet_prints_ids() {
        assert_eq!(names(&[task("web", 1, 2)]), "web\n");
    }
}
