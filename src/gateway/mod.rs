//! The program beside the database: it owns the network, the local model and the parsers of untrusted documents.

pub mod batch;
pub mod model;
