//! The published schema of workflows says what their reader says.

use crate::core::workflow::SCHEMA;
use crate::core::workflow::definition::Definition;
use serde_json::{Value, json};

/// Definitions that are good.
fn good() -> Vec<Value> {
    let sql = json!({"name": "s", "type": "sql", "sql": "select 1"});
    let steps = [
        json!({"name": "s", "type": "tool", "tool": "t", "arguments": {"a": ["{{ input.a }}"]}}),
        json!({"name": "s", "type": "http", "tool": "t", "arguments": "{{ input }}", "timeout": "1 h 30 min"}),
        json!({"name": "s", "type": "sql", "sql": "select $1", "parameters": {}, "needs": [], "when": "@.input.a == 1"}),
        json!({"name": "s", "type": "ask", "question": "q", "mode": "chat", "knowledge": true, "model": "m", "options": {}}),
        json!({"name": "s", "type": "complete", "prompt": "p {{ input.a }}", "system": "s", "on_error": "skip"}),
        json!({"name": "s", "type": "complete_json", "prompt": "p", "schema": {"type": "object"}}),
        json!({"name": "s", "type": "search", "query": "q", "k": 5, "source_types": ["a"], "filter": {}, "method": "text"}),
        json!({"name": "s", "type": "condition", "if": "@.input.a", "then": [], "else": []}),
        json!({"name": "s", "type": "switch", "cases": [{"when": "@.input.a", "then": []}], "default": []}),
        json!({"name": "s", "type": "map", "over": "{{ input.a }}", "as": "row", "concurrency": 2, "most": 5, "timeout": "1 d",
            "step": {"type": "tool", "tool": "t", "arguments": {"a": "{{ row }}"}, "retry": {"attempts": 2}, "on_error": "skip"}}),
        json!({"name": "s", "type": "wait", "for": "1.5 days"}),
        json!({"name": "s", "type": "wait", "until": "{{ input.a }}"}),
        json!({"name": "s", "type": "wait", "event": "e", "match": {"a": 1}, "timeout": "1 week"}),
        json!({"name": "s", "type": "approval", "title": "t", "details": [1], "approver_role": "owner", "self_approval": true,
            "lapse": "2 h", "on_lapse": "skip"}),
        json!({"name": "s", "type": "workflow", "workflow": "w", "input": {"a": 1}}),
        json!({"name": "s", "type": "stop", "status": "failed", "output": 1, "message": "m"}),
        json!({"name": "s", "type": "sql", "sql": "s",
            "retry": {"attempts": 3, "delay": "10 s", "factor": 1.5, "most": "1 h"}}),
    ];
    let mut good: Vec<Value> = steps.into_iter().map(|step| json!({"steps": [step]})).collect();
    good.push(json!({"input": {}, "output": "{{ steps.s.output }}", "timeout": "1 h", "concurrency": {"limit": 5, "key": "{{ input.a }}"},
        "rate": {"limit": 1, "per": "1 min"}, "priority": -5, "steps": [sql]}));
    good.push(json!({"steps": [{"name": "s", "type": "sql", "sql": "s", "on_error": {"goto": "t"}}, {"name": "t", "type": "sql", "sql": "s"}]}));
    good
}

/// Every good definition with one thing changed.
fn changed(good: &Value) -> Vec<Value> {
    let mut changed = Vec::new();
    let mut places = Vec::new();
    collect(good, String::new(), &mut places);
    for place in places {
        // What is a schema, an option, a tool's argument or any JSON is not for us to judge.
        let is_free = [
            "/arguments/",
            "/parameters/",
            "/options/",
            "/details",
            "/schema/",
            "/match/",
            "/source_types/",
            "/filter/",
        ];
        let is_value = ["/output", "/workflow/input"].iter().any(|end| place.ends_with(end));
        if is_value || is_free.iter().any(|part| place.contains(part)) || place.ends_with("/input/a") {
            continue;
        }
        for value in
            [json!(null), json!(-1), json!(""), json!("no such thing"), json!(1.25), json!([7]), json!({"x": 1})]
        {
            let mut other = good.clone();
            if let Some(at) = other.pointer_mut(&place) {
                *at = value;
                changed.push(other);
            }
        }
        let mut other = good.clone();
        let (parent, name) = place.rsplit_once('/').unwrap_or_default();
        if let Some(Value::Object(members)) = other.pointer_mut(parent) {
            members.shift_remove(name);
            changed.push(other.clone());
        }
        if let Some(Value::Object(members)) = other.pointer_mut(parent) {
            members.insert("unknown".to_owned(), json!(1));
            changed.push(other);
        }
    }
    changed
}

fn collect(value: &Value, place: String, places: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(name, value)| collect(value, format!("{place}/{name}"), places));
        }
        Value::Array(elements) => {
            elements.iter().enumerate().for_each(|(at, value)| collect(value, format!("{place}/{at}"), places));
        }
        _ => {}
    }
    if !place.is_empty() {
        places.push(place);
    }
}

/// What a schema cannot say: the graph, and what stands in a text.
fn is_beyond(message: &str) -> bool {
    ["does not exist", "cannot be read", "come before", "begin with the name"].iter().any(|part| message.contains(part))
}

#[test]
fn the_schema_of_workflows_is_a_schema() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    assert!(jsonschema::draft202012::meta::is_valid(&schema));
}

#[test]
fn the_schema_of_workflows_says_what_their_reader_says() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let (mut accepted, mut refused) = (0, 0);
    for good in good() {
        assert!(Definition::read(&good).is_ok(), "{good}: {:?}", Definition::read(&good));
        assert!(validator.is_valid(&good), "{good}");
        for definition in changed(&good) {
            match (Definition::read(&definition), validator.is_valid(&definition)) {
                (Ok(_), true) => accepted += 1,
                (Err(_), false) => refused += 1,
                (Err(error), true) => {
                    assert!(is_beyond(&error.message), "only the reader refuses {definition}: {error}")
                }
                (Ok(_), false) => panic!("only the schema refuses {definition}"),
            }
        }
    }
    assert!(accepted > 50 && refused > 500, "{accepted} accepted, {refused} refused");
}
