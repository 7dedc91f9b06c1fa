//! Citation marks in a model's reply: words come in, words with marks in one form go out, and where each mark belongs.
//!
//! A mark is `[1]`, or one of the forms that models write instead. Code, array indexes and links are left alone.

use crate::core::prompt::group::{self, Group};
use crate::core::sentence;
use std::ops::Range;

pub use crate::core::prompt::support::locate;

/// A mark that cites a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The source's number, from 1.
    pub number: u32,
    /// Bytes of the statement in the cleaned text that it belongs to.
    pub sentence: (usize, usize),
}

/// A reply whose marks were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marked {
    /// The reply, its marks written as `[1]` and those that point to no source removed.
    pub text: String,
    /// Its marks in order.
    pub marks: Vec<Mark>,
    /// How many numbers pointed to no source.
    pub removed: u32,
}

/// Reads the marks of a whole reply that was given sources 1 to `sources`.
pub fn read(reply: &str, sources: u32) -> Marked {
    let mut filter = MarkFilter::new(sources);
    let mut text = filter.push(reply);
    text.push_str(&filter.finish());
    let statements = statements(&text, &filter.marks);
    let marks = filter.marks.iter().zip(statements).map(|((number, _), sentence)| Mark { number: *number, sentence });
    Marked { marks: marks.collect(), removed: filter.removed, text }
}

/// What the reply is in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Within {
    Prose,
    /// Inline code between runs of so many backticks; `opens` where it may yet prove to be a fence.
    Code {
        ticks: usize,
        opens: bool,
    },
    /// A fence of at least so many of a character.
    Fence(char, usize),
}

/// Cleans marks as a reply comes in: the same text as [`read`] gives, however the reply is cut.
///
/// It holds back no more than the spaces at the end, and what may yet be a mark.
#[derive(Clone, Debug)]
pub struct MarkFilter {
    sources: u32,
    within: Within,
    /// Spaces that go if a mark after them is removed; `stale` where one was, and only a further mark can save them.
    spaces: String,
    stale: bool,
    /// What may be a mark, from its bracket on; its numbers once it is closed.
    held: String,
    closed: Option<Vec<u32>>,
    /// The run of backticks or tildes at the end of what came in.
    run: (char, usize),
    /// Whether the run began its line, and whether the line has held nothing else but white space and `>` so far.
    run_leads: bool,
    lead: bool,
    /// The last character that was let through, and whether it ends an array's index.
    last: Option<char>,
    index: bool,
    /// A removed mark began its line: the spaces after it go too.
    swallow: bool,
    out: String,
    /// Bytes given before `out`.
    given: usize,
    marks: Vec<(u32, Range<usize>)>,
    removed: u32,
}

impl MarkFilter {
    /// A filter for a reply that was given sources 1 to `sources`.
    pub fn new(sources: u32) -> MarkFilter {
        MarkFilter {
            sources,
            within: Within::Prose,
            spaces: String::new(),
            stale: false,
            held: String::new(),
            closed: None,
            run: (' ', 0),
            run_leads: false,
            lead: true,
            last: None,
            index: false,
            swallow: false,
            out: String::new(),
            given: 0,
            marks: Vec::new(),
            removed: 0,
        }
    }

    /// Takes the next words and gives those that can be shown.
    pub fn push(&mut self, delta: &str) -> String {
        delta.chars().for_each(|c| self.step(c));
        self.give()
    }

    /// Gives what was held back, at the reply's end.
    pub fn finish(&mut self) -> String {
        // What is let go may hold a mark in turn; each round lets at least a bracket through.
        while !self.held.is_empty() {
            match self.closed.take() {
                Some(numbers) => self.settle(&numbers),
                None => self.let_go(),
            }
        }
        if !self.stale {
            self.out.push_str(&std::mem::take(&mut self.spaces));
        }
        self.give()
    }

    fn give(&mut self) -> String {
        self.given += self.out.len();
        std::mem::take(&mut self.out)
    }

    fn step(&mut self, c: char) {
        if let Some(numbers) = self.closed.take() {
            if c == '(' && self.held.starts_with('[') {
                self.emit_held();
            } else {
                self.settle(&numbers);
            }
        } else if !self.held.is_empty() {
            self.held.push(c);
            let after_name = self.names(self.last) || self.index;
            match group::read(&self.held, after_name && self.spaces.is_empty()) {
                Group::Open => {}
                Group::Closed(numbers) => self.closed = Some(numbers),
                Group::Other => self.let_go(),
            }
            return;
        }
        self.end_run(c);
        let prose = self.within == Within::Prose && self.run.1 == 0;
        if self.stale && !(prose && matches!(c, '[' | '【')) {
            self.spaces.clear();
            self.stale = false;
        }
        match c {
            '[' | '【' if prose => self.held.push(c),
            ' ' | '\u{a0}' | '\u{202f}' if self.within == Within::Prose => {
                if !self.swallow {
                    self.spaces.push(c);
                }
            }
            _ => self.emit(c),
        }
    }

    /// Lets a character through, the spaces before it first.
    fn emit(&mut self, c: char) {
        self.index =
            self.index && (c.is_ascii_alphanumeric() || matches!(c, '[' | ']' | '_')) && self.spaces.is_empty();
        self.swallow = false;
        self.stale = false;
        self.out.push_str(&std::mem::take(&mut self.spaces));
        self.out.push(c);
        self.last = Some(c);
        if matches!(c, '`' | '~') {
            if self.run.1 == 0 {
                self.run_leads = self.lead;
            }
            self.run = (c, self.run.1 + 1);
        }
        self.lead = c == '\n' || self.lead && (c.is_whitespace() || c == '>');
    }

    /// Decides what a run of backticks or tildes was, now that another character follows it; lines end here too.
    fn end_run(&mut self, c: char) {
        let (of, count) = self.run;
        if count > 0 && c != of {
            self.run = (' ', 0);
            self.within = match self.within {
                Within::Prose if of == '`' => Within::Code { ticks: count, opens: self.run_leads && count >= 3 },
                Within::Prose if self.run_leads && count >= 3 => Within::Fence(of, count),
                Within::Code { ticks, .. } if of == '`' && ticks == count => Within::Prose,
                // A closing fence has its line to itself.
                Within::Fence(fence, least) if of == fence && count >= least && self.run_leads && c.is_whitespace() => {
                    Within::Prose
                }
                within => within,
            };
        }
        if c == '\n'
            && let Within::Code { ticks, opens } = self.within
        {
            self.within = if opens { Within::Fence('`', ticks) } else { Within::Prose };
        }
    }

    /// Whether a bracket directly after this character is an index into what it names.
    fn names(&self, last: Option<char>) -> bool {
        // Scripts that put no spaces between words would otherwise never be cited.
        last.is_some_and(|c| c == '_' || c.is_alphanumeric() && (c as u32) < 0x0e00)
    }

    /// What was held is no mark: lets its bracket through and looks at the rest again.
    fn let_go(&mut self) {
        let held = std::mem::take(&mut self.held);
        let mut chars = held.chars();
        let Some(bracket) = chars.next() else { return };
        let index = bracket == '[' && self.spaces.is_empty() && (self.names(self.last) || self.index);
        self.emit(bracket);
        self.index = index;
        chars.for_each(|c| self.step(c));
    }

    fn emit_held(&mut self) {
        for c in std::mem::take(&mut self.held).chars() {
            self.emit(c);
        }
    }

    /// Writes a mark's numbers in our form, or removes it with the spaces before it.
    fn settle(&mut self, numbers: &[u32]) {
        self.held.clear();
        let known: Vec<u32> = numbers.iter().copied().filter(|number| (1..=self.sources).contains(number)).collect();
        self.removed += (numbers.len() - known.len()) as u32;
        if known.is_empty() {
            self.swallow = self.lead;
            self.stale = !self.lead;
        }
        for number in known {
            self.out.push_str(&std::mem::take(&mut self.spaces));
            let start = self.given + self.out.len();
            format!("[{number}]").chars().for_each(|c| self.emit(c));
            self.index = false;
            self.marks.push((number, start..self.given + self.out.len()));
        }
    }
}

/// The statement that each mark belongs to: the sentence before it, or the one after it where it begins a line.
fn statements(text: &str, marks: &[(u32, Range<usize>)]) -> Vec<(usize, usize)> {
    // Sentences are found without the marks, which stand on either side of a full stop.
    let mut bare = String::with_capacity(text.len());
    let mut cuts: Vec<(usize, usize)> = Vec::new();
    let mut places = Vec::with_capacity(marks.len());
    let (mut at, mut cut) = (0, 0);
    for (_, mark) in marks {
        let before = &text[at..mark.start];
        let kept = before.trim_end_matches(' ');
        bare.push_str(kept);
        cut += before.len() - kept.len() + mark.len();
        cuts.push((bare.len(), cut));
        places.push(bare.len());
        at = mark.end;
    }
    bare.push_str(&text[at..]);
    let cut_up_to = |place: usize, whole: bool| {
        let passed = cuts.partition_point(|(at, _)| *at < place || whole && *at == place);
        passed.checked_sub(1).map_or(0, |last| cuts[last].1)
    };
    let sentences = sentence::sentences(&bare);
    let found = places.into_iter().zip(marks).map(|(place, (_, mark))| {
        let next = sentences.partition_point(|sentence| sentence.start < place);
        let line = bare[..place].rfind('\n').map_or(0, |at| at + 1);
        let leads = bare[line..place].trim().is_empty();
        let after = sentences.get(next).filter(|_| leads && !bare[place..].starts_with('\n'));
        let sentence = after.or_else(|| next.checked_sub(1).and_then(|last| sentences.get(last)));
        sentence.map_or((mark.start, mark.end), |sentence| {
            (sentence.start + cut_up_to(sentence.start, true), sentence.end + cut_up_to(sentence.end, false))
        })
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn numbers(marked: &Marked) -> Vec<u32> {
        marked.marks.iter().map(|mark| mark.number).collect()
    }

    #[test]
    fn marks_are_written_in_one_form() {
        for (reply, text, marks) in [
            ("It takes 5 days [1].", "It takes 5 days [1].", vec![1]),
            ("Both [1, 3] and [1][2].", "Both [1][3] and [1][2].", vec![1, 3, 1, 2]),
            ("Yes【1】. No [doc 2], [Document 3].", "Yes[1]. No [2], [3].", vec![1, 2, 3]),
            ("退款需要五天[1]。", "退款需要五天[1]。", vec![1]),
            ("[1] says so.", "[1] says so.", vec![1]),
            ("(see above)[2]", "(see above)[2]", vec![2]),
            ("end [1", "end [1", vec![]),
            ("[[1]]", "[[1]]", vec![1]),
            ("【1†[2]", "【1†[2]", vec![2]),
        ] {
            let marked = read(reply, 3);
            assert_eq!((marked.text.as_str(), numbers(&marked)), (text, marks), "{reply}");
            assert_eq!(marked.removed, 0);
        }
    }

    #[test]
    fn a_mark_of_no_source_goes_with_the_space_before_it() {
        for (reply, text, removed) in [
            ("Trust me [99]. Really.", "Trust me. Really.", 1),
            ("One [0][1, 7] two [4] [5] three", "One [1] two three", 4),
            ("[9] First\n  [9] Second\n- [9] Third", "First\n  Second\n- Third", 3),
            ("Yes  [4]\nno", "Yes\nno", 1),
        ] {
            let marked = read(reply, 3);
            assert_eq!((marked.text.as_str(), marked.removed), (text, removed), "{reply}");
        }
        assert_eq!(read("none [1]", 0), Marked { text: "none".into(), marks: vec![], removed: 1 });
    }

    #[test]
    fn code_indexes_and_links_are_left_alone() {
        for reply in [
            "Write a[9], m[9][8], m[i][9] or x_[9].",
            "See [9](https://example.org/) and [a [9](b).",
            "In `a [9]` and ``b ` [9]`` too.",
            "```sql\nselect a [9];\n``\n [9]\n```",
            "> ~~~\n> a [9]\n> ~~~",
            "In [2024] and [x] and [] and [ ].",
        ] {
            let marked = read(reply, 3);
            assert_eq!((marked.text.as_str(), marked.removed), (reply, 0));
        }
        assert_eq!(read("```\n[9]\n```\nafter [9] `x` [9] ` [8]\nlone [9]", 3).removed, 3);
        assert_eq!(numbers(&read("```one``` [1]", 3)), [1]);
    }

    #[test]
    fn a_mark_belongs_to_the_sentence_before_it() {
        let reply =
            "Refunds take 5 days [1]. They are free. [2][3] Call us.\n[1] begins a line. Then [9] this [2] too.";
        let marked = read(reply, 3);
        let statements: Vec<&str> = marked.marks.iter().map(|m| &marked.text[m.sentence.0..m.sentence.1]).collect();
        assert_eq!(
            statements,
            ["Refunds take 5 days [1].", "They are free.", "They are free.", "begins a line.", "Then this [2] too."]
        );
    }

    #[test]
    fn a_stream_holds_back_no_more_than_a_mark() {
        let mut filter = MarkFilter::new(2);
        let shown: Vec<String> =
            ["It", " is [", "1", "]", ". a[", "1] [x", " ", "y [9", "]"].iter().map(|d| filter.push(d)).collect();
        assert_eq!(shown, ["It", " is", "", "", " [1]. a", "[1] [x", "", " y", ""]);
        assert_eq!(filter.finish(), "");
    }

    proptest! {
        #[test]
        fn a_stream_is_the_same_however_it_is_cut(
            reply in "([a-c .]|\\[[0-9]\\]|[\\[\\]【】`~\n(),†>-]|```|doc |\\PC){0,60}", cuts in proptest::collection::vec(0usize..200, 0..12),
        ) {
            let whole = read(&reply, 4);
            let mut filter = MarkFilter::new(4);
            let mut text = String::new();
            let mut rest = reply.as_str();
            for cut in cuts {
                let cut = rest.char_indices().map(|(at, _)| at).nth(cut % 9).unwrap_or(rest.len());
                text.push_str(&filter.push(&rest[..cut]));
                rest = &rest[cut..];
            }
            text.push_str(&filter.push(rest));
            text.push_str(&filter.finish());
            prop_assert_eq!(&text, &whole.text);
            for mark in &whole.marks {
                prop_assert!((1..=4).contains(&mark.number));
                prop_assert!(whole.text.get(mark.sentence.0..mark.sentence.1).is_some_and(|statement| !statement.is_empty()));
            }
        }

        #[test]
        fn prose_without_marks_is_verbatim(reply in "([^\\[【]|\\[x){0,80}") {
            prop_assert_eq!(read(&reply, 3).text, reply);
        }
    }
}
