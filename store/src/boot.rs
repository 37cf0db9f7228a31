//! Which boot of the machine this is.
//!
//! Rows that are not yet known to be on disk carry the boot id they were written in; their owners drop them when the
//! store is opened in another boot, because what they describe may have been lost with the power.

use crate::Error;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The kernel's id of the running boot: the same for every process until the machine restarts.
pub fn boot_id() -> Result<String, Error> {
    let text = std::fs::read_to_string(BOOT_ID).map_err(|source| Error::failed(format!("read {BOOT_ID}"), source))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_id_is_a_uuid_and_stays_the_same() {
        let id = boot_id().unwrap();
        let shape: Vec<usize> = id.split('-').map(str::len).collect();
        assert_eq!(shape, [8, 4, 4, 4, 12], "{id:?}");
        assert_eq!(boot_id().unwrap(), id);
    }
}
