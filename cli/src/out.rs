//! What goes to standard output: lines, tables, JSON. A reader that goes away ends us quietly.

use std::io::{IsTerminal as _, Write as _};

use comfy_table::{Cell, ContentArrangement, Table, presets};
use serde_json::Value;

use crate::exit::{Exit, Failure};

/// How we print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Out {
    /// One JSON document, or one per line for streams, instead of text.
    pub(crate) json: bool,
    /// Standard output is a terminal.
    pub(crate) terminal: bool,
    colour: bool,
}

/// Widest column that a table is padded to where nobody looks.
const COLUMN_MAX: usize = 48;

/// The few colours there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colour {
    Red,
    Green,
    Yellow,
    Dim,
    Bold,
}

impl Colour {
    const fn code(self) -> &'static str {
        match self {
            Self::Red => "31",
            Self::Green => "32",
            Self::Yellow => "33",
            Self::Dim => "2",
            Self::Bold => "1",
        }
    }
}

impl Out {
    pub(crate) fn new(json: bool) -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self { json, terminal, colour: terminal && colours_wanted() }
    }

    /// A line of text.
    pub(crate) fn line(self, text: impl AsRef<str>) -> Result<(), Failure> {
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{}", text.as_ref())?;
        Ok(())
    }

    /// Text without a line's end, shown at once.
    pub(crate) fn text(self, text: &str) -> Result<(), Failure> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()?;
        Ok(())
    }

    /// A JSON document: on one line when it is one of many, or nobody looks.
    pub(crate) fn json(self, value: &Value) -> Result<(), Failure> {
        let text = if self.terminal { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
        self.line(text.map_err(|error| Failure::new(Exit::WorkFailed, format!("JSON: {error}")))?)
    }

    /// A JSON document of a stream: always on one line, shown at once.
    pub(crate) fn json_line(self, value: &Value) -> Result<(), Failure> {
        self.text(&format!("{value}\n"))
    }

    /// Columns of the terminal; `None` where nobody looks.
    pub(crate) fn width(self) -> Option<usize> {
        self.terminal.then(|| Table::new().width().map_or(80, usize::from))
    }

    /// A table: columns under headings, cut to the terminal's width; whole where nobody looks.
    pub(crate) fn table(self, headings: &[&str], rows: Vec<Vec<String>>) -> Result<(), Failure> {
        if !self.terminal {
            return whole(headings, &rows).iter().try_for_each(|line| self.line(line));
        }
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(headings);
        for row in rows {
            table.add_row(row.iter().map(|text| cell(text)));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let text: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        let Some((head, body)) = text.split_first() else { return Ok(()) };
        self.line(self.paint(Colour::Bold, head))?;
        body.iter().try_for_each(|line| self.line(line))
    }

    /// Names and values, aligned.
    pub(crate) fn facts(self, facts: &[(&str, String)]) -> Result<(), Failure> {
        let width = facts.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        facts.iter().filter(|(_, value)| !value.is_empty()).try_for_each(|(name, value)| {
            let pad = " ".repeat(width - name.chars().count());
            self.line(format!("{}{pad}  {value}", self.paint(Colour::Dim, name)))
        })
    }

    /// Coloured on terminals only.
    pub(crate) fn paint(self, colour: Colour, text: &str) -> String {
        paint(self.colour, colour, text)
    }
}

/// Something for a person beside the output proper: to standard error, never in JSON mode.
pub(crate) fn note(out: Out, text: impl AsRef<str>) {
    if !out.json {
        // Whether anyone reads our notes changes nothing.
        let _ = writeln!(std::io::stderr().lock(), "{}", text.as_ref());
    }
}

/// Says how it ended, on standard error.
pub(crate) fn report(json: bool, failure: &Failure) {
    let mut stderr = std::io::stderr().lock();
    let colour = std::io::stderr().is_terminal() && colours_wanted();
    // Nobody is left to tell when this fails too.
    let _ = match (failure.exit, json) {
        (Exit::BrokenPipe, _) => Ok(()),
        (_, true) => writeln!(stderr, "{}", failure.to_json()),
        (_, false) => {
            let code = failure.code.map(|code| format!(" [{code}]")).unwrap_or_default();
            let said = writeln!(stderr, "{} {}{code}", paint(colour, Colour::Red, "error:"), failure.message);
            match &failure.hint {
                Some(hint) => said.and_then(|()| writeln!(stderr, "{} {hint}", paint(colour, Colour::Yellow, "hint:"))),
                None => said,
            }
        }
    };
}

/// Lines of a table with every cell whole. One long path doesn't push all others aside: a cell past a column's width shifts its
/// own line only.
fn whole(headings: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let headings: Vec<String> = headings.iter().map(|heading| (*heading).to_owned()).collect();
    let all = || std::iter::once(&headings).chain(rows);
    let longest = |column: usize| all().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..headings.len()).map(|at| longest(at).unwrap_or(0).min(COLUMN_MAX)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| {
            let pad = width.saturating_sub(cell.chars().count());
            format!("{}{}", cell.replace('\n', " "), " ".repeat(pad))
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    all().map(line).collect()
}

/// Whether there is a terminal that takes colours (`NO_COLOR` and `TERM=dumb` say no).
fn colours_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

fn paint(on: bool, colour: Colour, text: &str) -> String {
    if on { format!("\x1b[{}m{text}\x1b[0m", colour.code()) } else { text.to_owned() }
}

/// A cell of a table: painted text has to be told apart, or its colours would count as characters.
fn cell(text: &str) -> Cell {
    let painted = |colour: Colour| {
        text.strip_prefix("\x1b[")?.strip_prefix(colour.code())?.strip_prefix('m')?.strip_suffix("\x1b[0m")
    };
    for (colour, theirs) in [
        (Colour::Red, comfy_table::Color::DarkRed),
        (Colour::Green, comfy_table::Color::DarkGreen),
        (Colour::Yellow, comfy_table::Color::DarkYellow),
    ] {
        if let Some(plain) = painted(colour) {
            return Cell::new(plain).fg(theirs);
        }
    }
    Cell::new(text)
}

/// Text from a model or a file as a terminal may show it: without escape sequences.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b]0;title\x07b\n\tc"), "a]0;titleb\n\tc");
    }

    #[test]
    fn a_long_cell_shifts_its_own_line_only() {
        let long = "x".repeat(300);
        let row = |name: &str| vec![name.to_owned(), "published".to_owned(), "two\nlines".to_owned()];
        let lines = whole(&["DOCUMENT", "OUTCOME", "WHY"], &[row("a.md"), row(&long)]);
        let column = " ".repeat(COLUMN_MAX - 4);
        assert_eq!(lines[1], format!("a.md{column}  published  two lines"));
        assert_eq!(lines[2], format!("{long}  published  two lines"), "nothing is cut");
        assert_eq!(whole(&["A", "B"], &[vec!["xyz".into(), "1".into()]]), ["A    B", "xyz  1"]);
    }

    #[test]
    fn colours_only_where_they_are_wanted() {
        assert_eq!(paint(false, Colour::Red, "x"), "x");
        assert_eq!(paint(true, Colour::Red, "x"), "\x1b[31mx\x1b[0m");
        assert_eq!(cell(&paint(true, Colour::Red, "x")).content(), "x", "only what is seen counts as width");
    }
}
