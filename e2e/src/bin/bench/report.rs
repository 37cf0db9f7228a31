//! The figures of a run, as a table and as JSON. Only sums up; what a figure means is said where it is measured.
//!
//! Every figure is a list of samples for each endpoint: minimum, median and 95th percentile are shown, and two endpoints
//! are compared by the median. A figure that is the better the higher it is has its worst samples at the minimum.

use std::fmt::Write;

use serde_json::{Value, json};

/// A difference of less than this share is called none.
const NOISE: f64 = 0.05;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    Lower,
    Higher,
}

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Figure {
    section: String,
    name: String,
    unit: &'static str,
    better: Better,
}

impl Figure {
    pub(crate) fn new(section: &str, name: &str, unit: &'static str, better: Better) -> Figure {
        Figure { section: section.into(), name: name.into(), unit, better }
    }

    pub(crate) fn latency(section: &str, name: impl Into<String>) -> Figure {
        Figure { section: section.into(), name: name.into(), unit: "ms", better: Better::Lower }
    }
}

#[derive(Debug)]
struct Row {
    figure: Figure,
    /// One an endpoint.
    samples: Vec<Vec<f64>>,
    failed: Vec<Option<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Summary {
    min: f64,
    median: f64,
    p95: f64,
}

#[derive(Debug)]
pub(crate) struct Report {
    endpoints: Vec<String>,
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new(endpoints: Vec<String>) -> Report {
        Report { endpoints, rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, figure: Figure, endpoint: usize, value: f64) {
        self.row(figure).samples[endpoint].push(value);
    }

    /// Says that the endpoint has no such figure, and why.
    pub(crate) fn fail(&mut self, figure: Figure, endpoint: usize, why: String) {
        self.row(figure).failed[endpoint] = Some(why);
    }

    fn row(&mut self, figure: Figure) -> &mut Row {
        let index = self.rows.iter().position(|row| row.figure == figure).unwrap_or_else(|| {
            let count = self.endpoints.len();
            self.rows.push(Row { figure, samples: vec![Vec::new(); count], failed: vec![None; count] });
            self.rows.len() - 1
        });
        &mut self.rows[index]
    }

    /// One table, its sections in the order in which they were measured.
    pub(crate) fn to_text(&self) -> String {
        let mut lines = vec![self.header()];
        let mut section = "";
        let mut notes = String::new();
        for row in &self.rows {
            if row.figure.section != section {
                section = &row.figure.section;
                lines.push(vec![format!("# {section}")]);
            }
            lines.push(self.cells(row));
            for (name, why) in self.endpoints.iter().zip(&row.failed) {
                if let Some(why) = why {
                    // Writing to a string cannot fail.
                    let _ = writeln!(notes, "{section}, {}: {name} failed: {why}", row.figure.name);
                }
            }
        }
        aligned(&lines) + &notes
    }

    fn header(&self) -> Vec<String> {
        let mut cells = vec![String::new(), "unit".into(), "n".into()];
        for name in &self.endpoints {
            cells.extend([format!("{name}: min"), "median".into(), "p95".into()]);
        }
        if let [a, b] = self.endpoints.as_slice() {
            cells.push(format!("{a}/{b}"));
            cells.push(a.clone());
        }
        cells
    }

    fn cells(&self, row: &Row) -> Vec<String> {
        let count = row.samples.iter().map(Vec::len).max().unwrap_or_default();
        let mut cells = vec![format!("  {}", row.figure.name), row.figure.unit.to_owned(), count.to_string()];
        for samples in &row.samples {
            match summary(samples) {
                Some(Summary { min, median, p95 }) => cells.extend([min, median, p95].map(rounded)),
                None => cells.extend(["-", "-", "-"].map(str::to_owned)),
            }
        }
        if let Some(ratio) = row.ratio() {
            cells.push(format!("{ratio:.2}"));
            cells.push(verdict(ratio, row.figure.better).to_owned());
        }
        cells
    }

    pub(crate) fn to_json(&self) -> Value {
        self.rows.iter().map(|row| self.row_json(row)).collect()
    }

    fn row_json(&self, row: &Row) -> Value {
        let results = self.endpoints.iter().zip(&row.samples).zip(&row.failed).map(|((name, samples), failed)| {
            let summary = summary(samples);
            let part = |pick: fn(Summary) -> f64| summary.map(pick);
            json!({
                "endpoint": name,
                "min": part(|it| it.min),
                "median": part(|it| it.median),
                "p95": part(|it| it.p95),
                "samples": samples,
                "failed": failed,
            })
        });
        json!({
            "section": row.figure.section,
            "name": row.figure.name,
            "unit": row.figure.unit,
            "better": match row.figure.better { Better::Lower => "lower", Better::Higher => "higher" },
            "results": results.collect::<Vec<_>>(),
            "ratio": row.ratio(),
        })
    }
}

impl Row {
    /// The first endpoint's median by the second one's.
    fn ratio(&self) -> Option<f64> {
        let [a, b] = self.samples.as_slice() else { return None };
        let (a, b) = (summary(a)?.median, summary(b)?.median);
        (b > 0.0).then(|| a / b)
    }
}

/// Says how the first endpoint does.
fn verdict(ratio: f64, better: Better) -> &'static str {
    let cost = match better {
        Better::Lower => ratio,
        Better::Higher => 1.0 / ratio,
    };
    match cost {
        cost if cost > 1.0 + NOISE => "WORSE",
        cost if cost < 1.0 - NOISE => "better",
        _ => "same",
    }
}

fn summary(samples: &[f64]) -> Option<Summary> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (first, count) = (*sorted.first()?, sorted.len());
    let median = f64::midpoint(sorted[(count - 1) / 2], sorted[count / 2]);
    // The nearest rank: at least 95 of 100 samples are at or below it.
    let rank = (count * 95).div_ceil(100);
    Some(Summary { min: first, median, p95: sorted[rank - 1] })
}

/// Three digits that mean something.
fn rounded(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The first column to the left, the others to the right. A line of one cell is a heading and does not widen its column.
fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or_default();
    let table = || lines.iter().filter(|line| line.len() > 1);
    let width = |column: usize| table().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            row.push_str(&if column == 0 { format!("{cell:<width$}") } else { format!("  {cell:>width$}") });
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_the_least_the_middle_and_the_nearest_rank() {
        let samples: Vec<f64> = (1..=20).rev().map(f64::from).collect();
        assert_eq!(summary(&samples), Some(Summary { min: 1.0, median: 10.5, p95: 19.0 }));
        assert_eq!(summary(&[7.0]), Some(Summary { min: 7.0, median: 7.0, p95: 7.0 }));
        assert_eq!(summary(&[]), None);
    }

    #[test]
    fn two_endpoints_are_compared_by_their_medians() {
        let mut report = Report::new(vec!["a".into(), "b".into()]);
        for (endpoint, value) in [(0, 1.0), (0, 3.0), (1, 4.0)] {
            report.add(Figure::latency("calls", "List"), endpoint, value);
        }
        let rate = Figure::new("calls", "rate", "x/s", Better::Higher);
        report.add(rate.clone(), 0, 5.0);
        report.add(rate, 1, 10.0);
        report.add(Figure::latency("calls", "Stats"), 0, 120.4);
        report.fail(Figure::latency("calls", "Stats"), 1, "no".into());
        let expected = "         unit  n  a: min  median   p95  b: min  median   p95   a/b       a\n\
                        # calls\n  \
                          List     ms  2    1.00    2.00  3.00    4.00    4.00  4.00  0.50  better\n  \
                          rate    x/s  1    5.00    5.00  5.00    10.0    10.0  10.0  0.50   WORSE\n  \
                          Stats    ms  1     120     120   120       -       -     -\n\
                        calls, Stats: b failed: no\n";
        assert_eq!(report.to_text(), expected);
    }

    #[test]
    fn one_endpoint_has_plain_figures() {
        let mut report = Report::new(vec!["a".into()]);
        report.add(Figure::latency("calls", "List"), 0, 1.0);
        let expected = "        unit  n  a: min  median   p95\n# calls\n  List    ms  1    1.00    1.00  1.00\n";
        assert_eq!(report.to_text(), expected);
    }
}
