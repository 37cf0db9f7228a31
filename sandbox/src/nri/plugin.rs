//! One plugin that has registered: its calls, each with a deadline, and its end.
//!
//! A plugin that does not answer in time, breaks the protocol or closes its connection is closed and asked no more; what
//! it was asked about goes on as if it had never been there. Only a plugin that answers with an error fails a request.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use prost::Message;
use shim::ttrpc::{CallOptions, Client, Code, MAX_PAYLOAD};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Error;

use super::proto::{
    ALL_EVENTS, ConfigureRequest, ConfigureResponse, Container, ContainerUpdate, Empty, Event, PodSandbox,
    StateChangeEvent, SynchronizeRequest, SynchronizeResponse, service,
};

/// Bytes that are left for what goes with a message in its frame.
const SYNC_MESSAGE: usize = MAX_PAYLOAD - 4096;

/// What it takes part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It is told what there is. Events wait.
    Synchronising,
    Ready,
}

/// A plugin that has registered and was configured.
pub(crate) struct Plugin {
    /// `NN-name`.
    pub(crate) name: String,
    pub(crate) index: String,
    /// Without the index.
    pub(crate) base: String,
    events: u32,
    client: Client,
    /// Cancelled to close the connection, and when it is closed.
    closing: CancellationToken,
    stage: watch::Sender<Stage>,
    request_timeout: Duration,
    registration_timeout: Duration,
    /// Events that it hears of by StateChange, having no call for them.
    legacy: Mutex<BTreeSet<Event>>,
    warned: AtomicBool,
}

/// What a plugin registers as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registration {
    pub(crate) index: String,
    pub(crate) base: String,
}

impl Registration {
    /// Checks a registration, or the two parts of a file's name.
    pub(crate) fn parse(index: &str, base: &str) -> Result<Registration, String> {
        if index.len() != 2 || !index.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!("plugin index {index:?} is not two digits"));
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte);
        if base.is_empty() || !base.bytes().all(allowed) {
            return Err(format!("plugin name {base:?} is not made of letters, digits and any of \"-_.+\""));
        }
        Ok(Registration { index: index.to_owned(), base: base.to_owned() })
    }

    pub(crate) fn name(&self) -> String {
        format!("{}-{}", self.index, self.base)
    }
}

impl Plugin {
    /// Configures a plugin that has registered: it says which events it wants.
    pub(crate) async fn configure(
        registration: Registration,
        client: Client,
        closing: CancellationToken,
        config: String,
        request_timeout: Duration,
        registration_timeout: Duration,
    ) -> Result<Plugin, Error> {
        let milliseconds = |limit: Duration| i64::try_from(limit.as_millis()).unwrap_or(i64::MAX);
        let mut plugin = Plugin {
            name: registration.name(),
            index: registration.index,
            base: registration.base,
            events: ALL_EVENTS,
            client,
            closing,
            stage: watch::Sender::new(Stage::Synchronising),
            request_timeout,
            registration_timeout,
            legacy: Mutex::default(),
            warned: AtomicBool::new(false),
        };
        let request = ConfigureRequest {
            config,
            runtime_name: "windlass".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            registration_timeout: milliseconds(registration_timeout),
            request_timeout: milliseconds(request_timeout),
            nri_version: super::proto::VERSION.into(),
        };
        let answer: ConfigureResponse = plugin
            .call("Configure", &request, request_timeout)
            .await?
            .ok_or_else(|| Error::Unavailable(format!("NRI plugin {} did not answer Configure", plugin.name)))?;
        let wanted = answer.events.cast_unsigned();
        if wanted & !ALL_EVENTS != 0 {
            return Err(Error::Invalid(format!(
                "NRI plugin {} wants events {wanted:#x}, which is more than there are",
                plugin.name
            )));
        }
        if wanted != 0 {
            plugin.events = wanted;
        }
        Ok(plugin)
    }

    /// Tells the plugin what there is, in as many messages as it takes; answers the updates that it asks for.
    ///
    /// It has the registration's time for all of it, since a plugin may do much here, and does it once.
    pub(crate) async fn synchronize(
        &self,
        pods: Vec<PodSandbox>,
        containers: Vec<Container>,
    ) -> Result<Vec<ContainerUpdate>, Error> {
        let limit = self.registration_timeout.max(self.request_timeout);
        let failed = |what: &str| Error::Unavailable(format!("NRI plugin {} {what} Synchronize", self.name));
        let sending = async {
            let mut messages = messages(pods, containers).into_iter().peekable();
            while let Some(mut request) = messages.next() {
                request.more = messages.peek().is_some();
                let answer: Option<SynchronizeResponse> = self.call("Synchronize", &request, limit).await?;
                let answer = answer.ok_or_else(|| failed("did not answer"))?;
                if !request.more {
                    return Ok(answer.update);
                }
                if !answer.more {
                    return Err(failed("does not understand a split"));
                }
            }
            Ok(Vec::new())
        };
        tokio::time::timeout(limit, sending).await.unwrap_or_else(|_| Err(failed("did not finish in time its")))
    }

    /// Lets events through from now on.
    pub(crate) fn admit(&self) {
        self.stage.send_replace(Stage::Ready);
    }

    /// Waits until the plugin takes events; false if it never will.
    async fn takes_events(&self) -> bool {
        let mut stage = self.stage.subscribe();
        tokio::select! {
            biased;
            () = self.closing.cancelled() => false,
            // The sender is this plugin's own.
            ready = stage.wait_for(|stage| *stage == Stage::Ready) => ready.is_ok(),
        }
    }

    pub(crate) fn wants(&self, event: Event) -> bool {
        self.events & event.bit() != 0
    }

    pub(crate) fn close(&self) {
        self.closing.cancel();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closing.is_cancelled()
    }

    /// Waits for the connection's end.
    pub(crate) async fn closed(&self) {
        self.closing.cancelled().await;
    }

    /// Asks about an event; `None` if the plugin does not want it or is not there any more.
    pub(crate) async fn ask<Answer: Message + Default>(
        &self,
        event: Event,
        request: &impl Message,
    ) -> Result<Option<Answer>, Error> {
        if !self.wants(event) || !self.takes_events().await {
            return Ok(None);
        }
        self.call(event.method(), request, self.request_timeout).await
    }

    /// Tells an event whose answer is empty, in the way that the plugin knows.
    pub(crate) async fn tell(
        &self,
        event: Event,
        pod: &PodSandbox,
        container: Option<&Container>,
    ) -> Result<(), Error> {
        if !self.wants(event) || !self.takes_events().await {
            return Ok(());
        }
        // The messages of pod events are those of containers', less the container.
        let request = super::proto::ContainerEvent { pod: Some(pod.clone()), container: container.cloned() };
        if !self.legacy().contains(&event) {
            match Box::pin(self.try_call::<Empty>(event.method(), &request, self.request_timeout)).await {
                Err(Failure::Status(status)) if status.code == Code::Unimplemented => {
                    self.legacy().insert(event);
                    if !self.warned.swap(true, Ordering::Relaxed) {
                        tracing::warn!(
                            plugin = self.name,
                            "the plugin is built on an NRI before v0.10; it hears of events by StateChange"
                        );
                    }
                }
                answered => return self.judge(event.method(), answered).map(drop),
            }
        }
        let change = StateChangeEvent { event: event.into(), pod: request.pod, container: request.container };
        match Box::pin(self.try_call::<Empty>("StateChange", &change, self.request_timeout)).await {
            // It knows neither call, so it can only have subscribed to everything.
            Err(Failure::Status(status)) if status.code == Code::Unimplemented => Ok(()),
            answered => self.judge("StateChange", answered).map(drop),
        }
    }

    fn legacy(&self) -> std::sync::MutexGuard<'_, BTreeSet<Event>> {
        self.legacy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn call<Answer: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
        limit: Duration,
    ) -> Result<Option<Answer>, Error> {
        let answered = Box::pin(self.try_call(method, request, limit)).await;
        self.judge(method, answered)
    }

    async fn try_call<Answer: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let options = CallOptions { timeout: Some(limit), ..CallOptions::default() };
        let calling = self.client.call_with(service::PLUGIN, method, request, options);
        match tokio::time::timeout(limit, calling).await {
            Err(_) => Err(Failure::Fatal(format!("no answer within {limit:?}"))),
            Ok(Err(status)) => match status.code {
                Code::DeadlineExceeded | Code::Unavailable => Err(Failure::Fatal(status.message)),
                _ => Err(Failure::Status(status)),
            },
            Ok(Ok(answer)) => Ok(answer),
        }
    }

    /// Decides what a failure means, and closes the plugin if it is its end.
    fn judge<Answer>(&self, method: &str, answered: Result<Answer, Failure>) -> Result<Option<Answer>, Error> {
        match answered {
            Ok(answer) => Ok(Some(answer)),
            Err(Failure::Fatal(error)) => {
                tracing::error!(plugin = self.name, method, error, "closing an NRI plugin");
                self.close();
                Ok(None)
            }
            Err(Failure::Status(status)) => {
                Err(Error::plain(format!("NRI plugin {} refused {method}: {}", self.name, status.message)))
            }
        }
    }
}

enum Failure {
    /// The plugin cannot be talked to any more.
    Fatal(String),
    /// It answered with this.
    Status(shim::ttrpc::Status),
}

/// Pods and containers in messages that ttrpc can carry. There is always one.
fn messages(pods: Vec<PodSandbox>, containers: Vec<Container>) -> Vec<SynchronizeRequest> {
    let mut messages = vec![SynchronizeRequest::default()];
    let mut room = SYNC_MESSAGE;
    let mut next = |messages: &mut Vec<SynchronizeRequest>, length: usize| {
        // A tag and a length go before each.
        let length = length + 10;
        if length > room {
            messages.push(SynchronizeRequest::default());
            room = SYNC_MESSAGE;
        }
        room = room.saturating_sub(length);
    };
    for pod in pods {
        next(&mut messages, pod.encoded_len());
        messages.last_mut().expect("there is always one").pods.push(pod);
    }
    for container in containers {
        next(&mut messages, container.encoded_len());
        messages.last_mut().expect("there is always one").containers.push(container);
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_has_two_digits_and_a_plain_name() {
        let check = |index: &str, base: &str| Registration::parse(index, base).map(|found| found.name());
        assert_eq!(check("07", "a-B_c.d+1").unwrap(), "07-a-B_c.d+1");
        for (index, base, wrong) in
            [("7", "a", "index"), ("x1", "a", "index"), ("00", "", "name"), ("00", "a/b", "name")]
        {
            let error = check(index, base).unwrap_err();
            assert!(error.contains(wrong), "{index} {base}: {error}");
        }
    }

    #[test]
    fn what_there_is_is_split_into_messages_that_fit() {
        assert_eq!(messages(Vec::new(), Vec::new()), [SynchronizeRequest::default()]);
        let container =
            |at: usize| Container { id: at.to_string(), args: vec!["x".repeat(1 << 20)], ..Container::default() };
        let pod = |at: usize| PodSandbox { id: at.to_string(), ..PodSandbox::default() };
        let split = messages((0..3).map(pod).collect(), (0..10).map(container).collect());
        let counts: Vec<(usize, usize)> =
            split.iter().map(|message| (message.pods.len(), message.containers.len())).collect();
        assert_eq!(counts, [(3, 3), (0, 3), (0, 3), (0, 1)]);
        assert!(split.iter().all(|message| message.encoded_len() <= SYNC_MESSAGE));
        let ids: Vec<&str> =
            split.iter().flat_map(|message| &message.containers).map(|container| container.id.as_str()).collect();
        assert_eq!(ids, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
    }
}
