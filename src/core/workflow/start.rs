//! What a definition of the application's says of its start: `trigger_type` and `trigger_config`, or both in `trigger`.
//! What can be set up goes out, one object for each kind:
//!
//! - `{"type": "schedule", "cron", "time_zone"}`
//! - `{"type": "event", "event", "condition"}`, the filters as one expression
//! - `{"type": "webhook", "secret"}`
//! - `{"type": "manual"}`
//!
//! Anything else is refused by its place: nothing that was said is left out. No message shows a secret.

use super::formats::compared;
use super::path;
use super::read::{Object, wrong};
use crate::core::cron::Times;
use crate::core::error::{Error, Result};
use crate::core::signature::{self, Kind};
use serde_json::{Map, Value, json};

/// What a definition says of its start; `None` where it says nothing.
pub(super) fn read(object: &Object) -> Result<Option<Value>> {
    let none = Value::Object(Map::new());
    if let Some(nested) = object.get("trigger") {
        if let Some(other) = ["trigger_type", "trigger_config"].iter().find(|name| object.get(name).is_some()) {
            return Err(wrong("trigger", format!("stands beside {other}")));
        }
        let nested = Object::of("trigger", nested)?;
        return of_kind("trigger.type", nested.need_text("type")?, nested, &["type"]).map(Some);
    }
    let config = object.get("trigger_config").filter(|config| !config.is_null()).unwrap_or(&none);
    let config = Object::of("trigger_config", config)?;
    match object.text("trigger_type")? {
        Some(kind) => of_kind("trigger_type", kind, config, &[]).map(Some),
        None if config.members.is_empty() => Ok(None),
        None => Err(wrong("trigger_type", "is missing")),
    }
}

fn of_kind(place: &str, kind: &str, config: Object, more: &[&str]) -> Result<Value> {
    match kind {
        "schedule" | "scheduled" => schedule(config, more),
        "webhook" => webhook(config, more),
        "event" => event(config, more, None),
        "message_received" => event(config, more, Some("wa_message_received")),
        "tag_added" => event(config, more, Some("tag_added")),
        "manual" => config.only(&[more]).map(|()| json!({"type": "manual"})),
        other => Err(wrong(place, format!("\"{other}\" is not a trigger"))
            .hint("Triggers are schedule, event, webhook, manual, message_received and tag_added.")),
    }
}

fn schedule(config: Object, more: &[&str]) -> Result<Value> {
    config.only(&[more, &["cron", "timezone", "time_zone"]])?;
    let cron = config.need_text("cron")?;
    let zone = config.text("timezone")?.or(config.text("time_zone")?).unwrap_or("UTC");
    Times::read(cron, zone).map_err(|error| at(config.place, error))?;
    Ok(json!({"type": "schedule", "cron": cron, "time_zone": zone}))
}

/// The same error with the place that it is of.
fn at(place: &str, error: Error) -> Error {
    Error { message: format!("{place}: {}", error.message), ..error }
}

fn event(config: Object, more: &[&str], named: Option<&str>) -> Result<Value> {
    config.only(&[more, if named.is_some() { &[] } else { &["event_type"] }, &["filters"]])?;
    let event = match named {
        Some(event) => event,
        None => config.need_text("event_type")?,
    };
    let is_name = event.starts_with(|c: char| c.is_ascii_alphabetic())
        && event.len() <= 100
        && event.chars().all(|c| c.is_ascii_alphanumeric() || "_.:-".contains(c));
    if !is_name {
        return Err(wrong(&config.at("event_type"), format!("\"{event}\" is not an event's name"))
            .hint("Use at most 100 letters, digits, \"_\", \".\", \":\" and \"-\"."));
    }
    let condition = match config.get("filters") {
        None | Some(Value::Null) => None,
        Some(filters) => condition(&config.at("filters"), filters)?,
    };
    Ok(json!({"type": "event", "event": event, "condition": condition}))
}

/// Filters as one expression over the event: `{field: value or list of values}`, or a list of conditions as steps have them.
fn condition(place: &str, filters: &Value) -> Result<Option<String>> {
    let tests = match filters {
        Value::Array(filters) => filters
            .iter()
            .enumerate()
            .map(|(at, filter)| {
                let place = format!("{place}[{at}]");
                let filter = Object::of(&place, filter)?;
                filter.only(&[&["field", "operator", "value"]])?;
                compared(&filter, &field(&filter.at("field"), filter.need_text("field")?)?)
            })
            .collect::<Result<Vec<String>>>()?,
        _ => {
            let filters = Object::of(place, filters)?;
            let one = |(name, value): (&String, &Value)| is_one_of(&filters.at(name), name, value);
            filters.members.iter().map(one).collect::<Result<Vec<String>>>()?
        }
    };
    if tests.is_empty() {
        return Ok(None);
    }
    let condition = tests.join(" && ");
    path::expression(&condition).map_err(|error| at(place, error))?;
    Ok(Some(condition))
}

/// A field of the event's payload.
fn field(place: &str, written: &str) -> Result<String> {
    let path = ["event.", "payload."].iter().find_map(|root| written.strip_prefix(root)).unwrap_or(written);
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    match path.split('.').all(is_name) {
        true => Ok(format!("@.payload.{path}")),
        false => Err(wrong(place, "is not the name of a field").hint("Write it as \"name\" or \"contact.name\".")),
    }
}

fn is_one_of(place: &str, name: &str, value: &Value) -> Result<String> {
    let field = field(place, name)?;
    let is = |value: &Value| match value {
        Value::Array(_) | Value::Object(_) => {
            Err(wrong(place, "is neither a text, a number, true, false nor a list of them"))
        }
        value => Ok(format!("{field} == {value}")),
    };
    match value {
        Value::Array(values) if values.is_empty() => Err(wrong(place, "is an empty list")),
        Value::Array(values) => {
            Ok(format!("({})", values.iter().map(is).collect::<Result<Vec<String>>>()?.join(" || ")))
        }
        value => is(value),
    }
}

fn webhook(config: Object, more: &[&str]) -> Result<Value> {
    config.only(&[more, &["secret", "allowed_ips"]])?;
    let is_open = |ips: &Value| ips.is_null() || ips.as_array().is_some_and(Vec::is_empty);
    if config.get("allowed_ips").is_some_and(|ips| !is_open(ips)) {
        return Err(wrong(&config.at("allowed_ips"), "cannot be kept to")
            .detail("What a database is told of a request's address, anybody can write into its headers.")
            .hint("Leave it out, as requests are known by their signatures, and refuse other addresses where they come in."));
    }
    let secret = config.text("secret")?;
    if secret.is_some_and(|secret| !is_secret(secret)) {
        return Err(wrong(&config.at("secret"), "is not one that requests can be signed with")
            .hint("Use 16 to 4096 visible ASCII characters without spaces; after whsec_, 16 to 64 bytes in base64."));
    }
    Ok(json!({"type": "webhook", "secret": secret}))
}

fn is_secret(secret: &str) -> bool {
    let kind = if secret.starts_with("whsec_") { Kind::Standard } else { Kind::Hub };
    (16..=4096).contains(&secret.len())
        && secret.bytes().all(|byte| byte.is_ascii_graphic())
        && signature::key(kind, secret).is_ok()
}
