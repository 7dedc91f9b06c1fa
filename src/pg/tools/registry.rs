//! Tools as the caller finds them: what there is, what they may have called, and what a call of it looks like.

use crate::core::error::{Error, Kind, Result};
use crate::core::tool::schema::{self, Parameter};
use crate::pg::report::Reported;
use crate::pg::{completing, owner, spi};
use pgrx::prelude::*;
use pgrx::{JsonB, Uuid};

/// A tool as it is registered.
pub struct Tool {
    pub id: Uuid,
    pub name: String,
    /// The SQL function; `None` for an HTTP endpoint.
    pub target: Option<Target>,
    pub needs_confirmation: bool,
    pub approver_role: Option<String>,
    pub recheck: bool,
    pub timeout_ms: i32,
    pub most_bytes: i32,
    /// JSON Schema of its arguments.
    pub schema: String,
}

/// A SQL function.
pub struct Target {
    /// Its name with its schema, quoted.
    pub name: String,
    /// Names and types of its arguments, the types quoted.
    pub arguments: Vec<(String, String)>,
    /// It takes the call's workspace.
    pub takes_workspace: bool,
    pub returns_set: bool,
    pub returns_nothing: bool,
}

/// A tool that the caller may have called in a workspace.
///
/// Errors: 42704 there is none of the name, or it is off; 42501 the role in the workspace, or the privilege EXECUTE, is
/// wanting.
pub fn find(workspace: Uuid, name: &str) -> Result<Tool> {
    let unknown = || Error::unknown_object(format!("function \"{name}\" does not exist"));
    owner::as_owner(|| {
        let found = spi::change(
            "select f.id, f.requires_confirmation, f.minimum_role, f.approver_role, f.recheck, \
               f.timeout_ms, f.max_result_bytes, f.parameters_schema::text, f.target, helper._may_execute(f.target), \
               coalesce(helper._role_rank(helper.my_role($1)) >= helper._role_rank(f.minimum_role), false), \
               helper._is_switched_on(f, $1) \
             from helper.functions f where f.function_name = $2",
            &[workspace.into(), name.into()],
            |row| {
                let target: Option<String> = row.opt(9)?;
                let refusal = if !row.get::<bool>(12)? {
                    Some(unknown().hint("It may be switched off in the workspace: see helper.available_functions."))
                } else if !row.get::<bool>(11)? {
                    Some(denied(name).detail(format!("It needs the role {} in the workspace.", row.get::<String>(3)?)))
                } else if target.is_some() && !row.get::<bool>(10)? {
                    Some(
                        denied(name)
                            .detail("The caller's role has no privilege EXECUTE on the SQL function, or it is gone."),
                    )
                } else {
                    None
                };
                let tool = Tool {
                    id: row.get(1)?,
                    name: name.to_owned(),
                    target: None,
                    needs_confirmation: row.get(2)?,
                    approver_role: row.opt(4)?,
                    recheck: row.get(5)?,
                    timeout_ms: row.get(6)?,
                    most_bytes: row.get(7)?,
                    schema: row.get(8)?,
                };
                Ok((tool, target, refusal))
            },
        )?
        .pop();
        let (mut tool, target, refusal) = found.ok_or_else(unknown)?;
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        tool.target = target.map(|target| describe(&target)).transpose()?;
        Ok(tool)
    })
}

fn denied(name: &str) -> Error {
    Error::new(Kind::NotPermitted, format!("permission denied for function \"{name}\""))
}

fn describe(target: &str) -> Result<Target> {
    let target = spi::change(
        "select pg_catalog.format('%I.%I', n.nspname, p.proname), p.proretset, p.prorettype = 'void'::pg_catalog.regtype, \
           array(select coalesce(p.proargnames[a.number], '') from pg_catalog.generate_series(1, coalesce(pg_catalog.cardinality(p.proallargtypes), p.pronargs)) a (number) \
             where p.proargmodes is null or p.proargmodes[a.number] in ('i', 'b') order by a.number), \
           array(select pg_catalog.format('%I.%I', tn.nspname, t.typname) from pg_catalog.unnest(p.proargtypes::oid[]) with ordinality a (type, number) \
             join pg_catalog.pg_type t on t.oid = a.type join pg_catalog.pg_namespace tn on tn.oid = t.typnamespace order by a.number) \
         from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace \
         where p.oid = pg_catalog.to_regprocedure($1)",
        &[target.into()],
        |row| {
            let names: Vec<String> = row.get(4)?;
            let types: Vec<String> = row.get(5)?;
            let mut arguments: Vec<(String, String)> = names.into_iter().zip(types).collect();
            let count = arguments.len();
            arguments.retain(|(name, kind)| !(name == "workspace" && kind == "pg_catalog.uuid"));
            Ok(Target {
                name: row.get(1)?,
                returns_set: row.get(2)?,
                returns_nothing: row.get(3)?,
                takes_workspace: arguments.len() < count,
                arguments,
            })
        },
    )?;
    target.into_iter().next().ok_or_else(|| Error::not_ready("the SQL function of the tool does not exist any more"))
}

/// Refuses arguments that do not fit a tool, and says where and what was expected.
pub fn check(tool: &Tool, arguments: &str) -> Result<()> {
    let problems = completing::check(&tool.schema, arguments)?;
    if problems.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = problems
        .into_iter()
        .map(|problem| match problem.path.as_str() {
            "" => problem.message,
            path => format!("at \"{path}\": {}", problem.message),
        })
        .collect();
    Err(Error::bad_argument(format!("arguments of function \"{}\" do not fit its schema", tool.name))
        .detail(format!("{}.", list.join("; "))))
}

/// `helper._parameters_schema`.
#[pg_extern(sql = false, immutable, parallel_safe, strict)]
fn parameters_schema(parameters: JsonB) -> Reported<JsonB> {
    let parameters: Vec<Parameter> = serde_json::from_value(parameters.0)
        .map_err(|error| Error::bug(format!("a function's arguments cannot be read: {error}")))?;
    Ok(JsonB(schema::object(&parameters)))
}

/// `helper._check_schema`.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
fn check_schema(schema: JsonB) -> Reported<()> {
    let mut schema = schema.0;
    let kind = schema.get("type").cloned();
    if kind != Some("object".into()) {
        return Err(Error::bad_argument("parameters_schema is not the schema of an object")
            .hint("Its \"type\" is \"object\", and its \"properties\" are the arguments.")
            .into());
    }
    completing::check(&schema.take().to_string(), "null")?;
    Ok(())
}
