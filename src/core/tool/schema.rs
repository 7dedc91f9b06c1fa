//! JSON Schema (draft 2020-12) of a SQL function's arguments: their types, defaults and comments come in, a schema of an
//! object with no other members goes out.

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// An argument of a function, or a column of a row.
#[derive(Clone, Debug, Deserialize)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// What its values look like.
    pub shape: Shape,
    /// It may be left out.
    pub optional: bool,
    /// The SQL expression that is its default.
    #[serde(default)]
    pub default: Option<String>,
    /// What it is, for a model.
    #[serde(default)]
    pub comment: Option<String>,
}

/// What values of a type look like.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Shape {
    /// Anything.
    Any,
    /// A value of one of Postgres' own types; any other is written as text.
    Scalar {
        /// The type's name.
        #[serde(rename = "type")]
        name: String,
        /// Characters at most.
        #[serde(default)]
        length: Option<u32>,
    },
    /// One of these.
    Enum {
        /// The labels.
        values: Vec<String>,
    },
    /// Any number of values.
    Array {
        /// Each of them.
        items: Box<Shape>,
    },
    /// A row.
    Object {
        /// Its columns.
        fields: Vec<Parameter>,
    },
    /// A type with conditions.
    Domain {
        /// The type.
        base: Box<Shape>,
        /// Conditions on `VALUE`, as Postgres writes them.
        checks: Vec<String>,
        /// What it is.
        #[serde(default)]
        comment: Option<String>,
    },
}

/// The schema of an object with these members and no others.
pub fn object(parameters: &[Parameter]) -> Value {
    let mut properties = Map::new();
    for parameter in parameters {
        properties.insert(parameter.name.clone(), property(parameter));
    }
    let required: Vec<&str> = parameters.iter().filter(|p| !p.optional).map(|p| p.name.as_str()).collect();
    let mut schema = json!({ "type": "object", "properties": properties });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema["additionalProperties"] = json!(false);
    schema
}

fn property(parameter: &Parameter) -> Value {
    let mut schema = value(&parameter.shape);
    if let Some(comment) = &parameter.comment {
        describe(&mut schema, comment);
    }
    match parameter.default.as_deref().map(literal) {
        // Models write null for what they leave out, and here it is the same.
        Some(Some(Value::Null)) => allow_null(&mut schema),
        Some(Some(default)) => {
            // An array's or a row's is written in Postgres' own way, of which only the empty one is worth reading.
            let is_list = schema.get("type").is_some_and(|kind| kind == "array");
            match default.as_str() {
                Some("{}") if is_list => schema["default"] = json!([]),
                _ if is_list || schema.get("type").is_none_or(|kind| kind == "object") => {}
                _ => schema["default"] = default,
            }
        }
        Some(None) => {}
        None if parameter.optional => allow_null(&mut schema),
        None => {}
    }
    schema
}

/// Says what something is, before what is said already.
fn describe(schema: &mut Value, text: &str) {
    let before = schema.get("description").and_then(Value::as_str).map(|more| format!(" {more}")).unwrap_or_default();
    let stop = if before.is_empty() || text.ends_with('.') { "" } else { "." };
    schema["description"] = json!(format!("{text}{stop}{before}"));
}

fn allow_null(schema: &mut Value) {
    if let Some(Value::Array(values)) = schema.get_mut("enum") {
        values.push(Value::Null);
    }
    if let Some(kind) = schema.get_mut("type") {
        *kind = json!([kind.take(), "null"]);
    }
}

fn value(shape: &Shape) -> Value {
    match shape {
        Shape::Any => json!({}),
        Shape::Scalar { name, length } => scalar(name, *length),
        Shape::Enum { values } => json!({ "type": "string", "enum": values }),
        Shape::Array { items } => json!({ "type": "array", "items": value(items) }),
        Shape::Object { fields } => object(fields),
        Shape::Domain { base, checks, comment } => {
            let mut schema = value(base);
            for check in checks {
                restrict(&mut schema, check);
            }
            if let Some(comment) = comment {
                describe(&mut schema, comment);
            }
            schema
        }
    }
}

fn scalar(name: &str, length: Option<u32>) -> Value {
    let mut schema = match name {
        "bool" => json!({ "type": "boolean" }),
        "int2" => json!({ "type": "integer", "minimum": i16::MIN, "maximum": i16::MAX }),
        "int4" => json!({ "type": "integer", "minimum": i32::MIN, "maximum": i32::MAX }),
        "int8" => json!({ "type": "integer" }),
        "numeric" | "float4" | "float8" | "money" => json!({ "type": "number" }),
        "uuid" => json!({ "type": "string", "format": "uuid" }),
        "date" => json!({ "type": "string", "format": "date" }),
        "timestamptz" => json!({ "type": "string", "format": "date-time" }),
        "timestamp" => json!({ "type": "string", "description": "A date and time, such as 2026-11-23T09:30:00." }),
        "time" | "timetz" => json!({ "type": "string", "description": "A time of day, such as 09:30." }),
        "interval" => json!({ "type": "string", "description": "A length of time, such as 2 days." }),
        "bytea" => json!({ "type": "string", "description": "Bytes as hexadecimal digits after \\x." }),
        "json" | "jsonb" => json!({}),
        _ => json!({ "type": "string" }),
    };
    if let Some(length) = length {
        schema["maxLength"] = json!(length);
    }
    schema
}

/// Adds what a condition of a domain says; what cannot be put as a schema is put in words.
fn restrict(schema: &mut Value, check: &str) {
    for part in conjuncts(check) {
        match rule(part) {
            Some(rules) => {
                for (name, value) in rules {
                    schema[name] = value;
                }
            }
            None => describe(schema, &format!("Must fulfil {part}.")),
        }
    }
}

/// Without the brackets around the whole of it.
fn bare(text: &str) -> &str {
    let text = text.trim();
    match text.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
        Some(inner) if is_balanced(inner) => bare(inner),
        _ => text,
    }
}

/// Each character that stands in no string, with how deep in brackets it stands.
fn outside(text: &str) -> impl Iterator<Item = (usize, char, i32)> {
    let (mut depth, mut quoted) = (0, false);
    text.char_indices().filter_map(move |(at, c)| {
        if c == '\'' {
            quoted = !quoted;
        }
        if quoted {
            return None;
        }
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            _ => {}
        }
        Some((at, c, depth))
    })
}

fn is_balanced(text: &str) -> bool {
    outside(text).all(|(_, _, depth)| depth >= 0)
}

fn conjuncts(check: &str) -> Vec<&str> {
    const AND: &str = " AND ";
    let check = bare(check);
    let mut parts = Vec::new();
    let mut from = 0;
    for (at, _, depth) in outside(check) {
        if depth == 0 && at >= from && check[at..].starts_with(AND) {
            parts.push(bare(&check[from..at]));
            from = at + AND.len();
        }
    }
    parts.push(bare(&check[from..]));
    parts.into_iter().flat_map(|part| if part == check { vec![part] } else { conjuncts(part) }).collect()
}

/// What one condition says, as keywords of a schema.
fn rule(text: &str) -> Option<Vec<(&'static str, Value)>> {
    if text == "VALUE IS NOT NULL" {
        return Some(Vec::new());
    }
    let text = text.strip_prefix("(VALUE)::text").map_or(text.to_owned(), |rest| format!("VALUE{rest}"));
    if let Some(list) = text.strip_prefix("VALUE = ANY (") {
        return labels(list).map(|values| vec![("enum", json!(values))]);
    }
    for length in ["char_length(", "length("] {
        if let Some(rest) = text.strip_prefix(length) {
            let (inner, rest) = rest.split_once(") ")?;
            return (inner.contains("VALUE")).then(|| bounds(rest, "minLength", "maxLength"))?;
        }
    }
    let rest = text.strip_prefix("VALUE ")?;
    match rest.strip_prefix("~ ") {
        Some(pattern) => {
            let pattern = literal(pattern)?.as_str()?.to_owned();
            is_plain(&pattern).then(|| vec![("pattern", json!(pattern))])
        }
        None => bounds(rest, "minimum", "maximum"),
    }
}

/// Regular expressions that mean the same to Postgres and to ECMA-262.
fn is_plain(pattern: &str) -> bool {
    !pattern.contains('\\') && !pattern.contains("[[") && !pattern.contains("(?") && !pattern.starts_with("***")
}

fn bounds(text: &str, low: &'static str, high: &'static str) -> Option<Vec<(&'static str, Value)>> {
    let (operator, number) = text.split_once(' ')?;
    let number = match literal(number)? {
        Value::String(text) => serde_json::from_str::<Value>(&text).ok()?,
        other => other,
    };
    let whole = number.as_i64();
    let is_length = low == "minLength";
    match operator {
        ">=" => Some(vec![(low, number)]),
        "<=" => Some(vec![(high, number)]),
        ">" if is_length => Some(vec![(low, json!(whole? + 1))]),
        "<" if is_length => Some(vec![(high, json!(whole? - 1))]),
        ">" => Some(vec![("exclusiveMinimum", number)]),
        "<" => Some(vec![("exclusiveMaximum", number)]),
        "=" if is_length => Some(vec![(low, number.clone()), (high, number)]),
        _ => None,
    }
    .filter(|rules| rules.iter().all(|(_, value)| value.is_number()))
}

/// The strings in `ARRAY['a'::text, ...]`, whatever is around it.
fn labels(text: &str) -> Option<Vec<String>> {
    let list = text.split_once("ARRAY[")?.1;
    let end = outside(list).find(|(_, c, depth)| *c == ']' && *depth < 0)?.0;
    let mut labels = Vec::new();
    let mut from = 0;
    let list = &list[..end];
    for (at, c, depth) in outside(list).chain([(list.len(), ',', 0)]) {
        if c == ',' && depth == 0 {
            labels.push(literal(&list[from..at])?.as_str()?.to_owned());
            from = at + 1;
        }
    }
    Some(labels)
}

/// The value of a SQL literal with or without a cast; `None` for any other expression.
fn literal(text: &str) -> Option<Value> {
    let text = bare(text);
    if let Some(rest) = text.strip_prefix('\'') {
        let mut end = None;
        let mut marks = rest.char_indices().peekable();
        while let Some((at, c)) = marks.next() {
            if c == '\'' && marks.next_if(|(_, next)| *next == '\'').is_none() {
                end = Some(at);
                break;
            }
        }
        let end = end?;
        let after = &rest[end + 1..];
        return (after.is_empty() || is_cast(after)).then(|| json!(rest[..end].replace("''", "'")));
    }
    let (text, cast) = text.split_once("::").map_or((text, None), |(text, cast)| (bare(text), Some(cast)));
    if cast.is_some_and(|cast| !is_cast(&format!("::{cast}"))) {
        return None;
    }
    match text {
        "NULL" => Some(Value::Null),
        "true" => Some(json!(true)),
        "false" => Some(json!(false)),
        number => serde_json::from_str::<Value>(number).ok().filter(Value::is_number),
    }
}

fn is_cast(text: &str) -> bool {
    text.strip_prefix("::")
        .is_some_and(|name| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || " _.\"[](),".contains(c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(parameters: Value) -> Value {
        object(&serde_json::from_value::<Vec<Parameter>>(parameters).unwrap())
    }

    fn domain(base: &str, checks: &[&str]) -> Value {
        value(
            &serde_json::from_value(json!({
                "kind": "domain", "checks": checks, "comment": null,
                "base": { "kind": "scalar", "type": base, "length": null },
            }))
            .unwrap(),
        )
    }

    #[test]
    fn arguments_become_an_object_with_no_other_members() {
        let scalar = |name: &str| json!({ "kind": "scalar", "type": name, "length": null });
        assert_eq!(of(json!([])), json!({ "type": "object", "properties": {}, "additionalProperties": false }));
        assert_eq!(
            of(json!([
                { "name": "phone", "shape": scalar("text"), "optional": false, "default": null, "comment": "In E.164" },
                { "name": "count", "shape": scalar("int4"), "optional": true, "default": "10", "comment": null },
                { "name": "note", "shape": { "kind": "scalar", "type": "varchar", "length": 20 }, "optional": true, "default": "NULL::character varying" },
                { "name": "at", "shape": scalar("timestamptz"), "optional": true, "default": "now()" },
                { "name": "tags", "shape": { "kind": "array", "items": scalar("text") }, "optional": true, "default": "'{}'::text[]" },
                { "name": "kind", "shape": { "kind": "enum", "values": ["a", "b"] }, "optional": true, "default": "NULL::kind" },
                { "name": "place", "optional": false, "shape": { "kind": "object", "fields": [
                    { "name": "city", "shape": scalar("text"), "optional": true, "comment": "Where" },
                    { "name": "zone", "shape": scalar("int8"), "optional": false },
                ] } },
                { "name": "more", "shape": scalar("jsonb"), "optional": false },
            ])),
            json!({
                "type": "object",
                "properties": {
                    "phone": { "type": "string", "description": "In E.164" },
                    "count": { "type": "integer", "minimum": i32::MIN, "maximum": i32::MAX, "default": 10 },
                    "note": { "type": ["string", "null"], "maxLength": 20 },
                    "at": { "type": "string", "format": "date-time" },
                    "tags": { "type": "array", "items": { "type": "string" }, "default": [] },
                    "kind": { "type": ["string", "null"], "enum": ["a", "b", null] },
                    "place": {
                        "type": "object",
                        "properties": {
                            "city": { "type": ["string", "null"], "description": "Where" },
                            "zone": { "type": "integer" },
                        },
                        "required": ["zone"],
                        "additionalProperties": false,
                    },
                    "more": {},
                },
                "required": ["phone", "place", "more"],
                "additionalProperties": false,
            })
        );
    }

    #[test]
    fn what_a_domain_demands_is_in_the_schema() {
        for (base, check, expected) in [
            ("numeric", "(VALUE > (0)::numeric)", json!({ "type": "number", "exclusiveMinimum": 0 })),
            ("int8", "((VALUE >= 1) AND (VALUE <= 5))", json!({ "type": "integer", "minimum": 1, "maximum": 5 })),
            ("numeric", "(VALUE <= 0.5)", json!({ "type": "number", "maximum": 0.5 })),
            ("text", "(char_length(VALUE) <= 20)", json!({ "type": "string", "maxLength": 20 })),
            ("text", "(length((VALUE)::text) > 0)", json!({ "type": "string", "minLength": 1 })),
            ("text", "(VALUE ~ '^[a-z]+$'::text)", json!({ "type": "string", "pattern": "^[a-z]+$" })),
            ("varchar", "((VALUE)::text ~ '^a'::text)", json!({ "type": "string", "pattern": "^a" })),
            (
                "text",
                "(VALUE = ANY (ARRAY['it''s'::text, 'b, c'::text]))",
                json!({ "type": "string", "enum": ["it's", "b, c"] }),
            ),
            (
                "varchar",
                "((VALUE)::text = ANY ((ARRAY['a'::character varying, 'b'::character varying])::text[]))",
                json!({ "type": "string", "enum": ["a", "b"] }),
            ),
            ("text", "(VALUE IS NOT NULL)", json!({ "type": "string" })),
            (
                "text",
                "(VALUE ~ '^\\m'::text)",
                json!({ "type": "string", "description": "Must fulfil VALUE ~ '^\\m'::text." }),
            ),
            (
                "int8",
                "((VALUE > 0) AND ((VALUE % (2)::bigint) = 0))",
                json!({ "type": "integer", "exclusiveMinimum": 0, "description": "Must fulfil (VALUE % (2)::bigint) = 0." }),
            ),
            (
                "int8",
                "((VALUE > 0) OR (VALUE < 5))",
                json!({ "type": "integer", "description": "Must fulfil (VALUE > 0) OR (VALUE < 5)." }),
            ),
        ] {
            assert_eq!(domain(base, &[check]), expected, "{check}");
        }
    }

    #[test]
    fn only_literals_are_values() {
        for (text, expected) in [
            ("'a'::text", Some(json!("a"))),
            ("'it''s'::text", Some(json!("it's"))),
            ("-3", Some(json!(-3))),
            ("(-3)", Some(json!(-3))),
            ("(1.5)::double precision", Some(json!(1.5))),
            ("NULL::uuid[]", Some(Value::Null)),
            ("now()", None),
            ("('a'::text || 'b'::text)", None),
            ("'a", None),
            ("x::text", None),
        ] {
            assert_eq!(literal(text), expected, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_condition_breaks_it(check in "[VALUE()'~=<> 0-9A-Z,:a\\[\\]é]{0,40}") {
            domain("text", &[&check]);
        }
    }
}
