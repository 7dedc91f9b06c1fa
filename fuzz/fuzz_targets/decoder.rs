//! Any bytes, through any provider's decoder: no panic, and the same events however the bytes are cut.
#![no_main]

use helper_ai::core::chat::{Chat, Event, Kind, Output};
use helper_ai::provider::{Failure, decoder, embeddings, failure};
use libfuzzer_sys::fuzz_target;

const KINDS: [Kind; 5] = [Kind::OpenAi, Kind::Anthropic, Kind::Gemini, Kind::Ollama, Kind::OpenAiCompatible];

fn replay<'a>(kind: Kind, chat: &Chat, pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Event>, Result<(), Failure>) {
    let (mut decoder, mut events) = (decoder(kind, chat), Vec::new());
    let mut pieces = pieces;
    let ended =
        pieces.try_for_each(|piece| decoder.push(piece, &mut events)).and_then(|()| decoder.finish(&mut events));
    (events, ended)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&[which, cut], body)) = bytes.split_first_chunk::<2>().map(|(head, body)| (head, body)) else { return };
    let kind = KINDS[which as usize % KINDS.len()];
    let output = if which & 64 == 0 { Output::Text } else { Output::Json };
    let chat = Chat { stream: which & 128 == 0, output, ..Chat::default() };
    let whole = replay(kind, &chat, std::iter::once(body));
    assert_eq!(whole, replay(kind, &chat, body.chunks(cut as usize + 1)));
    let _ = embeddings(kind, body, cut as usize);
    let _ = failure(kind, 400 + u16::from(cut), &[], body).into_error("p", "m");
});
