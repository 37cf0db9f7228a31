//! A connection against a client that keeps the rules, one that keeps none, and one that is hostile.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::{
    io::{DuplexStream, duplex},
    task::JoinSet,
};

use super::{
    Connection, Limits,
    client::Client,
    frame::{Frame, INITIAL_WINDOW_SIZE, PIECE, Setting, go_away, reset},
    stream::{StreamReader, StreamWriter, WINDOW},
};

/// A client, the connection, and the task that runs it.
fn connected(limits: Limits) -> (Client<DuplexStream>, Connection, JoinSet<()>) {
    let (near, far) = duplex(4096);
    let (connection, running) = Connection::open(far, limits);
    let mut tasks = JoinSet::new();
    tasks.spawn(running);
    (Client::new(near), connection, tasks)
}

const FOREVER: Limits = Limits { idle: Duration::ZERO, streams: 4 };

async fn open(client: &mut Client<DuplexStream>, connection: &mut Connection) -> (u32, StreamReader, StreamWriter) {
    let id = client.syn(&[("streamtype", "data")]).await;
    let (reader, writer) = connection.accept().await.unwrap().accept().await.unwrap();
    assert_eq!(client.frame().await, Some(Frame::SynReply { id, fin: false, headers: Default::default() }));
    (id, reader, writer)
}

async fn read_all(mut reader: StreamReader) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(bytes) = reader.read().await {
        all.extend(bytes);
    }
    all
}

#[tokio::test]
async fn both_directions_close_apart_and_the_goodbye_comes_last() {
    let (mut client, mut connection, _tasks) = connected(FOREVER);
    let (id, mut reader, writer) = open(&mut client, &mut connection).await;
    client.data(id, "ping", true).await;
    assert_eq!(reader.read().await, Some(Bytes::from("ping")));
    assert_eq!(reader.read().await, None);
    writer.write(Bytes::from("pong")).await.unwrap();
    writer.finish().await;
    let (heard, ()) = tokio::join!(client.hear(), connection.close());
    assert_eq!(heard.data, [(id, (b"pong".to_vec(), true))].into());
    assert_eq!((heard.resets, heard.goodbye), (vec![], Some(go_away::OK)));
}

#[tokio::test]
async fn a_peer_without_windows_sends_and_gets_far_more_than_a_window() {
    let (mut client, mut connection, _tasks) = connected(FOREVER);
    let (id, reader, writer) = open(&mut client, &mut connection).await;
    let much: Bytes = (0..WINDOW * 10).map(|number| number as u8).collect::<Vec<u8>>().into();
    let echo = async {
        let all = read_all(reader).await;
        writer.write(all.into()).await.unwrap();
        writer.finish().await;
        connection.close().await;
    };
    let talk = async {
        client.data(id, much.clone(), true).await;
        client.hear().await
    };
    let (heard, ()) = tokio::join!(talk, echo);
    assert!(heard.data == [(id, (much.to_vec(), true))].into());
}

#[tokio::test]
async fn a_full_buffer_holds_the_peer_up_until_it_is_read_or_dropped() {
    let (mut client, mut connection, _tasks) = connected(FOREVER);
    let (id, reader, _writer) = open(&mut client, &mut connection).await;
    let mut sending = JoinSet::new();
    sending.spawn(async move {
        client.data(id, vec![0; 4 * WINDOW as usize], false).await;
        client
    });
    // All tasks have run as far as they can when this one is the only one ready, many times over.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(sending.try_join_next().is_none(), "the connection took more than a buffer");
    drop(reader);
    let mut client = sending.join_next().await.unwrap().unwrap();
    client.send(Frame::Ping(1)).await;
    assert_eq!(client.frame().await, Some(Frame::Ping(1)));
}

#[tokio::test]
async fn a_peer_that_announces_a_window_gets_no_more_than_it() {
    let (mut client, mut connection, _tasks) = connected(FOREVER);
    client.send(Frame::Settings(vec![Setting { flags: 0, id: INITIAL_WINDOW_SIZE, value: 10 }])).await;
    let (id, _reader, writer) = open(&mut client, &mut connection).await;
    let write = async {
        writer.write(Bytes::from_static(b"0123456789abcdef")).await.unwrap();
        writer.finish().await;
    };
    let talk = async {
        assert_eq!(client.frame().await, Some(Frame::Data { id, fin: false, data: "0123456789".into() }));
        // The answer to this shows that nothing else was on its way.
        client.send(Frame::Ping(7)).await;
        assert_eq!(client.frame().await, Some(Frame::Ping(7)));
        client.send(Frame::WindowUpdate { id, delta: 100 }).await;
        assert_eq!(client.frame().await, Some(Frame::Data { id, fin: false, data: "abcdef".into() }));
        assert_eq!(client.frame().await, Some(Frame::Data { id, fin: true, data: "".into() }));
    };
    tokio::join!(write, talk);
}

#[tokio::test]
async fn a_peer_that_keeps_windows_is_given_back_what_was_read() {
    let (mut client, mut connection, _tasks) = connected(FOREVER);
    let (id, mut reader, _writer) = open(&mut client, &mut connection).await;
    client.send(Frame::WindowUpdate { id, delta: 1 }).await;
    for _ in 0..WINDOW as usize / PIECE {
        client.data(id, vec![0; PIECE], false).await;
        let mut read = 0;
        while read < PIECE {
            read += reader.read().await.unwrap().len();
        }
    }
    assert_eq!(client.frame().await, Some(Frame::WindowUpdate { id, delta: WINDOW / 2 }));
}

#[tokio::test]
async fn a_peer_that_keeps_windows_and_overruns_ours_loses_the_stream() {
    let (mut client, mut connection, _tasks) = connected(FOREVER);
    let (id, reader, writer) = open(&mut client, &mut connection).await;
    client.send(Frame::WindowUpdate { id, delta: 1 }).await;
    client.data(id, vec![0; WINDOW as usize], false).await;
    client.data(id, "x", false).await;
    assert_eq!(client.frame().await, Some(Frame::Reset { id, status: reset::FLOW_CONTROL }));
    assert_eq!(read_all(reader).await.len(), WINDOW as usize);
    assert!(writer.write(Bytes::from("y")).await.is_err());
}

#[tokio::test]
async fn more_streams_than_allowed_are_refused_and_one_that_ends_makes_room() {
    let (mut client, mut connection, _tasks) = connected(Limits { streams: 2, ..FOREVER });
    let (first, _first_reader, first_writer) = open(&mut client, &mut connection).await;
    let (_second, _reader, _writer) = open(&mut client, &mut connection).await;
    let third = client.syn(&[]).await;
    assert_eq!(client.frame().await, Some(Frame::Reset { id: third, status: reset::REFUSED }));
    client.send(Frame::Reset { id: first, status: reset::CANCEL }).await;
    first_writer.closed().await;
    open(&mut client, &mut connection).await;
}

#[tokio::test]
async fn data_after_the_end_of_a_stream_resets_it() {
    let (mut client, mut connection, _tasks) = connected(FOREVER);
    let (id, reader, _writer) = open(&mut client, &mut connection).await;
    client.data(id, "a", true).await;
    client.data(id, "b", false).await;
    assert_eq!(client.frame().await, Some(Frame::Reset { id, status: reset::PROTOCOL_ERROR }));
    assert_eq!(read_all(reader).await, b"a");
}

#[tokio::test]
async fn data_on_a_stream_that_has_ended_is_dropped() {
    let (mut client, mut connection, _tasks) = connected(FOREVER);
    let (id, _reader, writer) = open(&mut client, &mut connection).await;
    writer.cancel().await;
    assert_eq!(client.frame().await, Some(Frame::Reset { id, status: reset::CANCEL }));
    client.data(id, "late", true).await;
    client.send(Frame::Ping(3)).await;
    assert_eq!(client.frame().await, Some(Frame::Ping(3)));
}

#[tokio::test]
async fn what_breaks_the_protocol_ends_the_connection_with_goaway() {
    let mut even = BytesMut::new();
    even.put_slice(b"\0\0\0\x02\0\0\0\0");
    let cases: [&[u8]; 5] = [
        b"\0\0\0\x09\0\0\0\x01x",
        b"\0\0\0\0\0\0\0\0",
        &even,
        b"\x80\x02\0\x01\0\0\0\x0a\0\0\0\x01\0\0\0\0\0\0",
        b"\x80\x03\0\x01\0\0\0\x0a\0\0\0\x01\0\0\0\0\0\0",
    ];
    for wire in cases {
        let (mut client, mut connection, _tasks) = connected(FOREVER);
        client.raw(wire).await;
        let heard = client.hear().await;
        assert_eq!(heard.goodbye, Some(go_away::PROTOCOL_ERROR), "{wire:?}");
        assert!(connection.accept().await.is_none());
        connection.ended().await;
    }
}

#[tokio::test]
async fn a_peer_that_leaves_ends_readers_and_writers() {
    let (mut client, mut connection, mut tasks) = connected(FOREVER);
    let (id, mut reader, writer) = open(&mut client, &mut connection).await;
    client.data(id, "last", false).await;
    drop(client);
    connection.ended().await;
    assert_eq!(reader.read().await, Some(Bytes::from("last")));
    assert_eq!(reader.read().await, None);
    assert!(writer.write(Bytes::from("x")).await.is_err());
    tasks.join_next().await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_and_a_frame_in_time_keeps_it() {
    let idle = Duration::from_secs(100);
    let (mut client, connection, mut tasks) = connected(Limits { idle, ..FOREVER });
    tokio::time::sleep(Duration::from_secs(99)).await;
    client.send(Frame::Ping(1)).await;
    assert_eq!(client.frame().await, Some(Frame::Ping(1)));
    let kept = tokio::time::Instant::now();
    tasks.spawn(async move { connection.ended().await });
    tasks.join_next().await.unwrap().unwrap();
    assert_eq!(kept.elapsed().as_secs(), 100);
    assert_eq!(client.hear().await.goodbye, Some(go_away::OK));
}

#[tokio::test(start_paused = true)]
async fn closing_waits_only_so_long_for_a_peer_that_does_not_close() {
    let (client, connection, mut tasks) = connected(FOREVER);
    connection.close().await;
    tasks.join_next().await.unwrap().unwrap();
    assert_eq!(client.hear().await.goodbye, Some(go_away::OK));
}
