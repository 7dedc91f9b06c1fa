//! The local provider: an answer put together from the documents' own sentences. It is no language model and never
//! pretends to be one.

use crate::core::answer::{self, Sentence};
use crate::core::error::Result;
use crate::core::prompt::summary;
use crate::core::sentence;
use crate::core::sentences::Scored;
use crate::pg::asking::Question;
use crate::pg::messages::{Citation, Reply};
use crate::pg::searching::{Found, Passage};
use crate::pg::{embedding, indexing, spi};
use serde_json::json;

const NO_ANSWER: &str = "The documents do not answer this question.";
const NEEDS_KNOWLEDGE: &str =
    "The local provider answers from documents only, and knowledge was switched off for this call.";
const EXTRACTED: &str = "Extracted from the documents; the local provider writes no text of its own.";

/// Most sentences that are embedded while somebody waits.
const MOST_COMPARED: usize = 64;

/// Characters of a summary.
const SUMMARY: usize = 1200;

fn reply(text: String, citations: Vec<Citation>) -> Reply {
    Reply {
        grounded: Some(!citations.is_empty()),
        text,
        citations,
        provider: "local".into(),
        model: "extractive".into(),
        // It reads no prompt and writes no tokens.
        tool_calls: json!([]),
        usage: json!({ "input_tokens": 0, "output_tokens": 0, "cost": 0, "stop": "end" }),
    }
}

/// The answer to a question from what was found; `None` where documents were not to be looked up.
pub fn compose(question: &Question, found: Option<&Found>) -> Result<Reply> {
    let Some(found) = found else { return Ok(reply(NEEDS_KNOWLEDGE.into(), Vec::new())) };
    let sentences = sentences(question, found)?;
    if !answer::answers(&sentences) {
        return Ok(reply(NO_ANSWER.into(), Vec::new()));
    }
    if question.mode.name != "chat" {
        return Ok(summarise(found));
    }
    let mut text = String::new();
    let mut citations = Vec::new();
    for (at, number) in answer::choose(&sentences).into_iter().zip(1..) {
        let sentence = &sentences[at];
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(&answer::one_line(&sentence.text));
        text.push_str(&format!(" [{number}]"));
        let passage = &found.passages[sentence.passage];
        citations.push(cite(number, passage, sentence.start, sentence.end, &sentence.text, sentence.score()));
    }
    Ok(reply(text, citations))
}

fn cite(number: i32, passage: &Passage, start: u32, end: u32, quote: &str, score: f64) -> Citation {
    Citation {
        number,
        chunk: passage.chunk_at(start),
        source: passage.source,
        title: passage.title.clone(),
        heading: passage.heading.clone(),
        start,
        end,
        quote: quote.to_owned(),
        score,
    }
}

/// The most central sentences of what was found.
fn summarise(found: &Found) -> Reply {
    let mut text = String::new();
    let mut places = Vec::new();
    for (at, passage) in found.passages.iter().enumerate() {
        places.push((text.len(), at));
        text.push_str(&passage.content);
        text.push_str("\n\n");
    }
    let mut said = String::from(EXTRACTED);
    let mut citations = Vec::new();
    for (start, end) in summary::extract(&text, SUMMARY) {
        let Some((begin, at)) = places.iter().rev().find(|(begin, _)| *begin <= start).copied() else { continue };
        let passage = &found.passages[at];
        let (Some(before), Some(quote)) =
            (passage.content.get(..start - begin), passage.content.get(start - begin..end - begin))
        else {
            continue;
        };
        let first = passage.start as u32 + before.chars().count() as u32;
        let number = citations.len() as i32 + 1;
        said.push_str(&format!("\n- {} [{number}]", answer::one_line(quote)));
        citations.push(cite(number, passage, first, first + quote.chars().count() as u32, quote, passage.score));
    }
    reply(said, citations)
}

/// The sentences of the passages, with how much of the question's words each has.
fn sentences(question: &Question, found: &Found) -> Result<Vec<Sentence>> {
    let mut sentences = Vec::new();
    for (at, (passage, scored)) in found.passages.iter().zip(scored(question, found)?).enumerate() {
        // Characters once, so that each sentence is cut out without walking the passage again.
        let bytes: Vec<usize> =
            passage.content.char_indices().map(|(byte, _)| byte).chain([passage.content.len()]).collect();
        let byte = |offset: u32| bytes.get((i64::from(offset) - i64::from(passage.start)).max(0) as usize).copied();
        for (n, sentence) in scored.iter().enumerate() {
            let cut = |to: u32| passage.content.get(byte(sentence.start)?..byte(to)?);
            let Some(mut text) = cut(sentence.end) else { continue };
            let mut end = sentence.end;
            // What only announces the next one is said together with it.
            if answer::announces(text)
                && let Some(next) = scored.get(n + 1)
                && let Some(both) = cut(next.end)
            {
                (text, end) = (both, next.end);
            }
            sentences.push(Sentence {
                passage: at,
                start: sentence.start,
                end,
                similarity: f64::from(sentence.similarity),
                coverage: 0.0,
                passage_score: passage.score,
                text: text.to_owned(),
            });
        }
    }
    let all: f64 = found.weights.values().sum();
    if all > 0.0 {
        for config in &found.configs {
            let texts: Vec<String> = sentences.iter().map(|sentence| sentence.text.clone()).collect();
            let rows = spi::select(
                "select x.n::int, t.lexeme from pg_catalog.unnest($2) with ordinality x (text, n), \
                 pg_catalog.unnest(pg_catalog.to_tsvector($1::pg_catalog.regconfig, x.text)) t",
                &[config.as_str().into(), texts.into()],
                |row| Ok((row.get::<i32>(1)? as usize - 1, row.get::<String>(2)?)),
            )?;
            for (at, lexeme) in rows {
                sentences[at].coverage += found.weight(config, &lexeme) / all;
            }
        }
    }
    Ok(sentences)
}

/// The sentences of each passage with their similarity to the question. An index that a provider's model made has none;
/// there the local model compares the first ones now.
fn scored(question: &Question, found: &Found) -> Result<Vec<Vec<Scored>>> {
    let mut scored: Vec<Vec<Scored>> = found.passages.iter().map(|passage| passage.sentences.clone()).collect();
    let mut texts = vec![question.query()];
    let mut places = Vec::new();
    for (at, passage) in found.passages.iter().enumerate().filter(|(_, passage)| passage.sentences.is_empty()) {
        for (range, place) in sentence::placed(&passage.content, passage.start as u32) {
            if places.len() < MOST_COMPARED {
                texts.push(indexing::embedded_text(&passage.title, &passage.heading, &passage.content[range]));
                places.push((at, place));
            }
        }
    }
    if places.is_empty() {
        return Ok(scored);
    }
    let vectors = embedding::embed_locally(texts)?;
    let Some((query, vectors)) = vectors.split_first() else { return Ok(scored) };
    for ((at, (start, end)), vector) in places.into_iter().zip(vectors) {
        let similarity = query.iter().zip(vector).map(|(a, b)| a * b).sum();
        scored[at].push(Scored { start, end, similarity });
    }
    Ok(scored)
}
