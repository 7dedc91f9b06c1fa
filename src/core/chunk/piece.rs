//! The smallest parts that a chunk is put together from: a text and its blocks come in, sentences and lines with their
//! tokens go out, each with the section that it stands in. Nothing is put together here.

use crate::core::block::{Block, BlockKind};
use crate::core::sentence::{MAX_CHARS, lines, sentences, trimmed};
use std::ops::Range;

/// A piece weighs at least a token for so many characters, so that a word that the model does not know, which is one token
/// however long it is, cannot make a chunk without bound.
const CHARS_PER_TOKEN: usize = 16;

/// A sentence, a line, or a part of one that was too long.
pub(super) struct Piece {
    pub range: Range<usize>,
    pub kind: BlockKind,
    /// Whether its block begins with it.
    pub opens_block: bool,
    /// Tokens, or more where it is long.
    pub weight: usize,
    /// Weight of all pieces up to this one, itself included.
    pub sum: usize,
    pub section: usize,
    /// The header row of the table that this row belongs to.
    pub header: Option<Range<usize>>,
}

impl Piece {
    pub fn is_prose(&self) -> bool {
        matches!(self.kind, BlockKind::Paragraph | BlockKind::ListItem | BlockKind::Quote)
    }
}

/// What stands under one heading, the heading included, up to the next.
pub(super) struct Section {
    pub pieces: Range<usize>,
    /// The first piece that is not of a heading, or the end.
    pub body: usize,
    /// Level and place of each heading above, outermost first, its own last.
    pub trail: Vec<(u8, Range<usize>)>,
}

/// A block with what its format draws around it: the marks of a heading, the bullet of an item.
struct Unit {
    kind: BlockKind,
    outer: Range<usize>,
    inner: Range<usize>,
}

/// Every character that is not white space is in exactly one of the pieces.
pub(super) fn pieces(
    text: &str,
    blocks: &[Block],
    max: usize,
    count: &dyn Fn(&str) -> usize,
) -> (Vec<Piece>, Vec<Section>) {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut sections: Vec<Section> = Vec::new();
    let mut trail: Vec<(u8, Range<usize>)> = Vec::new();
    let mut header: Option<Range<usize>> = None;
    let mut sum = 0;
    for unit in units(text, blocks) {
        if let BlockKind::Heading(level) = unit.kind {
            trail.retain(|(above, _)| *above < level);
            trail.push((level, unit.inner.clone()));
            close(&mut sections, pieces.len());
            match sections.last_mut() {
                // A heading right under a heading: one section, with the trail of the inner.
                Some(last) if last.body == pieces.len() && is_inner(&last.trail, &trail) => {
                    last.trail.clone_from(&trail)
                }
                _ => sections.push(Section { pieces: pieces.len()..0, body: usize::MAX, trail: trail.clone() }),
            }
        } else if sections.is_empty() {
            sections.push(Section { pieces: 0..0, body: 0, trail: Vec::new() });
        }
        header = match unit.kind {
            BlockKind::TableHeader => Some(unit.inner.clone()),
            BlockKind::TableRow => header,
            _ => None,
        };
        let mut opens_block = true;
        for range in parts(text, &unit) {
            for (range, tokens) in fitted(text, range, max, count) {
                let weight = weigh(text, &range, tokens, max);
                sum += weight;
                pieces.push(Piece {
                    range,
                    kind: unit.kind,
                    opens_block,
                    weight,
                    sum,
                    section: sections.len().saturating_sub(1),
                    header: if unit.kind == BlockKind::TableRow { header.clone() } else { None },
                });
                opens_block = false;
            }
        }
        if let (BlockKind::Heading(_), Some(last)) = (unit.kind, sections.last_mut()) {
            last.body = pieces.len();
        }
    }
    close(&mut sections, pieces.len());
    (pieces, sections)
}

fn close(sections: &mut [Section], end: usize) {
    if let Some(last) = sections.last_mut() {
        last.pieces.end = end;
        last.body = last.body.min(end);
    }
}

fn is_inner(outer: &[(u8, Range<usize>)], inner: &[(u8, Range<usize>)]) -> bool {
    inner.len() > outer.len() && inner.starts_with(outer)
}

/// The blocks and the gaps between them, in order and without overlap.
fn units(text: &str, blocks: &[Block]) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::with_capacity(blocks.len());
    let mut at = 0;
    for block in blocks {
        let (start, end) = (block.start.max(at), block.end.min(text.len()));
        if start >= end || !text.is_char_boundary(start) || !text.is_char_boundary(end) {
            continue;
        }
        let inner = trimmed(text, start..end);
        if inner.is_empty() {
            continue;
        }
        // What stands before it in its own line is its mark.
        let line = text[at..inner.start].rfind('\n').map_or(at, |line| at + line + 1);
        gap(text, at..line, &mut units);
        let outer = trimmed(text, line..inner.start).start.min(inner.start)..inner.end;
        units.push(Unit { kind: block.kind, outer, inner });
        at = end;
    }
    gap(text, at..text.len(), &mut units);
    units
}

/// Text outside of all blocks: the tail of the unit before it where no blank line parts them, else a paragraph.
fn gap(text: &str, range: Range<usize>, units: &mut Vec<Unit>) {
    let inner = trimmed(text, range.clone());
    if inner.is_empty() {
        return;
    }
    let breaks = text[range.start..inner.start].matches('\n').count();
    match units.last_mut() {
        Some(last) if breaks < 2 && !text[inner.clone()].contains("\n\n") => last.outer.end = inner.end,
        _ => units.push(Unit { kind: BlockKind::Paragraph, outer: inner.clone(), inner }),
    }
}

fn parts(text: &str, unit: &Unit) -> Vec<Range<usize>> {
    let part = &text[unit.outer.clone()];
    let found = match unit.kind {
        BlockKind::Code | BlockKind::TableHeader | BlockKind::TableRow => lines(part),
        // One sentence, whatever marks are in it, unless it is hardly a heading.
        BlockKind::Heading(_) if part.len() <= MAX_CHARS => return vec![unit.outer.clone()],
        _ => sentences(part),
    };
    found.into_iter().map(|range| unit.outer.start + range.start..unit.outer.start + range.end).collect()
}

fn weigh(text: &str, range: &Range<usize>, tokens: usize, max: usize) -> usize {
    tokens.max((text[range.clone()].chars().count() / CHARS_PER_TOKEN).min(max))
}

/// A part with its tokens, cut by words, then by characters, where it has more than `max`.
fn fitted(text: &str, range: Range<usize>, max: usize, count: &dyn Fn(&str) -> usize) -> Vec<(Range<usize>, usize)> {
    let tokens = count(&text[range.clone()]);
    if tokens <= max {
        return vec![(range, tokens)];
    }
    let mut words = Vec::new();
    let mut at = range.start;
    for word in text[range].split_inclusive(char::is_whitespace) {
        let inner = trimmed(text, at..at + word.len());
        at += word.len();
        if inner.is_empty() {
            continue;
        }
        let tokens = count(&text[inner.clone()]);
        if tokens <= max {
            words.push((inner, tokens));
        } else {
            words.extend(characters(text, inner, count));
        }
    }
    joined(text, words, max, count)
}

fn characters(text: &str, range: Range<usize>, count: &dyn Fn(&str) -> usize) -> Vec<(Range<usize>, usize)> {
    text[range.clone()]
        .char_indices()
        .map(|(at, c)| {
            let at = range.start + at;
            (at..at + c.len_utf8(), count(&text[at..at + c.len_utf8()]))
        })
        .collect()
}

/// Neighbouring parts put together as long as they have no more than `max` tokens, halved where the whole has more.
fn joined(
    text: &str,
    parts: Vec<(Range<usize>, usize)>,
    max: usize,
    count: &dyn Fn(&str) -> usize,
) -> Vec<(Range<usize>, usize)> {
    let mut whole = Vec::new();
    let mut start = 0;
    while start < parts.len() {
        let mut end = start + 1;
        let mut held = parts[start].1;
        while end < parts.len() && held + parts[end].1 <= max {
            held += parts[end].1;
            end += 1;
        }
        loop {
            let range = parts[start].0.start..parts[end - 1].0.end;
            let tokens = count(&text[range.clone()]);
            if tokens <= max || end == start + 1 {
                whole.push((range, tokens));
                break;
            }
            end = start + (end - start) / 2;
        }
        start = end;
    }
    whole
}
