//! Channels in messages: the first byte of a message says which channel the rest belongs to. No I/O.
//!
//! ```text
//! binary    channel:u8  content…
//! base64    a text: the character '0' + channel, then the content in base64
//! ```

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{BufMut, Bytes, BytesMut};

use super::frame::Message;

/// The channel whose message is the number of another that ends here (v5 of the protocols).
pub(super) const CLOSE: u8 = 255;

/// How a subprotocol writes its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Binary,
    Base64,
}

impl Coding {
    /// The message. In base64, channels above [`Coding::MOST`] would be no text.
    pub(super) fn encode(self, channel: u8, content: &[u8]) -> Message {
        let mut message = BytesMut::with_capacity(content.len() + 1);
        match self {
            Coding::Binary => {
                message.put_u8(channel);
                message.put_slice(content);
                Message::Binary(message.freeze())
            }
            Coding::Base64 => {
                message.put_u8(b'0' + channel.min(Coding::MOST));
                message.put_slice(STANDARD.encode(content).as_bytes());
                Message::Text(message.freeze())
            }
        }
    }

    /// The highest channel that both codings have: its character is the last printable one of ASCII.
    pub(super) const MOST: u8 = b'~' - b'0';

    /// Channel and content; `None` for what is neither.
    pub(super) fn decode(self, message: &Bytes) -> Option<(u8, Bytes)> {
        let channel = *message.first()?;
        match self {
            Coding::Binary => Some((channel, message.slice(1..))),
            Coding::Base64 => {
                let content = STANDARD.decode(message.get(1..)?).ok()?;
                Some((channel.checked_sub(b'0')?, content.into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded_and_what_is_no_message_is_told() {
        for coding in [Coding::Binary, Coding::Base64] {
            for channel in [0, 1, 9, 10, Coding::MOST] {
                let (Message::Binary(message) | Message::Text(message)) = coding.encode(channel, b"hi") else {
                    panic!("{coding:?} makes no data message");
                };
                assert_eq!(coding.decode(&message), Some((channel, Bytes::from_static(b"hi"))), "{coding:?}");
            }
            assert_eq!(coding.decode(&Bytes::new()), None, "{coding:?}");
        }
        assert_eq!(Coding::Base64.encode(10, b"hi"), Message::Text(Bytes::from_static(b":aGk=")));
        assert_eq!(Coding::Base64.decode(&Bytes::from_static(b"0?")), None);
        assert_eq!(Coding::Base64.decode(&Bytes::from_static(b"/aGk=")), None);
    }
}
