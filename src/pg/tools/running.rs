//! Runs a SQL tool as the caller, in a subtransaction: with their role, claims and row-level security, and no way to
//! become anybody else.

use super::capture::{Before, Effect};
use super::registry::{Target, Tool};
use super::subtransaction::{self, Done, Fault};
use crate::core::error::{Error, Kind, Result};
use crate::pg::{identity, owner, spi};
use pgrx::Uuid;
use pgrx::prelude::*;
use serde_json::Value;
use std::cell::Cell;
use std::ffi::CString;
use std::time::Duration;

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static STATEMENT: Cell<bool> = const { Cell::new(false) };
    /// A step of a workflow makes a call.
    static STEPPING: Cell<bool> = const { Cell::new(false) };
}

/// Whether a tool is being run in this session.
pub fn is_inside_tool() -> bool {
    DEPTH.get() > 0
}

/// Whether a statement runs that a user wrote: an API role cannot otherwise write SQL, and who could change its claims for
/// a moment could be anybody.
pub fn is_inside_statement() -> bool {
    STATEMENT.get()
}

/// Whether a step of a workflow makes the call.
pub fn is_stepping() -> bool {
    STEPPING.get() && DEPTH.get() == 0
}

/// Makes a call as a step of a workflow.
pub fn stepping<T>(work: impl FnOnce() -> T) -> T {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            STEPPING.set(false);
        }
    }
    STEPPING.set(true);
    let _leave = Leave;
    work()
}

struct Step;

impl Step {
    fn enter() -> Step {
        STATEMENT.set(true);
        Step
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        STATEMENT.set(false);
    }
}

struct Inside;

impl Inside {
    fn enter() -> Inside {
        DEPTH.set(DEPTH.get() + 1);
        Inside
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

/// Who the session works for; a tool leaves it as it was.
#[derive(PartialEq, Eq)]
struct Identity {
    user: pg_sys::Oid,
    context: i32,
    role: pg_sys::Oid,
    session: pg_sys::Oid,
    settings: [Option<String>; 3],
}

impl Identity {
    fn now() -> Identity {
        let mut user = pg_sys::InvalidOid;
        let mut context = 0;
        // SAFETY: plain getters.
        unsafe { pg_sys::GetUserIdAndSecContext(&mut user, &mut context) };
        Identity {
            user,
            context,
            role: unsafe { pg_sys::GetCurrentRoleId() },
            session: unsafe { pg_sys::GetSessionUserId() },
            settings: [c"request.jwt.claims", c"request.jwt.claim.sub", c"helper_ai.workspace"].map(identity::setting),
        }
    }
}

/// What a run came to.
pub type Outcome = std::result::Result<String, Fault>;

/// What is done with what a tool does.
#[derive(Clone, Copy)]
pub enum Mode<'a> {
    /// It stays.
    Keep,
    /// It is looked at and taken back.
    Preview,
    /// It stays if its effect has this hash.
    Recheck(&'a [u8]),
}

/// What a run came to; a result is JSON.
pub struct Ran {
    pub outcome: Outcome,
    /// What it changed, where that was looked at and the run had no error.
    pub effect: Option<Effect>,
    pub is_kept: bool,
}

/// Runs a tool. An error is data, and all that the tool did is taken back.
pub fn run(tool: &Tool, arguments: &str, workspace: Uuid, mode: Mode) -> Result<Ran> {
    let target = tool.target.as_ref().ok_or_else(|| Error::bug("a run of what is no SQL function"))?;
    let time = Duration::from_millis(tool.timeout_ms as u64);
    let before = match mode {
        Mode::Keep => None,
        Mode::Preview | Mode::Recheck(_) => Some(Before::take()?),
    };
    let ran = subtransaction::attempt(Some(time), || {
        let result = call(tool, target, arguments, workspace)?;
        let effect = before.as_ref().map(Before::effect).transpose()?;
        let keep = match (mode, &effect) {
            (Mode::Recheck(hash), Some(effect)) => effect.hash == hash,
            (Mode::Preview, _) => false,
            _ => true,
        };
        Ok(Done { value: (result, effect, keep), keep })
    });
    Ok(match ran {
        Ok((result, effect, is_kept)) => Ran { outcome: Ok(result), effect, is_kept },
        Err(fault) => Ran { outcome: Err(fault), effect: None, is_kept: false },
    })
}

/// Calls the function, inside a subtransaction.
fn call(tool: &Tool, target: &Target, arguments: &str, workspace: Uuid) -> Result<String> {
    let (sql, arguments) = statement(target, arguments, workspace)?;
    let path = search_path()?;
    let before = Identity::now();
    let result = owner::as_caller_with(&path, || {
        let inside = Identity::now();
        let _inside = Inside::enter();
        let result = execute(&sql, &arguments)?;
        // What is still to be checked is checked as the caller, and while it can be taken back.
        Spi::connect_mut(|client| client.update("set constraints all immediate", None, &[]).map(drop))?;
        if Identity::now() == inside { Ok(result) } else { Err(changed()) }
    })?;
    if Identity::now() != before {
        return Err(changed());
    }
    let result = result.unwrap_or_else(|| "null".into());
    if result.len() > tool.most_bytes as usize {
        return Err(Error::new(Kind::OverLimit, "the result is too large")
            .detail(format!(
                "It has {} bytes, {} are allowed; what the function did is taken back.",
                result.len(),
                tool.most_bytes
            ))
            .hint("Ask for less."));
    }
    Ok(result)
}

/// Does something that somebody wrote, as the caller: in a subtransaction and in so much time, with the path of tools. An
/// error is data, and who is asking has to be the same afterwards.
pub fn guarded<T>(time: Option<Duration>, work: impl FnOnce() -> Result<T>) -> std::result::Result<T, Fault> {
    subtransaction::attempt(time, || {
        let path = search_path()?;
        let before = Identity::now();
        let value = owner::as_caller_with(&path, || {
            let inside = Identity::now();
            let _inside = Inside::enter();
            let _step = Step::enter();
            let value = work()?;
            // What is still to be checked is checked as the caller, and while it can be taken back.
            Spi::connect_mut(|client| client.update("set constraints all immediate", None, &[]).map(drop))?;
            if Identity::now() == inside { Ok(value) } else { Err(changed()) }
        })?;
        if Identity::now() != before {
            return Err(changed());
        }
        Ok(Done { value, keep: true })
    })
}

fn changed() -> Error {
    Error::new(Kind::NotPermitted, "the function changed who is asking")
        .detail("A tool must leave role and claims as they are; what it did is taken back.")
}

/// Where a tool looks for names that it does not qualify, unless it sets a path of its own.
fn search_path() -> Result<CString> {
    let extensions =
        spi::first("select pg_catalog.to_regnamespace('extensions') is not null", &[], |row| row.get::<bool>(1))?;
    let path = if extensions == Some(true) {
        c"pg_catalog, public, extensions, pg_temp"
    } else {
        c"pg_catalog, public, pg_temp"
    };
    Ok(path.to_owned())
}

/// A name in a statement.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The statement that calls a function with the arguments that are given, and them.
fn statement(target: &Target, arguments: &str, workspace: Uuid) -> Result<(String, String)> {
    let given: Value = serde_json::from_str(arguments).map_err(|_| Error::bug("arguments are not JSON"))?;
    let given = given.as_object().ok_or_else(|| Error::bug("arguments are not an object"))?;
    let mut columns = Vec::new();
    for name in given.keys() {
        let (name, kind) = target
            .arguments
            .iter()
            .find(|(known, _)| known == name)
            .ok_or_else(|| Error::bad_argument(format!("the SQL function has no argument \"{name}\"")))?;
        columns.push((quoted(name), kind.as_str()));
    }
    let mut arguments = arguments.to_owned();
    if target.takes_workspace {
        columns.push((quoted("workspace"), "pg_catalog.uuid"));
        let rest = arguments.trim_start().trim_start_matches('{');
        let comma = if given.is_empty() { "" } else { "," };
        arguments = format!("{{\"workspace\": \"{workspace}\"{comma}{rest}");
    }
    let source = if columns.is_empty() {
        String::new()
    } else {
        let list: Vec<String> = columns.iter().map(|(name, kind)| format!("{name} {kind}")).collect();
        format!("pg_catalog.jsonb_to_record($1::pg_catalog.jsonb) as helper_arguments ({}), ", list.join(", "))
    };
    let list: Vec<String> = columns.iter().map(|(name, _)| format!("{name} => helper_arguments.{name}")).collect();
    let value = if target.returns_nothing {
        "null::pg_catalog.text"
    } else if target.returns_set {
        "coalesce(pg_catalog.jsonb_agg(pg_catalog.to_jsonb(helper_result)), '[]')::pg_catalog.text"
    } else {
        "pg_catalog.to_jsonb(helper_result)::pg_catalog.text"
    };
    Ok((format!("select {value} from {source}{}({}) as helper_result", target.name, list.join(", ")), arguments))
}

/// Runs the statement and returns its one value. It names the function with its schema and every argument with its type:
/// no search path and no other function of the name can put themselves in its place. One that fits as well makes the
/// statement ambiguous, which is an error.
fn execute(sql: &str, arguments: &str) -> Result<Option<String>> {
    Spi::connect_mut(|client| {
        let mut rows = client.update(sql, Some(1), &[arguments.into()])?;
        Ok(rows.next().map(|row| row.get::<String>(1)).transpose()?.flatten())
    })
}
