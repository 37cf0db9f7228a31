//! Columns padded with blanks, byte for byte as the stock client's (Go's text/tabwriter) pads them.
//!
//! There, a cell is what a tab ends, and only such cells are padded. The header's cells all end with a tab; the last
//! cell of a row does in some tables and not in others, which decides about blanks at the line's end.

use std::collections::HashMap;

pub(crate) struct Table {
    layout: Layout,
    lines: Vec<Vec<String>>,
}

/// How one of the stock client's tables is set.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    /// Columns are at least this wide, with the padding.
    min_width: usize,
    /// Blanks after the widest cell.
    padding: usize,
    last_cell: LastCell,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LastCell {
    /// Padded, in line with the header's.
    Column,
    /// Written as it is.
    Tail,
}

impl Layout {
    /// Images and namespaces.
    pub(crate) const NARROW: Self = Self { min_width: 1, padding: 1, last_cell: LastCell::Column };
    /// Containers.
    pub(crate) const WIDE: Self = Self { min_width: 4, padding: 4, last_cell: LastCell::Column };
    /// Tasks.
    pub(crate) const WIDE_WITH_TAIL: Self = Self { min_width: 4, padding: 4, last_cell: LastCell::Tail };
}

impl Table {
    pub(crate) fn new(layout: Layout, header: &[&str]) -> Self {
        Self { layout, lines: vec![header.iter().map(|&cell| cell.to_owned()).collect()] }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.lines.push(cells);
    }

    pub(crate) fn render(&self) -> String {
        let columns = self.lines[0].len();
        let widths: Vec<usize> = (0..columns).map(|column| self.width(column)).collect();
        let mut text = String::new();
        for (number, line) in self.lines.iter().enumerate() {
            for (column, cell) in line.iter().enumerate() {
                text.push_str(cell);
                if number == 0 || column + 1 < columns || self.layout.last_cell == LastCell::Column {
                    let blanks = widths[column].saturating_sub(cell.chars().count());
                    text.extend(std::iter::repeat_n(' ', blanks));
                }
            }
            text.push('\n');
        }
        text
    }

    fn width(&self, column: usize) -> usize {
        let is_tail = self.layout.last_cell == LastCell::Tail && column + 1 == self.lines[0].len();
        // A tail is no cell of its column, so only the header counts there.
        let lines = if is_tail { &self.lines[..1] } else { &self.lines[..] };
        let widest = lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        self.layout.min_width.max(widest + self.layout.padding)
    }
}

/// Labels as one cell: sorted, so that two runs print the same.
pub(crate) fn labels(labels: &HashMap<String, String>) -> String {
    let mut pairs: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.sort();
    pairs.join(",")
}

/// One name a line, as `-q` prints them.
pub(crate) fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.flat_map(|name| [name, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(layout: Layout, rows: &[[&str; 2]], expected: &str) {
        let mut table = Table::new(layout, &["NAME", "KIND"]);
        for row in rows {
            table.row(row.iter().map(|&cell| cell.to_owned()).collect());
        }
        assert_eq!(table.render(), expected);
    }

    #[test]
    fn an_empty_table_is_its_header() {
        check(Layout::NARROW, &[], "NAME KIND \n");
        check(Layout::WIDE, &[], "NAME    KIND    \n");
    }

    #[test]
    fn the_widest_cell_sets_its_column() {
        check(
            Layout::NARROW,
            &[["longer", "x"], ["a", "longest"]],
            "NAME   KIND    \nlonger x       \na      longest \n",
        );
    }

    #[test]
    fn a_tail_is_not_padded_and_does_not_widen_the_header() {
        check(
            Layout::WIDE_WITH_TAIL,
            &[["a", "longest"], ["b", "x"]],
            "NAME    KIND    \na       longest\nb       x\n",
        );
    }

    #[test]
    fn width_counts_characters_and_not_bytes() {
        check(Layout::NARROW, &[["é", "é"]], "NAME KIND \né    é    \n");
    }

    #[test]
    fn labels_are_sorted_pairs() {
        let map = HashMap::from([("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())]);
        assert_eq!(labels(&map), "a=1,b=2");
        assert_eq!(labels(&HashMap::new()), "");
    }

    #[test]
    fn names_are_lines() {
        assert_eq!(names(["a", "b"].into_iter()), "a\nb\n");
        assert_eq!(names([].into_iter()), "");
    }
}
