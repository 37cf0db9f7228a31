//! Who a container's process runs as: CRI's request, the image's USER, and the image's passwd and group files.
//!
//! [`resolve`] and the parsers are pure. [`read_files`] opens the two files beneath the root it is given and nowhere else.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, BorrowedFd},
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
};

use crate::{
    error::Error,
    model::{ContainerUser, GroupsPolicy, RunAs},
};

/// More than any real file has; an image must not fill the daemon's memory.
const MAX_FILE: u64 = 4 << 20;

/// The text of an image's `/etc/passwd` and `/etc/group`; empty where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserFiles {
    pub passwd: String,
    pub group: String,
}

/// Reads the user files of the image whose root is `root`. Blocks.
pub fn read_files(root: BorrowedFd<'_>) -> Result<UserFiles, Error> {
    Ok(UserFiles { passwd: read(root, "etc/passwd")?, group: read(root, "etc/group")? })
}

fn read(root: BorrowedFd<'_>, name: &str) -> Result<String, Error> {
    let failed = |error: io::Error| Error::failed(format!("read /{name} of the image"), error);
    let beneath = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // Only named at first: to open a FIFO waits, and to open a device may do something.
    let found = match openat2(root, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), beneath) {
        Ok(found) => File::from(found),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(error) => return Err(failed(error.into())),
    };
    if !found.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("not a regular file")));
    }
    // The descriptor's own link leads to this very file.
    let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(failed(io::Error::other("larger than 4 MiB")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A user or a group as an image or a client names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named<'a> {
    Id(u32),
    Name(&'a str),
}

impl<'a> Named<'a> {
    /// What is written as a number is never a name: an image could have a user called `1000`, or `4294967296`, who is root,
    /// while whoever checks that a pod does not run as root reads the number (CVE-2026-46680).
    pub fn parse(text: &'a str) -> Result<Named<'a>, Error> {
        let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(Named::Name(text));
        }
        let id = parse_id(text);
        id.map(Named::Id).ok_or_else(|| Error::Invalid(format!("user or group {text:?} is not between 0 and {MAX_ID}")))
    }
}

/// What Kubernetes and the user database take; the kernel's ids above would be negative numbers to some programs.
const MAX_ID: u32 = i32::MAX.unsigned_abs();

/// Digits only, which is less than what Rust takes for a number.
fn parse_id(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id <= MAX_ID)
}

/// More the kernel gives no process (NGROUPS_MAX).
const MAX_GROUPS: usize = 65_536;

/// The ids of the process. The order is CRI's: user name, user id, then the image's USER.
pub fn resolve(request: &RunAs, image_user: &str, files: &UserFiles) -> Result<ContainerUser, Error> {
    let (user, group) = wanted(request, image_user)?;
    let entry = find_user(user, &files.passwd)?;
    let gid = match group {
        Some(group) => find_group(group, &files.group)?,
        None => entry.gid,
    };
    let mut groups = vec![gid];
    if request.groups_policy == GroupsPolicy::Merge
        && let Some(name) = &entry.name
    {
        groups.extend(memberships(name, &files.group));
    }
    groups.extend(&request.supplemental_groups);
    groups.sort_unstable();
    groups.dedup();
    if groups.len() > MAX_GROUPS {
        return Err(Error::Invalid(format!(
            "the user is in {} groups by the image's /etc/group and the request; at most {MAX_GROUPS} are possible",
            groups.len()
        )));
    }
    Ok(ContainerUser { uid: entry.uid, gid, supplemental_groups: groups })
}

/// User and group as the request and the image say it.
fn wanted<'a>(request: &'a RunAs, image_user: &'a str) -> Result<(Named<'a>, Option<Named<'a>>), Error> {
    let asked = request.group.map(Named::Id);
    let text = match (&request.username, request.user, request.group) {
        (Some(name), ..) if !name.is_empty() => name,
        (_, Some(uid), _) => return Ok((Named::Id(uid), asked)),
        (_, _, Some(group)) => {
            return Err(Error::Invalid(format!("user group \"{group}\" is specified without user")));
        }
        _ if image_user.is_empty() => return Ok((Named::Id(0), None)),
        _ => image_user,
    };
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let group = match (asked, group) {
        (Some(asked), _) => Some(asked),
        (None, "") => None,
        (None, group) => Some(Named::parse(group)?),
    };
    Ok((Named::parse(user)?, group))
}

struct Entry {
    uid: u32,
    gid: u32,
    name: Option<String>,
}

/// A name has to be in passwd; a number does not, and then has group 0.
fn find_user(user: Named<'_>, passwd: &str) -> Result<Entry, Error> {
    let mut entries = passwd.lines().filter_map(parse_passwd_line);
    match user {
        Named::Id(uid) => {
            let found = entries.find(|entry| entry.uid == uid);
            Ok(found.unwrap_or(Entry { uid, gid: 0, name: None }))
        }
        Named::Name(name) => {
            let found = entries.find(|entry| entry.name.as_deref() == Some(name));
            found.ok_or_else(|| Error::Invalid(format!("user {name:?}: not in the image's /etc/passwd")))
        }
    }
}

/// `name:password:uid:gid:…`; `None` for comments and broken lines.
fn parse_passwd_line(line: &str) -> Option<Entry> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let uid = parse_id(fields.nth(1)?)?;
    let gid = parse_id(fields.next()?)?;
    Some(Entry { uid, gid, name: Some(name) })
}

fn find_group(group: Named<'_>, text: &str) -> Result<u32, Error> {
    let name = match group {
        Named::Id(gid) => return Ok(gid),
        Named::Name(name) => name,
    };
    let mut groups = text.lines().filter_map(parse_group_line);
    let found = groups.find(|(known, _, _)| *known == name);
    let (_, gid, _) = found.ok_or_else(|| Error::Invalid(format!("group {name:?}: not in the image's /etc/group")))?;
    Ok(gid)
}

fn memberships(user: &str, text: &str) -> Vec<u32> {
    let groups = text.lines().filter_map(parse_group_line);
    groups.filter(|(_, _, members)| members.split(',').any(|member| member == user)).map(|(_, gid, _)| gid).collect()
}

/// `name:password:gid:member,member`; `None` for comments and broken lines.
fn parse_group_line(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let gid = parse_id(fields.nth(1)?)?;
    Some((name, gid, fields.next().unwrap_or_default().trim_end()))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::AsFd, path::Path};

    use proptest::prelude::*;

    use super::*;

    fn files() -> UserFiles {
        UserFiles {
            passwd: "# comment\nroot:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001::/:/bin/sh\nbroken:x\n".into(),
            group: "root:x:0:\nweb:x:1001:\nlogs:x:2000:root,web\ndata:x:3000:web\n".into(),
        }
    }

    fn run_as(user: Option<u32>, group: Option<u32>, name: Option<&str>) -> RunAs {
        RunAs { user, group, username: name.map(str::to_owned), ..RunAs::default() }
    }

    #[test]
    fn users_are_found_by_request_first_and_image_second() {
        let check = |request: RunAs, image: &str| match resolve(&request, image, &files()) {
            Ok(user) => format!("{} {} {:?}", user.uid, user.gid, user.supplemental_groups),
            Err(error) => error.to_string(),
        };
        let none = || run_as(None, None, None);
        let strict = RunAs {
            groups_policy: GroupsPolicy::Strict,
            supplemental_groups: vec![7],
            ..run_as(None, None, Some("web"))
        };
        let table = [
            check(none(), ""),
            check(none(), "web"),
            check(none(), "web:logs"),
            check(none(), "1000:5"),
            check(none(), "4242"),
            check(none(), "nobody"),
            check(none(), "web:none"),
            check(run_as(Some(1000), None, None), "root"),
            check(run_as(Some(1000), Some(9), None), ""),
            check(run_as(Some(1), None, Some("web")), ""),
            check(run_as(None, Some(9), None), "web"),
            check(strict, ""),
        ];
        insta::assert_snapshot!(table.join("\n"), @r##"
        0 0 [0, 2000]
        1000 1001 [1001, 2000, 3000]
        1000 2000 [2000, 3000]
        1000 5 [5, 2000, 3000]
        4242 0 [0]
        user "nobody": not in the image's /etc/passwd
        group "none": not in the image's /etc/group
        1000 1001 [1001, 2000, 3000]
        1000 9 [9, 2000, 3000]
        1000 1001 [1001, 2000, 3000]
        user group "9" is specified without user
        1000 1001 [7, 1001]
        "##);
    }

    #[test]
    fn a_symlink_out_of_the_image_stays_in_the_image() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("real"), "inside").unwrap();
        std::os::unix::fs::symlink("/../../real", dir.path().join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname-of-the-host", dir.path().join("etc/group")).unwrap();
        let root = fs::File::open(dir.path()).unwrap();
        let files = read_files(root.as_fd()).unwrap();
        assert_eq!(files, UserFiles { passwd: "inside".into(), group: String::new() });
    }

    /// What is written as a number is an id or an error, for users and groups, of images and of clients.
    #[test]
    fn v_c17_v_c22_a_number_is_an_id_in_range_and_never_a_name() {
        let names =
            ["2147483648", "4294967295", "4294967296", "4294967297", "18446744073709551616", "-1", "+0", "+1000", "-0"];
        // All of them are root to whoever takes them for names.
        let passwd: String =
            names.iter().chain(&["1000", "٠", "1e3", "0x0"]).map(|name| format!("{name}:x:0:0::/:/bin/sh\n")).collect();
        let group: String = names.iter().chain(&["5"]).map(|name| format!("{name}:x:0:\n")).collect();
        let files = UserFiles { passwd, group };
        let none = run_as(None, None, None);
        for name in names {
            for image in [name.to_owned(), format!("{name}:0"), format!("0:{name}")] {
                let refused = resolve(&none, &image, &files).unwrap_err().to_string();
                assert_eq!(refused, format!("user or group {name:?} is not between 0 and 2147483647"), "{image}");
            }
            assert!(resolve(&run_as(None, None, Some(name)), "", &files).is_err(), "{name}");
        }
        let user = |image: &str| {
            resolve(&none, image, &files).map(|user| (user.uid, user.gid)).map_err(|error| error.to_string())
        };
        assert_eq!(user("1000:5"), Ok((1000, 5)));
        assert_eq!(user("1000"), Ok((1000, 0)));
        assert_eq!(user("2147483647"), Ok((2_147_483_647, 0)));
        assert_eq!(user("0001"), Ok((1, 0)));
        // These are no numbers to anybody.
        for name in ["٠", "1e3", "0x0"] {
            assert_eq!(user(name), Ok((0, 0)));
            assert_eq!(Named::parse(name).unwrap(), Named::Name(name));
        }
        assert_eq!(user(" 0"), Err("user \" 0\": not in the image's /etc/passwd".into()));
        // A client's id is a number already, and may be as large as the kernel's.
        assert_eq!(
            resolve(&run_as(Some(3_000_000_000), Some(4_000_000_000), None), "", &files).unwrap().gid,
            4_000_000_000
        );
    }

    proptest! {
        /// Root is who is written as zero, or has a name whose line in passwd says zero.
        #[test]
        fn v_c17_only_zero_and_the_names_of_root_are_root(image in "[-+ 0-9a-f:٠x]{0,12}", name in "[-+0-9a-f]{1,11}") {
            let files = UserFiles { passwd: format!("{name}:x:0:0::/:/bin/sh\nabc:x:7:7::/:\n"), group: String::new() };
            prop_assume!(!image.is_empty());
            let user = image.split(':').next().unwrap_or_default();
            if let Ok(found) = resolve(&run_as(None, None, None), &image, &files) {
                let number: Option<i64> = user.parse().ok();
                prop_assert_eq!(found.uid == 0, number.map_or(user == name, |number| number == 0));
            }
        }
    }

    #[test]
    fn a_passwd_line_whose_ids_are_out_of_range_is_none() {
        let files = UserFiles {
            passwd: "a:x:4294967296:0\nb:x:+0:0\nc:x:-1:0\nd:x:2147483648:0\n".into(),
            group: String::new(),
        };
        for name in ["a", "b", "c", "d"] {
            assert!(resolve(&run_as(None, None, Some(name)), "", &files).is_err(), "{name}");
        }
    }

    #[test]
    fn v_c23_more_groups_than_a_process_can_have_are_refused() {
        let group: String = (1..=65_536).map(|gid| format!("g{gid}:x:{gid}:web\n")).collect();
        let files = UserFiles { passwd: "web:x:1000:1000::/:\n".into(), group };
        assert_eq!(resolve(&run_as(None, None, None), "web", &files).unwrap().supplemental_groups.len(), 65_536);
        let refused = resolve(&run_as(None, Some(70_000), Some("web")), "", &files).unwrap_err().to_string();
        assert!(refused.starts_with("the user is in 65537 groups"), "{refused}");
    }

    /// An image's user files are read if they are files of a size that is sensible, and never waited for.
    #[test]
    fn v_c23_what_is_no_ordinary_user_file_is_refused_without_waiting() {
        let read = |make: &dyn Fn(&Path)| {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("etc")).unwrap();
            make(&dir.path().join("etc/passwd"));
            let root = fs::File::open(dir.path()).unwrap();
            read_files(root.as_fd()).map_err(|error| error.chain())
        };
        let refused = |why: &str, make: &dyn Fn(&Path)| {
            let error = read(make).unwrap_err();
            assert!(error.starts_with("read /etc/passwd of the image") && error.contains(why), "{error}");
        };
        refused("not a regular file", &|path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap());
        refused("not a regular file", &|path| fs::create_dir(path).unwrap());
        refused("not a regular file", &|path| drop(std::os::unix::net::UnixListener::bind(path).unwrap()));
        refused("larger than 4 MiB", &|path| fs::File::create(path).unwrap().set_len(4 << 30).unwrap());
        refused("larger than 4 MiB", &|path| fs::write(path, vec![b'x'; (4 << 20) + 1]).unwrap());
        refused("symbolic links", &|path| std::os::unix::fs::symlink("passwd", path).unwrap());
        refused("symbolic links", &|path| {
            for link in 0..41 {
                let (from, to) = (path.with_file_name(format!("l{link}")), format!("l{}", link + 1));
                std::os::unix::fs::symlink(to, from).unwrap();
            }
            fs::write(path.with_file_name("l41"), "").unwrap();
            std::os::unix::fs::symlink("l0", path).unwrap();
        });
        let whole = read(&|path| fs::write(path, vec![b'x'; 4 << 20]).unwrap()).unwrap();
        assert_eq!(whole.passwd.len(), 4 << 20);
        // The host's devices and processes are not the image's.
        for target in ["/dev/zero", "/proc/self/environ", "/proc/kmsg"] {
            assert_eq!(read(&|path| std::os::unix::fs::symlink(target, path).unwrap()), Ok(UserFiles::default()));
        }
    }

    #[test]
    fn privileged_v_c23_a_device_in_place_of_passwd_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        let (kind, mode) = (nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::Mode::S_IRUSR);
        // /dev/zero, which would never end.
        nix::sys::stat::mknod(&dir.path().join("etc/passwd"), kind, mode, nix::sys::stat::makedev(1, 5)).unwrap();
        let root = fs::File::open(dir.path()).unwrap();
        assert!(read_files(root.as_fd()).unwrap_err().chain().contains("not a regular file"));
    }
}
