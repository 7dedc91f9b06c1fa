//! Decisions, and nothing else: no Postgres, no sockets, no clock, no randomness. Ids and time come in as arguments.

pub mod admission;
pub mod agent;
pub mod answer;
pub mod block;
pub mod chat;
pub mod chunk;
pub mod counters;
pub mod cron;
pub mod error;
pub mod jsonb;
pub mod mcp;
pub mod prices;
pub mod prompt;
pub mod quantise;
pub mod rank;
pub mod sentence;
pub mod sentences;
pub mod signature;
pub mod template;
pub mod terms;
pub mod tool;
pub mod wire;
pub mod workflow;
