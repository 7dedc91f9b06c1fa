//! Definitions: read when a workflow is created, and kept by the session once compiled, as a version never changes.

use crate::core::error::{Error, Result};
use crate::core::workflow::SCHEMA;
use crate::core::workflow::definition::{Definition, StepKind};
use crate::core::workflow::diagram;
use crate::core::workflow::formats;
use crate::core::workflow::machine;
use crate::core::workflow::row::{Place, Row, StepStatus};
use crate::pg::report::Reported;
use crate::pg::{completing, owner, spi};
use pgrx::prelude::*;
use pgrx::{JsonB, Uuid};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// Definitions that a session keeps; one that needs more begins anew.
const MOST: usize = 256;

/// By workflow and version.
type Kept = HashMap<([u8; 16], i32), Rc<Definition>>;

thread_local! {
    static KEPT: RefCell<Kept> = RefCell::default();
}

/// A version of a workflow, compiled; read where the session has not kept it.
pub fn of(workspace: Uuid, workflow: Uuid, version: i32) -> Result<Rc<Definition>> {
    let key = (*workflow.as_bytes(), version);
    if let Some(definition) = KEPT.with_borrow(|kept| kept.get(&key).cloned()) {
        return Ok(definition);
    }
    let found = owner::as_owner(|| {
        spi::change(
            "select v.definition::text from helper.workflow_versions v \
             where v.workspace_id = $1 and v.workflow_id = $2 and v.version = $3",
            &[workspace.into(), workflow.into(), version.into()],
            |row| row.get::<String>(1),
        )
    })?;
    let text = found.first().ok_or_else(|| Error::bug("a run is of a version that is not there"))?;
    let value = serde_json::from_str(text).map_err(|_| Error::bug("a stored definition is not JSON"))?;
    let definition = Rc::new(Definition::read(&value)?);
    KEPT.with_borrow_mut(|kept| {
        if kept.len() >= MOST {
            kept.clear();
        }
        kept.insert(key, Rc::clone(&definition));
    });
    Ok(definition)
}

/// Whether statements are run in it.
pub fn uses_sql(definition: &Definition) -> bool {
    definition.steps.iter().any(|step| {
        let inner = step.kind.each();
        matches!(step.kind, StepKind::Sql { .. }) || matches!(inner, Some(StepKind::Sql { .. }))
    })
}

/// `helper._read_workflow`.
#[pg_extern(sql = false, volatile, parallel_safe)]
fn read_workflow(definition: Option<JsonB>) -> Reported<JsonB> {
    let JsonB(given) = definition.ok_or_else(|| Error::bad_argument("definition is null"))?;
    let (ours, about, trigger) = match formats::translate(&given)? {
        Some(translated) => (translated.definition, translated.about, translated.trigger),
        None => (given, None, None),
    };
    let read = Definition::read(&ours)?;
    if let Some(schema) = &read.input {
        completing::check(&schema.to_string(), "null")?;
    }
    Ok(JsonB(json!({ "definition": ours, "description": about, "trigger": trigger, "uses_sql": uses_sql(&read) })))
}

/// `helper.create_workflow`. Not in SQL alone: a security definer function, an index or a policy of somebody else's that a
/// statement runs into must not store what is done in the name of who runs it.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
fn create_workflow(
    name: Option<&str>,
    definition: Option<JsonB>,
    workspace: Option<Uuid>,
    options: Option<JsonB>,
) -> Reported<Uuid> {
    owner::check_is_caller()?;
    let created = owner::as_owner(|| {
        spi::change(
            "select helper._create_workflow($1, $2, $3, $4)",
            &[name.into(), definition.into(), workspace.into(), options.into()],
            |row| row.get::<Uuid>(1),
        )
    })?;
    Ok(created.into_iter().next().ok_or_else(|| Error::bug("a workflow has no id"))?)
}

/// `helper.workflow_schema`.
#[pg_extern(sql = false, immutable, parallel_safe)]
fn workflow_schema() -> Reported<JsonB> {
    Ok(JsonB(serde_json::from_str(SCHEMA).map_err(|_| Error::bug("the schema is not JSON"))?))
}

/// Refuses what does not fit the schema of a workflow's input.
pub fn check_fits(schema: &Value, input: &Value) -> Result<()> {
    let problems = completing::check(&schema.to_string(), &input.to_string())?;
    let Some(first) = problems.first() else { return Ok(()) };
    Err(Error::bad_argument("input does not fit the workflow's schema")
        .detail(format!("At \"{}\": {}.", first.path, first.message)))
}

/// `helper._check_input`.
#[pg_extern(sql = false, volatile, parallel_unsafe, strict)]
fn check_input(schema: JsonB, input: JsonB) -> Reported<()> {
    Ok(check_fits(&schema.0, &input.0)?)
}

/// Rows as SQL tells them: step, item, status and attempt.
fn rows(definition: &Definition, steps: &Value) -> Result<Vec<Row>> {
    let wrong = || Error::bug("steps cannot be read");
    steps
        .as_array()
        .ok_or_else(wrong)?
        .iter()
        .map(|row| {
            let step = row["step"].as_str().and_then(|name| definition.find(name)).ok_or_else(wrong)?;
            let item = row["item"].as_i64().and_then(|item| u32::try_from(item).ok());
            let status = row["status"].as_str().and_then(StepStatus::of_name).ok_or_else(wrong)?;
            let attempt = row["attempt"].as_u64().unwrap_or_default() as u32;
            Ok(Row { status, attempt, ..Row::new(Place { step, item }) })
        })
        .collect()
}

fn read(definition: &JsonB) -> Result<Definition> {
    Definition::read(&definition.0)
}

/// `helper._replayed`.
#[pg_extern(sql = false, volatile, parallel_safe)]
fn replayed_steps(definition: JsonB, steps: JsonB, from_step: &str) -> Reported<JsonB> {
    let definition = read(&definition)?;
    let kept = machine::replayed(&definition, rows(&definition, &steps.0)?, from_step)?;
    let places = kept.into_iter().map(|row| {
        let item = row.place.item.map_or(-1, i64::from);
        json!({ "step": definition.steps[row.place.step].name, "item": item })
    });
    Ok(JsonB(places.collect()))
}

/// `helper._mermaid`.
#[pg_extern(sql = false, volatile, parallel_safe)]
fn workflow_diagram(definition: JsonB, steps: Option<JsonB>) -> Reported<String> {
    let definition = read(&definition)?;
    let rows = steps.map(|steps| rows(&definition, &steps.0)).transpose()?;
    Ok(diagram::mermaid(&definition, rows.as_deref()))
}
