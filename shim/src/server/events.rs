//! Telling the daemon what happened, in order, without ever waiting for it.
//!
//! One bounded queue, one task that sends. A daemon that is down costs retries on that task alone; what it missed it
//! asks for with State when it is back. With no daemon to send to, events are dropped.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use prost::{Message, Name};
use tokio::sync::mpsc;

use crate::proto::{self, events, forward, types};
use crate::ttrpc::{CallOptions, Client};

use super::record::Exit;

const QUEUE: usize = 2048;
const ATTEMPTS: u32 = 5;
const CALL_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(crate) struct Publisher {
    namespace: String,
    queue: Option<mpsc::Sender<types::Envelope>>,
}

impl Publisher {
    /// The publisher, and the task that sends for it until the last copy of the publisher is gone.
    pub(crate) fn new(namespace: &str, address: Option<PathBuf>) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let queue = address.is_some().then_some(sender);
        (Self { namespace: namespace.to_owned(), queue }, send(address, receiver))
    }

    pub(crate) fn publish<M: Message + Name>(&self, topic: &str, event: &M) {
        let Some(queue) = &self.queue else { return };
        let envelope = types::Envelope {
            timestamp: Some(SystemTime::now().into()),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(proto::to_any(event)),
        };
        if queue.try_send(envelope).is_err() {
            super::say(&format!("the daemon has been away for {QUEUE} events; {topic} is dropped"));
        }
    }

    pub(crate) fn exit(&self, container: &str, process: &str, exit: &Exit) {
        if exit.oom_killed {
            self.publish("/tasks/oom", &events::TaskOom { container_id: container.to_owned() });
        }
        let event = events::TaskExit {
            container_id: container.to_owned(),
            id: process.to_owned(),
            pid: exit.pid as u32,
            exit_status: exit.status,
            exited_at: Some(exit.at()),
        };
        self.publish("/tasks/exit", &event);
    }
}

async fn send(address: Option<PathBuf>, mut queue: mpsc::Receiver<types::Envelope>) {
    let Some(address) = address else { return };
    let mut client: Option<Client> = None;
    while let Some(envelope) = queue.recv().await {
        let topic = envelope.topic.clone();
        let namespace = envelope.namespace.clone();
        let request = forward::ForwardRequest { envelope: Some(envelope) };
        for attempt in 1..=ATTEMPTS {
            let options = CallOptions {
                timeout: Some(CALL_DEADLINE),
                metadata: vec![(proto::NAMESPACE_METADATA.to_owned(), namespace.clone())],
            };
            let connected = match client.take().filter(|client| !client.is_closed()) {
                Some(client) => Ok(client),
                None => Client::connect(&address).await,
            };
            let failure = match connected {
                Ok(connected) => {
                    let sent = connected.call_with::<()>(proto::service::EVENTS, "Forward", &request, options).await;
                    client = Some(connected);
                    match sent {
                        Ok(()) => break,
                        Err(status) => status.to_string(),
                    }
                }
                Err(error) => error.to_string(),
            };
            if attempt == ATTEMPTS {
                super::say(&format!("event {topic} was not taken by {}: {failure}", address.display()));
            } else {
                tokio::time::sleep(Duration::from_secs(attempt.into())).await;
            }
        }
    }
}
