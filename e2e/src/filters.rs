//! The system call filters in images of CRIU, its own or the tests': which they are, and others in their place.

use std::{fs, path::Path};

use crate::criu::{CORE, Message, write};

const SECCOMP: u32 = 0x6441_3049;
/// Of `thread_core_entry`.
const SECCOMP_MODE: u64 = 11;
const SECCOMP_FILTER: u64 = 12;

/// The field of a message, as a number or as bytes, and all of it as it stands there.
struct Field<'a> {
    number: u64,
    value: u64,
    bytes: &'a [u8],
    raw: &'a [u8],
}

fn fields(message: &[u8]) -> Vec<Field<'_>> {
    let varint = |at: &mut usize| {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = message[*at];
            *at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    };
    let (mut at, mut found) = (0, Vec::new());
    while at < message.len() {
        let start = at;
        let key = varint(&mut at);
        let (mut value, mut bytes) = (0, &message[..0]);
        match key & 7 {
            0 => value = varint(&mut at),
            2 => {
                let length = varint(&mut at) as usize;
                bytes = &message[at..at + length];
                at += length;
            }
            1 => at += 8,
            _ => at += 4,
        }
        found.push(Field { number: key >> 3, value, bytes, raw: &message[start..at] });
    }
    found
}

/// The only message of an image, if it has one.
fn only(directory: &Path, name: &str) -> Option<Vec<u8>> {
    let file = fs::read(directory.join(name)).unwrap();
    file.get(12..).map(<[u8]>::to_vec)
}

/// The filters that CRIU loads for a thread, in that order, as programs.
pub fn filters_of(directory: &Path, thread: u32) -> Vec<Vec<u8>> {
    let core = only(directory, &format!("core-{thread}.img")).unwrap();
    let thread = fields(&core).into_iter().find(|field| field.number == 5).unwrap().bytes;
    let number = |wanted: u64| fields(thread).into_iter().find(|field| field.number == wanted).map(|field| field.value);
    assert_eq!(number(SECCOMP_MODE).is_some(), number(SECCOMP_FILTER).is_some());
    let entry = only(directory, "seccomp.img").unwrap_or_default();
    let all = fields(&entry);
    let (mut next, mut found) = (number(SECCOMP_FILTER), Vec::new());
    while let Some(at) = next {
        let filter = fields(all[at as usize].bytes);
        found.push(filter.iter().find(|field| field.number == 1).unwrap().bytes.to_vec());
        next = filter.iter().find(|field| field.number == 2).map(|field| field.value);
    }
    found
}

/// Makes every thread one with these filters, each a program, and no others.
pub fn set_filters(directory: &Path, filters: &[&[u8]]) {
    let mut entry = Message::default();
    for (at, filter) in filters.iter().enumerate() {
        let message = Message::default().bytes(1, filter).number(3, 0);
        let is_last = at + 1 == filters.len();
        entry = entry.bytes(1, &if is_last { message } else { message.number(2, at as u64 + 1) }.0);
    }
    write(directory, "seccomp.img", SECCOMP, &[entry]);
    for file in fs::read_dir(directory).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        if !name.starts_with("core-") {
            continue;
        }
        let core = only(directory, &name).unwrap();
        let mut changed = Message::default();
        for field in fields(&core) {
            if field.number != 5 {
                changed.0.extend(field.raw);
                continue;
            }
            let kept = fields(field.bytes).into_iter();
            let kept = kept.filter(|field| ![SECCOMP_MODE, SECCOMP_FILTER].contains(&field.number));
            let thread = Message(kept.flat_map(|field| field.raw.to_vec()).collect());
            let thread =
                if filters.is_empty() { thread } else { thread.number(SECCOMP_MODE, 2).number(SECCOMP_FILTER, 0) };
            changed = changed.bytes(5, &thread.0);
        }
        write(directory, &name, CORE, &[changed]);
    }
}
