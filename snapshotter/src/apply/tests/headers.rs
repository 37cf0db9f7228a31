//! Headers that promise more than they hold, lists without an end, and types and names at the edges.

use super::*;

/// What becomes of an archive, in one word; beside its root nothing changes, in either mode.
fn outcome(what: &str, tar: &Tar) -> &'static str {
    let mut words = [Whiteouts::Remove, Whiteouts::Overlay].map(|whiteouts| {
        let world = World::new(whiteouts);
        let before = surroundings(&world.root());
        let result = world.apply(tar);
        assert_eq!(surroundings(&world.root()), before, "{what}: {result:?}");
        match result {
            Ok(_) => "applied",
            Err(Error::Refused { .. }) => "refused",
            Err(Error::Malformed { .. }) => "malformed",
            Err(Error::TooMuch { .. } | Error::TooMuchTogether { .. }) => "too much",
            Err(Error::Failed { .. }) => "failed",
            Err(Error::Read { .. }) => "unread",
        }
    });
    words.sort_unstable();
    assert_eq!(words[0], words[1], "{what}");
    words[0]
}

fn repeated(times: usize, make: impl Fn(Tar) -> Tar) -> Tar {
    (0..times).fold(Tar::new(), |tar, _| make(tar)).file("f", "")
}

/// A header of an old GNU sparse file whose list goes on in further blocks, of which none is the last.
fn endless_sparse(blocks: usize) -> Tar {
    let mut more = vec![0; 512];
    more[504] = 1;
    Tar::new().raw("s", b'S', "", &more.repeat(blocks), |header| {
        header.bytes(257, b"ustar  \0");
        header.bytes(482, &[1]);
    })
}

#[test]
fn privileged_headers_are_bounded_whatever_they_promise() {
    confined(|| {
        let huge = |kind: u8| Tar::new().raw("x", kind, "", b"", |header| header.octal(124, 12, 4 << 30)).file("f", "");
        let record = |text: &str| Tar::new().raw("x", b'x', "", text.as_bytes(), |_| {}).file("f", "");
        let attributes = |count: usize, len: usize| {
            let value = vec![b'v'; len];
            let names: Vec<String> = (0..count).map(|number| format!("SCHILY.xattr.trusted.n{number}")).collect();
            let records: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), value.as_slice())).collect();
            Tar::new().pax(&records).file("f", "")
        };
        let long = "n/".repeat(2_100);
        for (what, tar, expected) in [
            ("an extended header of 4 GiB", huge(b'x'), &["malformed", "too much"][..]),
            ("a global header of 4 GiB", huge(b'g'), &["malformed", "too much"]),
            ("a long name of 4 GiB", huge(b'L'), &["malformed", "too much"]),
            ("a long link of 4 GiB", huge(b'K'), &["malformed", "too much"]),
            ("a record that says it is longer than its header", record("4294967296 path=x\n"), &["malformed"]),
            ("a record without a length", record("path=x\n"), &["malformed"]),
            ("a record of length 0", record("0 path=x\n"), &["malformed"]),
            (
                "extended headers without an end",
                repeated(5_000, |tar| tar.pax(&[("comment", b"x")])),
                &["malformed", "too much"],
            ),
            (
                "long names without an end",
                repeated(5_000, |tar| tar.raw("././@LongLink", b'L', "", b"name\0", |_| {})),
                &["malformed", "too much"],
            ),
            ("sparse lists without an end", endless_sparse(5_000), &["malformed", "too much", "refused"]),
            (
                "a sparse list that says it has 10^9 entries",
                Tar::new()
                    .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"1")])
                    .raw("s", b'0', "", b"1000000000\n0\n1\n", |_| {}),
                &["malformed", "too much", "refused"],
            ),
            ("a path longer than any", Tar::new().pax(&[("path", long.as_bytes())]).file("f", ""), &["malformed"]),
            (
                "a component longer than any",
                Tar::new().pax(&[("path", "n".repeat(256).as_bytes())]).file("f", ""),
                &["failed"],
            ),
            ("an attribute larger than any", attributes(1, 70_000), &["failed"]),
            ("more attributes than a header holds", attributes(20_000, 64), &["malformed", "too much"]),
            ("an unknown type", Tar::new().raw("f", b'?', "", b"", |_| {}), &["refused"]),
            ("a volume label", Tar::new().raw("f", b'V', "", b"", |_| {}), &["refused"]),
            ("a part of a file", Tar::new().raw("f", b'M', "", b"", |_| {}), &["refused"]),
            ("a contiguous file", Tar::new().raw("f", b'7', "", b"x", |_| {}), &["applied"]),
            ("a file of the oldest type", Tar::new().raw("f", 0, "", b"x", |_| {}), &["applied"]),
            ("a name that ends in a slash", Tar::new().raw("f/", b'0', "", b"x", |_| {}), &["applied"]),
            ("the root as a link", Tar::new().symlink(".", "/tmp").file("canary", "x"), &["applied"]),
            ("the root as a file", Tar::new().file("./", "x").file("/", "x").file("..", "x"), &["applied"]),
            ("the root as a hard link", Tar::new().hardlink("./", "canary"), &["applied"]),
            ("a whiteout of nothing", Tar::new().file("d/.wh.", ""), &["refused"]),
            ("a whiteout of .", Tar::new().file("d/.wh..", ""), &["refused"]),
            ("a whiteout of ..", Tar::new().file("d/.wh...", ""), &["refused"]),
        ] {
            let found = outcome(what, &tar);
            assert!(expected.contains(&found), "{what}: {found}, not {expected:?}");
        }
    });
}

#[test]
fn privileged_what_follows_an_archive_is_not_of_it() {
    confined(|| {
        let second = Tar::new().file("second", "").bytes();
        check(&Tar::new().file("first", "").after_the_end(&second), &["first="]);
        check(&Tar::new().file("first", "").after_the_end(b"garbage"), &["first="]);
    });
}
