//! Kernel calls that have no safe wrapper.
#![expect(unsafe_code, reason = "close_range(2) has no safe form in std, rustix 1.1 and nix 0.31")]

use std::io;

/// Keeps what this process was started with, beyond its standard streams, from whatever it starts: shims live longer than
/// the daemon, and would hold locks and pipes of whoever started that.
pub(crate) fn keep_inherited_descriptors() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: it takes numbers only, and changes no descriptor but for what exec does with it.
    let answer = unsafe { libc::close_range(FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
