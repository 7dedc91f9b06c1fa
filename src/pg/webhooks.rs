//! Signatures of webhooks, their secrets, and how many are let in.

use crate::core::admission::Admissions;
use crate::core::error;
use crate::core::signature::{self, Headers, Kind};
use crate::pg::report::Reported;
use crate::pg::shared;
use pgrx::prelude::*;
use pgrx::{Json, PGRXSharedMemory, PgLwLock, pg_shmem_init};
use std::time::{SystemTime, UNIX_EPOCH};

static ADMISSIONS: PgLwLock<Admissions> = unsafe { PgLwLock::new(c"helper_ai_webhooks") };

// SAFETY: plain numbers, no pointers.
unsafe impl PGRXSharedMemory for Admissions {}

/// Asks for the shared memory; only while the server preloads libraries.
pub fn request() {
    pg_shmem_init!(ADMISSIONS);
}

fn kind(name: &str) -> Kind {
    if name == "standard" { Kind::Standard } else { Kind::Hub }
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `helper._new_secret`.
#[pg_extern(sql = false, volatile, parallel_safe)]
fn new_secret() -> Reported<String> {
    let mut bytes = [0; 32];
    // SAFETY: the buffer is as long as it is said to be.
    if !unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), bytes.len()) } {
        return Err(error::Error::not_ready("the server has no random numbers").into());
    }
    Ok(signature::secret(&bytes))
}

/// `helper._secret_fits`.
#[pg_extern(sql = false, immutable, parallel_safe)]
fn secret_fits(kind_name: &str, secret: &str) -> bool {
    let is_text = (16..=4096).contains(&secret.len()) && secret.bytes().all(|byte| byte.is_ascii_graphic());
    is_text && signature::key(kind(kind_name), secret).is_ok()
}

/// `helper._delivery`.
#[pg_extern(sql = false, volatile, parallel_safe)]
fn delivery(
    kind_name: Option<&str>,
    secrets: Option<Vec<String>>,
    headers: Option<Json>,
    body: Option<&str>,
) -> Reported<Option<String>> {
    let kind = kind(kind_name.unwrap_or_default());
    let mut keys = Vec::new();
    for secret in secrets.unwrap_or_default() {
        keys.push(signature::key(kind, &secret)?);
    }
    let there = !keys.is_empty();
    if !there {
        // The same work, for nothing.
        keys.push(vec![0; 32]);
    }
    let none = serde_json::Map::new();
    let headers = headers.as_ref().and_then(|headers| headers.0.as_object()).unwrap_or(&none);
    let body = body.unwrap_or_default().as_bytes();
    let delivery = signature::verified(kind, &keys, &Headers(headers), body, seconds() as i64)?;
    Ok(delivery.filter(|_| there))
}

/// `helper._challenge`.
#[pg_extern(sql = false, immutable, parallel_safe)]
fn challenge(token: Option<&str>, query: Option<&str>) -> Reported<Option<String>> {
    Ok(signature::challenge(token.unwrap_or_default(), query.unwrap_or_default())?)
}

/// `helper._admitted`.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
fn admitted(webhook: pgrx::Uuid, per_second: i32) -> bool {
    if !shared::preloaded() {
        return true;
    }
    // SAFETY: set once when the process connects.
    let database = u64::from(unsafe { pg_sys::MyDatabaseId.to_u32() });
    // The end of an identifier is random.
    let door = webhook.as_bytes()[8..].iter().fold(0, |number: u64, byte| number << 8 | u64::from(*byte)) ^ database;
    ADMISSIONS.exclusive().admit(door, seconds(), per_second.max(0) as u32)
}
