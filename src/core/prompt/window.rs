//! What fits in a model's window: counts of tokens come in, what to send goes out.

use crate::core::chat::Part;
use crate::core::error::{Error, Kind, Result};
use std::ops::Range;

/// What providers say that a picture, or a page, takes at most.
const PICTURE: u32 = 1600;

/// Bytes of a document for a token: a page of text and pictures has about a hundred thousand.
const BYTES: usize = 64;

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

/// Turns that are folded into a summary at once, at least.
pub const FOLD: usize = 4;

/// Plans what is sent. Fails with [`Kind::OverLimit`] where `fixed` alone does not fit.
///
/// Everything stands in one order that the room has no part in, and is sent up to the first that does not fit: so more
/// room never gives less. In that order the summary comes first, then recent turns and best passages by turns, such that
/// neither side passes the other while both last; where they are level, the turn goes first. A passage goes before a
/// summary that is longer than it, lest a summary fill a small window alone.
pub fn plan(room: Room, need: Need) -> Result<Plan> {
    let fits = room.window.saturating_sub(room.output);
    let Some(mut left) = fits.checked_sub(need.fixed) else {
        return Err(Error::new(Kind::OverLimit, "question is too long for the model")
            .detail(format!(
                "The question and what always goes with it have about {} tokens; the model takes {}, of which {} are \
                 kept for its reply.",
                need.fixed, room.window, room.output
            ))
            .hint(
                "Shorten the question, attach less, allow the reply fewer tokens, or choose a model with a larger window.",
            ));
    };
    let mut plan = Plan { passages: 0, first_turn: need.turns.len(), summary: false };
    let mut wants_summary = need.summary > 0;
    let (mut of_turns, mut of_passages) = (0u64, 0u64);
    loop {
        let turn = plan.first_turn.checked_sub(1).map(|at| need.turns[at]);
        let passage = need.passages.get(plan.passages).copied();
        let summary_next = wants_summary && (plan.passages > 0 || passage.is_none_or(|first| need.summary <= first));
        let turn_next = !wants_summary
            && match (turn, passage) {
                (Some(turn), Some(passage)) => of_turns + u64::from(turn) <= of_passages + u64::from(passage),
                (turn, _) => turn.is_some(),
            };
        let next = if summary_next {
            need.summary
        } else if let Some(next) = if turn_next { turn } else { passage } {
            next
        } else {
            return Ok(plan);
        };
        let Some(rest) = left.checked_sub(next) else { return Ok(plan) };
        left = rest;
        if summary_next {
            plan.summary = true;
            wants_summary = false;
        } else if turn_next {
            plan.first_turn -= 1;
            of_turns += u64::from(next);
        } else {
            plan.passages += 1;
            of_passages += u64::from(next);
        }
    }
}

/// The turns to fold into the summary now, where `covered` turns are in it already and turns from `first_turn` on are
/// sent; `None` where every turn is sent or covered.
///
/// At least [`FOLD`] turns at once, some of which may still be sent for a while, so that not every question pays for a
/// summary. The caller cuts the range at the number of turns there are.
pub fn fold_from(covered: usize, first_turn: usize) -> Option<Range<usize>> {
    (first_turn > covered).then(|| covered..first_turn.max(covered.saturating_add(FOLD)))
}

/// What a run of characters is to a tokenizer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Latin,
    Letter,
    Ideograph,
    Digit,
    Space,
    Mark(char),
}

impl Class {
    fn of(c: char) -> Class {
        match c {
            _ if c.is_whitespace() => Class::Space,
            '\u{1100}'..='\u{11ff}'
            | '\u{2e80}'..='\u{303f}'
            | '\u{3040}'..='\u{9fff}'
            | '\u{ac00}'..='\u{d7af}'
            | '\u{f900}'..='\u{faff}'
            | '\u{ff00}'..='\u{ffef}'
            | '\u{20000}'..='\u{3ffff}' => Class::Ideograph,
            'a'..='z' | 'A'..='Z' | '\u{c0}'..='\u{24f}' => Class::Latin,
            _ if c.is_alphabetic() => Class::Letter,
            _ if c.is_numeric() => Class::Digit,
            _ => Class::Mark(c),
        }
    }

    /// Tokens of a run, which is rarely less than one.
    fn tokens(self, count: u64) -> u64 {
        match self {
            Class::Latin => count.div_ceil(4),
            Class::Letter => count.div_ceil(2),
            Class::Ideograph => count,
            Class::Digit => count.div_ceil(3),
            Class::Space => count / 8,
            // A rule of dashes is a few tokens; a picture is two or three.
            Class::Mark(c) if c.is_ascii() => count.div_ceil(4),
            Class::Mark(_) => count * 2,
        }
    }
}

/// About how many tokens a text has, without a tokenizer; 0 only for an empty one. Rather too many than too few.
pub fn estimate(text: &str) -> u32 {
    let mut tokens = 0;
    let mut run: Option<(Class, u64)> = None;
    for class in text.chars().map(Class::of) {
        run = match run {
            Some((last, count)) if last == class => Some((class, count + 1)),
            Some((last, count)) => {
                tokens += last.tokens(count);
                Some((class, 1))
            }
            None => Some((class, 1)),
        };
    }
    let Some((last, count)) = run else { return 0 };
    u32::try_from((tokens + last.tokens(count)).max(1)).unwrap_or(u32::MAX)
}

/// About how many tokens a picture or document has; 0 for other parts. A document's grow with its size, and one that is
/// text has those of its words.
pub fn attached(part: &Part) -> u32 {
    match part {
        Part::Image(_) => PICTURE,
        Part::Document { media, .. } if media.mime_type.starts_with("text/") => {
            estimate(&String::from_utf8_lossy(&media.data)).saturating_add(16)
        }
        Part::Document { media, .. } => u32::try_from(media.data.len() / BYTES).unwrap_or(u32::MAX).max(PICTURE),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn planned(window: u32, need: Need) -> Plan {
        plan(Room { window, output: 100 }, need).unwrap()
    }

    fn total(need: &Need, plan: &Plan) -> u64 {
        let sum = |tokens: &[u32]| tokens.iter().map(|tokens| u64::from(*tokens)).sum::<u64>();
        u64::from(need.fixed)
            + if plan.summary { u64::from(need.summary) } else { 0 }
            + sum(&need.turns[plan.first_turn..])
            + sum(&need.passages[..plan.passages])
    }

    #[test]
    fn turns_and_passages_share_what_is_left() {
        let need = Need { fixed: 100, summary: 50, turns: &[100; 20], passages: &[100; 20] };
        assert_eq!(planned(1250, need), Plan { passages: 5, first_turn: 15, summary: true });
        // The last turn before the last passage.
        assert_eq!(planned(1150, need), Plan { passages: 4, first_turn: 15, summary: true });
        // Either side uses what the other leaves over.
        assert_eq!(planned(1250, Need { turns: &[100], ..need }), Plan { passages: 9, first_turn: 0, summary: true });
        assert_eq!(
            planned(1250, Need { passages: &[100], ..need }),
            Plan { passages: 1, first_turn: 11, summary: true }
        );
    }

    #[test]
    fn a_long_old_turn_or_summary_does_not_crowd_out_passages() {
        let need = Need { fixed: 0, summary: 0, turns: &[90_000, 100], passages: &[100; 8] };
        assert_eq!(planned(2000, need), Plan { passages: 8, first_turn: 1, summary: false });
        let need = Need { fixed: 0, summary: 900, turns: &[], passages: &[100; 8] };
        assert_eq!(planned(300, need), Plan { passages: 1, first_turn: 0, summary: false });
    }

    #[test]
    fn a_question_that_does_not_fit_says_by_how_much() {
        let need = Need { fixed: 901, summary: 0, turns: &[], passages: &[] };
        let error = plan(Room { window: 1000, output: 100 }, need).unwrap_err();
        assert_eq!(error.kind, Kind::OverLimit);
        assert!(error.detail.unwrap().contains("901") && error.hint.is_some());
        assert!(plan(Room { window: 10, output: 100 }, Need { fixed: 1, ..need }).is_err());
        assert!(plan(Room { window: 1000, output: 100 }, Need { fixed: 900, ..need }).is_ok());
    }

    #[test]
    fn turns_are_folded_in_steps_and_none_is_forgotten() {
        assert_eq!(fold_from(0, 0), None);
        assert_eq!(fold_from(3, 2), None);
        let (mut covered, mut folds) = (0, 0);
        for first_turn in 0..40 {
            if let Some(range) = fold_from(covered, first_turn) {
                assert_eq!(range.start, covered);
                covered = range.end;
                folds += 1;
            }
            assert!(covered >= first_turn, "a turn is neither sent nor covered");
        }
        assert_eq!(folds, 10);
        assert_eq!(fold_from(2, 30), Some(2..30));
    }

    #[test]
    fn a_document_takes_more_the_larger_it_is() {
        let document = |mime_type: &str, bytes: usize| {
            let media = crate::core::chat::Media { mime_type: mime_type.into(), data: vec![b'x'; bytes] };
            attached(&Part::Document { name: "d".into(), media })
        };
        assert_eq!((document("application/pdf", 1000), document("application/pdf", 6_400_000)), (1600, 100_000));
        assert!(document("text/plain", 40_000) >= 10_000 && document("text/plain", 10) < 100);
        assert_eq!(attached(&Part::Text("word".into())), 0);
    }

    #[test]
    fn estimates_are_near_what_tokenizers_count() {
        for (text, counted) in [
            ("How do refunds work?", 5..=7),
            ("The quick brown fox jumps over the lazy dog.", 9..=13),
            ("Bagaimana cara mengembalikan barang yang rusak?", 10..=16),
            ("退款需要五天。", 6..=9),
            ("Как вернуть деньги?", 5..=11),
            ("1234567890", 4..=5),
            ("----------------", 1..=4),
        ] {
            assert!(counted.contains(&estimate(text)), "{text}: {}", estimate(text));
        }
        assert_eq!((estimate(""), estimate(" ")), (0, 1));
    }

    proptest! {
        #[test]
        fn a_plan_fits_and_more_room_never_gives_less(
            fixed in 0u32..500, summary in 0u32..500, window in 0u32..6000, more in 0u32..3000,
            turns in proptest::collection::vec(0u32..900, 0..12), passages in proptest::collection::vec(0u32..900, 0..12),
        ) {
            let need = Need { fixed, summary, turns: &turns, passages: &passages };
            let room = Room { window, output: 300 };
            let (Ok(less), Ok(more)) = (plan(room, need), plan(Room { window: window + more, ..room }, need)) else {
                prop_assert!(u64::from(window) < u64::from(fixed) + 300);
                return Ok(());
            };
            prop_assert!(total(&need, &less) <= u64::from(window - 300));
            prop_assert!(more.passages >= less.passages && more.first_turn <= less.first_turn && more.summary >= less.summary);
        }

        #[test]
        fn an_estimate_grows_with_its_text(one in "\\PC{0,40}", other in "\\PC{1,40}") {
            prop_assert!(estimate(&other) > 0);
            let both = format!("{one}{other}");
            prop_assert!(estimate(&both) >= estimate(&one));
        }
    }
}
