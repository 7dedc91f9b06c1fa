//! `helper.embed`, `helper.embed_many`, `helper.count_tokens` and `helper.chunk`.

use crate::core::chat::Purpose;
use crate::core::error::{Error, Kind, Result};
use crate::core::wire::{Item, Prepare, Reply, Request};
use crate::pg::embedder::{Asking, Embedder};
use crate::pg::report::Reported;
use crate::pg::{calling, gateway, identity, owner, searching};
use pgrx::prelude::*;

/// Texts that one request carries; the rest follows when these are read.
const SLICE: usize = 512;

/// Longest text that is embedded or counted, in bytes.
const LONGEST: usize = 50 << 20;

fn checked(input: Option<&str>, what: &str) -> Result<String> {
    let input = input.ok_or_else(|| Error::bad_argument(format!("{what} is null")))?;
    if input.trim().is_empty() {
        return Err(Error::bad_argument(format!("{what} is empty")));
    }
    if input.len() > LONGEST {
        return Err(Error::new(
            Kind::OverLimit,
            format!("{what} has {} bytes, at most {LONGEST} are allowed", input.len()),
        ));
    }
    Ok(input.to_owned())
}

/// Embeddings of texts, in order: by the local model, or by a provider's where one is named.
fn embed_texts(inputs: Vec<String>, model: &str, interactive: bool) -> Result<Vec<Vec<f32>>> {
    // What one asks for alone is looked for; many are kept to be found.
    let purpose = if interactive { Purpose::Query } else { Purpose::Document };
    if model.is_empty() || model == model_name()? {
        let nobody = pgrx::Uuid::from_bytes([0; 16]);
        let asking = Asking { workspace: nobody, user: None, why: "embed", purpose, interactive, patient: false };
        return embed(&Embedder::local(), &asking, inputs);
    }
    let workspace = searching::workspace(None)?;
    let asking =
        Asking { workspace, user: identity::current_user(), why: "embed", purpose, interactive, patient: false };
    let embedder = Embedder::choose(workspace, Some(model))?;
    embed(&embedder, &asking, inputs)
}

fn embed(embedder: &Embedder, asking: &Asking, inputs: Vec<String>) -> Result<Vec<Vec<f32>>> {
    let expected = inputs.len();
    let (request, mut reservation) = embedder.ask(asking, inputs)?;
    let (embeddings, reply) = collect(expected, &request, |sent| {
        if let Some(reservation) = &mut reservation {
            reservation.set_sent(sent);
        }
    })?;
    if let (Reply::Call(end), Some(reservation)) = (reply, reservation) {
        reservation.settle(&end);
        if let Some(error) = end.error {
            return Err(error);
        }
    }
    whole(embeddings, expected)
}

fn whole(embeddings: Vec<Vec<f32>>, expected: usize) -> Result<Vec<Vec<f32>>> {
    if embeddings.len() != expected {
        return Err(Error::bug(format!("{} embeddings for {expected} texts", embeddings.len())));
    }
    Ok(embeddings)
}

/// Embeddings as they come, and the end of the reply, which may say why it failed.
fn collect(expected: usize, request: &Request, sent: impl FnMut(bool)) -> Result<(Vec<Vec<f32>>, Reply)> {
    let mut embeddings = Vec::with_capacity(expected);
    let reply = gateway::ask_telling(request, sent, |item| {
        let Item::Embeddings { dimensions, values } = item else { return Err(calling::another()) };
        embeddings.extend(values.chunks_exact(dimensions.max(1) as usize).map(<[f32]>::to_vec));
        Ok(())
    })?;
    Ok((embeddings, reply))
}

/// What is looked for in a workspace, embedded by the model of its index: the model's name and the embedding.
pub fn embed_query(workspace: pgrx::Uuid, text: &str) -> Result<(String, Vec<f32>)> {
    let mut embedder = owner::as_owner(|| Embedder::current(workspace))?;
    if !embedder.is_remote() {
        embedder.is_named(&model_name()?)?;
    }
    let user = identity::current_user();
    let asking = Asking { workspace, user, why: "search", purpose: Purpose::Query, interactive: true, patient: false };
    let vector = embed(&embedder, &asking, vec![text.to_owned()])?.pop().unwrap_or_default();
    embedder.check(vector.len(), None)?;
    Ok((embedder.model, vector))
}

/// Texts embedded by the local model, whatever the workspace's index is made with.
pub fn embed_locally(inputs: Vec<String>) -> Result<Vec<Vec<f32>>> {
    embed_texts(inputs, "", true)
}

/// Name of the model that the gateway runs.
pub fn model_name() -> Result<String> {
    thread_local! {
        static NAME: std::cell::RefCell<Option<(u32, String)>> = const { std::cell::RefCell::new(None) };
    }
    crate::pg::shared::check_preloaded()?;
    // It can only change when the gateway is started with another one.
    let starts = crate::pg::shared::read(|state| state.gateway_starts);
    if let Some(name) =
        NAME.with_borrow(|known| known.as_ref().filter(|(at, _)| *at == starts).map(|(_, name)| name.clone()))
    {
        return Ok(name);
    }
    match gateway::ask(&Request::Status, |_| Ok(()))? {
        Reply::Status(status) => {
            if !status.model.is_empty() {
                NAME.set(Some((starts, status.model.clone())));
            }
            Ok(status.model)
        }
        _ => Err(Error::bug("the gateway answered another question")),
    }
}

/// pgvector's layout of a `vector` behind the length that every variable-length datum begins with: dimensions and an
/// unused field of two bytes each, then the numbers.
fn as_vector(embedding: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + embedding.len() * 4);
    bytes.extend_from_slice(&(embedding.len() as u16).to_ne_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend(embedding.iter().flat_map(|value| value.to_ne_bytes()));
    bytes
}

/// `helper._vector`: an embedding from its numbers, four bytes each as the machine has them.
#[pg_extern(sql = false, immutable, parallel_safe, strict)]
fn vector_of(numbers: &[u8]) -> Vec<u8> {
    let numbers: Vec<f32> = numbers.as_chunks::<4>().0.iter().map(|number| f32::from_ne_bytes(*number)).collect();
    as_vector(&numbers)
}

/// `helper.embed`; SQL declares the result as `vector`.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
fn embed_one(input: Option<&str>, model: Option<&str>) -> Reported<Vec<u8>> {
    let inputs = vec![checked(input, "input")?];
    Ok(as_vector(&embed_texts(inputs, model.unwrap_or_default(), true)?.pop().unwrap_or_default()))
}

/// `helper.embed_many`; SQL declares the result as `setof vector`. Rows come as the model makes them.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
fn embed_list(inputs: Option<pgrx::Array<&str>>, model: Option<&str>) -> Reported<SetOfIterator<'static, Vec<u8>>> {
    let inputs = inputs.ok_or_else(|| Error::bad_argument("inputs is null"))?;
    let inputs: Vec<String> = inputs
        .iter()
        .enumerate()
        .map(|(at, input)| checked(input, &format!("input {}", at + 1)))
        .collect::<Result<_>>()?;
    let model = model.unwrap_or_default().to_owned();
    let mut waiting = inputs.into_iter();
    let mut ready = Vec::<Vec<f32>>::new().into_iter();
    Ok(SetOfIterator::new(std::iter::from_fn(move || {
        if let Some(embedding) = ready.next() {
            return Some(as_vector(&embedding));
        }
        let slice: Vec<String> = waiting.by_ref().take(SLICE).collect();
        if slice.is_empty() {
            return None;
        }
        match embed_texts(slice, &model, false) {
            Ok(embeddings) => ready = embeddings.into_iter(),
            Err(error) => pg_sys::panic::ErrorReport::from(error).report(PgLogLevel::ERROR),
        }
        ready.next().map(|embedding| as_vector(&embedding))
    })))
}

/// `helper.count_tokens`.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
fn count_tokens(input: Option<&str>, model: Option<&str>) -> Reported<i32> {
    let input = input.ok_or_else(|| Error::bad_argument("input is null"))?;
    if input.is_empty() {
        return Ok(0);
    }
    let request =
        Request::CountTokens { model: model.unwrap_or_default().to_owned(), inputs: vec![checked_size(input)?] };
    match gateway::ask(&request, |_| Ok(()))? {
        Reply::Counts(counts) => Ok(counts.first().copied().unwrap_or_default() as i32),
        _ => Err(Error::bug("the gateway answered another question").into()),
    }
}

fn checked_size(input: &str) -> Result<String> {
    if input.trim().is_empty() { Ok(input.to_owned()) } else { checked(Some(input), "input") }
}

/// `helper.chunk`.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
#[allow(clippy::type_complexity)]
fn chunk_text(
    content: Option<&str>,
    max_tokens: Option<i32>,
    overlap_tokens: Option<i32>,
) -> Reported<
    TableIterator<
        'static,
        (
            name!(ordinal, i32),
            name!(heading, String),
            name!(content, String),
            name!(token_count, i32),
            name!(start_offset, i32),
            name!(end_offset, i32),
        ),
    >,
> {
    let content = checked(content, "content")?;
    let max_tokens = max_tokens.unwrap_or(256);
    let overlap_tokens = overlap_tokens.unwrap_or(32);
    if !(16..=8192).contains(&max_tokens) {
        return Err(Error::bad_argument(format!("max_tokens is {max_tokens}, expected 16 to 8192")).into());
    }
    if !(0..=max_tokens / 2).contains(&overlap_tokens) {
        return Err(Error::bad_argument(format!(
            "overlap_tokens is {overlap_tokens}, expected 0 to half of max_tokens"
        ))
        .into());
    }
    let request = Request::Prepare(vec![Prepare {
        name: String::new(),
        mime_type: Some("text/markdown".into()),
        content: content.into_bytes(),
        language: None,
        model: String::new(),
        max_tokens: max_tokens as u32,
        overlap_tokens: overlap_tokens as u32,
    }]);
    let Reply::Prepared { mut documents, .. } = gateway::ask(&request, |_| Ok(()))? else {
        return Err(calling::another().into());
    };
    let prepared = documents.pop().ok_or_else(calling::another)??;
    Ok(TableIterator::new(prepared.chunks.into_iter().zip(0..).map(|(chunk, ordinal)| {
        (ordinal, chunk.heading, chunk.content, chunk.tokens as i32, chunk.start as i32, chunk.end as i32)
    })))
}
