//! Whether CRIU is there, and new enough for what OCI runtimes ask of it.

use std::time::Duration;

use crate::Error;

/// 3.16, the first that OCI runtimes can be sure to restore from.
const OLDEST: Version = (3, 16);
/// It only prints two lines.
const DEADLINE: Duration = Duration::from_secs(10);

/// The first that dumps and restores whether a process may gain privileges (no_new_privs).
pub(crate) const WITH_NO_NEW_PRIVS: Version = (3, 19);

/// Major and minor.
pub(crate) type Version = (u32, u32);

/// Fails unless a CRIU that will do is in `PATH`, where the OCI runtime looks for it as well. Answers which it is.
pub(crate) async fn check() -> Result<Version, Error> {
    let mut command = tokio::process::Command::new("criu");
    command.arg("--version").kill_on_drop(true);
    let way_out = "install criu 3.16 or newer";
    let ran = tokio::time::timeout(DEADLINE, command.output()).await;
    let output = match ran {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => {
            return Err(Error::Unsupported(format!("checkpoints need CRIU: run criu: {error}; {way_out}")));
        }
        Err(_) => return Err(Error::Deadline(format!("criu --version: not done within {DEADLINE:?}"))),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    match version(&text) {
        Some(found) if found >= OLDEST => Ok(found),
        Some((major, minor)) => {
            Err(Error::Unsupported(format!("checkpoints need a newer CRIU than {major}.{minor}; {way_out}")))
        }
        None => Err(Error::Unsupported(format!("criu --version says {:?}; {way_out}", text.trim()))),
    }
}

/// `Version: 3.17.1`, maybe with more lines around.
fn version(text: &str) -> Option<Version> {
    let number = text.lines().find_map(|line| line.strip_prefix("Version:"))?.trim();
    let mut parts = number.split(|character: char| !character.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_what_criu_prints() {
        for (text, expected) in [
            ("Version: 3.17.1\n", Some((3, 17))),
            ("Warn\nVersion: 4.1\nGitID: v4.1\n", Some((4, 1))),
            ("Version: 3.16-rc1\n", Some((3, 16))),
            ("criu: not found", None),
            ("Version: \n", None),
        ] {
            assert_eq!(version(text), expected, "{text:?}");
        }
    }
}
