//! The parts of a text as its format drew them: what readers of documents say, and what the chunker hears.

use serde::{Deserialize, Serialize};

/// What a part of a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockKind {
    /// A heading of a level from 1, the outermost.
    Heading(u8),
    /// Running text.
    Paragraph,
    /// One item of a list, or a term with its description.
    ListItem,
    /// The row of a table that names its columns.
    TableHeader,
    /// Any other row of a table.
    TableRow,
    /// Program text, whose lines are kept.
    Code,
    /// Running text that is somebody else's.
    Quote,
}

/// A part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// What it is.
    pub kind: BlockKind,
    /// Its first byte in the text.
    pub start: usize,
    /// One past its last byte.
    pub end: usize,
}
