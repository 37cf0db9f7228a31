//! Names of signals, as images and CRI write them.

use nix::libc;

use crate::Error;

pub(crate) const SIGTERM: i32 = libc::SIGTERM;

/// `SIGTERM`, `term`, `15`, `SIGRTMIN+3`, `RTMAX-1`.
pub(crate) fn parse(text: &str) -> Result<i32, Error> {
    let invalid = || Error::Invalid(format!("stop signal {text:?} is unknown"));
    let upper = text.trim().to_ascii_uppercase();
    if let Ok(number) = upper.parse::<i32>() {
        return (1..=libc::SIGRTMAX()).contains(&number).then_some(number).ok_or_else(invalid);
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(number) = real_time(name) {
        return (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&number).then_some(number).ok_or_else(invalid);
    }
    let signal: nix::sys::signal::Signal = format!("SIG{name}").parse().map_err(|_| invalid())?;
    Ok(signal as i32)
}

fn real_time(name: &str) -> Option<i32> {
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return offset(rest).and_then(|offset| libc::SIGRTMIN().checked_add(offset));
    }
    name.strip_prefix("RTMAX").and_then(offset).and_then(|offset| libc::SIGRTMAX().checked_add(offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_number_and_by_name() {
        let check = |text: &str| parse(text).ok();
        assert_eq!(check("SIGTERM"), Some(15));
        assert_eq!(check("quit"), Some(3));
        assert_eq!(check("9"), Some(9));
        assert_eq!(check("SIGRTMIN+3"), Some(37));
        assert_eq!(check("RTMAX-1"), Some(63));
        for wrong in ["", "0", "65", "SIGNOPE", "SIGRTMIN+40", "RTMAX+1", "RTMIN+99999999999"] {
            assert_eq!(check(wrong), None, "{wrong}");
        }
    }
}
