//! Plain text: kept as it is, its paragraphs parted by blank lines.

use super::{Document, MAX_BLOCKS, Source, encoding, too_large};
use crate::core::block::{Block, BlockKind};
use crate::core::error::Result;

pub(super) fn read(source: &Source) -> Result<Document> {
    let text = encoding::strict(source.bytes, source.charset.as_deref())?;
    let mut blocks: Vec<Block> = Vec::new();
    let mut open: Option<Block> = None;
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let body = line.trim();
        let at = start + (line.len() - line.trim_start().len());
        start += line.len();
        if body.is_empty() {
            blocks.extend(open.take());
            continue;
        }
        let end = at + body.len();
        let opens_item = is_item(body);
        match &mut open {
            Some(block) if !opens_item => block.end = end,
            _ => {
                blocks.extend(open.take());
                let kind = if opens_item { BlockKind::ListItem } else { BlockKind::Paragraph };
                open = Some(Block { kind, start: at, end });
            }
        }
        if blocks.len() > MAX_BLOCKS {
            return Err(too_large("blocks", MAX_BLOCKS));
        }
    }
    blocks.extend(open);
    Ok(Document { title: None, text, language: None, blocks })
}

fn is_item(line: &str) -> bool {
    let rest = line.trim_start_matches(|c: char| c.is_ascii_digit());
    let digits = line.len() - rest.len();
    if digits > 0 {
        return digits <= 3 && (rest.starts_with(". ") || rest.starts_with(") "));
    }
    ["- ", "* ", "+ ", "• "].iter().any(|bullet| line.starts_with(bullet))
}
