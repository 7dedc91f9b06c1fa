//! JSON values against JSON Schemas. A schema and a value come in as text, problems go out; nothing is fetched.
//!
//! Schemas may come from anyone: their size, their patterns (no backtracking) and the work that they ask for ([`work`])
//! are bounded, and they are checked on a thread whose stack is deep enough for any schema of that size.

mod work;
#[cfg(test)]
mod workflow;

use crate::core::error::{Error, Kind, Result};
use crate::core::jsonb;
use crate::core::wire::Problem;
use jsonschema::{PatternOptions, Validator};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a schema at most.
const MAX_SCHEMA: usize = 256 * 1024;

/// Problems that are reported at most.
const MAX_PROBLEMS: usize = 10;

/// Characters of a problem's message at most.
const MAX_MESSAGE: usize = 300;

/// Bytes of a compiled pattern at most.
const MAX_PATTERN: usize = 1024 * 1024;

/// Subschemas that are applied at most: some seconds.
const MAX_WORK: u64 = 20_000_000;

/// Compiled schemas that are kept.
const KEPT: usize = 64;

/// Only what is touched is ever taken.
const STACK: usize = 512 * 1024 * 1024;

/// A schema, ready to check with.
struct Compiled {
    schema: Value,
    validator: Validator,
}

/// Compiled schemas by their hash, the last used at the end.
static COMPILED: Mutex<VecDeque<([u8; 32], Arc<Compiled>)>> = Mutex::new(VecDeque::new());

/// What is wrong with a value: at most ten problems, none where it is as the schema says. A value that is no JSON at all
/// is a problem too.
///
/// The schema is of draft 2020-12 unless its `$schema` says otherwise. Formats are checked. Messages say what was
/// expected and never repeat the value.
pub fn check(schema: &str, value: &str) -> Result<Vec<Problem>> {
    let broke_off = || Error::bug("the check of a JSON value broke off");
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || check_here(schema, value));
        thread.map_err(|_| broke_off())?.join().map_err(|_| broke_off())?
    })
}

/// [`check`] where it holds up nobody.
pub async fn check_apart(schema: String, value: String) -> Result<Vec<Problem>> {
    tokio::task::spawn_blocking(move || check(&schema, &value))
        .await
        .map_err(|_| Error::bug("the check of a JSON value broke off"))?
}

fn check_here(schema: &str, value: &str) -> Result<Vec<Problem>> {
    let compiled = compiled(schema)?;
    let value: Value = match serde_json::from_str(value) {
        Ok(value) => value,
        Err(error) => {
            let message =
                format!("expected JSON, which ends or breaks at line {} column {}", error.line(), error.column());
            return Ok(vec![Problem { path: String::new(), message }]);
        }
    };
    if jsonb::has_zero(&value) {
        let message = "expected no character \\u0000, which jsonb does not hold".to_owned();
        return Ok(vec![Problem { path: String::new(), message }]);
    }
    if work::most(&compiled.schema, &value)? > MAX_WORK {
        return Err(Error::new(Kind::OverLimit, "checking the value against its schema takes too long")
            .detail("The schema applies too many subschemas to the same parts of the value.")
            .hint("Use fewer alternatives inside alternatives."));
    }
    let problems = compiled.validator.iter_errors(&value).take(MAX_PROBLEMS).map(|error| Problem {
        path: error.instance_path().as_str().to_owned(),
        message: bounded(&error.masked().to_string()),
    });
    Ok(problems.collect())
}

/// The schema, compiled or found compiled.
fn compiled(schema: &str) -> Result<Arc<Compiled>> {
    if schema.len() > MAX_SCHEMA {
        return Err(Error::bad_argument("schema is too large")
            .detail(format!("It has {} bytes, {MAX_SCHEMA} are allowed.", schema.len())));
    }
    let key: [u8; 32] = Sha256::digest(schema.as_bytes()).into();
    let mut kept = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(at) = kept.iter().position(|(other, _)| *other == key)
        && let Some(found) = kept.remove(at)
    {
        kept.push_back(found.clone());
        return Ok(found.1);
    }
    // Others may use theirs while this one is compiled.
    drop(kept);
    let compiled = Arc::new(compile(schema)?);
    let mut kept = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.len() >= KEPT {
        kept.pop_front();
    }
    kept.push_back((key, Arc::clone(&compiled)));
    Ok(compiled)
}

fn compile(schema: &str) -> Result<Compiled> {
    let schema: Value = serde_json::from_str(schema).map_err(|error| {
        Error::bad_argument("schema is not valid JSON").detail(format!(
            "It ends or breaks at line {} column {}.",
            error.line(),
            error.column()
        ))
    })?;
    // Before the compiler follows its references.
    work::most(&schema, &Value::Null)?;
    let patterns = PatternOptions::regex().size_limit(MAX_PATTERN).dfa_size_limit(MAX_PATTERN);
    let built =
        jsonschema::options().offline().should_validate_formats(true).with_pattern_options(patterns).build(&schema);
    match built {
        Ok(validator) => Ok(Compiled { validator, schema }),
        Err(error) => {
            let place = error.instance_path().as_str();
            let place = if place.is_empty() { "its top".to_owned() } else { format!("\"{place}\"") };
            let what = bounded(&error.to_string());
            Err(Error::bad_argument(format!("schema is not valid at {place}")).detail(format!("{what}.")))
        }
    }
}

fn bounded(message: &str) -> String {
    match message.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(schema: &str, value: &str) -> Vec<(String, String)> {
        check(schema, value).unwrap().into_iter().map(|problem| (problem.path, problem.message)).collect()
    }

    #[test]
    fn problems_say_where_and_what_was_expected() {
        let schema = r#"{"type": "object", "required": ["name", "age"], "properties":
            {"name": {"type": "string"}, "at": {"format": "date"}, "tags": {"items": {"enum": ["a", "b"]}}}}"#;
        assert_eq!(problems(schema, r#"{"name": "x", "age": 1, "at": "2026-01-31"}"#), []);
        let found = problems(schema, r#"{"name": 1234567, "at": "no date", "tags": ["a", "secret"]}"#);
        let paths: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(found.len(), 4, "{found:?}");
        for path in ["", "/name", "/at", "/tags/1"] {
            assert!(paths.contains(&path), "{found:?}");
        }
        let all = format!("{found:?}");
        for expected in ["age", "string", "date", "a"] {
            assert!(all.contains(expected), "{all}");
        }
        assert!(!all.contains("secret") && !all.contains("1234567"), "{all}");
        assert_eq!(problems("{}", "{\"a\": ")[0].0, "");
    }

    #[test]
    fn problems_are_few_and_short() {
        let value = format!("[{}0]", "0,".repeat(100));
        assert_eq!(problems(r#"{"items": {"type": "string"}}"#, &value).len(), MAX_PROBLEMS);
        let schema = format!("{{\"enum\": [\"{}\"]}}", "long".repeat(10_000));
        assert!(problems(&schema, "1")[0].1.chars().count() <= MAX_MESSAGE + 1);
    }

    #[test]
    fn a_schema_that_is_not_valid_says_where() {
        for (schema, part) in [
            (r#"{"properties": {"a": {"type": "strin"}}}"#, "/properties/a/type"),
            (r#"{"type": 1}"#, "/type"),
            (r#"{"pattern": "(?=x)"}"#, "schema"),
            (r#"{"pattern": "((a{1000}){1000}){1000}"}"#, "schema"),
            ("{", "JSON"),
            ("1", "schema"),
        ] {
            let error = check(schema, "\"x\"").unwrap_err();
            assert_eq!(error.kind, Kind::BadArgument);
            assert!(error.message.contains(part), "{error:?}");
        }
        assert!(check(&" ".repeat(MAX_SCHEMA + 1), "1").unwrap_err().message.contains("too large"));
    }

    #[test]
    fn nothing_is_fetched() {
        for reference in ["http://127.0.0.1:1/x.json", "file:///etc/passwd", "other.json", "//host/x#/y", "#/nowhere"] {
            let error = check(&format!("{{\"$ref\": \"{reference}\"}}"), "1").unwrap_err();
            assert_eq!(error.kind, Kind::BadArgument, "{reference}");
        }
    }

    #[test]
    fn references_into_the_schema_are_followed() {
        let tree = r##"{"$ref": "#/$defs/tree", "$defs": {"tree": {"$anchor": "t", "type": "object",
            "properties": {"left": {"$ref": "#t"}, "right": {"$ref": "#/$defs/tree"}}}}}"##;
        assert_eq!(problems(tree, r#"{"left": {"right": {}}}"#), []);
        assert_eq!(problems(tree, r#"{"left": {"right": 1}}"#)[0].0, "/left/right");
    }

    #[test]
    fn a_schema_cannot_keep_the_gateway_busy() {
        // Each definition applies the next twice.
        let doubling = |inside: fn(String) -> String| {
            let defs: Vec<String> = (0..40)
                .map(|at| {
                    let next = format!("{{\"$ref\": \"#/$defs/d{}\"}}", at + 1);
                    format!("\"d{at}\": {}", inside(format!("{{\"allOf\": [{next}, {next}]}}")))
                })
                .collect();
            format!("{{\"$ref\": \"#/$defs/d0\", \"$defs\": {{{}, \"d40\": true}}}}", defs.join(","))
        };
        assert_eq!(check(&doubling(|all| all), "1").unwrap_err().kind, Kind::OverLimit);
        let deep = format!("{}1{}", "[".repeat(60), "]".repeat(60));
        assert_eq!(check(&doubling(|all| format!("{{\"items\": {all}}}")), &deep).unwrap_err().kind, Kind::OverLimit);
        let itself = r##"{"items": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}}"##;
        assert_eq!(check(itself, &deep).unwrap_err().kind, Kind::OverLimit);
        assert_eq!(problems(itself, "[[[1]]]"), []);
        assert_eq!(check(r##"{"$ref": "#"}"##, "1").unwrap_err().kind, Kind::BadArgument);
    }

    #[test]
    fn a_long_chain_of_references_is_followed() {
        for (open, close) in [("", ""), ("{\"items\": ", "}"), ("{\"allOf\": [", "]}")] {
            let count = 3000;
            let defs: Vec<String> =
                (0..count).map(|at| format!("\"{at}\": {open}{{\"$ref\": \"#/$defs/{}\"}}{close}", at + 1)).collect();
            let schema = format!(
                "{{\"$ref\": \"#/$defs/0\", \"$defs\": {{{}, \"{count}\": {{\"type\": \"string\"}}}}}}",
                defs.join(",")
            );
            assert!(check(&schema, "\"x\"").is_ok());
        }
    }

    #[test]
    fn a_compiled_schema_is_kept() {
        let schema = r#"{"const": "kept"}"#;
        assert!(Arc::ptr_eq(&compiled(schema).unwrap(), &compiled(schema).unwrap()));
        for at in 0..=KEPT {
            compiled(&format!("{{\"const\": {at}}}")).unwrap();
        }
        assert!(COMPILED.lock().unwrap().len() <= KEPT);
    }
}
