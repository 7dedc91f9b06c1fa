//! The child's side: documents come in on standard input, what was read of them goes out on standard output.
//!
//! In: the length of the head (u64 le), the head (name, media type and length of each document), the documents one after
//! another. Out: the length of the reply (u64 le), and the reply. Head and reply are in postcard's format.

use crate::core::error::{Error, Result};
use crate::document::{self, Document};
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{Read, Write};

/// A document's name, media type and length in bytes.
pub(super) type Head<'a> = (&'a str, Option<&'a str>, u64);

/// The exit code where not even the document itself finds room.
pub(super) const OUT_OF_MEMORY: i32 = 5;

/// What the program does as `parse memory cpu`: reads documents within those bytes and seconds. Returns the program's
/// exit code.
pub fn child_main() -> i32 {
    let mut arguments = std::env::args().skip(2).map(|argument| argument.parse::<u64>());
    let (Some(Ok(memory)), Some(Ok(seconds))) = (arguments.next(), arguments.next()) else {
        return 2;
    };
    // Without its bounds it does not begin.
    if confine(memory, seconds).is_err() {
        return 3;
    }
    match run() {
        Ok(()) => 0,
        Err(error) if error.kind() == std::io::ErrorKind::OutOfMemory => OUT_OF_MEMORY,
        Err(_) => 4,
    }
}

fn confine(memory: u64, seconds: u64) -> rustix::io::Result<()> {
    // A gateway that is killed takes its children along; one that was killed before this has closed our input.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let exactly = |limit| Rlimit { current: Some(limit), maximum: Some(limit) };
    setrlimit(Resource::As, exactly(memory))?;
    // A second more until it is killed, so that the signal tells the cause.
    setrlimit(Resource::Cpu, Rlimit { current: Some(seconds), maximum: Some(seconds + 1) })?;
    setrlimit(Resource::Core, exactly(0))?;
    setrlimit(Resource::Fsize, exactly(0))?;
    setrlimit(Resource::Nproc, exactly(0))?;
    // The three pipes stay; nothing else can be opened, be it a file or a socket.
    setrlimit(Resource::Nofile, exactly(0))
}

fn run() -> std::io::Result<()> {
    let mut input = std::io::stdin().lock();
    let mut length = [0; 8];
    input.read_exact(&mut length)?;
    let mut head = Vec::new();
    input.by_ref().take(u64::from_le_bytes(length)).read_to_end(&mut head)?;
    let heads: Vec<Head> = postcard::from_bytes(&head).map_err(|_| std::io::ErrorKind::InvalidData)?;
    let mut reply: Vec<Result<Document>> = Vec::with_capacity(heads.len());
    for (name, mime_type, length) in heads {
        let mut content = Vec::new();
        input.by_ref().take(length).read_to_end(&mut content)?;
        reply.push(document::read(name, mime_type, &content));
    }
    let body = encode(&reply).map_err(|_| std::io::ErrorKind::InvalidData)?;
    let mut output = std::io::stdout().lock();
    output.write_all(&(body.len() as u64).to_le_bytes())?;
    output.write_all(&body)?;
    output.flush()
}

/// A head or a reply in bytes.
pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(|_| Error::bug("a document cannot be sent to its parser"))
}

/// The reply behind its length, or `None` where it is not whole.
pub(super) fn decode<T: DeserializeOwned>(output: &[u8]) -> Option<T> {
    let (length, body) = output.split_first_chunk::<8>()?;
    if u64::from_le_bytes(*length) != body.len() as u64 {
        return None;
    }
    postcard::from_bytes(body).ok()
}
