//! Kubernetes' quantities: a decimal number with a suffix of a power of ten or two, or an exponent.

/// The value in whole units, rounded up; `None` if it is not a quantity or too large.
///
/// Source: the serialization format of `k8s.io/apimachinery/pkg/api/resource` (`Quantity`).
pub(super) fn parse(text: &str) -> Option<i64> {
    let text = text.trim();
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || fraction.contains('.') || whole.len() + fraction.len() > 25 {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let places = u32::try_from(fraction.len()).ok()?;
    // digits · factor / 10^places, and with a negative power 10^more in the divisor as well.
    let (factor, power): (i128, i32) = match suffix {
        "" => (1, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        exponent => (1, exponent.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    let ten = |power: u32| 10i128.checked_pow(power);
    let multiplier = factor.checked_mul(ten(u32::try_from(power.max(0)).ok()?)?)?;
    let divisor = ten(places)?.checked_mul(ten(power.min(0).unsigned_abs())?)?;
    let value = digits.checked_mul(multiplier)?;
    // Up is away from zero, as Quantity.Value has it.
    let rounded = value / divisor + i128::from(value % divisor != 0);
    i64::try_from(if negative { -rounded } else { rounded }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_suffixes_and_what_is_none() {
        let table = [
            ("0", Some(0)),
            ("80", Some(80)),
            ("50M", Some(50_000_000)),
            ("10k", Some(10_000)),
            ("1Ki", Some(1024)),
            ("1.5Mi", Some(1_572_864)),
            ("0.5", Some(1)),
            ("1500m", Some(2)),
            ("1u", Some(1)),
            ("2e3", Some(2000)),
            ("2E3", Some(2000)),
            ("15e-1", Some(2)),
            ("1E", Some(1_000_000_000_000_000_000)),
            (".5k", Some(500)),
            ("5.", Some(5)),
            ("+7", Some(7)),
            ("-7", Some(-7)),
            ("10E", None),
            ("8Ei", None),
            ("", None),
            ("k", None),
            (".", None),
            ("1.2.3", None),
            ("1K", None),
            ("1 M", None),
            ("1e99", None),
            ("1e-99", None),
            ("x", None),
            ("99999999999999999999999999999999", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }
}
