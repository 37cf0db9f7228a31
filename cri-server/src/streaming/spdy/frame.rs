//! SPDY/3 frames and bytes, in both directions. No IO, no streams, no policy.
//!
//! ```text
//! control  1 version:15 type:16 | flags:8 length:24 | payload        data  0 stream:31 | flags:8 length:24 | bytes
//! ```
//!
//! A data frame can be 16 MiB, so it is handed on in the pieces in which it arrives, and only the last has `fin`. A control
//! frame is read whole and may not be longer than [`MAX_CONTROL`]. Any bytes give frames or a [`FrameError`], which ends the
//! connection; frames of unknown types are skipped, as the protocol asks.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

use super::headers::{Compressor, Decompressor, Headers};

/// One frame, or a piece of a data frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    SynStream { id: u32, associated: u32, priority: u8, fin: bool, unidirectional: bool, headers: Headers },
    SynReply { id: u32, fin: bool, headers: Headers },
    Reset { id: u32, status: u32 },
    Settings(Vec<Setting>),
    Ping(u32),
    GoAway { last: u32, status: u32 },
    Headers { id: u32, fin: bool, headers: Headers },
    WindowUpdate { id: u32, delta: u32 },
    Data { id: u32, fin: bool, data: Bytes },
}

/// One entry of a SETTINGS frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) flags: u8,
    /// 24 bits.
    pub(crate) id: u32,
    pub(crate) value: u32,
}

/// The setting that gives every stream its first window.
pub(super) const INITIAL_WINDOW_SIZE: u32 = 7;

/// Why a stream is reset: the values of RST_STREAM.
pub(super) mod reset {
    pub(crate) const PROTOCOL_ERROR: u32 = 1;
    pub(crate) const REFUSED: u32 = 3;
    pub(crate) const CANCEL: u32 = 5;
    pub(crate) const FLOW_CONTROL: u32 = 7;
}

/// Why a connection ends: the values of GOAWAY.
pub(super) mod go_away {
    pub(crate) const OK: u32 = 0;
    pub(crate) const PROTOCOL_ERROR: u32 = 1;
}

/// Bytes that are no SPDY/3. The connection cannot go on.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum FrameError {
    #[error("SPDY version {0} is not 3")]
    Version(u16),
    #[error("a control frame of {0} bytes is too long")]
    TooLong(usize),
    #[error("a control frame of type {0} is malformed")]
    Malformed(u16),
    #[error("header block: {0}")]
    Headers(&'static str),
}

/// The longest control frame that is read.
pub(super) const MAX_CONTROL: usize = 64 * 1024;

/// The longest piece in which a data frame is handed on, and the longest data frame that is written.
pub(super) const PIECE: usize = 16 * 1024;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

const FLAG_FIN: u8 = 1;
const FLAG_UNIDIRECTIONAL: u8 = 2;
const ID: u32 = 0x7fff_ffff;
const HEAD: usize = 8;

/// Frames to bytes.
pub(crate) struct Encoder {
    zlib: Compressor,
}

impl Encoder {
    pub(crate) fn new() -> Encoder {
        Encoder { zlib: Compressor::new() }
    }

    /// Appends the frame to `out`.
    pub(crate) fn encode(&mut self, frame: &Frame, out: &mut BytesMut) {
        let mut payload = Vec::new();
        let (kind, flags) = match frame {
            Frame::Data { id, fin, data } => {
                out.put_u32(id & ID);
                out.put_u32(word(u8::from(*fin) * FLAG_FIN, data.len()));
                out.put_slice(data);
                return;
            }
            Frame::SynStream { id, associated, priority, fin, unidirectional, headers } => {
                payload.put_u32(id & ID);
                payload.put_u32(associated & ID);
                payload.put_u8(priority << 5);
                payload.put_u8(0);
                payload.extend(self.zlib.block(headers));
                (SYN_STREAM, u8::from(*fin) * FLAG_FIN + u8::from(*unidirectional) * FLAG_UNIDIRECTIONAL)
            }
            Frame::SynReply { id, fin, headers } => {
                payload.put_u32(id & ID);
                payload.extend(self.zlib.block(headers));
                (SYN_REPLY, u8::from(*fin) * FLAG_FIN)
            }
            Frame::Headers { id, fin, headers } => {
                payload.put_u32(id & ID);
                payload.extend(self.zlib.block(headers));
                (HEADERS, u8::from(*fin) * FLAG_FIN)
            }
            Frame::Reset { id, status } => (RST_STREAM, two(&mut payload, *id, *status)),
            Frame::GoAway { last, status } => (GOAWAY, two(&mut payload, *last, *status)),
            Frame::WindowUpdate { id, delta } => (WINDOW_UPDATE, two(&mut payload, *id, *delta)),
            Frame::Ping(id) => {
                payload.put_u32(*id);
                (PING, 0)
            }
            Frame::Settings(settings) => {
                payload.put_u32(u32::try_from(settings.len()).unwrap_or(u32::MAX));
                for setting in settings {
                    payload.put_u32(u32::from(setting.flags) << 24 | setting.id & 0x00ff_ffff);
                    payload.put_u32(setting.value);
                }
                (SETTINGS, 0)
            }
        };
        out.put_u16(0x8003);
        out.put_u16(kind);
        out.put_u32(word(flags, payload.len()));
        out.put_slice(&payload);
    }
}

fn two(payload: &mut Vec<u8>, first: u32, second: u32) -> u8 {
    payload.put_u32(first & ID);
    payload.put_u32(second);
    0
}

/// Flags and length, which no frame of ours exceeds: data is cut into pieces and control frames are short.
fn word(flags: u8, length: usize) -> u32 {
    u32::from(flags) << 24 | u32::try_from(length).unwrap_or(u32::MAX) & 0x00ff_ffff
}

/// Bytes to frames.
pub(crate) struct Decoder {
    zlib: Decompressor,
    state: State,
}

/// What the next byte belongs to.
enum State {
    Head,
    /// A data frame of which this much is still to come.
    Data {
        id: u32,
        fin: bool,
        left: usize,
    },
    /// A control frame of unknown type of which this much is still to come.
    Skip {
        left: usize,
    },
}

impl Decoder {
    pub(crate) fn new() -> Decoder {
        Decoder { zlib: Decompressor::new(), state: State::Head }
    }

    /// Takes the next frame off `input`, or `None` when more bytes are needed.
    pub(crate) fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        loop {
            match self.state {
                State::Data { id, fin, left } => return Ok(self.piece(input, id, fin, left)),
                State::Skip { left } => {
                    let taken = left.min(input.len());
                    input.advance(taken);
                    if taken < left {
                        self.state = State::Skip { left: left - taken };
                        return Ok(None);
                    }
                    self.state = State::Head;
                }
                State::Head => {
                    let Some(head) = input.get(..HEAD) else { return Ok(None) };
                    let (mut first, mut second) = (&head[..4], &head[4..]);
                    let (first, second) = (first.get_u32(), second.get_u32());
                    let (flags, length) = ((second >> 24) as u8, (second & 0x00ff_ffff) as usize);
                    if first >> 31 == 0 {
                        input.advance(HEAD);
                        self.state = State::Data { id: first, fin: flags & FLAG_FIN != 0, left: length };
                        continue;
                    }
                    let (version, kind) = ((first >> 16 & 0x7fff) as u16, first as u16);
                    if version != 3 {
                        return Err(FrameError::Version(version));
                    }
                    if !(SYN_STREAM..=SETTINGS).contains(&kind) && !(PING..=WINDOW_UPDATE).contains(&kind) {
                        input.advance(HEAD);
                        self.state = State::Skip { left: length };
                        continue;
                    }
                    if length > MAX_CONTROL {
                        return Err(FrameError::TooLong(length));
                    }
                    if input.len() < HEAD + length {
                        return Ok(None);
                    }
                    input.advance(HEAD);
                    let payload = input.split_to(length);
                    return self.control(kind, flags, &payload).map(Some);
                }
            }
        }
    }

    fn piece(&mut self, input: &mut BytesMut, id: u32, fin: bool, left: usize) -> Option<Frame> {
        let taken = left.min(input.len()).min(PIECE);
        if taken == 0 && left > 0 {
            return None;
        }
        let last = taken == left;
        self.state = if last { State::Head } else { State::Data { id, fin, left: left - taken } };
        // A copy, so that a small piece never keeps the whole read buffer alive.
        let data = Bytes::copy_from_slice(&input[..taken]);
        input.advance(taken);
        Some(Frame::Data { id, fin: fin && last, data })
    }

    fn control(&mut self, kind: u16, flags: u8, mut payload: &[u8]) -> Result<Frame, FrameError> {
        let malformed = |_| FrameError::Malformed(kind);
        let fin = flags & FLAG_FIN != 0;
        let first = payload.try_get_u32().map_err(malformed)?;
        let id = first & ID;
        let frame = match kind {
            SYN_STREAM => {
                let associated = payload.try_get_u32().map_err(malformed)? & ID;
                let priority = payload.try_get_u8().map_err(malformed)? >> 5;
                payload.try_get_u8().map_err(malformed)?;
                let headers = self.zlib.headers(payload)?;
                let unidirectional = flags & FLAG_UNIDIRECTIONAL != 0;
                return Ok(Frame::SynStream { id, associated, priority, fin, unidirectional, headers });
            }
            SYN_REPLY => return Ok(Frame::SynReply { id, fin, headers: self.zlib.headers(payload)? }),
            HEADERS => return Ok(Frame::Headers { id, fin, headers: self.zlib.headers(payload)? }),
            SETTINGS => {
                let mut settings = Vec::new();
                for _ in 0..first {
                    let head = payload.try_get_u32().map_err(malformed)?;
                    let value = payload.try_get_u32().map_err(malformed)?;
                    settings.push(Setting { flags: (head >> 24) as u8, id: head & 0x00ff_ffff, value });
                }
                Frame::Settings(settings)
            }
            PING => Frame::Ping(first),
            RST_STREAM => Frame::Reset { id, status: payload.try_get_u32().map_err(malformed)? },
            GOAWAY => Frame::GoAway { last: id, status: payload.try_get_u32().map_err(malformed)? },
            WINDOW_UPDATE => Frame::WindowUpdate { id, delta: payload.try_get_u32().map_err(malformed)? & ID },
            _ => return Err(FrameError::Malformed(kind)),
        };
        if payload.is_empty() { Ok(frame) } else { Err(FrameError::Malformed(kind)) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn headers() -> impl Strategy<Value = Headers> {
        proptest::collection::btree_map("[a-z:-]{1,12}", "[ -~]{0,40}", 0..6).prop_map(|map| map.into_iter().collect())
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let id = || 0..=ID;
        prop_oneof![
            (id(), id(), 0..8u8, any::<bool>(), any::<bool>(), headers()).prop_map(
                |(id, associated, priority, fin, unidirectional, headers)| Frame::SynStream {
                    id,
                    associated,
                    priority,
                    fin,
                    unidirectional,
                    headers
                }
            ),
            (id(), any::<bool>(), headers()).prop_map(|(id, fin, headers)| Frame::SynReply { id, fin, headers }),
            (id(), any::<bool>(), headers()).prop_map(|(id, fin, headers)| Frame::Headers { id, fin, headers }),
            (id(), any::<u32>()).prop_map(|(id, status)| Frame::Reset { id, status }),
            (id(), any::<u32>()).prop_map(|(last, status)| Frame::GoAway { last, status }),
            (id(), id()).prop_map(|(id, delta)| Frame::WindowUpdate { id, delta }),
            any::<u32>().prop_map(Frame::Ping),
            vec((any::<u8>(), 0..1u32 << 24, any::<u32>()), 0..5).prop_map(|all| Frame::Settings(
                all.into_iter().map(|(flags, id, value)| Setting { flags, id, value }).collect()
            )),
            (id(), any::<bool>(), vec(any::<u8>(), 0..300)).prop_map(|(id, fin, data)| Frame::Data {
                id,
                fin,
                data: data.into()
            }),
        ]
    }

    proptest! {
        #[test]
        fn frames_survive_the_wire_in_order(frames in vec(frame(), 0..12)) {
            let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
            let mut wire = BytesMut::new();
            frames.iter().for_each(|frame| encoder.encode(frame, &mut wire));
            let mut read = Vec::new();
            while let Some(frame) = decoder.decode(&mut wire).unwrap() {
                read.push(frame);
            }
            prop_assert_eq!(read, frames);
            prop_assert!(wire.is_empty());
        }

        #[test]
        fn bytes_that_come_one_by_one_give_the_same_stream(data in vec(any::<u8>(), 1..200), fin in any::<bool>()) {
            let mut wire = BytesMut::new();
            Encoder::new().encode(&Frame::Data { id: 1, fin, data: data.clone().into() }, &mut wire);
            let (mut decoder, mut input, mut read, mut ended) = (Decoder::new(), BytesMut::new(), Vec::new(), false);
            for byte in wire {
                input.put_u8(byte);
                while let Some(Frame::Data { id: 1, fin, data }) = decoder.decode(&mut input).unwrap() {
                    prop_assert!(!ended);
                    read.extend(data);
                    ended = fin;
                }
            }
            prop_assert_eq!((read, ended), (data, fin));
        }

        #[test]
        fn any_bytes_give_frames_or_an_error(bytes in vec(any::<u8>(), 0..400)) {
            let mut input = BytesMut::from(bytes.as_slice());
            let mut decoder = Decoder::new();
            while let Ok(Some(_)) = decoder.decode(&mut input) {}
        }

        #[test]
        fn any_control_payload_gives_a_frame_or_an_error(kind in 0..12u16, flags in any::<u8>(), bytes in vec(any::<u8>(), 0..200)) {
            let mut input = BytesMut::new();
            input.put_u16(0x8003);
            input.put_u16(kind);
            input.put_u32(word(flags, bytes.len()));
            input.put_slice(&bytes);
            let mut decoder = Decoder::new();
            while let Ok(Some(_)) = decoder.decode(&mut input) {}
        }
    }

    fn decode(bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
        Decoder::new().decode(&mut BytesMut::from(bytes))
    }

    #[test]
    fn a_frame_of_another_version_or_without_bound_is_refused() {
        assert_eq!(decode(b"\x80\x02\0\x06\0\0\0\x04\0\0\0\x01"), Err(FrameError::Version(2)));
        assert_eq!(decode(b"\x80\x03\0\x01\0\xff\xff\xff"), Err(FrameError::TooLong(0xff_ffff)));
        assert_eq!(decode(b"\x80\x03\0\x04\0\0\0\x04\xff\xff\xff\xff"), Err(FrameError::Malformed(4)));
        assert_eq!(decode(b"\x80\x03\0\x06\0\0\0\x05\0\0\0\x01\0"), Err(FrameError::Malformed(6)));
    }

    #[test]
    fn a_frame_of_unknown_type_is_skipped() {
        assert_eq!(decode(b"\x80\x03\0\x0a\0\0\0\x03abc\x80\x03\0\x06\0\0\0\x04\0\0\0\x09"), Ok(Some(Frame::Ping(9))));
    }

    #[test]
    fn a_long_data_frame_comes_in_pieces_and_only_the_last_ends_the_stream() {
        let mut input = BytesMut::new();
        Encoder::new().encode(&Frame::Data { id: 3, fin: true, data: vec![7; PIECE + 1].into() }, &mut input);
        let mut decoder = Decoder::new();
        let piece = |fin, length| Some(Frame::Data { id: 3, fin, data: vec![7; length].into() });
        assert_eq!(decoder.decode(&mut input), Ok(piece(false, PIECE)));
        assert_eq!(decoder.decode(&mut input), Ok(piece(true, 1)));
        assert_eq!(decoder.decode(&mut input), Ok(None));
    }
}
