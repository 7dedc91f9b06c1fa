//! Cuts a document into the parts that are found and cited: its text and blocks come in, chunks go out.
//!
//! A chunk is one stretch of the text, verbatim. It prefers to begin at a heading, then at a block, then at a sentence;
//! it never has more than the allowed tokens. The work is linear in the text: each sentence is counted once, and each
//! chunk once more to be sure. The model that counts is the caller's; nothing here knows one.

mod piece;

use crate::core::block::{Block, BlockKind};
use crate::core::wire::Chunk;
use piece::{Piece, Section};
use std::ops::Range;

/// How large chunks may be.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Most tokens of a chunk's content. Only a single character of more tokens than this exceeds it.
    pub max_tokens: usize,
    /// Most tokens that a chunk repeats of the end of the one before; at most half of `max_tokens` is heeded.
    pub overlap_tokens: usize,
}

/// What stands between the headings of a trail.
const TRAIL_SEPARATOR: &str = " › ";

/// Longest heading, or header row of a table, within a trail, in characters.
const TRAIL_CHARS: usize = 160;

/// Cuts `text`. `blocks` are in order and do not overlap; text outside of them is cut as paragraphs. `count` says how many
/// tokens the model makes of a text.
pub fn chunk(text: &str, blocks: &[Block], options: &Options, count: &dyn Fn(&str) -> usize) -> Vec<Chunk> {
    let max = options.max_tokens.max(1);
    let (pieces, sections) = piece::pieces(text, blocks, max, count);
    let cutter =
        Cutter { text, pieces: &pieces, sections: &sections, max, overlap: options.overlap_tokens.min(max / 2) };
    let mut offsets = Offsets { text, byte: 0, char: 0 };
    let mut chunks = Vec::new();
    let mut previous = 0;
    let mut own = 0;
    while own < pieces.len() {
        let lead = cutter.lead(previous, own);
        let planned = cutter.end(lead, own);
        let (lead, end, tokens) = cutter.fit(lead, own, planned, count);
        let content = cutter.content(lead, end);
        // Pieces repeated from the chunk before lie behind the offset, the only reason to step back.
        let sentences = offsets.sentences(&pieces[lead..end]);
        let (start, stop) = (sentences[0].0, sentences[sentences.len() - 1].1);
        chunks.push(Chunk {
            heading: cutter.heading(own, end),
            start,
            end: stop,
            content: content.to_owned(),
            tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
            sentences: spoken(sentences, &pieces[lead..end], text),
        });
        previous = own;
        own = end;
    }
    chunks
}

/// A part without a letter or a digit, such as a rule of dashes, belongs to the sentence before it.
fn spoken(ranges: Vec<(u32, u32)>, pieces: &[Piece], text: &str) -> Vec<(u32, u32)> {
    let mut sentences: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
    for (range, piece) in ranges.into_iter().zip(pieces) {
        match sentences.last_mut() {
            Some(last) if !text[piece.range.clone()].contains(char::is_alphanumeric) => last.1 = range.1,
            _ => sentences.push(range),
        }
    }
    sentences
}

struct Cutter<'a> {
    text: &'a str,
    pieces: &'a [Piece],
    sections: &'a [Section],
    max: usize,
    overlap: usize,
}

impl Cutter<'_> {
    /// The first piece of a chunk whose own pieces begin at `own`: earlier where the end of the chunk before, which began
    /// at `previous`, is repeated. Only prose of the same section is, and never all of that chunk.
    fn lead(&self, previous: usize, own: usize) -> usize {
        let section = self.pieces[own].section;
        let repeatable = |piece: &Piece| piece.section == section && piece.is_prose();
        let mut lead = own;
        let mut tokens = 0;
        while lead > previous + 1 && repeatable(&self.pieces[own]) && repeatable(&self.pieces[lead - 1]) {
            tokens += self.pieces[lead - 1].weight;
            if tokens > self.overlap {
                break;
            }
            lead -= 1;
        }
        // The first piece of its own must find room.
        while lead < own && self.weight(lead, own) + self.pieces[own].weight > self.max {
            lead += 1;
        }
        lead
    }

    /// One past the last piece of the chunk that begins with `lead` and whose own pieces begin with `own`.
    fn end(&self, lead: usize, own: usize) -> usize {
        let room = self.max - self.weight(lead, own).min(self.max);
        let mut section = self.pieces[own].section;
        let mut end = self.sections[section].pieces.end;
        if self.weight(own, end) > room {
            return self.cut(own, own..end, room);
        }
        let mut trail = self.sections[section].trail.as_slice();
        // Neighbours join until what there is counts as big enough to stand alone.
        while let Some(next) = self.sections.get(section + 1) {
            let held = self.weight(own, end);
            let is_tiny = held < self.max / 8;
            if held >= self.max / 2 || !(is_kin(trail, &next.trail) || is_tiny) {
                break;
            }
            if held + self.weight(next.pieces.start, next.pieces.end) > room {
                let first = self.weight(next.pieces.start, next.body.min(next.pieces.end - 1) + 1);
                if is_tiny && held + first <= room {
                    end = self.cut(own, next.pieces.clone(), room - held);
                }
                break;
            }
            end = next.pieces.end;
            trail = &trail[..shared(trail, &next.trail)];
            section += 1;
        }
        end
    }

    /// Where a run of pieces that is too large is cut so that about equal parts come of it: at the start of a block where
    /// one is near, else at a piece. `own` is the first piece of the chunk, which is never left empty.
    fn cut(&self, own: usize, run: Range<usize>, room: usize) -> usize {
        let total = self.weight(run.start, run.end);
        let parts = total.div_ceil(room.max(1)).max(1);
        let target = total.div_ceil(parts);
        let mut held = 0;
        let mut block = None;
        for at in run.clone() {
            let weight = self.pieces[at].weight;
            if at > own && self.pieces[at].opens_block && !self.follows_heading(at) {
                if held >= target {
                    return at;
                }
                if held >= room / 2 {
                    block = Some(at);
                }
            }
            // A block that fits into a chunk of its own is better not torn; one that must be is torn in even parts.
            let is_torn = held + weight > room || (held >= target && self.runs_over(at, run.end, room - held));
            if is_torn && at > own {
                return block.unwrap_or(at);
            }
            held += weight;
        }
        run.end
    }

    /// Whether the block around the piece `at` goes on beyond the room that is left.
    fn runs_over(&self, at: usize, end: usize, room: usize) -> bool {
        let mut held = 0;
        for piece in &self.pieces[at..end] {
            if piece.opens_block && held > 0 {
                return false;
            }
            held += piece.weight;
            if held > room {
                return true;
            }
        }
        false
    }

    fn follows_heading(&self, at: usize) -> bool {
        at > 0 && matches!(self.pieces[at - 1].kind, BlockKind::Heading(_))
    }

    /// The chunk as planned, or a smaller one in the rare case that its parts count for less than the whole.
    fn fit(&self, lead: usize, own: usize, end: usize, count: &dyn Fn(&str) -> usize) -> (usize, usize, usize) {
        let (mut lead, mut end) = (lead, end);
        loop {
            let tokens = count(self.content(lead, end));
            if tokens <= self.max || (lead == own && end == own + 1) {
                return (lead, end, tokens);
            }
            if lead < own {
                lead = own;
            } else {
                end -= (end - own).div_ceil(8).min(end - own - 1);
            }
        }
    }

    fn content(&self, lead: usize, end: usize) -> &str {
        &self.text[self.pieces[lead].range.start..self.pieces[end - 1].range.end]
    }

    /// Tokens of the pieces from `start` to `end`, by the sums that each piece carries.
    fn weight(&self, start: usize, end: usize) -> usize {
        if start >= end {
            return 0;
        }
        self.pieces[end - 1].sum - self.pieces[start].sum + self.pieces[start].weight
    }

    /// The headings that all of a chunk's own pieces stand under, and the header of a table that began before it.
    fn heading(&self, own: usize, end: usize) -> String {
        let mut trail = self.sections[self.pieces[own].section].trail.as_slice();
        for section in &self.sections[self.pieces[own].section..=self.pieces[end - 1].section] {
            trail = &trail[..shared(trail, &section.trail)];
        }
        let mut parts: Vec<String> = trail.iter().map(|(_, range)| shortened(&self.text[range.clone()])).collect();
        if let Some(header) = &self.pieces[own].header {
            parts.push(shortened(&self.text[header.clone()]));
        }
        parts.retain(|part| !part.is_empty());
        parts.join(TRAIL_SEPARATOR)
    }
}

type Trail = [(u8, Range<usize>)];

/// How many headings two trails share from the outermost.
fn shared(one: &Trail, other: &Trail) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

/// Whether a section may join a chunk: it is a neighbour under the same parent, or a part of the same section.
fn is_kin(chunk: &Trail, next: &Trail) -> bool {
    chunk.len() <= next.len() && shared(chunk, next) + 1 >= next.len()
}

/// One line of at most [`TRAIL_CHARS`] characters.
fn shortened(text: &str) -> String {
    // Whoever writes a heading of a megabyte pays for its first line alone.
    let text = text.char_indices().nth(4 * TRAIL_CHARS).map_or(text, |(at, _)| &text[..at]);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(TRAIL_CHARS) {
        Some((at, _)) => {
            let cut = line[..at].rfind(' ').filter(|cut| *cut > at / 2).unwrap_or(at);
            format!("{}…", &line[..cut])
        }
        None => line,
    }
}

/// Turns byte offsets into character offsets while walking forward, stepping back by no more than an overlap.
struct Offsets<'a> {
    text: &'a str,
    byte: usize,
    char: usize,
}

impl Offsets<'_> {
    fn sentences(&mut self, pieces: &[Piece]) -> Vec<(u32, u32)> {
        pieces.iter().map(|piece| (self.at(piece.range.start), self.at(piece.range.end))).collect()
    }

    fn at(&mut self, byte: usize) -> u32 {
        if byte < self.byte {
            self.char -= self.text[byte..self.byte].chars().count();
        } else {
            self.char += self.text[self.byte..byte].chars().count();
        }
        self.byte = byte;
        u32::try_from(self.char).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests;
