//! helper_ai puts an AI engine inside Postgres. The journey of a call:
//!
//! 1. A backend finds out who asks: role and JWT claims (`pg`).
//! 2. It decides what to read and what to ask (`core`).
//! 3. It reads through SPI as the caller, so that row-level security applies.
//! 4. It asks the gateway over a Unix socket in the data directory (`core::wire`) and waits for latch and socket, so that
//!    every wait can be cancelled. The gateway, a program of its own, runs the local model and reads documents (`gateway`,
//!    `document`); no backend ever opens a socket to the network.
//! 5. It writes through SPI as the extension's owner, after a check, and replies.
//!
//! A worker in each database takes queued jobs through the same steps; runners beside it run what was queued in SQL.

pub mod core;
#[cfg(feature = "gateway")]
pub mod document;
#[cfg(feature = "gateway")]
pub mod gateway;
#[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17", feature = "pg18"))]
mod pg;
#[cfg(feature = "gateway")]
pub mod provider;
