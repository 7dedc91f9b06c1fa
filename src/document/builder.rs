//! Puts a document together: words and the ends of blocks come in, text with blocks goes out. White space is collapsed
//! and the limits are kept here, so that no format has to.

use super::{Document, MAX_BLOCKS, MAX_TEXT, too_large};
use crate::core::block::{Block, BlockKind};
use crate::core::error::Result;

/// A document while it is read.
#[derive(Default)]
pub(super) struct Builder {
    document: Document,
    /// The block that is being written.
    open: Option<(BlockKind, usize)>,
    /// White space was seen since the last word.
    space: bool,
    last: Option<BlockKind>,
}

impl Builder {
    /// Adds running text to the open block, or opens one of that kind. Runs of white space become one space.
    pub fn words(&mut self, kind: BlockKind, text: &str) {
        for (at, word) in text.split(|c: char| c.is_whitespace() || c == '\u{feff}').enumerate() {
            self.space |= at > 0;
            // Soft hyphens say where a word may be broken, and only hide it from search.
            let mut parts = word.split('\u{ad}').filter(|part| !part.is_empty()).peekable();
            if parts.peek().is_some() {
                self.begin(kind);
                self.document.text.extend(parts);
            }
        }
    }

    /// Adds text to the open block as it is, or opens one of that kind.
    pub fn verbatim(&mut self, kind: BlockKind, text: &str) {
        let text = if self.open.is_none() { text.trim_start_matches(['\n', '\r']) } else { text };
        if text.is_empty() || (self.open.is_none() && text.trim().is_empty()) {
            return;
        }
        self.space = false;
        self.begin(kind);
        self.document.text.push_str(text);
    }

    /// Adds a mark such as ` | ` within the open block, without the white space before it.
    pub fn mark(&mut self, mark: &str) {
        if self.open.is_some() {
            self.document.text.push_str(mark);
            self.space = false;
        }
    }

    /// Whether a block is open.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// The text of the open block.
    pub fn written(&self) -> &str {
        self.open.map_or("", |(_, start)| &self.document.text[start..])
    }

    /// Changes the kind of the open block.
    pub fn set_kind(&mut self, kind: BlockKind) {
        if let Some((open, _)) = &mut self.open {
            *open = kind;
        }
    }

    /// Ends the open block.
    pub fn end(&mut self) -> Result<()> {
        self.space = false;
        if let Some((kind, start)) = self.open.take() {
            let end = start + self.document.text[start..].trim_end().len();
            self.document.text.truncate(end);
            if end > start {
                // The indent of a first line stands before its block.
                let start = end - self.document.text[start..].trim_start().len();
                self.document.blocks.push(Block { kind, start, end });
                self.last = Some(kind);
            }
        }
        if self.document.blocks.len() > MAX_BLOCKS {
            return Err(too_large("blocks", MAX_BLOCKS));
        }
        if self.document.text.len() > MAX_TEXT {
            return Err(too_large("bytes of text", MAX_TEXT));
        }
        Ok(())
    }

    /// A whole block of running text.
    pub fn block(&mut self, kind: BlockKind, text: &str) -> Result<()> {
        self.end()?;
        self.words(kind, text);
        self.end()
    }

    /// The document, its last block ended.
    pub fn finish(mut self, title: Option<String>, language: Option<String>) -> Result<Document> {
        self.end()?;
        let title = title.map(|title| one_line(&title)).filter(|title| !title.is_empty());
        Ok(Document { title, language, ..self.document })
    }

    fn begin(&mut self, kind: BlockKind) {
        if self.open.is_some() {
            if self.space {
                self.document.text.push(' ');
            }
        } else {
            if !self.document.text.is_empty() {
                self.document.text.push_str(if self.last == Some(kind) && is_close(kind) || self.is_row(kind) {
                    "\n"
                } else {
                    "\n\n"
                });
            }
            self.open = Some((kind, self.document.text.len()));
        }
        self.space = false;
    }

    fn is_row(&self, kind: BlockKind) -> bool {
        kind == BlockKind::TableRow && self.last == Some(BlockKind::TableHeader)
    }
}

/// Kinds whose neighbours stand in the next line rather than after a blank one.
fn is_close(kind: BlockKind) -> bool {
    matches!(kind, BlockKind::ListItem | BlockKind::TableRow | BlockKind::TableHeader)
}

/// A text with its runs of white space made one space.
pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
