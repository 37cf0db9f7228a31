//! Whether a request that failed is sent to the same host once more, and when.
//!
//! The last host of a pull is given more time than the others, because nobody else can be asked; and one that has served
//! this pull already is given the time of a restart, because what it began would be lost.

use std::time::{Duration, SystemTime};

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};

const MAX_TRIES: u32 = 5;
/// The first wait; each further one is twice as long.
const SHORT_WAIT: Duration = Duration::from_millis(50);
/// The same for a host that comes back from a restart: half a second, one, two, four and eight.
const LONG_WAIT: Duration = Duration::from_millis(500);
/// What a server may ask for before it is given up.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// The same where another host can be asked instead.
const MAX_WAIT_FOR_A_MIRROR: Duration = Duration::from_secs(1);

/// The tries of one request at one host.
pub(crate) struct Patience {
    /// Nobody is asked after this host.
    is_last: bool,
    /// It has served this pull before.
    is_known: bool,
    tries: u32,
    last: Option<StatusCode>,
}

impl Patience {
    pub(crate) fn new(is_last: bool, is_known: bool) -> Patience {
        Patience { is_last, is_known, tries: 0, last: None }
    }

    /// How long to wait after an answer with this status, or nothing if it is final.
    pub(crate) fn after_status(&mut self, status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
        let asked = retry_after(headers, SystemTime::now());
        let repeats = self.last.replace(status) == Some(status);
        let own = match status {
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => SHORT_WAIT,
            // What stands in front of a registry that is being restarted says one of these.
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
                if self.is_last && self.is_known =>
            {
                LONG_WAIT
            }
            StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
                if self.is_last && (!repeats || asked.is_some()) =>
            {
                SHORT_WAIT
            }
            _ => return None,
        };
        let most = if self.is_last { MAX_WAIT } else { MAX_WAIT_FOR_A_MIRROR };
        self.next(own).map(|own| asked.unwrap_or(own)).filter(|wait| *wait <= most)
    }

    /// How long to wait after a connection that failed. `is_passing` tells that it broke off or took too long, which a
    /// second try may mend at once.
    pub(crate) fn after_loss(&mut self, is_passing: bool) -> Option<Duration> {
        match (self.is_last, self.is_known) {
            (true, true) => self.next(LONG_WAIT),
            (true, false) if is_passing && self.tries == 0 => self.next(SHORT_WAIT),
            _ => None,
        }
    }

    fn next(&mut self, first: Duration) -> Option<Duration> {
        let wait = first * (1 << self.tries);
        self.tries += 1;
        (self.tries <= MAX_TRIES).then_some(wait)
    }
}

/// What a server asks for, in seconds or as a date (RFC 9110, section 10.2.3); a date that has passed is no wait.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date: SystemTime = jiff::fmt::rfc2822::parse(text).ok()?.timestamp().into();
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())])
    }

    /// The waits, in milliseconds, until there are no more.
    fn waits(mut next: impl FnMut() -> Option<Duration>) -> Vec<u128> {
        std::iter::from_fn(|| next().map(|wait| wait.as_millis())).take(20).collect()
    }

    #[test]
    fn a_status_is_waited_for_by_whether_others_can_be_asked() {
        let check = |is_last: bool, is_known: bool, status: u16, headers: &HeaderMap, expected: &[u128]| {
            let status = StatusCode::from_u16(status).unwrap();
            let mut patience = Patience::new(is_last, is_known);
            assert_eq!(waits(|| patience.after_status(status, headers)), expected, "{is_last} {is_known} {status}");
        };
        let none = HeaderMap::new();
        check(true, false, 429, &none, &[50, 100, 200, 400, 800]);
        check(false, true, 429, &none, &[50, 100, 200, 400, 800]);
        check(true, false, 503, &none, &[50]);
        check(true, true, 502, &none, &[500, 1_000, 2_000, 4_000, 8_000]);
        check(true, true, 500, &none, &[50]);
        check(false, true, 503, &none, &[]);
        check(true, false, 503, &asking("2"), &[2_000; 5]);
        check(true, false, 429, &asking("11"), &[]);
        check(false, false, 429, &asking("2"), &[]);
        check(false, false, 429, &asking("1"), &[1_000; 5]);
        for status in [400, 403, 404, 501] {
            check(true, true, status, &none, &[]);
        }
    }

    #[test]
    fn different_failures_of_the_last_host_are_each_tried_again() {
        let mut patience = Patience::new(true, false);
        let none = HeaderMap::new();
        assert!(patience.after_status(StatusCode::SERVICE_UNAVAILABLE, &none).is_some());
        assert!(patience.after_status(StatusCode::INTERNAL_SERVER_ERROR, &none).is_some());
        assert!(patience.after_status(StatusCode::INTERNAL_SERVER_ERROR, &none).is_none());
    }

    #[test]
    fn a_lost_connection_is_waited_for_where_it_is_worth_it() {
        let check = |is_last: bool, is_known: bool, is_passing: bool, expected: &[u128]| {
            let mut patience = Patience::new(is_last, is_known);
            assert_eq!(waits(|| patience.after_loss(is_passing)), expected, "{is_last} {is_known} {is_passing}");
        };
        check(true, true, false, &[500, 1_000, 2_000, 4_000, 8_000]);
        check(true, false, true, &[50]);
        check(true, false, false, &[]);
        check(false, true, true, &[]);
    }

    #[test]
    fn a_server_may_ask_by_seconds_or_by_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_445_412_480);
        let check = |value: &str, expected: Option<u64>| {
            assert_eq!(retry_after(&asking(value), now), expected.map(Duration::from_secs), "{value}");
        };
        check("120", Some(120));
        check("Wed, 21 Oct 2015 07:28:30 GMT", Some(30));
        check("Wed, 21 Oct 2015 07:27:00 GMT", Some(0));
        check("soon", None);
        check("-1", None);
    }
}
