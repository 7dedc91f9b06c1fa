//! Throughput of the model alone, without sockets or SQL.
//!
//! Usage: `direct --texts FILE.jsonl [--threads N] [--rounds N]`, with the model in `$HELPER_MODEL`. Prints one JSON
//! line for each round.

use helper_ai::gateway::model::Model;
use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let option = |name: &str| arguments.iter().position(|a| a == name).and_then(|at| arguments.get(at + 1)).cloned();
    let file = option("--texts").ok_or("--texts FILE.jsonl is missing")?;
    let threads = option("--threads").map_or(Ok(2), |n| n.parse())?;
    let rounds: usize = option("--rounds").map_or(Ok(1), |n| n.parse())?;
    let dir = std::env::var_os("HELPER_MODEL").map(PathBuf::from).ok_or("HELPER_MODEL is not set")?;
    let mut texts = Vec::new();
    for line in std::fs::read_to_string(file)?.lines() {
        let value: serde_json::Value = serde_json::from_str(line)?;
        let text = value.as_str().or_else(|| value.get("text")?.as_str()).ok_or("a line without a text")?;
        texts.push(text.to_owned());
    }
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let model = Model::load(&dir, threads)?;
    let mut tokens = 0;
    for text in &texts {
        tokens += model.tokenize(text)?.len();
    }
    for _ in 0..rounds {
        let start = Instant::now();
        let embeddings = model.embed(&texts)?;
        let seconds = start.elapsed().as_secs_f64();
        println!("{{\"texts\":{},\"tokens\":{tokens},\"seconds\":{seconds:.4}}}", embeddings.len());
    }
    Ok(())
}
