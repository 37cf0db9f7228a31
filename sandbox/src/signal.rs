//! Names of signals, as images and CRI write them.

use nix::libc;

use crate::{
    Error,
    model::{ContainerSpec, ContainerView, Image},
};

pub(crate) const SIGTERM: i32 = libc::SIGTERM;

impl ContainerView {
    /// What a stop sends, as CRI spells it (`SIGTERM`, `SIGRTMIN+3`): that of the request, the image's, or SIGTERM.
    pub fn stop_signal(&self) -> String {
        name(of_container(&self.spec, &self.image))
    }
}

/// What a container is stopped with: CRI's over the image's over SIGTERM. An image with a signal that does not exist gets
/// SIGTERM too.
pub(crate) fn of_container(spec: &ContainerSpec, image: &Image) -> i32 {
    let of_image = image.config.config().as_ref().and_then(|config| config.stop_signal().as_deref());
    let named = spec.stop_signal.as_deref().filter(|name| !name.is_empty()).or(of_image);
    named.and_then(|name| parse(name).ok()).unwrap_or(SIGTERM)
}

/// The way back, in the one spelling that CRI has for each: `SIGTERM`, `SIGRTMIN+3`, `SIGRTMAX-1`. Signals without a name
/// are numbers.
pub(crate) fn name(number: i32) -> String {
    let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    // CRI counts up from the first to the middle, and from there down to the last.
    let middle = first + (last - first) / 2;
    match number {
        _ if number == first => "SIGRTMIN".to_owned(),
        _ if number == last => "SIGRTMAX".to_owned(),
        _ if (first..=middle).contains(&number) => format!("SIGRTMIN+{}", number - first),
        _ if (middle..last).contains(&number) => format!("SIGRTMAX-{}", last - number),
        _ => {
            nix::sys::signal::Signal::try_from(number).map_or_else(|_| number.to_string(), |signal| signal.to_string())
        }
    }
}

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
    let name = match name {
        "CLD" => "CHLD",
        "IOT" => "ABRT",
        "POLL" => "IO",
        name => name,
    };
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
        assert_eq!([check("SIGCLD"), check("SIGIOT"), check("SIGPOLL")], [Some(17), Some(6), Some(29)]);
        for wrong in ["", "0", "65", "SIGNOPE", "SIGRTMIN+40", "RTMAX+1", "RTMIN+99999999999"] {
            assert_eq!(check(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn every_number_has_one_name_that_means_it() {
        let table = [(1, "SIGHUP"), (15, "SIGTERM"), (34, "SIGRTMIN"), (37, "SIGRTMIN+3"), (49, "SIGRTMIN+15")];
        let upper = [(50, "SIGRTMAX-14"), (63, "SIGRTMAX-1"), (64, "SIGRTMAX"), (32, "32")];
        for (number, text) in table.into_iter().chain(upper) {
            assert_eq!((name(number).as_str(), parse(text).unwrap()), (text, number));
        }
        for number in 1..=64 {
            assert_eq!(parse(&name(number)).unwrap(), number, "{}", name(number));
        }
    }
}
