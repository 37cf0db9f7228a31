//! Who a container's process runs as: CRI's request, the image's USER, and the image's passwd and group files.
//!
//! [`resolve`] and the parsers are pure. [`read_files`] opens the two files beneath the root it is given and nowhere else.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::BorrowedFd,
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
    // NONBLOCK: the image may have put a FIFO there, and opening it must not wait.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let beneath = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match openat2(root, name, flags, Mode::empty(), beneath) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(error) => return Err(failed(error.into())),
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("not a regular file")));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(failed(io::Error::other("larger than 4 MiB")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The ids of the process. The order is CRI's: user name, user id, then the image's USER.
pub fn resolve(request: &RunAs, image_user: &str, files: &UserFiles) -> Result<ContainerUser, Error> {
    let wanted = wanted(request, image_user)?;
    let (user, group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted.as_str(), None),
    };
    let entry = find_user(user, &files.passwd)?;
    let gid = match group.filter(|group| !group.is_empty()) {
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
    Ok(ContainerUser { uid: entry.uid, gid, supplemental_groups: groups })
}

/// `user[:group]` as the request and the image say it.
fn wanted(request: &RunAs, image_user: &str) -> Result<String, Error> {
    let user = match (&request.username, request.user) {
        (Some(name), _) if !name.is_empty() => name.clone(),
        (_, Some(uid)) => uid.to_string(),
        _ => match request.group {
            Some(group) => {
                return Err(Error::Invalid(format!("user group \"{group}\" is specified without user")));
            }
            None if image_user.is_empty() => return Ok("0".into()),
            None => return Ok(image_user.to_owned()),
        },
    };
    Ok(request.group.map_or(user.clone(), |group| format!("{user}:{group}")))
}

struct Entry {
    uid: u32,
    gid: u32,
    name: Option<String>,
}

/// A name has to be in passwd; a number does not, and then has group 0.
fn find_user(user: &str, passwd: &str) -> Result<Entry, Error> {
    let number: Option<u32> = user.parse().ok();
    let entries = || passwd.lines().filter_map(parse_passwd_line);
    let by_name = || entries().find(|entry| entry.name.as_deref() == Some(user));
    let found = match number {
        Some(uid) => entries().find(|entry| entry.uid == uid).or_else(by_name),
        None => by_name(),
    };
    match (found, number) {
        (Some(entry), _) => Ok(entry),
        (None, Some(uid)) => Ok(Entry { uid, gid: 0, name: None }),
        (None, None) => Err(Error::Invalid(format!("user {user:?}: not in the image's /etc/passwd"))),
    }
}

/// `name:password:uid:gid:…`; `None` for comments and broken lines.
fn parse_passwd_line(line: &str) -> Option<Entry> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(Entry { uid, gid, name: Some(name) })
}

fn find_group(group: &str, text: &str) -> Result<u32, Error> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    let mut groups = text.lines().filter_map(parse_group_line);
    let found = groups.find(|(name, _, _)| *name == group);
    let (_, gid, _) = found.ok_or_else(|| Error::Invalid(format!("group {group:?}: not in the image's /etc/group")))?;
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
    let gid = fields.nth(1)?.parse().ok()?;
    Some((name, gid, fields.next().unwrap_or_default().trim_end()))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::AsFd};

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

    #[test]
    fn a_fifo_in_place_of_passwd_is_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("etc/passwd"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let root = fs::File::open(dir.path()).unwrap();
        assert!(read_files(root.as_fd()).unwrap_err().chain().contains("not a regular file"));
    }
}
