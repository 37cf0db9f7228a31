//! CRIU's image files: a magic number or two, then messages of protobuf, each behind its length.
//!
//! ```text
//! inventory.img   magic u32 │ len u32 │ message            all others   0x54564319 u32 │ magic u32 │ len u32 │ message │ …
//! ```
//!
//! Whoever restores parses the same bytes with another program, and a file that the two read differently would pass the
//! one and be acted on by the other. So this reader knows every field that may be there and refuses the rest: fields it does
//! not know, a field twice that may be there once, numbers that do not fit, groups, and what is left over at the end.

use thiserror::Error;

/// Before the magic number of every file but the inventory (image format 1.1).
const COMMON: u32 = 0x5456_4319;
/// A message that decides about privileges is small; the largest are tables of open files.
const MAX_MESSAGE: usize = 16 << 20;

/// Why a checkpoint is not restored: what was found, and where.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub(crate) struct Refused(pub(crate) String);

impl Refused {
    pub(crate) fn new(why: impl Into<String>) -> Refused {
        Refused(why.into())
    }

    /// The same, of a certain file or process.
    pub(crate) fn of(self, what: impl std::fmt::Display) -> Refused {
        Refused(format!("{what}: {}", self.0))
    }
}

/// One of the images that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Magic {
    Inventory = 0x5831_3116,
    Pstree = 0x5027_3030,
    Core = 0x5505_3847,
    Ids = 0x5443_2030,
    Mounts = 0x5556_3928,
    Files = 0x5630_3138,
    FdInfo = 0x5621_3732,
    Cgroup = 0x5938_3330,
    NetNs = 0x5593_3752,
    PidNs = 0x6115_7326,
    Remap = 0x5913_3954,
    Ghost = 0x5258_3605,
    TtyInfo = 0x5945_3036,
    Seccomp = 0x6441_3049,
}

/// The messages in a file.
pub(crate) fn messages(file: &[u8], magic: Magic) -> Result<Vec<&[u8]>, Refused> {
    let mut rest = file;
    if magic != Magic::Inventory && word(&mut rest)? != COMMON {
        return Err(Refused::new("it is no image of CRIU's format 1.1"));
    }
    if word(&mut rest)? != magic as u32 {
        return Err(Refused::new("its magic number is not the one of its name"));
    }
    let mut found = Vec::new();
    while !rest.is_empty() {
        found.push(message(&mut rest)?);
    }
    Ok(found)
}

/// The first message of a file that goes on with raw data.
pub(crate) fn first_message(file: &[u8], magic: Magic) -> Result<&[u8], Refused> {
    let mut rest = file;
    if word(&mut rest)? != COMMON || word(&mut rest)? != magic as u32 {
        return Err(Refused::new("its magic number is not the one of its name"));
    }
    message(&mut rest)
}

/// The only message of a file that has one.
pub(crate) fn only(file: &[u8], magic: Magic) -> Result<&[u8], Refused> {
    match messages(file, magic)?.as_slice() {
        [one] => Ok(one),
        found => Err(Refused(format!("it holds {} messages, not one", found.len()))),
    }
}

fn word(rest: &mut &[u8]) -> Result<u32, Refused> {
    let (head, tail) = rest.split_first_chunk::<4>().ok_or_else(|| Refused::new("it is cut short"))?;
    *rest = tail;
    Ok(u32::from_le_bytes(*head))
}

fn message<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Refused> {
    let size = word(rest)? as usize;
    if size > MAX_MESSAGE {
        return Err(Refused(format!("a message of it has {size} bytes, at most {MAX_MESSAGE} are read")));
    }
    let (message, tail) = rest.split_at_checked(size).ok_or_else(|| Refused::new("it is cut short"))?;
    *rest = tail;
    Ok(message)
}

/// The fields that a kind of message may have, by their numbers.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) once: &'static [u32],
    pub(crate) many: &'static [u32],
}

/// A message, with the fields of its kind and no others.
pub(crate) struct Message<'a> {
    kind: &'static Kind,
    fields: Vec<(u32, Value<'a>)>,
    /// The fields as they stand in the file, in the same order.
    raw: Vec<&'a [u8]>,
}

#[derive(Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Fixed width; nothing that is read here has it.
    Fixed,
}

impl<'a> Message<'a> {
    pub(crate) fn parse(bytes: &'a [u8], kind: &'static Kind) -> Result<Message<'a>, Refused> {
        let broken = || Refused(format!("a {} in it is broken", kind.name));
        let mut rest = bytes;
        let mut fields: Vec<(u32, Value<'a>)> = Vec::new();
        let mut raw = Vec::new();
        while !rest.is_empty() {
            let start = rest;
            let key = varint(&mut rest).ok_or_else(broken)?;
            let number = u32::try_from(key >> 3).map_err(|_| broken())?;
            let value = match key & 7 {
                0 => Value::Number(varint(&mut rest).ok_or_else(broken)?),
                2 => {
                    let length = varint(&mut rest).ok_or_else(broken)?;
                    let length = usize::try_from(length).map_err(|_| broken())?;
                    let (value, tail) = rest.split_at_checked(length).ok_or_else(broken)?;
                    rest = tail;
                    Value::Bytes(value)
                }
                width @ (1 | 5) => {
                    let (_, tail) = rest.split_at_checked(if width == 1 { 8 } else { 4 }).ok_or_else(broken)?;
                    rest = tail;
                    Value::Fixed
                }
                _ => return Err(broken()),
            };
            let (once, many) = (kind.once.contains(&number), kind.many.contains(&number));
            if !once && !many {
                let what = kind.name;
                return Err(Refused(format!("a {what} in it has field {number}, which this program does not know")));
            }
            if once && fields.iter().any(|(known, _)| *known == number) {
                return Err(Refused(format!("a {} in it has field {number} twice", kind.name)));
            }
            fields.push((number, value));
            raw.push(&start[..start.len() - rest.len()]);
        }
        Ok(Message { kind, fields, raw })
    }

    /// The message as it is, but for these fields.
    pub(crate) fn without(&self, left_out: &[u32]) -> Writer {
        let kept = self.fields.iter().zip(&self.raw).filter(|((number, _), _)| !left_out.contains(number));
        Writer(kept.flat_map(|(_, raw)| raw.iter().copied()).collect())
    }

    /// A number of at most 32 bits.
    pub(crate) fn number(&self, field: u32) -> Result<Option<u32>, Refused> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Number(value)) => u32::try_from(value).map(Some).map_err(|_| self.unfit(field)),
            Some(Value::Bytes(_) | Value::Fixed) => Err(self.unfit(field)),
        }
    }

    /// A number of at most 64 bits.
    pub(crate) fn wide(&self, field: u32) -> Result<Option<u64>, Refused> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Number(value)) => Ok(Some(value)),
            Some(Value::Bytes(_) | Value::Fixed) => Err(self.unfit(field)),
        }
    }

    /// A signed number of 32 bits, which protobuf extends to 64.
    pub(crate) fn signed(&self, field: u32) -> Result<Option<i32>, Refused> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Number(value)) => i32::try_from(value.cast_signed()).map(Some).map_err(|_| self.unfit(field)),
            Some(Value::Bytes(_) | Value::Fixed) => Err(self.unfit(field)),
        }
    }

    /// A number that has to be there.
    pub(crate) fn required(&self, field: u32) -> Result<u32, Refused> {
        self.number(field)?.ok_or_else(|| self.lacks(field))
    }

    /// A flag; one that is not there is not set.
    pub(crate) fn is_set(&self, field: u32) -> Result<bool, Refused> {
        Ok(self.number(field)?.unwrap_or(0) != 0)
    }

    /// Repeated numbers, one by one or packed.
    pub(crate) fn numbers(&self, field: u32) -> Result<Vec<u32>, Refused> {
        let mut found = Vec::new();
        for (_, value) in self.fields.iter().filter(|(number, _)| *number == field) {
            match value {
                Value::Number(value) => found.push(u32::try_from(*value).map_err(|_| self.unfit(field))?),
                Value::Bytes(packed) => {
                    let mut rest = *packed;
                    while !rest.is_empty() {
                        let value = varint(&mut rest).ok_or_else(|| self.unfit(field))?;
                        found.push(u32::try_from(value).map_err(|_| self.unfit(field))?);
                    }
                }
                Value::Fixed => return Err(self.unfit(field)),
            }
        }
        Ok(found)
    }

    pub(crate) fn bytes(&self, field: u32) -> Result<Option<&'a [u8]>, Refused> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Bytes(bytes)) => Ok(Some(bytes)),
            Some(Value::Number(_) | Value::Fixed) => Err(self.unfit(field)),
        }
    }

    /// A text; one that is not there is empty. CRIU's strings end at the first zero, so none may have one.
    pub(crate) fn text(&self, field: u32) -> Result<&'a str, Refused> {
        let bytes = self.bytes(field)?.unwrap_or_default();
        let text = std::str::from_utf8(bytes).map_err(|_| self.unfit(field))?;
        if text.contains('\0') { Err(self.unfit(field)) } else { Ok(text) }
    }

    pub(crate) fn child(&self, field: u32, kind: &'static Kind) -> Result<Option<Message<'a>>, Refused> {
        self.bytes(field)?.map(|bytes| Message::parse(bytes, kind)).transpose()
    }

    pub(crate) fn children(&self, field: u32, kind: &'static Kind) -> Result<Vec<Message<'a>>, Refused> {
        let mut found = Vec::new();
        for (_, value) in self.fields.iter().filter(|(number, _)| *number == field) {
            match value {
                Value::Bytes(bytes) => found.push(Message::parse(bytes, kind)?),
                Value::Number(_) | Value::Fixed => return Err(self.unfit(field)),
            }
        }
        Ok(found)
    }

    /// Repeated texts.
    pub(crate) fn texts(&self, field: u32) -> Result<Vec<&'a str>, Refused> {
        let mut found = Vec::new();
        for (_, value) in self.fields.iter().filter(|(number, _)| *number == field) {
            match value {
                Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
                    Ok(text) if !text.contains('\0') => found.push(text),
                    _ => return Err(self.unfit(field)),
                },
                Value::Number(_) | Value::Fixed => return Err(self.unfit(field)),
            }
        }
        Ok(found)
    }

    pub(crate) fn has(&self, field: u32) -> bool {
        self.get(field).is_some()
    }

    fn get(&self, field: u32) -> Option<Value<'a>> {
        debug_assert!(self.kind.once.contains(&field), "field {field} of {} may be there once", self.kind.name);
        self.fields.iter().find(|(number, _)| *number == field).map(|(_, value)| *value)
    }

    fn unfit(&self, field: u32) -> Refused {
        Refused(format!("field {field} of a {} in it is not of its type", self.kind.name))
    }

    pub(crate) fn lacks(&self, field: u32) -> Refused {
        Refused(format!("a {} in it lacks field {field}", self.kind.name))
    }
}

/// At most ten bytes, and no bit beyond the 64th.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for at in 0..10 {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        let bits = u64::from(byte & 0x7f);
        if at == 9 && bits > 1 {
            return None;
        }
        value |= bits << (7 * at);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Writes messages.
#[derive(Clone, Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    fn varint(&mut self, mut value: u64) {
        while value > 0x7f {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    pub(crate) fn number(mut self, field: u32, value: u64) -> Writer {
        self.varint(u64::from(field) << 3);
        self.varint(value);
        self
    }

    pub(crate) fn bytes(mut self, field: u32, value: &[u8]) -> Writer {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    pub(crate) fn text(self, field: u32, value: &str) -> Writer {
        self.bytes(field, value.as_bytes())
    }

    pub(crate) fn child(self, field: u32, value: Writer) -> Writer {
        self.bytes(field, &value.0)
    }
}

/// A whole image file.
pub(crate) fn file(magic: Magic, messages: &[Writer]) -> Vec<u8> {
    let mut file = Vec::new();
    if magic != Magic::Inventory {
        file.extend(COMMON.to_le_bytes());
    }
    file.extend((magic as u32).to_le_bytes());
    for message in messages {
        file.extend((message.0.len() as u32).to_le_bytes());
        file.extend(&message.0);
    }
    file
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    const KIND: Kind = Kind { name: "thing", once: &[1, 2, 3], many: &[4] };

    #[test]
    fn a_file_is_its_magic_numbers_and_its_messages() {
        let one = Writer::default().number(1, 300);
        let good = file(Magic::Pstree, &[one.clone(), one.clone()]);
        assert_eq!(messages(&good, Magic::Pstree).unwrap(), [&one.0[..], &one.0[..]]);
        assert_eq!(messages(&file(Magic::Inventory, from_ref(&one)), Magic::Inventory).unwrap(), [&one.0[..]]);
        for (what, bad) in [
            ("another magic", file(Magic::Core, from_ref(&one))),
            ("empty", Vec::new()),
            ("no magic", good[..4].to_vec()),
            ("cut in a length", good[..10].to_vec()),
            ("cut in a message", good[..good.len() - 1].to_vec()),
            ("format 1", file(Magic::Inventory, &[one])),
        ] {
            assert!(messages(&bad, Magic::Pstree).is_err(), "{what}");
        }
    }

    #[test]
    fn fields_are_read_by_their_types() {
        let text = Writer::default().number(1, 7).text(2, "seven").number(4, 1).bytes(4, &[2, 0x80, 1]);
        let message = Message::parse(&text.0, &KIND).unwrap();
        assert_eq!((message.required(1).unwrap(), message.text(2).unwrap()), (7, "seven"));
        assert_eq!(message.numbers(4).unwrap(), [1, 2, 128]);
        assert_eq!(message.number(3).unwrap(), None);
        let negative = Writer::default().number(1, (-3i64).cast_unsigned());
        let message = Message::parse(&negative.0, &KIND).unwrap();
        assert_eq!(message.signed(1).unwrap(), Some(-3));
        // CRIU would take its lower half.
        assert!(message.number(1).is_err());
        assert!(message.text(1).is_err());
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        for (what, bytes) in [
            ("an unknown field", Writer::default().number(9, 1).0),
            ("a field twice", Writer::default().number(1, 1).number(1, 0).0),
            ("a group", vec![1 << 3 | 3]),
            ("a length beyond the end", vec![2 << 3 | 2, 5, 0]),
            ("a number without an end", vec![1 << 3, 0x80]),
            ("a number of eleven bytes", [vec![1 << 3], vec![0x80; 10], vec![0]].concat()),
            ("a number beyond 64 bits", [vec![1 << 3], vec![0x80; 9], vec![2]].concat()),
        ] {
            assert!(Message::parse(&bytes, &KIND).is_err(), "{what}");
        }
        let zero = Writer::default().text(2, "a\0b");
        assert!(Message::parse(&zero.0, &KIND).unwrap().text(2).is_err());
    }
}
