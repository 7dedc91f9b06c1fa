//! Approving calls, and seeing beforehand what they would do.

use super::calling::{self, caller, ended, move_call};
use super::registry::{self, Tool};
use super::running::{self, Mode, Ran};
use super::subtransaction::Fault;
use crate::core::error::{Error, Kind, Result};
use crate::core::tool;
use crate::pg::report::Reported;
use crate::pg::session::Led;
use crate::pg::{owner, spi};
use pgrx::prelude::*;
use pgrx::{JsonB, Uuid};
use serde_json::{Value, json};

/// What a workflow's approval waits for: built in, so that nobody else's function has its name.
pub const APPROVAL: &str = "workflow_approval";

/// A call as somebody who approves or runs it needs it.
pub struct Stored {
    pub workspace: Uuid,
    pub id: Uuid,
    pub name: String,
    pub arguments: String,
    pub status: String,
    pub in_queue: bool,
    /// The caller made it, as the same role.
    pub is_own: bool,
    /// The tool is registered as it was when the call was made.
    pub is_same: bool,
    pub effect_hash: Option<Vec<u8>>,
    /// What led to it.
    pub led: Led,
}

/// Columns of [`Stored`], of a call `c`.
pub const COLUMNS: &str = "c.workspace_id, c.id, c.function_name, c.arguments::text, c.status, c.in_queue, \
    c.user_id = helper.current_user_id() and c.principal_role = helper.caller_role(), \
    exists (select from helper.functions f where f.id = c.function_id and f.updated_at = c.function_version), c.effect_hash, c.depth, c.run_id";

impl Stored {
    pub fn read(row: &spi::Row) -> Result<Stored> {
        Ok(Stored {
            workspace: row.get(1)?,
            id: row.get(2)?,
            name: row.get(3)?,
            arguments: row.get(4)?,
            status: row.get(5)?,
            in_queue: row.get(6)?,
            is_own: row.opt(7)?.unwrap_or(false),
            is_same: row.get(8)?,
            effect_hash: row.opt(9)?,
            led: Led { depth: row.get(10)?, run: row.opt(11)? },
        })
    }
}

/// The call, if the caller may know of it.
fn concerned(call: Uuid) -> Result<Stored> {
    owner::as_owner(|| {
        let found =
            spi::change(&format!("select {COLUMNS} from helper._concerned($1) c"), &[call.into()], Stored::read)?;
        found.into_iter().next().ok_or_else(|| Error::bug("no call"))
    })
}

fn facts(call: Uuid) -> Result<JsonB> {
    owner::as_owner(|| {
        let found =
            spi::change("select helper._call_facts(helper._concerned($1))", &[call.into()], |row| row.get::<JsonB>(1))?;
        found.into_iter().next().ok_or_else(|| Error::bug("no call"))
    })
}

/// What a call that was made before its tool changed comes to.
pub fn outdated() -> Fault {
    Error::not_ready("the function was registered anew since the call was made").hint("Call it again.").into()
}

/// Runs a call that has just been moved to `running`, as its caller.
pub fn run(stored: &Stored, tool: &Tool) -> Result<()> {
    if !stored.is_same {
        return ended(stored.workspace, stored.id, &Err(outdated()));
    }
    let mode = match &stored.effect_hash {
        Some(hash) if tool.recheck => Mode::Recheck(hash),
        _ => Mode::Keep,
    };
    let ran = stored.led.does(|| running::run(tool, &stored.arguments, stored.workspace, mode))?;
    if ran.outcome.is_ok() && !ran.is_kept {
        let facts = shown(&ran, true);
        move_call(stored.workspace, stored.id, &["running"], "awaiting_confirmation", &facts)?;
        return Ok(());
    }
    ended(stored.workspace, stored.id, &ran.outcome)
}

/// What a run that was taken back showed, as facts of its call.
fn shown(ran: &Ran, is_other: bool) -> String {
    let (result, error) = match &ran.outcome {
        Ok(result) => (result.as_str(), Value::Null),
        Err(fault) => ("null", fault.facts()),
    };
    let tables = ran.effect.as_ref().map_or(Value::Null, |effect| effect.tables.clone());
    // An error has no effect, and anything else is another one.
    let hash = ran.effect.as_ref().map_or([0; 32], |effect| effect.hash);
    format!(
        "{{\"effect_hash\": \"{}\", \"preview\": {{\"result\": {result}, \"error\": {error}, \"tables\": {tables}, \"is_other\": {is_other}}}}}",
        tool::hex(&hash)
    )
}

/// Runs a call that waits, takes all of it back, and keeps what it showed.
pub fn preview(tool: &Tool, workspace: Uuid, call: Uuid, arguments: &str) -> Result<bool> {
    let ran = running::run(tool, arguments, workspace, Mode::Preview)?;
    move_call(workspace, call, &["awaiting_confirmation"], "awaiting_confirmation", &shown(&ran, false))
}

/// `helper.confirm`.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
fn confirm_call(call: Option<Uuid>, effect: Option<&str>) -> Reported<JsonB> {
    owner::check_is_caller()?;
    if running::is_inside_tool() {
        return Err(Error::new(Kind::NotPermitted, "a tool cannot approve calls").into());
    }
    let call = call.ok_or_else(|| Error::unknown_object("call \"null\" does not exist"))?;
    let mut stored = concerned(call)?;
    owner::as_owner(|| spi::run("select helper._check_approver(helper._concerned($1))", &[call.into()]))?;
    if let Some(effect) = effect {
        // What the call is run against is what was seen, and is not moved while it has another by now.
        stored.effect_hash = Some(tool::unhex(effect).ok_or_else(|| Error::bad_argument("effect is not one"))?);
    }
    let is_approval = stored.name == APPROVAL;
    let mut decided = json!({ "decided_by": caller()?.to_string(), "effect": effect });
    if is_approval {
        decided["result"] = json!({ "approved": true });
    }
    let decided = decided.to_string();
    let to = |state: &str| move_call(stored.workspace, stored.id, &["awaiting_confirmation"], state, &decided);
    let moved = if is_approval {
        // There is nothing to run: the decision's own transaction wakes the run that waits for it.
        to("succeeded")?
    } else if stored.is_own && !stored.in_queue && stored.status == "awaiting_confirmation" {
        let tool = registry::find(stored.workspace, &stored.name)?;
        let moved = to("running")?;
        if moved {
            run(&stored, &tool)?;
        }
        moved
    } else {
        let moved = to("queued")?;
        if moved {
            owner::as_owner(|| calling::enqueue(stored.workspace, stored.id))?;
        }
        moved
    };
    if !moved {
        let late = "select helper._check_approved(helper._concerned($1), $2)";
        owner::as_owner(|| spi::run(late, &[call.into(), effect.into()]))?;
    }
    Ok(facts(call)?)
}

/// `helper.preview`.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
fn preview_call(call: Option<Uuid>) -> Reported<JsonB> {
    owner::check_is_caller()?;
    let call = call.ok_or_else(|| Error::unknown_object("call \"null\" does not exist"))?;
    let stored = concerned(call)?;
    if !stored.is_own {
        return Err(Error::new(Kind::NotPermitted, "permission denied to run somebody else's call")
            .hint("What it would do is shown to who may approve it by helper.call_status.")
            .into());
    }
    let tool = registry::find(stored.workspace, &stored.name)?;
    if tool.target.is_none() {
        return Err(Error::bad_argument(format!(
            "function \"{}\" is an HTTP endpoint, which cannot be tried",
            tool.name
        ))
        .into());
    }
    if !stored.is_same {
        return Err(Error::not_ready("the function was registered anew since the call was made")
            .hint("Call it again.")
            .into());
    }
    if stored.status != "awaiting_confirmation" || !preview(&tool, stored.workspace, call, &stored.arguments)? {
        owner::as_owner(|| {
            spi::run("select helper._refuse_decision(helper._concerned($1), 'previewed')", &[call.into()])
        })?;
    }
    Ok(facts(call)?)
}
