//! From a view to text: a plain table for people, JSON for programs. Writes to standard output in
//! one place, where a reader that went away is no error.

use std::io::{self, Write};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::args::Format;

/// What a command has to say: serialised for programs, `text` for people. Both come from one value,
/// so neither can know more than the other.
pub trait View: Serialize {
    /// Name and version of the JSON form. Keys are only ever added under one version.
    const SCHEMA: &'static str;

    /// Ends with a newline unless it is empty.
    fn text(&self) -> String;
}

#[derive(Serialize)]
struct Envelope<'a, V> {
    schema: &'static str,
    #[serde(flatten)]
    view: &'a V,
}

/// The answer of a command.
pub fn render<V: View>(view: &V, format: Format) -> anyhow::Result<String> {
    let envelope = Envelope { schema: V::SCHEMA, view };
    Ok(match format {
        Format::Table => view.text(),
        Format::Json => serde_json::to_string_pretty(&envelope)? + "\n",
    })
}

/// The same on one line, for commands that answer again and again.
pub fn render_line<V: View>(view: &V, format: Format) -> anyhow::Result<String> {
    let envelope = Envelope { schema: V::SCHEMA, view };
    Ok(match format {
        Format::Table => view.text() + "\n",
        Format::Json => serde_json::to_string(&envelope)? + "\n",
    })
}

/// Whether anybody still reads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reader {
    Reads,
    Gone,
}

/// Writes and flushes. A closed pipe (`weir arrivals | head`) is not an error.
pub fn emit(out: &mut impl Write, text: &str) -> io::Result<Reader> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::Reads),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(error),
    }
}

/// A borderless table; columns whose header starts with `>` are aligned to the right.
pub fn table<const N: usize>(
    headers: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(headers.map(|header| header.trim_start_matches('>')));
    table.add_rows(rows);
    for (column, header) in table.column_iter_mut().zip(headers) {
        column.set_padding((0, 2));
        if header.starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// A heading over the next part of an answer.
pub fn section(title: &str, body: &str) -> String {
    format!("\n{title}\n{body}")
}

/// `text`, or a dash for nothing.
pub fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}

/// A time span with one unit that fits: `250 ms`, `3.2 s`, `12 min`, `5 h`, `9 d`.
pub fn span(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{:.1} s", ms as f64 / 1e3),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} d", ms / 86_400_000),
    }
}

/// A share in percent.
pub fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pipe(io::ErrorKind);

    impl Write for Pipe {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_ends_the_output_and_a_full_disk_is_an_error() {
        assert_eq!(emit(&mut Pipe(io::ErrorKind::BrokenPipe), "x").unwrap(), Reader::Gone);
        assert!(emit(&mut Pipe(io::ErrorKind::StorageFull), "x").is_err());
        let mut out = Vec::new();
        assert_eq!(emit(&mut out, "x").unwrap(), Reader::Reads);
        assert_eq!(out, b"x");
    }

    #[test]
    fn tables_have_no_borders_and_align_numbers_right() {
        let text = table(["NAME", ">N"], [["a".into(), "5".into()], ["long".into(), "10".into()]]);
        assert_eq!(text, "NAME  N\na      5\nlong  10\n".replace("NAME  N", "NAME   N"));
    }

    #[test]
    fn spans_choose_the_unit_that_fits() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (3_249, "3.2 s"),
            (119_999, "120.0 s"),
            (120_000, "2 min"),
            (7_200_000, "2 h"),
            (172_800_000, "2 d"),
        ] {
            assert_eq!(span(ms), text);
        }
    }
}
