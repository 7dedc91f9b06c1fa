//! Who asks, and where they belong. Policies ask this at every statement, so it is quick.

use crate::core::error::{Error, Result};
use crate::pg::kept::Kept;
use crate::pg::report::Reported;
use crate::pg::{owner, settings, spi};
use pgrx::prelude::*;
use sha2::{Digest, Sha256};
use std::cell::Cell;
use std::ffi::CStr;

/// The role that asks: that of `set role`, else the session's; security definer functions in between do not change it.
fn caller_role() -> String {
    // SAFETY: plain getters; the name is a string of the current memory context.
    unsafe {
        let mut role = pg_sys::GetCurrentRoleId();
        if role == pg_sys::InvalidOid {
            role = pg_sys::GetSessionUserId();
        }
        let name = pg_sys::GetUserNameFromId(role, false);
        CStr::from_ptr(name).to_string_lossy().into_owned()
    }
}

/// A setting that need not exist; empty counts as none.
pub fn setting(name: &CStr) -> Option<String> {
    // SAFETY: a lookup by name; the value is copied before anything can change it.
    let value = unsafe {
        let value = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        if value.is_null() { None } else { Some(CStr::from_ptr(value).to_string_lossy().into_owned()) }
    };
    value.filter(|value| !value.is_empty())
}

/// A uuid as it is usually written, and no other way.
pub fn uuid(text: &str) -> Option<pgrx::Uuid> {
    let in_place =
        text.len() == 36 && text.bytes().enumerate().all(|(at, byte)| (byte == b'-') == matches!(at, 8 | 13 | 18 | 23));
    if !in_place {
        return None;
    }
    uuid::Uuid::parse_str(text).ok().map(|uuid| pgrx::Uuid::from_bytes(*uuid.as_bytes()))
}

/// Who asks; `None` sees nothing.
pub fn current_user() -> Option<pgrx::Uuid> {
    match setting(c"request.jwt.claims") {
        Some(claims) => {
            // Claims that cannot be read are nobody's.
            let claims: serde_json::Value = serde_json::from_str(&claims).ok()?;
            if let Some(subject) = claims.as_object()?.get("sub") {
                return uuid(subject.as_str()?);
            }
        }
        None => {
            if let Some(subject) = setting(c"request.jwt.claim.sub") {
                return uuid(&subject);
            }
        }
    }
    let role = caller_role();
    let shared = settings::text(&settings::API_ROLES);
    let shared = if shared.trim().is_empty() { "anon, authenticated" } else { &shared };
    if shared.split(',').any(|name| name.trim() == role) {
        return None;
    }
    let hash = Sha256::digest(format!("helper_ai role {role}").as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    // RFC 9562 version 8, so that it is never taken for a person's version 4 or 7.
    bytes[6] = bytes[6] & 15 | 128;
    bytes[8] = bytes[8] & 63 | 128;
    Some(pgrx::Uuid::from_bytes(bytes))
}

/// Whether the claims may say which workspace is meant.
fn claims_name_workspace() -> bool {
    setting(c"request.jwt.claims").is_some_and(|claims| claims.contains("workspace_id") || claims.contains('\\'))
}

/// From the least to the most that a member may do.
const ROLES: [&str; 4] = ["viewer", "member", "admin", "owner"];

/// Place of a role from viewer, 1, to owner, 4.
fn rank(role: &str) -> Option<usize> {
    ROLES.iter().position(|name| *name == role).map(|at| at + 1)
}

thread_local! {
    static ADOPTED: Kept<(), bool> = Kept::new();
}

/// Whether the application's own table says who belongs where.
fn is_adopted() -> Result<bool> {
    let adopted = spi::first("select true from helper.membership_source s", &[], |row| row.get::<bool>(1))?;
    Ok(adopted.is_some())
}

/// Workspaces of a person and the rank in each, from our table or the application's. Roles that say nothing are left out.
fn memberships(user: pgrx::Uuid) -> Result<Vec<(pgrx::Uuid, usize)>> {
    let sql = if ADOPTED.with(|adopted| adopted.get((), is_adopted))? {
        "select m.workspace_id, m.role from helper._memberships($1) m"
    } else {
        "select m.workspace_id, m.role from helper.workspace_members m where m.user_id operator(pg_catalog.=) $1"
    };
    let rows = spi::select(sql, &[user.into()], |row| Ok((row.opt::<pgrx::Uuid>(1)?, row.opt::<String>(2)?)))?;
    Ok(rows.into_iter().filter_map(|(workspace, role)| Some((workspace?, rank(&role?)?))).collect())
}

/// Whether the caller has, at this moment, at least a role in a workspace: whatever the transaction saw before.
pub fn is_member_now(workspace: pgrx::Uuid, least: &str) -> Result<bool> {
    let (Some(user), Some(least)) = (current_user(), rank(least)) else { return Ok(false) };
    let mine = owner::as_owner(|| spi::as_of_now(|| memberships(user)))?;
    Ok(mine.into_iter().any(|(other, rank)| other == workspace && rank >= least))
}

/// The workspace of a call where it is plain to see: the one that is named, by `given` or the setting, or the caller's only
/// one. `None` leaves it to `helper.current_workspace`, which looks at claims and says what is wrong.
pub fn plain_workspace(given: Option<pgrx::Uuid>) -> Result<Option<pgrx::Uuid>> {
    let Some(user) = current_user() else { return Ok(None) };
    let named = match given {
        Some(given) => Some(given),
        None => match setting(c"helper_ai.workspace") {
            Some(text) => match uuid(&text) {
                Some(named) => Some(named),
                None => return Ok(None),
            },
            None if claims_name_workspace() => return Ok(None),
            None => None,
        },
    };
    let mut mine = owner::as_owner(|| memberships(user))?.into_iter().map(|(workspace, _)| workspace);
    Ok(match named {
        Some(named) => mine.find(|workspace| *workspace == named),
        None => mine.next().filter(|first| mine.all(|other| other == *first)),
    })
}

/// `helper._role_rank`.
#[pg_extern(sql = false, immutable, parallel_safe, strict)]
fn role_rank(role: &str) -> Option<i32> {
    rank(role).map(|rank| rank as i32)
}

/// `helper.current_user_id`.
#[pg_extern(sql = false, stable, parallel_safe)]
fn current_user_id() -> Option<pgrx::Uuid> {
    current_user()
}

/// `helper.my_workspaces`; security definer in SQL.
#[pg_extern(sql = false, stable, parallel_unsafe)]
fn my_workspaces(minimum_role: Option<&str>) -> Reported<Vec<pgrx::Uuid>> {
    let name = minimum_role.unwrap_or_default();
    let minimum = rank(name).ok_or_else(|| {
        Error::bad_argument(format!("role \"{name}\" is not known")).hint("Roles are owner, admin, member and viewer.")
    })?;
    let Some(user) = current_user() else { return Ok(Vec::new()) };
    let mut mine: Vec<pgrx::Uuid> =
        memberships(user)?.into_iter().filter_map(|(workspace, rank)| (rank >= minimum).then_some(workspace)).collect();
    mine.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    mine.dedup();
    Ok(mine)
}

/// `helper.my_role`; security definer in SQL.
#[pg_extern(sql = false, stable, parallel_unsafe)]
fn my_role(workspace: Option<pgrx::Uuid>) -> Reported<Option<String>> {
    let (Some(user), Some(workspace)) = (current_user(), workspace) else { return Ok(None) };
    let best = memberships(user)?.into_iter().filter(|(other, _)| *other == workspace).map(|(_, rank)| rank).max();
    Ok(best.and_then(|rank| ROLES.get(rank - 1)).map(|name| (*name).to_owned()))
}

/// `helper.uuid_v7`.
#[pg_extern(sql = false, volatile, parallel_safe)]
fn uuid_v7() -> pgrx::Uuid {
    pgrx::Uuid::from_bytes(new_id())
}

thread_local! {
    /// Microseconds of the last one.
    static LAST_ID: Cell<i64> = const { Cell::new(0) };
}

/// A new identifier: RFC 9562 version 7, with twelve bits of the millisecond's fraction in rand_a. Those of one session come
/// one after the other, as many as it makes in a microsecond.
pub fn new_id() -> [u8; 16] {
    let mut bytes = [0; 16];
    // SAFETY: the buffer is as long as it is said to be; the clock is a plain getter.
    let now = unsafe {
        pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), bytes.len());
        pg_sys::GetCurrentTimestamp() + 946_684_800_000_000
    };
    let micros = now.max(LAST_ID.get() + 1);
    LAST_ID.set(micros);
    bytes[..6].copy_from_slice(&((micros / 1000) as u64).to_be_bytes()[2..]);
    // The millisecond's fraction, in twelve bits.
    let fraction = (micros % 1000 * 4096 / 1000) as u16;
    bytes[6] = 0x70 | (fraction >> 8) as u8;
    bytes[7] = fraction as u8;
    bytes[8] = bytes[8] & 63 | 128;
    bytes
}
