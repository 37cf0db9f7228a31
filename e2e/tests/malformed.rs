//! Every RPC by its bytes: messages that are empty, cut short, or too large. The code says whose fault it is, an empty message
//! is answered by the field that it lacks, and the daemon goes on as if nothing had been asked.

#![expect(clippy::unwrap_used, reason = "the functions that tests share are test code as well")]

use std::{collections::BTreeSet, time::Duration};

use prost::{
    Message,
    bytes::{Buf, BufMut},
};
use prost_types::FileDescriptorSet;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};
use windlass_e2e::{
    client::channel,
    node::TestNode,
    refusals::{Wrong, assert_unmoved, files},
};

/// What an empty message lacks, by RPC: the first field that must be set. RPCs that are not here take an empty message.
const REQUIRED: [(&str, &str); 22] = [
    ("RunPodSandbox", "config"),
    ("StopPodSandbox", "pod_sandbox_id"),
    ("RemovePodSandbox", "pod_sandbox_id"),
    ("PodSandboxStatus", "pod_sandbox_id"),
    ("UpdatePodSandboxResources", "pod_sandbox_id"),
    ("CreateContainer", "pod_sandbox_id"),
    ("StartContainer", "container_id"),
    ("StopContainer", "container_id"),
    ("RemoveContainer", "container_id"),
    ("ContainerStatus", "container_id"),
    ("UpdateContainerResources", "container_id"),
    ("ReopenContainerLog", "container_id"),
    ("CheckpointContainer", "container_id"),
    ("ExecSync", "container_id"),
    ("Exec", "container_id"),
    ("Attach", "container_id"),
    ("PortForward", "pod_sandbox_id"),
    ("ContainerStats", "container_id"),
    ("PodSandboxStats", "pod_sandbox_id"),
    ("PullImage", "image"),
    ("ImageStatus", "image"),
    ("RemoveImage", "image"),
];

/// RPCs whose stream does not end by itself.
const ENDLESS: &str = "GetContainerEvents";

/// gRPC's own bound, both ways.
const MOST: usize = 16 << 20;

/// Messages as bytes, so that any bytes can be a message.
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Raw
    }

    fn decoder(&mut self) -> Self {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(bytes.copy_to_bytes(bytes.remaining()).to_vec()))
    }
}

/// One RPC by its path, with these bytes for a message: the end of its answer.
async fn call(channel: &Channel, path: &str, message: Vec<u8>) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = path.parse().unwrap();
    let mut stream = grpc.server_streaming(Request::new(message), path, Raw).await?.into_inner();
    while stream.message().await?.is_some() {}
    Ok(())
}

/// Name and path of every RPC of CRI.
fn rpcs() -> Vec<(String, String)> {
    let files = FileDescriptorSet::decode(api::CRI_DESCRIPTORS).unwrap().file;
    let mut found = Vec::new();
    for service in files.into_iter().flat_map(|file| file.service) {
        for method in &service.method {
            let name = method.name().to_owned();
            found.push((name.clone(), format!("/runtime.v1.{}/{name}", service.name())));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_every_rpc_takes_messages_that_are_empty_too_large_or_no_messages_at_all() {
    let node = TestNode::start().await;
    let channel = channel(&node.socket()).await.unwrap();
    let rpcs = rpcs();
    assert_eq!(rpcs.len(), 41, "{rpcs:?}");
    let known: BTreeSet<&str> = rpcs.iter().map(|(name, _)| name.as_str()).collect();
    assert!(REQUIRED.iter().all(|(name, _)| known.contains(name)));
    call(&channel, "/runtime.v1.RuntimeService/Version", Vec::new()).await.unwrap();
    let before = files(&node);

    let mut wrong = Wrong::default();
    for (name, path) in &rpcs {
        let required = REQUIRED.iter().find(|(rpc, _)| rpc == name).map(|(_, field)| *field);
        match required {
            Some(field) => {
                let what = format!("{name}, empty");
                wrong.unless_invalid(&what, &format!("{field}: "), call(&channel, path, Vec::new())).await;
            }
            None if name == ENDLESS => {
                let answer = tokio::time::timeout(Duration::from_millis(200), call(&channel, path, Vec::new())).await;
                assert!(answer.is_err(), "events do not end: {answer:?}");
            }
            None => wrong.unless_done(&format!("{name}, empty"), call(&channel, path, Vec::new())).await,
        }
        // Field 1, of a length that the message does not have.
        let cut = vec![0x0A, 0x7F, 1];
        wrong
            .unless_refused(&format!("{name}, cut"), Code::Internal, "failed to decode", call(&channel, path, cut))
            .await;
        // No field that anyone knows, so it says nothing but its size.
        let mut large = vec![0xFA, 0x7F];
        prost::encode_length_delimiter(MOST, &mut large).unwrap();
        large.resize(large.len() + MOST, 0);
        let what = format!("{name}, too large");
        wrong.unless_refused(&what, Code::ResourceExhausted, "", call(&channel, path, large)).await;
    }
    wrong.assert_nothing();
    assert_unmoved(&node, before).await;
    node.finish().await;
}
