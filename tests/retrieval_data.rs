//! How well search finds and the local answer answers, on the paragraphs and questions of the shared data: bounds that
//! hold on any machine, a little below what is reached. Figures beside those of others are in `benches/retrieval.py`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;

use cluster::{Cluster, Session};
use serde_json::Value;
use std::collections::HashMap;
use std::path::PathBuf;
use uuid::Uuid;

/// One question in this many is asked.
const EVERY: usize = 6;

struct Question {
    text: String,
    /// The paragraph that it was asked of.
    document: String,
}

fn lines(file: &str) -> Vec<String> {
    let data =
        PathBuf::from(std::env::var("DATA").unwrap_or_else(|_| "../shared/data".into())).join("squad").join(file);
    let text = std::fs::read_to_string(&data).unwrap_or_else(|error| panic!("{}: {error}", data.display()));
    text.lines().map(str::to_owned).collect()
}

fn questions() -> Vec<Question> {
    let right: HashMap<String, String> = lines("qrels.tsv")
        .iter()
        .map(|line| line.split_once('\t').expect("two columns"))
        .map(|(question, document)| (question.to_owned(), document.to_owned()))
        .collect();
    lines("queries.jsonl")
        .iter()
        .step_by(EVERY)
        .map(|line| {
            let value: Value = serde_json::from_str(line).unwrap();
            let document = right[value["id"].as_str().unwrap()].clone();
            Question { text: value["text"].as_str().unwrap().to_owned(), document }
        })
        .collect()
}

/// Share of the questions whose paragraph is among the first that are found, for each of the two bounds.
async fn hits(
    session: &Session,
    workspace: Uuid,
    questions: &[Question],
    method: &str,
    bounds: [usize; 2],
) -> [f64; 2] {
    let sql = "select s.external_id from helper.search($1, workspace => $2, k => 10, method => $3) with ordinality f \
               join helper.knowledge_sources s on s.id = f.source_id order by f.ordinality";
    let statement = session.prepare(sql).await.unwrap();
    let mut hits = [0; 2];
    for question in questions {
        let rows = session.query(&statement, &[&question.text, &workspace, &method]).await.unwrap();
        let mut found: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        found.dedup();
        let place = found.iter().position(|document| *document == question.document);
        for (hit, bound) in hits.iter_mut().zip(bounds) {
            *hit += usize::from(place.is_some_and(|place| place < bound));
        }
    }
    hits.map(|hits| hits as f64 / questions.len() as f64)
}

fn check(what: &str, value: f64, least: f64, missed: &mut Vec<String>) {
    println!("{what}: {value:.3} (at least {least})");
    if value < least {
        missed.push(format!("{what} is {value:.3}, expected at least {least}"));
    }
}

#[tokio::test]
async fn questions_find_their_paragraph_and_answers_quote_it() {
    let cluster = Cluster::start().await;
    let session = cluster.user("00000000-0000-4000-8000-000000000001").await;
    let workspace: Uuid = session.one("select helper.create_workspace('squad')", &[]).await;
    for line in lines("corpus.jsonl") {
        let document: Value = serde_json::from_str(&line).unwrap();
        let [title, text, id] = ["title", "text", "id"].map(|name| document[name].as_str().unwrap());
        let add = "select helper.add_document($1, $2, 'kb_article', $3, workspace => $4)";
        session.one::<Uuid>(add, &[&title, &text, &id, &workspace]).await;
    }
    let indexed: i64 = session.one("select helper.wait_indexed($1, '1 hour')", &[&workspace]).await;
    assert_eq!(indexed as usize, lines("corpus.jsonl").len());
    let questions = questions();
    let mut missed = Vec::new();

    let [_, text] = hits(&session, workspace, &questions, "text", [1, 5]).await;
    check("text, among the first 5", text, 0.94, &mut missed);
    let [first, five] = hits(&session, workspace, &questions, "hybrid", [1, 5]).await;
    check("hybrid, first", first, 0.865, &mut missed);
    check("hybrid, among the first 5", five, 0.97, &mut missed);

    let mut grounded = 0;
    let mut wrong = Vec::new();
    let ask = "select to_jsonb(r) from helper.answer($1, workspace => $2) r";
    let quoted =
        "select substring(s.content from $2 + 1 for $3 - $2) = $4 from helper.knowledge_sources s where s.id = $1";
    for question in &questions {
        let reply: Value = session.one(ask, &[&question.text, &workspace]).await;
        grounded += usize::from(reply["grounded"] == Value::Bool(true));
        for citation in reply["citations"].as_array().expect("a list of citations") {
            let source: Uuid = citation["source_id"].as_str().unwrap().parse().unwrap();
            let [start, end] = ["start_offset", "end_offset"].map(|name| citation[name].as_i64().unwrap() as i32);
            let quote = citation["quote"].as_str().unwrap();
            let verbatim: bool = session.one(quoted, &[&source, &start, &end, &quote]).await;
            let said = quote.split_whitespace().collect::<Vec<_>>().join(" ");
            if !verbatim || !reply["answer"].as_str().unwrap().contains(&format!("{said} [{}]", citation["number"])) {
                wrong.push(citation.clone());
            }
        }
    }
    check("answered", grounded as f64 / questions.len() as f64, 0.95, &mut missed);
    assert!(wrong.is_empty(), "{} wrong citations, such as {:?}", wrong.len(), wrong.first());
    assert!(missed.is_empty(), "{}", missed.join("; "));
}
