//! Tables of separated values: each row goes out as `column: value; column: value`, so that it can be understood alone.

use super::builder::{Builder, one_line};
use super::{Document, Source, encoding, too_large};
use crate::core::block::BlockKind;
use crate::core::error::{Error, Result};
use ::csv::{ReaderBuilder, StringRecord};

/// Most cells that a table may have.
const MAX_CELLS: usize = 20_000_000;

/// Longest name of a column, in characters, since each row repeats it.
const MAX_NAME: usize = 80;

/// Most bytes looked at to tell the delimiter.
const SAMPLE: usize = 64 * 1024;

/// Rows before the header that may be titles.
const TITLE_ROWS: usize = 5;

pub(super) fn read(source: &Source) -> Result<Document> {
    let text = encoding::lenient(source.bytes, &[source.charset.as_deref()]);
    let delimiter = delimiter(&text);
    table(&text, delimiter)
}

pub(super) fn read_tabs(source: &Source) -> Result<Document> {
    let text = encoding::lenient(source.bytes, &[source.charset.as_deref()]);
    table(&text, b'\t')
}

/// The delimiter that makes the most of the first rows equally wide.
fn delimiter(text: &str) -> u8 {
    // A byte of ASCII is never part of another character, so that cutting after a line is safe.
    let sample = match text.as_bytes()[..text.len().min(SAMPLE)].iter().rposition(|byte| *byte == b'\n') {
        Some(at) if text.len() > SAMPLE => &text.as_bytes()[..at],
        _ => &text.as_bytes()[..text.len().min(SAMPLE)],
    };
    let score = |delimiter: u8| {
        let mut reader =
            ReaderBuilder::new().delimiter(delimiter).has_headers(false).flexible(true).from_reader(sample);
        let widths: Vec<usize> = reader.byte_records().take(50).flatten().map(|record| record.len()).collect();
        let mut counted: std::collections::BTreeMap<usize, usize> = std::collections::BTreeMap::new();
        for width in widths.iter().filter(|width| **width > 1) {
            *counted.entry(*width).or_default() += 1;
        }
        counted.into_iter().map(|(width, rows)| (rows, width)).max().unwrap_or((0, 0))
    };
    let mut best = (b',', score(b','));
    for candidate in [b'|', b'\t', b';'] {
        let scored = score(candidate);
        // Of equals it is the rarer one: commas stand within numbers and words.
        if scored.0 > 0 && scored >= best.1 {
            best = (candidate, scored);
        }
    }
    best.0
}

fn table(text: &str, delimiter: u8) -> Result<Document> {
    let mut reader =
        ReaderBuilder::new().delimiter(delimiter).has_headers(false).flexible(true).from_reader(text.as_bytes());
    let mut rows = reader.records();
    let mut out = Builder::default();
    let mut title = None;
    let mut cells = 0;
    let mut head: Vec<StringRecord> = Vec::new();
    while head.len() <= TITLE_ROWS {
        match rows.next() {
            Some(row) => head.push(row.map_err(damaged)?),
            None => break,
        }
    }
    let mut head = head.into_iter().filter(|row| filled(row) > 0).peekable();
    // A lone cell above wider rows is the table's title.
    while head.peek().is_some_and(|row| filled(row) == 1 && row.len() > 1) {
        let row = head.next().unwrap_or_default();
        let line = row.iter().map(one_line).collect::<String>();
        out.block(BlockKind::Paragraph, &line)?;
        title = title.or(Some(line));
    }
    let names: Vec<String> = match head.peek() {
        Some(row) if is_header(row) => {
            let row = head.next().unwrap_or_default();
            out.block(BlockKind::TableHeader, &row.iter().map(one_line).collect::<Vec<_>>().join(" | "))?;
            row.iter().map(name).collect()
        }
        _ => Vec::new(),
    };
    for row in head.map(Ok).chain(rows.map(|row| row.map_err(damaged))) {
        let row = row?;
        cells += row.len();
        if cells > MAX_CELLS {
            return Err(too_large("cells", MAX_CELLS));
        }
        let mut is_first = true;
        for (at, value) in row.iter().enumerate().filter(|(_, value)| !value.trim().is_empty()) {
            if !is_first {
                out.mark("; ");
            }
            is_first = false;
            if let Some(name) = names.get(at).filter(|name| !name.is_empty()) {
                out.words(BlockKind::TableRow, name);
                out.mark(": ");
            }
            out.words(BlockKind::TableRow, value.trim());
        }
        out.end()?;
    }
    out.finish(title, None)
}

fn filled(row: &StringRecord) -> usize {
    row.iter().filter(|cell| !cell.trim().is_empty()).count()
}

/// Whether a row names columns: names are neither numbers nor told twice, and there is hardly a gap.
fn is_header(row: &StringRecord) -> bool {
    let names: Vec<_> = row.iter().map(str::trim).filter(|cell| !cell.is_empty()).collect();
    let distinct: std::collections::BTreeSet<_> = names.iter().collect();
    let is_number =
        |cell: &&str| cell.trim_matches(['%', '$', '€', '"', '\'']).replace([',', '.'], "").parse::<f64>().is_ok();
    names.len() * 2 > row.len() && distinct.len() == names.len() && !names.iter().any(is_number)
}

fn name(cell: &str) -> String {
    let line = one_line(cell);
    match line.char_indices().nth(MAX_NAME) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}

fn damaged(error: ::csv::Error) -> Error {
    let place = error.position().map_or_else(String::new, |position| format!("It ends at line {}.", position.line()));
    Error::bad_argument("table cannot be read").detail(place)
}
