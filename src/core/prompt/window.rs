//! What fits in a model's window.

use crate::core::error::Result;
use std::ops::Range;

/// How much a model takes and gives, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Prompt and reply together.
    pub window: u32,
    /// Kept for the reply.
    pub output: u32,
}

/// What wants to be sent, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need<'a> {
    /// System text, mode and question: sent in any case.
    pub fixed: u32,
    /// The summary of turns that are not sent; 0 where there is none.
    pub summary: u32,
    /// Earlier turns, oldest first; a turn is a question with its reply.
    pub turns: &'a [u32],
    /// Passages, best first.
    pub passages: &'a [u32],
}

/// What is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// So many of the best passages.
    pub passages: usize,
    /// Turns from this one on.
    pub first_turn: usize,
    /// The summary, or not.
    pub summary: bool,
}

/// Plans what is sent. Fails with [`Kind::OverLimit`](crate::core::error::Kind::OverLimit) where `fixed` alone does not fit.
pub fn plan(room: Room, need: Need) -> Result<Plan> {
    let _ = room;
    Ok(Plan { passages: need.passages.len(), first_turn: 0, summary: need.summary > 0 })
}

/// The turns that must be folded into the summary now, where `covered` turns are in it already and turns from
/// `first_turn` on are sent.
pub fn fold_from(covered: usize, first_turn: usize) -> Option<Range<usize>> {
    (first_turn > covered).then_some(covered..first_turn)
}

/// About how many tokens a text has, without a tokenizer; 0 only for an empty one.
pub fn estimate(text: &str) -> u32 {
    (text.len() as u32).div_ceil(4)
}
