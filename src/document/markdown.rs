//! Markdown: kept as it is, so that offsets are those of the file; the places of its blocks are what the marks say.

use super::builder::one_line;
use super::{Document, MAX_BLOCKS, Source, encoding, too_large};
use crate::core::block::{Block, BlockKind};
use crate::core::error::Result;
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use std::ops::Range;

pub(super) fn read(source: &Source) -> Result<Document> {
    let text = encoding::strict(source.bytes, source.charset.as_deref())?;
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_TASKLISTS
        | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS
        | Options::ENABLE_PLUSES_DELIMITED_METADATA_BLOCKS;
    let mut walk = Walk { text: &text, ..Walk::default() };
    for (event, range) in Parser::new_ext(&text, options).into_offset_iter() {
        walk.event(event, range);
        if walk.blocks.len() > MAX_BLOCKS {
            return Err(too_large("blocks", MAX_BLOCKS));
        }
    }
    walk.flush();
    let Walk { mut blocks, title, heading, .. } = walk;
    // Blocks of an item come before the blocks within it, which begin later.
    blocks.sort_by_key(|block| block.start);
    let title = title.or(heading).map(|title| one_line(&title)).filter(|title| !title.is_empty());
    Ok(Document { title, text, language: None, blocks })
}

#[derive(Default)]
struct Walk<'a> {
    text: &'a str,
    blocks: Vec<Block>,
    /// What of the block that is being read stands in the text so far.
    open: Option<(BlockKind, Range<usize>)>,
    /// Where the innermost items began, so that the first block of each takes its bullet.
    items: Vec<usize>,
    quotes: usize,
    /// Inside a block whose place is already known.
    whole: usize,
    in_metadata: bool,
    /// From the front matter.
    title: Option<String>,
    /// The first heading of the first level.
    heading: Option<String>,
}

impl Walk<'_> {
    fn event(&mut self, event: Event, range: Range<usize>) {
        match event {
            Event::Start(tag) => self.start(&tag, range),
            Event::End(tag) => self.end(tag),
            Event::Text(text) if self.in_metadata => self.title = title_of(&text),
            Event::Rule => self.flush(),
            _ => self.extend(range),
        }
    }

    fn start(&mut self, tag: &Tag, range: Range<usize>) {
        match tag {
            Tag::Heading { level, .. } => {
                self.flush();
                self.open = Some((BlockKind::Heading(*level as u8), range.end..range.end));
            }
            Tag::Paragraph => {
                self.flush();
                self.begin(range);
            }
            Tag::Item => {
                self.flush();
                self.items.push(range.start);
            }
            Tag::List(_) | Tag::Table(_) | Tag::FootnoteDefinition(_) => self.flush(),
            Tag::BlockQuote(_) => {
                self.flush();
                self.quotes += 1;
            }
            Tag::CodeBlock(_) => self.whole(BlockKind::Code, range),
            Tag::HtmlBlock => self.whole(BlockKind::Paragraph, range),
            Tag::TableHead => self.whole(BlockKind::TableHeader, range),
            Tag::TableRow => self.whole(BlockKind::TableRow, range),
            Tag::MetadataBlock(_) => {
                self.flush();
                self.in_metadata = true;
            }
            _ => self.extend(range),
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::CodeBlock | TagEnd::HtmlBlock | TagEnd::TableHead | TagEnd::TableRow => {
                self.whole = self.whole.saturating_sub(1);
            }
            TagEnd::Heading(_) | TagEnd::Paragraph => self.flush(),
            TagEnd::Item => {
                self.flush();
                self.items.pop();
            }
            TagEnd::BlockQuote(_) => {
                self.flush();
                self.quotes = self.quotes.saturating_sub(1);
            }
            TagEnd::MetadataBlock(_) => self.in_metadata = false,
            _ => {}
        }
    }

    /// A block of which nothing within is a block.
    fn whole(&mut self, kind: BlockKind, range: Range<usize>) {
        self.flush();
        self.push(kind, range);
        self.whole += 1;
    }

    /// Something of the open block; text right within a tight item opens one.
    fn extend(&mut self, range: Range<usize>) {
        if self.whole > 0 || self.in_metadata {
            return;
        }
        match &mut self.open {
            Some((_, open)) => {
                // A heading is without its marks, so that it opens at its first word.
                if open.start == open.end {
                    *open = range;
                } else {
                    open.end = open.end.max(range.end);
                }
            }
            None => self.begin(range),
        }
    }

    fn begin(&mut self, range: Range<usize>) {
        let kind = if !self.items.is_empty() {
            BlockKind::ListItem
        } else if self.quotes > 0 {
            BlockKind::Quote
        } else {
            BlockKind::Paragraph
        };
        // The bullet belongs to the first block of its item alone.
        let last = self.blocks.last().map_or(0, |block| block.end);
        let start = self.items.last().copied().filter(|start| *start >= last).unwrap_or(range.start);
        self.open = Some((kind, start.min(range.start)..range.end));
    }

    fn flush(&mut self) {
        if let Some((kind, range)) = self.open.take() {
            if kind == BlockKind::Heading(1) && self.heading.is_none() {
                self.heading = Some(self.text[range.clone()].to_owned());
            }
            self.push(kind, range);
        }
    }

    fn push(&mut self, kind: BlockKind, range: Range<usize>) {
        let range = crate::core::sentence::trimmed(self.text, range);
        let last = self.blocks.last().map_or(0, |block| block.end);
        if range.start >= last && !range.is_empty() {
            self.blocks.push(Block { kind, start: range.start, end: range.end });
        }
    }
}

/// The `title` of YAML or TOML front matter.
fn title_of(metadata: &str) -> Option<String> {
    let value = metadata.lines().find_map(|line| {
        let rest = line.strip_prefix("title")?.trim_start();
        rest.strip_prefix(':').or_else(|| rest.strip_prefix('='))
    })?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned())
}
