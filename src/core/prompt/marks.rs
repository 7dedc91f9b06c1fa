//! Citation marks in a model's reply.

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
    let _ = sources;
    Marked { text: reply.to_owned(), marks: Vec::new(), removed: 0 }
}

/// Cleans marks as a reply comes in: the same text as [`read`] gives, however the reply is cut.
#[derive(Clone, Debug)]
pub struct MarkFilter {
    _sources: u32,
}

impl MarkFilter {
    /// A filter for a reply that was given sources 1 to `sources`.
    pub fn new(sources: u32) -> MarkFilter {
        MarkFilter { _sources: sources }
    }

    /// Takes the next words and gives those that can be shown.
    pub fn push(&mut self, delta: &str) -> String {
        delta.to_owned()
    }

    /// Gives what was held back, at the reply's end.
    pub fn finish(&mut self) -> String {
        String::new()
    }
}

/// Where a passage supports a statement: the characters of one to three neighbouring sentences that share its words
/// best, rare words counting more; `None` where no word is shared.
pub fn locate(statement: &str, passage: &str) -> Option<(usize, usize)> {
    let _ = (statement, passage);
    None
}
