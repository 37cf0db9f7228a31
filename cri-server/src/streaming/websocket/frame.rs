//! WebSocket frames (RFC 6455 §5): bytes to whole messages, and messages to frames. No I/O.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The longest message that is taken. Kubernetes clients cut theirs at 32 or 64 KiB.
pub(super) const LONGEST: usize = 4 << 20;

/// The longest control frame (§5.5).
const LONGEST_CONTROL: usize = 125;

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

/// A whole message of the client, or one for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Text(Bytes),
    Binary(Bytes),
    Ping(Bytes),
    Pong(Bytes),
    /// With the code and the reason as they are on the wire.
    Close(Bytes),
}

impl Message {
    /// The end, and that all is well: code 1000.
    pub(super) fn done() -> Message {
        Message::Close(Bytes::from_static(&[0x03, 0xE8]))
    }

    /// The message as one frame. A server does not mask.
    pub(super) fn encode(&self) -> Bytes {
        let (opcode, payload) = match self {
            Message::Text(payload) => (TEXT, payload),
            Message::Binary(payload) => (BINARY, payload),
            Message::Ping(payload) => (PING, payload),
            Message::Pong(payload) => (PONG, payload),
            Message::Close(payload) => (CLOSE, payload),
        };
        let mut frame = BytesMut::with_capacity(payload.len() + 10);
        frame.put_u8(0x80 | opcode);
        match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
            (Ok(length), _) if length < 126 => frame.put_u8(length),
            (_, Ok(length)) => {
                frame.put_u8(126);
                frame.put_u16(length);
            }
            _ => {
                frame.put_u8(127);
                frame.put_u64(payload.len() as u64);
            }
        }
        frame.put_slice(payload);
        frame.freeze()
    }
}

/// What a client did that ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("a client's frame is not masked")]
    Unmasked,
    #[error("a frame has an unknown opcode or a reserved bit")]
    Unknown,
    #[error("a control frame is fragmented or too long")]
    Control,
    #[error("a message is continued that was not begun, or begun before the one before it ended")]
    Order,
    #[error("a message is longer than {LONGEST} bytes")]
    TooLong,
}

/// Puts messages together from the client's bytes.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    pub(super) input: BytesMut,
    /// Opcode and content so far of a message in fragments.
    begun: Option<(u8, BytesMut)>,
}

impl Decoder {
    /// The next message that `input` completes.
    pub(super) fn next(&mut self) -> Result<Option<Message>, Violation> {
        while let Some((last, opcode, payload)) = self.frame()? {
            if opcode >= CLOSE {
                if !last || payload.len() > LONGEST_CONTROL {
                    return Err(Violation::Control);
                }
                return Ok(Some(match opcode {
                    PING => Message::Ping(payload),
                    PONG => Message::Pong(payload),
                    _ => Message::Close(payload),
                }));
            }
            if let Some(message) = self.part(last, opcode, payload)? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// Takes in a data frame.
    fn part(&mut self, last: bool, opcode: u8, payload: Bytes) -> Result<Option<Message>, Violation> {
        let (kind, content) = match (self.begun.take(), opcode) {
            (Some((kind, mut content)), CONTINUATION) => {
                if content.len() + payload.len() > LONGEST {
                    return Err(Violation::TooLong);
                }
                content.extend_from_slice(&payload);
                (kind, content.freeze())
            }
            (None, TEXT | BINARY) => (opcode, payload),
            _ => return Err(Violation::Order),
        };
        if !last {
            self.begun = Some((kind, BytesMut::from(content)));
            return Ok(None);
        }
        Ok(Some(if kind == TEXT { Message::Text(content) } else { Message::Binary(content) }))
    }

    /// One frame, unmasked: whether it is its message's last, its opcode, its payload.
    fn frame(&mut self) -> Result<Option<(bool, u8, Bytes)>, Violation> {
        let &[first, second, ref rest @ ..] = &self.input[..] else { return Ok(None) };
        let opcode = first & 0x0F;
        if first & 0x70 != 0 || !matches!(opcode, CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG) {
            return Err(Violation::Unknown);
        }
        if second & 0x80 == 0 {
            return Err(Violation::Unmasked);
        }
        let (length, extended) = match (second & 0x7F, rest) {
            (126, [a, b, ..]) => (u64::from(u16::from_be_bytes([*a, *b])), 2),
            (127, [a, b, c, d, e, f, g, h, ..]) => (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), 8),
            (126 | 127, _) => return Ok(None),
            (length, _) => (u64::from(length), 0),
        };
        let length = usize::try_from(length).ok().filter(|length| *length <= LONGEST).ok_or(Violation::TooLong)?;
        let head = 2 + extended + 4;
        if self.input.len() < head + length {
            return Ok(None);
        }
        self.input.advance(2 + extended);
        let key = self.input.split_to(4);
        let mut payload = self.input.split_to(length);
        for (byte, key) in payload.iter_mut().zip(key.iter().cycle()) {
            *byte ^= key;
        }
        Ok(Some((first & 0x80 != 0, opcode, payload.freeze())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client's frame.
    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let key = [1, 2, 3, 4];
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..126 => frame.push(0x80 | length as u8),
            length @ 126..65536 => {
                frame.push(0x80 | 126);
                frame.extend((length as u16).to_be_bytes());
            }
            length => {
                frame.push(0x80 | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(key);
        frame.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
        frame
    }

    fn decode(bytes: &[u8]) -> Result<Vec<Message>, Violation> {
        let mut decoder = Decoder { input: BytesMut::from(bytes), begun: None };
        let mut messages = Vec::new();
        while let Some(message) = decoder.next()? {
            messages.push(message);
        }
        Ok(messages)
    }

    #[test]
    fn messages_come_whole_however_they_are_cut() {
        let long = vec![7u8; 70_000];
        let sent = [
            masked(0x82, b"a"),
            masked(0x01, b"te"),
            masked(0x89, b"ping"),
            masked(0x80, b"xt"),
            masked(0x82, &long),
            masked(0x88, &[3, 232]),
        ]
        .concat();
        let expected = [
            Message::Binary(Bytes::from_static(b"a")),
            Message::Ping(Bytes::from_static(b"ping")),
            Message::Text(Bytes::from_static(b"text")),
            Message::Binary(long.into()),
            Message::done(),
        ];
        assert_eq!(decode(&sent).unwrap(), expected);
        let mut decoder = Decoder::default();
        let mut messages = Vec::new();
        for byte in &sent {
            decoder.input.put_u8(*byte);
            messages.extend(decoder.next().unwrap());
        }
        assert_eq!(messages, expected);
    }

    #[test]
    fn what_the_protocol_forbids_is_told_apart() {
        assert_eq!(decode(&[0x82, 0x01, b'a']), Err(Violation::Unmasked));
        assert_eq!(decode(&masked(0x83, b"a")), Err(Violation::Unknown));
        assert_eq!(decode(&masked(0xC2, b"a")), Err(Violation::Unknown));
        assert_eq!(decode(&masked(0x09, b"a")), Err(Violation::Control));
        assert_eq!(decode(&masked(0x80, b"a")), Err(Violation::Order));
        assert_eq!(decode(&[masked(0x02, b"a"), masked(0x82, b"b")].concat()), Err(Violation::Order));
        assert_eq!(decode(&[0x82, 0xFF, 0, 0, 0, 0, 0xFF, 0, 0, 0]), Err(Violation::TooLong));
    }

    #[test]
    fn a_frame_says_its_length_in_the_shortest_form() {
        assert_eq!(&Message::Binary(Bytes::from_static(b"ab")).encode()[..], [0x82, 2, b'a', b'b']);
        assert_eq!(&Message::Text(vec![0; 300].into()).encode()[..4], [0x81, 126, 1, 44]);
        assert_eq!(&Message::Binary(vec![0; 65536].into()).encode()[..10], [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(&Message::done().encode()[..], [0x88, 2, 3, 232]);
    }
}
