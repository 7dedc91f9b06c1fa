//! The only room that knows Postgres: settings, the caller, SPI, waiting, the processes, and the functions SQL sees.
//!
//! A function that SQL sees is short: who calls, read the arguments, decide in `core`, store or ask the gateway, reply.
//! Its SQL declaration stands in `sql/`, next to the tables it works on.

// The code in here is C's neighbour. Every `unsafe` block says why it is sound.
#![allow(unsafe_code)]

mod acting;
mod answering;
mod asking;
mod budget;
mod calling;
mod calling_off;
mod completing;
mod embedder;
mod embedding;
mod events;
mod extracting;
mod files;
mod gateway;
mod hooks;
mod identity;
mod indexing;
mod jobs;
mod kept;
mod launcher;
mod lexical;
mod mcp;
mod messages;
mod owner;
mod packing;
mod phones;
mod prompting;
mod providers;
mod querying;
mod reembedding;
mod replying;
mod report;
mod routes;
mod runner;
mod schedules;
mod searching;
mod session;
mod settings;
mod shared;
mod spi;
mod status;
mod streaming;
mod terms;
mod tools;
mod transaction;
mod wait;
mod wake;
mod webhooks;
mod whatsapp;
mod worker;
mod workflow;

use pgrx::prelude::*;

pgrx::pg_module_magic!(name, version);

/// Called when the library is loaded: defines the settings and, if preloaded, the processes.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    settings::define();
    // SAFETY: a plain flag, read on the main thread.
    if unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        shared::request();
        budget::request();
        webhooks::request();
        hooks::install();
        launcher::register();
    }
}
