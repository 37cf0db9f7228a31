//! Kernel calls that have no safe wrapper.
#![expect(unsafe_code, reason = "close_range(2) and mallopt(3) have no safe form in std, rustix 1.1 and nix 0.31")]

use std::io;

/// Keeps what this process was started with, beyond its standard streams, from whatever it starts: shims live longer than
/// the daemon, and would hold locks and pipes of whoever started that.
pub(crate) fn keep_inherited_descriptors() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: it takes numbers only, and changes no descriptor but for what exec does with it.
    let answer = unsafe { libc::close_range(FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets all threads allocate from the same few arenas. By default glibc makes eight a core, and what a thread of the
/// blocking pool freed in its own stays there: eight pulls at once held 17 MiB, and 3 MiB in one arena. `MALLOC_ARENA_MAX`
/// in the environment is obeyed instead. See mallopt(3).
pub(crate) fn share_arenas() {
    #[cfg(target_env = "gnu")]
    if std::env::var_os("MALLOC_ARENA_MAX").is_none() {
        const ARENAS: libc::c_int = 2;
        // SAFETY: it takes numbers only, and is called before there is a second thread. A refusal leaves the default.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
    }
}
