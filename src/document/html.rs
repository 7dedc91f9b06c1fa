//! Web pages: what a reader sees of the page's own matter, without navigation. Nothing is fetched and nothing is run.

mod element;

use super::builder::Builder;
use super::{Document, Source, encoding, nesting};
use crate::core::block::BlockKind;
use crate::core::error::Result;
use ego_tree::iter::Edge;
use element::{Role, Visit, role};
use scraper::{Html, Node};

type NodeRef<'a> = ego_tree::NodeRef<'a, Node>;

pub(super) fn read(source: &Source) -> Result<Document> {
    let declared = encoding::declared_in_page(source.bytes);
    let page = encoding::lenient(source.bytes, &[source.charset.as_deref(), declared.as_deref()]);
    let html = Html::parse_document(&nesting::bounded(&page));
    let mut page = Page { html: &html, skip: true };
    let mut document = page.read()?;
    if document.text.is_empty() {
        // A page that is all navigation, such as a table of contents, is read as it stands.
        page.skip = false;
        document = page.read()?;
    }
    Ok(document)
}

struct Page<'a> {
    html: &'a Html,
    /// Whether navigation is left out.
    skip: bool,
}

/// A table while its rows are read.
struct Table {
    /// It places things on the page and holds no data, so that its cells are ordinary text.
    is_layout: bool,
    header_cells: usize,
    cells: usize,
    in_row: bool,
}

/// Where the walk is.
#[derive(Default)]
struct State {
    tables: Vec<Table>,
    preformatted: usize,
    quotes: usize,
    items: usize,
    heading: Option<u8>,
    /// The open block is a term, or the name of a note, that what follows is put to.
    pending_term: bool,
}

impl State {
    fn kind(&self) -> BlockKind {
        if self.in_row() {
            BlockKind::TableRow
        } else if let Some(level) = self.heading {
            BlockKind::Heading(level)
        } else if self.preformatted > 0 {
            BlockKind::Code
        } else if self.items > 0 {
            BlockKind::ListItem
        } else if self.quotes > 0 {
            BlockKind::Quote
        } else {
            BlockKind::Paragraph
        }
    }

    fn in_row(&self) -> bool {
        self.tables.last().is_some_and(|table| !table.is_layout && table.in_row)
    }
}

impl<'a> Page<'a> {
    fn read(&self) -> Result<Document> {
        let visit = Visit::of(self.html, self.skip);
        let mut out = Builder::default();
        let mut state = State::default();
        let mut skipped: Option<NodeRef<'a>> = None;
        for edge in visit.root.traverse() {
            match edge {
                Edge::Open(node) => {
                    if skipped.is_some() {
                        continue;
                    }
                    match node.value() {
                        Node::Text(text) => write(&mut out, &mut state, text),
                        Node::Element(_) if visit.is_skipped(node) => skipped = Some(node),
                        Node::Element(_) => open(&mut out, &mut state, &visit, node)?,
                        _ => {}
                    }
                }
                Edge::Close(node) if skipped.is_some() => {
                    if skipped == Some(node) {
                        skipped = None;
                    }
                }
                Edge::Close(node) => close(&mut out, &mut state, node)?,
            }
        }
        out.finish(visit.title, visit.language)
    }
}

fn write(out: &mut Builder, state: &mut State, text: &str) {
    let kind = state.kind();
    if state.pending_term && !text.trim().is_empty() {
        // `term: description`, unless the term has a mark of its own.
        let ends = out.written().trim_end().ends_with([':', '.', '?', '!', '—', '–']);
        out.mark(if ends { " " } else { ": " });
        state.pending_term = false;
    }
    if kind == BlockKind::Code { out.verbatim(kind, text) } else { out.words(kind, text) }
}

/// Ends the open block where a block-level element begins or ends; a cell or a term goes on.
fn part(out: &mut Builder, state: &State) -> Result<()> {
    if state.in_row() || state.pending_term {
        out.words(state.kind(), " ");
        return Ok(());
    }
    out.end()
}

fn open(out: &mut Builder, state: &mut State, visit: &Visit, node: NodeRef) -> Result<()> {
    match role(node) {
        Role::Heading(level) if !state.in_row() => {
            state.pending_term = false;
            out.end()?;
            state.heading = Some(level);
        }
        Role::NoteTitle => {
            state.pending_term = false;
            out.end()?;
        }
        Role::Pre if !state.in_row() => {
            state.pending_term = false;
            out.end()?;
            state.preformatted += 1;
        }
        Role::Quote => {
            part(out, state)?;
            state.quotes += 1;
        }
        Role::Item => {
            part(out, state)?;
            state.items += 1;
        }
        Role::Term => {
            if state.pending_term {
                // Two terms of one description.
                out.mark(", ");
                state.pending_term = false;
            } else {
                part(out, state)?;
            }
            state.items += 1;
        }
        Role::Description => {
            part(out, state)?;
            state.items += 1;
        }
        Role::Table => {
            if !state.in_row() {
                state.pending_term = false;
                out.end()?;
            }
            let is_layout = state.in_row() || visit.is_layout(node);
            state.tables.push(Table { is_layout, header_cells: 0, cells: 0, in_row: false });
        }
        Role::Row => {
            part(out, state)?;
            if let Some(table) = state.tables.last_mut() {
                (table.header_cells, table.cells, table.in_row) = (0, 0, true);
            }
        }
        Role::Cell(is_header) => {
            if state.in_row() && out.is_open() {
                out.mark(" | ");
            }
            if let Some(table) = state.tables.last_mut() {
                table.cells += 1;
                table.header_cells += usize::from(is_header);
            }
            if !state.in_row() {
                part(out, state)?;
            }
        }
        Role::Break if state.kind() == BlockKind::Code => out.verbatim(BlockKind::Code, "\n"),
        Role::Break if state.in_row() || state.heading.is_some() => out.words(state.kind(), " "),
        Role::Break => out.mark("\n"),
        Role::Block | Role::Heading(_) | Role::Pre => part(out, state)?,
        Role::Inline => {}
    }
    Ok(())
}

fn close(out: &mut Builder, state: &mut State, node: NodeRef) -> Result<()> {
    match role(node) {
        Role::Heading(_) if !state.in_row() => {
            out.end()?;
            state.heading = None;
        }
        Role::NoteTitle | Role::Term => {
            state.items -= usize::from(role(node) == Role::Term && state.items > 0);
            state.pending_term = out.is_open() && !state.in_row();
        }
        Role::Pre if !state.in_row() => {
            out.end()?;
            state.preformatted = state.preformatted.saturating_sub(1);
        }
        Role::Quote => {
            part(out, state)?;
            state.quotes = state.quotes.saturating_sub(1);
        }
        Role::Item | Role::Description => {
            state.pending_term = false;
            part(out, state)?;
            state.items = state.items.saturating_sub(1);
        }
        Role::Table => {
            state.tables.pop();
            part(out, state)?;
        }
        Role::Row => {
            if let Some(table) = state.tables.last_mut() {
                let is_data = table.in_row && !table.is_layout;
                table.in_row = false;
                if is_data && table.cells > 0 && table.cells == table.header_cells {
                    out.set_kind(BlockKind::TableHeader);
                }
            }
            part(out, state)?;
        }
        Role::Block | Role::Heading(_) | Role::Pre => part(out, state)?,
        Role::Cell(_) if !state.in_row() => part(out, state)?,
        Role::Cell(_) | Role::Break | Role::Inline => {}
    }
    Ok(())
}
