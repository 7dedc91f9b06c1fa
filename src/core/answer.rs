//! The local provider's answer: the sentences of the documents that answer the question, in their own words, cited.
//!
//! It extracts and never writes. Whether the documents answer at all is decided from the best sentence: how near it is
//! to the question, how much of the question's words it has, and how well its passage was found. As these can be compared
//! between questions, so can their sum; weights and bounds were measured, see `docs/search.md`.

/// A sentence that might answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Sentence {
    /// Which passage it is in.
    pub passage: usize,
    /// First character in the document.
    pub start: u32,
    /// One past the last.
    pub end: u32,
    /// Cosine similarity to the question.
    pub similarity: f64,
    /// Share of the question's words that it has, rare words counting more; 0 to 1.
    pub coverage: f64,
    /// The passage's own score, 0 to 1.
    pub passage_score: f64,
    /// Its text.
    pub text: String,
}

/// Most sentences in an answer.
pub const MOST: usize = 4;

/// A sentence joins the answer if its score is at least this share of the best one's.
const WORTH: f64 = 0.8;

/// From this score on a sentence is an answer rather than merely the nearest text.
const ANSWERS: f64 = 0.4;

/// A sentence as near as this answers even in words that are all its own.
const NEAR: f64 = 0.62;

impl Sentence {
    /// How well it answers, 0 to 1.
    pub fn score(&self) -> f64 {
        0.4 * self.similarity.max(0.0) + 0.25 * self.coverage + 0.35 * self.passage_score
    }
}

/// Whether any sentence is an answer.
pub fn answers(sentences: &[Sentence]) -> bool {
    sentences.iter().any(|sentence| sentence.score() >= ANSWERS || sentence.similarity >= NEAR)
}

/// Whether a sentence only announces the next one.
pub fn announces(text: &str) -> bool {
    text.ends_with([':', '：'])
}

/// Chooses the sentences of the answer and puts them in order: passages as they rank, sentences as they stand.
pub fn choose(sentences: &[Sentence]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sentences.len()).filter(|at| worth_saying(&sentences[*at].text)).collect();
    order.sort_by(|a, b| sentences[*b].score().total_cmp(&sentences[*a].score()).then(a.cmp(b)));
    let Some(best) = order.first().map(|at| sentences[*at].score()) else { return Vec::new() };
    let mut chosen: Vec<usize> = Vec::new();
    for at in order {
        if chosen.len() == MOST || sentences[at].score() < WORTH * best {
            break;
        }
        if chosen.iter().all(|other| !repeats(&sentences[*other].text, &sentences[at].text)) {
            chosen.push(at);
        }
    }
    // The passage of the best sentence comes first, and within a passage the order of the document is kept.
    let mut passages: Vec<usize> = Vec::new();
    for at in &chosen {
        if !passages.contains(&sentences[*at].passage) {
            passages.push(sentences[*at].passage);
        }
    }
    chosen.sort_by_key(|at| {
        (passages.iter().position(|passage| *passage == sentences[*at].passage), sentences[*at].start)
    });
    chosen
}

/// Rules of tables, lone marks and the like say nothing.
fn worth_saying(text: &str) -> bool {
    text.chars().filter(|c| c.is_alphanumeric()).count() >= 3
}

/// Whether one sentence says what the other said: the same words, or nearly all of them.
fn repeats(a: &str, b: &str) -> bool {
    let words = |text: &str| -> std::collections::BTreeSet<String> {
        text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
    };
    let (a, b) = (words(a), words(b));
    let common = a.intersection(&b).count();
    common as f64 >= 0.8 * a.len().min(b.len()).max(1) as f64
}

/// A sentence on one line.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(passage: usize, start: u32, similarity: f64, text: &str) -> Sentence {
        Sentence { passage, start, end: start + 10, similarity, coverage: 0.5, passage_score: 0.5, text: text.into() }
    }

    #[test]
    fn the_order_of_the_document_is_kept() {
        let sentences = [
            sentence(0, 50, 0.9, "Refunds take ten days."),
            sentence(0, 10, 0.85, "Ask support for your money back."),
            sentence(1, 0, 0.8, "Shipping costs are not returned."),
        ];
        assert_eq!(choose(&sentences), [1, 0, 2]);
    }

    #[test]
    fn nothing_is_said_twice() {
        let sentences = [
            sentence(0, 0, 0.9, "Refunds take ten days."),
            sentence(1, 0, 0.9, "refunds  take ten days"),
            sentence(2, 0, 0.9, "---"),
        ];
        assert_eq!(choose(&sentences), [0]);
    }

    #[test]
    fn far_sentences_do_not_answer() {
        let mut far = sentence(0, 0, 0.2, "The museum opens at nine.");
        far.coverage = 0.1;
        assert!(!answers(&[far]));
        assert!(answers(&[sentence(0, 0, 0.7, "Refunds take ten days.")]));
        assert!(answers(&[sentence(0, 0, 0.3, "Ten days.")].map(|found| Sentence { coverage: 0.8, ..found })));
        assert!(!answers(&[sentence(0, 0, 0.3, "Ten days.")].map(|found| Sentence { coverage: 0.1, ..found })));
        assert!(!answers(&[]));
    }
}
