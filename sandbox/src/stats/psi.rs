//! Pressure stall information: `cpu.pressure`, `memory.pressure`, `io.pressure`.

/// How long tasks waited for a resource.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// At least one task waited.
    pub some: Stall,
    /// All tasks waited.
    pub full: Stall,
}

/// Time lost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    /// Nanoseconds so far.
    pub total: u64,
    /// Percent of the last 10, 60 and 300 seconds.
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and the same for `full`, which older kernels leave out for the CPU.
pub(super) fn parse(text: &str) -> Option<Pressure> {
    let stall = |kind: &str| text.lines().find_map(|line| line.strip_prefix(kind)).and_then(parse_stall);
    Some(Pressure { some: stall("some ")?, full: stall("full ").unwrap_or_default() })
}

fn parse_stall(fields: &str) -> Option<Stall> {
    let field = |name: &str| fields.split_whitespace().find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
    let average = |name: &str| field(name)?.parse::<f64>().ok();
    let microseconds: u64 = field("total")?.parse().ok()?;
    Some(Stall {
        total: microseconds.saturating_mul(1000),
        avg10: average("avg10")?,
        avg60: average("avg60")?,
        avg300: average("avg300")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read_in_nanoseconds() {
        let text =
            "some avg10=1.53 avg60=0.87 avg300=0.19 total=12345\nfull avg10=0.10 avg60=0.00 avg300=0.00 total=7\n";
        let some = Stall { total: 12_345_000, avg10: 1.53, avg60: 0.87, avg300: 0.19 };
        let full = Stall { total: 7_000, avg10: 0.1, avg60: 0.0, avg300: 0.0 };
        assert_eq!(parse(text), Some(Pressure { some, full }));
    }

    #[test]
    fn the_line_that_older_kernels_leave_out_is_zero_and_nonsense_is_nothing() {
        let some = Stall { total: 1000, ..Stall::default() };
        let text = "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n";
        assert_eq!(parse(text), Some(Pressure { some, full: Stall::default() }));
        assert_eq!(parse(""), None);
        assert_eq!(parse("some avg10=x avg60=0 avg300=0 total=1"), None);
    }
}
