//! Workflows: a definition, what became of its steps and what happened come in; what is to do now goes out. The engine
//! in `pg/workflow` does it, stores it and says what came of it.

pub mod definition;
pub mod diagram;
mod ending;
pub mod formats;
mod items;
pub mod machine;
mod path;
mod read;
mod reader;
pub mod row;
mod start;
mod time;
pub mod value;
mod work;

/// JSON Schema (draft 2020-12) of a definition.
pub const SCHEMA: &str = include_str!("schema.json");

/// Milliseconds since 1970, UTC.
pub type Time = i64;

/// Milliseconds.
pub type Span = i64;

/// Steps of a definition at most.
pub const MOST_STEPS: usize = 200;

/// Bytes of a definition at most, written as JSON.
pub const MOST_DEFINITION: usize = 256 * 1024;

/// Bytes of a rendered value at most, written as JSON.
pub const MOST_RENDERED: usize = 1024 * 1024;

/// How long a statement, or a search, may take at most: a runner does one thing at a time.
pub const MOST_STATEMENT: Span = 60_000;

#[cfg(test)]
mod tests;
