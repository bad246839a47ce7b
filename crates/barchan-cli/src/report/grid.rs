//! A table whose cells are made once, and which is drawn as text and as HTML.
//!
//! Columns are as wide as what they hold. A cell may have a second line, a row may end in a remark that goes
//! over all of its columns but the first ones.

use super::html::escape;
use super::put;

/// A table.
pub(super) struct Grid {
    columns: Vec<Column>,
    rows: Vec<Row>,
}

struct Column {
    name: String,
    is_number: bool,
}

/// The cells of a row.
#[derive(Default)]
pub(super) struct Row {
    cells: Vec<Cell>,
    remark: Option<String>,
}

/// What a cell says, and a second line, which may be empty.
struct Cell {
    first: String,
    second: String,
}

impl Row {
    /// Adds a cell.
    pub(super) fn cell(mut self, text: impl Into<String>) -> Self {
        self.cells.push(Cell { first: text.into(), second: String::new() });
        self
    }

    /// Adds a cell of two lines.
    pub(super) fn cell_of_two(mut self, first: String, second: String) -> Self {
        self.cells.push(Cell { first, second });
        self
    }

    /// Says `why` where the rest of the cells would be.
    pub(super) fn remark(mut self, why: String) -> Self {
        self.remark = Some(why);
        self
    }
}

impl Grid {
    /// A table without rows and columns.
    pub(super) fn new() -> Self {
        Self { columns: Vec::new(), rows: Vec::new() }
    }

    /// Adds a column of text.
    pub(super) fn text_column(mut self, name: &str) -> Self {
        self.columns.push(Column { name: name.to_owned(), is_number: false });
        self
    }

    /// Adds a column of numbers.
    pub(super) fn number_column(mut self, name: &str) -> Self {
        self.columns.push(Column { name: name.to_owned(), is_number: true });
        self
    }

    /// Adds a row.
    pub(super) fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Whether there is no row.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text, each line indented by two.
    pub(super) fn text(&self) -> String {
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|n| {
                let cells = self.rows.iter().filter_map(|row| row.cells.get(n));
                let lines = cells.flat_map(|cell| [&cell.first, &cell.second]);
                let all = lines.chain([&self.columns[n].name]);
                all.map(|line| line.chars().count()).max().unwrap_or(0)
            })
            .collect();
        let mut out = String::new();
        let mut add = |cells: &[&str], remark: Option<&str>| {
            let mut line = String::new();
            for ((cell, width), column) in cells.iter().zip(&widths).zip(&self.columns) {
                match column.is_number {
                    true => put(&mut line, format_args!("  {cell:>width$}")),
                    false => put(&mut line, format_args!("  {cell:<width$}")),
                }
            }
            if let Some(remark) = remark {
                line.push_str("  ");
                line.push_str(remark);
            }
            out.push_str(line.trim_end());
            out.push('\n');
        };
        add(&self.columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>(), None);
        for row in &self.rows {
            let firsts: Vec<_> = row.cells.iter().map(|cell| cell.first.as_str()).collect();
            add(&firsts, row.remark.as_deref());
            if row.cells.iter().any(|cell| !cell.second.is_empty()) {
                add(&row.cells.iter().map(|cell| cell.second.as_str()).collect::<Vec<_>>(), None);
            }
        }
        out
    }

    /// The table as HTML.
    pub(super) fn html(&self) -> String {
        let mut out = "<div class=\"card\"><table><tr>".to_owned();
        for column in &self.columns {
            let class = if column.is_number { " class=\"n\"" } else { "" };
            put(&mut out, format_args!("<th{class}>{}</th>", escape(&column.name)));
        }
        out.push_str("</tr>\n");
        for row in &self.rows {
            out.push_str("<tr>");
            for (cell, column) in row.cells.iter().zip(&self.columns) {
                let class = if column.is_number { " class=\"n\"" } else { "" };
                let (first, second) = (escape(&cell.first), escape(&cell.second));
                match second.is_empty() {
                    true => put(&mut out, format_args!("<td{class}>{first}</td>")),
                    false => {
                        put(&mut out, format_args!("<td{class}><b>{first}</b><br>{second}</td>"))
                    }
                }
            }
            if let Some(remark) = &row.remark {
                let left = self.columns.len().saturating_sub(row.cells.len()).max(1);
                put(&mut out, format_args!("<td colspan=\"{left}\">{}</td>", escape(remark)));
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</table></div>\n");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Grid {
        let mut grid = Grid::new().text_column("name").number_column("µs");
        grid.push(Row::default().cell("a long name").cell("1"));
        grid.push(Row::default().cell("b").cell_of_two("12 [3 – 4]".to_owned(), "x".to_owned()));
        grid.push(Row::default().cell("c<").remark("not here".to_owned()));
        grid
    }

    #[test]
    fn columns_are_as_wide_as_what_they_hold() {
        let expected = "  name                 µs\n  a long name           1\n  b            12 [3 – 4]\n                        \
                        x\n  c<           not here\n";
        assert_eq!(example().text(), expected);
        assert!(!example().is_empty());
    }

    #[test]
    fn the_page_says_the_same() {
        let page = example().html();
        for wanted in [
            "<th>name</th><th class=\"n\">µs</th>",
            "<td>a long name</td><td class=\"n\">1</td>",
            "<td class=\"n\"><b>12 [3 – 4]</b><br>x</td>",
            "<td>c&lt;</td><td colspan=\"1\">not here</td>",
        ] {
            assert!(page.contains(wanted), "{wanted} in {page}");
        }
    }
}
