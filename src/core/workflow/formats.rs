//! The two formats that the application has for workflows, translated into ours.
//!
//! Calls, `steps: [{step, function, params, output_var}]`:
//! - `step` (a number or a text) becomes `name`; `function` the `tool`; `params` the `arguments`, their names in
//!   `snake_case`, as our tools have them.
//! - `output_var` names what the step gives: `{{ analysis.tags }}` becomes `{{ steps.NAME.output.tags }}`.
//!
//! Actions, `steps: [{id, type, action, params, condition, delay_seconds}]`, one after the other:
//! - `action`: `send_message` becomes the tool `send_whatsapp_message`, `add_tag` `tag_contact`, `notify_team`
//!   `send_notification`, and `ai_response` a step of type `ask`.
//! - `condition`: `condition` is an expression or `{field, operator, value}`; what follows runs only where it holds.
//! - `delay`: `delay_seconds` becomes `wait`, `for`.
//!
//! In both, `{{ event.x }}` becomes `{{ input.x }}`, as does `{{ x }}` that names nothing else. `trigger_type` and
//! `trigger_config` are no part of a definition: they are handed back, to be set up. A run has 300 s and a call three retries, as there.

use super::path;
use super::read::{Object, wrong};
use super::start;
use crate::core::error::Result;
use serde_json::{Map, Value, json};

/// A definition in one of the application's two formats, and what it says of its trigger.
#[derive(Clone, Debug, PartialEq)]
pub struct Translated {
    /// In our format.
    pub definition: Value,
    /// What it says that it is for, or its name.
    pub about: Option<String>,
    /// What is to start it, for whoever makes triggers of it.
    pub trigger: Option<Value>,
}

/// What stands for what in templates: a name there, and the path here.
type Variables = Vec<(String, String)>;

/// Roots that are the same in both.
const SAME: [&str; 5] = ["input", "trigger", "run", "vars", "steps"];

/// A definition in one of the application's formats in ours; `None` where it is ours already.
///
/// # Errors
/// 22023 that names what has no counterpart.
pub fn translate(definition: &Value) -> Result<Option<Translated>> {
    let Some(steps) = definition.get("steps").and_then(Value::as_array) else { return Ok(None) };
    let has = |field: &str| steps.iter().any(|step| step.get(field).is_some());
    let is_call = has("function");
    let is_action = has("id") && !has("name");
    if !is_call && !is_action {
        return Ok(None);
    }
    let object = Object::of("", definition)?;
    object.only(&[&["name", "description", "trigger_type", "trigger_config", "trigger", "steps"]])?;
    let named = named(steps, if is_call { "step" } else { "id" })?;
    let mut variables = Variables::new();
    let mut translated = Vec::with_capacity(steps.len());
    for (at, step) in steps.iter().enumerate() {
        let place = format!("steps[{at}]");
        let step = Object::of(&place, step)?;
        let ours = if is_call { call(step, &variables)? } else { action(step, &variables, named.get(at + 1))? };
        let mut members = Map::new();
        members.insert("name".into(), json!(named[at]));
        members.extend(ours);
        translated.push(Value::Object(members));
        let known = step.text(if is_call { "output_var" } else { "id" })?;
        if let Some(variable) = known {
            variables.retain(|(earlier, _)| earlier != variable);
            variables.push((variable.to_owned(), format!("steps.{}.output", named[at])));
        }
    }
    let definition = json!({"timeout": "300 s", "steps": translated});
    let about = object.text("description")?.or(object.text("name")?).map(str::to_owned);
    Ok(Some(Translated { definition, about, trigger: start::read(&object)? }))
}

/// Names for steps: what stands in a field, as far as a name can have it, and each only once.
fn named(steps: &[Value], field: &str) -> Result<Vec<String>> {
    let mut names: Vec<String> = Vec::with_capacity(steps.len());
    for (at, step) in steps.iter().enumerate() {
        let written = match step.get(field) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => format!("step_{number}"),
            None if field == "step" => format!("step_{}", at + 1),
            _ => return Err(wrong(&format!("steps[{at}].{field}"), "is neither a text nor a number")),
        };
        let mut name: String = written.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            name.insert_str(0, "step_");
        }
        name.truncate(50);
        if names.contains(&name) {
            name = format!("{name}_{}", at + 1);
        }
        names.push(name);
    }
    Ok(names)
}

fn retry() -> Value {
    json!({"attempts": 4})
}

fn call(step: Object, variables: &Variables) -> Result<Map<String, Value>> {
    step.only(&[&["step", "function", "params", "output_var"]])?;
    let params = step.object("params")?;
    let arguments: Map<String, Value> =
        params.iter().map(|(name, value)| (snake_case(name), rewritten(value, variables))).collect();
    Ok(members(json!({
        "type": "tool",
        "tool": step.need_text("function")?,
        "arguments": arguments,
        "retry": retry(),
    })))
}

/// `phoneNumber` as `phone_number`.
fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

fn members(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

fn action(step: Object, variables: &Variables, next: Option<&String>) -> Result<Map<String, Value>> {
    step.only(&[&["id", "type", "action", "params", "condition", "delay_seconds"]])?;
    step.need("type")?;
    Ok(members(match step.one_of("type", &["action", "condition", "delay"])?.unwrap_or_default() {
        "delay" => {
            step.need("delay_seconds")?;
            let seconds = step.number("delay_seconds", 0.0..=315_360_000.0)?.unwrap_or_default();
            let text = if seconds >= 0.001 { format!("{seconds} s") } else { "1 ms".to_owned() };
            json!({"type": "wait", "for": text})
        }
        "condition" => {
            let expression = expression(step, variables)?;
            json!({"type": "condition", "if": expression, "then": next.into_iter().collect::<Vec<_>>()})
        }
        _ => tool(step, variables)?,
    }))
}

/// One of the four actions.
fn tool(step: Object, variables: &Variables) -> Result<Value> {
    let known = ["send_message", "add_tag", "notify_team", "ai_response"];
    step.need("action")?;
    let params = step.object("params")?;
    let find =
        |names: &[&str]| names.iter().find_map(|name| params.get(*name)).map(|value| rewritten(value, variables));
    let need =
        |names: &[&str]| find(names).ok_or_else(|| wrong(&format!("{}.{}", step.at("params"), names[0]), "is missing"));
    let contact = || find(&["contact_id", "contactId"]).unwrap_or_else(|| json!("{{ input.contact_id }}"));
    let phone = ["phone_number", "phoneNumber", "to", "phone"];
    let (tool, arguments) = match step.one_of("action", &known)?.unwrap_or_default() {
        "send_message" => (
            "send_whatsapp_message",
            json!({
                "phone_number": find(&phone).unwrap_or_else(|| json!("{{ input.phone_number }}")),
                "message": need(&["message", "text", "body"])?,
            }),
        ),
        "add_tag" => {
            let tags = match need(&["tags", "tag"])? {
                tag @ Value::String(_) => json!([tag]),
                tags => tags,
            };
            ("tag_contact", json!({"contact_id": contact(), "add_tags": tags}))
        }
        "notify_team" => {
            let body = find(&["body", "message", "text"]).unwrap_or(Value::Null);
            let title =
                find(&["title"]).unwrap_or_else(|| if body.is_null() { json!("Notification") } else { body.clone() });
            ("send_notification", json!({"user_id": need(&["user_id", "userId"])?, "title": title, "body": body}))
        }
        _ => {
            let question = find(&["prompt", "question", "message"]).unwrap_or_else(|| json!("{{ input.message }}"));
            return Ok(json!({"type": "ask", "question": question, "retry": retry()}));
        }
    };
    Ok(json!({"type": "tool", "tool": tool, "arguments": arguments, "retry": retry()}))
}

/// A condition as an expression of ours.
fn expression(step: Object, variables: &Variables) -> Result<Value> {
    let place = step.at("condition");
    let condition = match step.need("condition")? {
        Value::String(_) => return Ok(rewritten(step.need("condition")?, variables)),
        value => Object::of(&place, value)?,
    };
    condition.only(&[&["field", "operator", "value"]])?;
    let field = format!("$.{}", ours(condition.need_text("field")?, variables));
    compared(&condition, &field).map(Value::String)
}

/// `operator` and `value` of a condition as an expression over a field.
pub(super) fn compared(condition: &Object, field: &str) -> Result<String> {
    let known = ["equals", "not_equals", "greater_than", "less_than", "contains", "exists"];
    let operator = condition.one_of("operator", &known)?.unwrap_or("equals");
    let value = || match condition.need("value")? {
        Value::Array(_) | Value::Object(_) => Err(wrong(&condition.at("value"), "is neither a text nor a number")),
        other => Ok(other.to_string()),
    };
    Ok(match operator {
        "exists" => field.to_owned(),
        "contains" => {
            let text = condition.need_text("value")?;
            // In a pattern (RFC 9485) these are more than themselves.
            let literal: String = text
                .chars()
                .flat_map(|c| (r"\.*+?()[]{}|^$-".contains(c)).then_some('\\').into_iter().chain([c]))
                .collect();
            // Within a text, or an element of a list.
            format!("(search({field}, {}) || {field}[?@ == {}])", json!(literal), json!(text))
        }
        "not_equals" => format!("{field} != {}", value()?),
        "greater_than" => format!("{field} > {}", value()?),
        "less_than" => format!("{field} < {}", value()?),
        _ => format!("{field} == {}", value()?),
    })
}

/// A path of ours for one of theirs.
fn ours(path: &str, variables: &Variables) -> String {
    let path = path.trim();
    let end = path.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-')).unwrap_or(path.len());
    let (root, rest) = path.split_at(end);
    match variables.iter().find(|(name, _)| name == root) {
        Some((_, path)) => format!("{path}{rest}"),
        None if root == "event" => format!("input{rest}"),
        None if SAME.contains(&root) => path.to_owned(),
        None => format!("input.{path}"),
    }
}

/// The same value with our paths in its templates.
fn rewritten(value: &Value, variables: &Variables) -> Value {
    match value {
        Value::String(text) => Value::String(rewritten_text(text, variables)),
        Value::Array(elements) => elements.iter().map(|element| rewritten(element, variables)).collect(),
        Value::Object(members) => {
            let members = members.iter().map(|(name, value)| (name.clone(), rewritten(value, variables)));
            Value::Object(members.collect())
        }
        other => other.clone(),
    }
}

fn rewritten_text(text: &str, variables: &Variables) -> String {
    let (mut made, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find("{{") {
        let inner = &rest[at + 2..];
        let end = path::end_of_path(inner);
        made.push_str(&rest[..at]);
        made.push_str("{{ ");
        made.push_str(&ours(&inner[..end], variables));
        made.push(' ');
        rest = &inner[end..];
    }
    made + rest
}
