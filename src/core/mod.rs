//! Decisions, and nothing else: no Postgres, no sockets, no clock, no randomness. Ids and time come in as arguments.

pub mod block;
pub mod chunk;
pub mod error;
pub mod sentence;
pub mod wire;
