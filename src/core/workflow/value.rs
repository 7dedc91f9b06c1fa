//! Values of a run in templates and expressions: JSON with `{{ path }}` in it and a context come in, JSON goes out. What
//! a template puts in is never read as a template, a path or an expression.

use super::MOST_RENDERED;
use super::path::{self, Reference};
use crate::core::error::{Error, Kind, Result};
use serde_json::{Map, Value, json};
use serde_json_path::JsonPath;
use std::borrow::Cow;

/// Values within values at most: a reader of JSON with the usual limit takes what comes out.
const MOST_DEPTH: usize = 100;

/// JSON whose texts may have templates in them, compiled.
#[derive(Debug)]
pub struct Template {
    node: Node,
    references: Vec<Reference>,
}

#[derive(Debug)]
enum Node {
    Literal(Value),
    /// A text that is one template: the value as it is.
    Whole(Slot),
    Text(Vec<Piece>),
    Array(Vec<Node>),
    Object(Vec<(String, Node)>),
}

#[derive(Debug)]
enum Piece {
    Literal(String),
    Slot(Slot),
}

/// `{{ path }}` or `{{ path | default: json }}`.
#[derive(Debug)]
struct Slot {
    written: String,
    path: JsonPath,
    is_singular: bool,
    default: Option<Value>,
}

/// An expression, compiled.
#[derive(Debug)]
pub struct Condition {
    path: JsonPath,
    references: Vec<Reference>,
}

/// What templates and expressions see: an array with one object in it, of which a filter can be asked.
#[derive(Clone, Debug)]
pub struct Context(Value);

/// Bytes and depth that are left for a value.
struct Room {
    bytes: usize,
}

impl Template {
    /// Reads JSON whose texts may have templates in them.
    ///
    /// # Errors
    /// 22023 for a template that cannot be read; the message begins with its place below `place`.
    pub fn read(value: &Value, place: &str) -> Result<Template> {
        let mut references = Vec::new();
        let node = read(value, place, &mut references, 0)?;
        Ok(Template { node, references })
    }

    /// What it refers to.
    pub fn references(&self) -> &[Reference] {
        &self.references
    }

    /// The value itself, where there is no template in it.
    pub fn literal(&self) -> Option<&Value> {
        match &self.node {
            Node::Literal(value) => Some(value),
            _ => None,
        }
    }

    /// Puts the values in.
    ///
    /// # Errors
    /// 22023 that names the template which selects nothing, 53400 for a value that is too large.
    pub fn render(&self, context: &Context) -> Result<Value> {
        render(&self.node, context, &mut Room { bytes: MOST_RENDERED }, 0)
    }

    /// The same, where text is asked for: other values are written as JSON.
    ///
    /// # Errors
    /// As of [`Template::render`].
    pub fn render_text(&self, context: &Context) -> Result<String> {
        Ok(match self.render(context)? {
            Value::String(text) => text,
            other => other.to_string(),
        })
    }
}

fn read(value: &Value, place: &str, references: &mut Vec<Reference>, depth: usize) -> Result<Node> {
    if depth > MOST_DEPTH {
        return Err(Error::bad_argument(format!("{place}: more than {MOST_DEPTH} values within each other")));
    }
    let is_literal = |node: &Node| matches!(node, Node::Literal(_));
    Ok(match value {
        Value::String(text) => {
            read_text(text, references).map_err(|error| Error { message: format!("{place}: {error}"), ..error })?
        }
        Value::Array(elements) => {
            let nodes = elements
                .iter()
                .enumerate()
                .map(|(at, element)| read(element, &format!("{place}[{at}]"), references, depth + 1))
                .collect::<Result<Vec<_>>>()?;
            if nodes.iter().all(is_literal) { Node::Literal(value.clone()) } else { Node::Array(nodes) }
        }
        Value::Object(members) => {
            let nodes = members
                .iter()
                .map(|(name, member)| {
                    Ok((name.clone(), read(member, &format!("{place}.{name}"), references, depth + 1)?))
                })
                .collect::<Result<Vec<_>>>()?;
            if nodes.iter().all(|(_, node)| is_literal(node)) {
                Node::Literal(value.clone())
            } else {
                Node::Object(nodes)
            }
        }
        other => Node::Literal(other.clone()),
    })
}

fn read_text(text: &str, references: &mut Vec<Reference>) -> Result<Node> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("{{") {
        if at > 0 {
            pieces.push(Piece::Literal(rest[..at].to_owned()));
        }
        let (slot, after) = read_slot(&rest[at + 2..], references)?;
        pieces.push(Piece::Slot(slot));
        rest = after;
    }
    if pieces.is_empty() {
        return Ok(Node::Literal(Value::String(text.to_owned())));
    }
    if !rest.is_empty() {
        pieces.push(Piece::Literal(rest.to_owned()));
    }
    Ok(match pieces.pop() {
        Some(Piece::Slot(slot)) if pieces.is_empty() => Node::Whole(slot),
        last => {
            pieces.extend(last);
            Node::Text(pieces)
        }
    })
}

/// What stands after `{{`, and what follows its `}}`.
fn read_slot<'t>(text: &'t str, references: &mut Vec<Reference>) -> Result<(Slot, &'t str)> {
    let unclosed = || Error::bad_argument("a template is not closed").hint("Write {{ path }}.");
    let end = path::end_of_path(text);
    let written = text[..end].trim();
    let (default, rest) = match text[end..].strip_prefix('|') {
        None => (None, &text[end..]),
        Some(filter) => {
            let json = filter.trim_start().strip_prefix("default").map(str::trim_start);
            let json = json.and_then(|json| json.strip_prefix(':')).ok_or_else(|| {
                Error::bad_argument(format!("\"{written}\" is followed by something other than \"| default: ...\""))
            })?;
            let mut values = serde_json::Deserializer::from_str(json).into_iter::<Value>();
            let Some(Ok(default)) = values.next() else {
                return Err(Error::bad_argument(format!("the default of \"{written}\" is not JSON"))
                    .hint("Write texts in double quotes, as in {{ input.name | default: \"nobody\" }}."));
            };
            (Some(default), json[values.byte_offset()..].trim_start())
        }
    };
    let rest = rest.strip_prefix("}}").ok_or_else(unclosed)?;
    let query = path::path(written)?;
    references.extend(query.references);
    Ok((Slot { written: written.to_owned(), path: query.path, is_singular: query.is_singular, default }, rest))
}

fn render(node: &Node, context: &Context, room: &mut Room, depth: usize) -> Result<Value> {
    Ok(match node {
        Node::Literal(value) => value.clone(),
        Node::Whole(slot) => {
            let value = slot.select(context)?;
            room.take(&value, depth)?;
            value.into_owned()
        }
        Node::Text(pieces) => {
            let mut text = String::new();
            for piece in pieces {
                match piece {
                    Piece::Literal(literal) => text.push_str(literal),
                    Piece::Slot(slot) => {
                        let value = slot.select(context)?;
                        room.take(&value, depth)?;
                        match value.as_ref() {
                            Value::String(value) => text.push_str(value),
                            other => text.push_str(&other.to_string()),
                        }
                    }
                }
            }
            Value::String(text)
        }
        Node::Array(nodes) => {
            Value::Array(nodes.iter().map(|node| render(node, context, room, depth + 1)).collect::<Result<_>>()?)
        }
        Node::Object(nodes) => Value::Object(
            nodes
                .iter()
                .map(|(name, node)| Ok((name.clone(), render(node, context, room, depth + 1)?)))
                .collect::<Result<_>>()?,
        ),
    })
}

impl Room {
    /// Makes sure that a value has room before it is copied.
    fn take(&mut self, value: &Value, depth: usize) -> Result<()> {
        let too_large = || Error::new(Kind::OverLimit, format!("a value is larger than {MOST_RENDERED} bytes"));
        if depth > MOST_DEPTH {
            let message = format!("a value has more than {MOST_DEPTH} values within each other");
            return Err(Error::new(Kind::OverLimit, message));
        }
        let own = match value {
            Value::Null | Value::Bool(_) => 5,
            Value::Number(_) => 8,
            Value::String(text) => text.len() + 2,
            Value::Array(elements) => elements.len() + 2,
            Value::Object(members) => members.keys().map(|name| name.len() + 4).sum::<usize>() + 2,
        };
        self.bytes = self.bytes.checked_sub(own).ok_or_else(too_large)?;
        match value {
            Value::Array(elements) => elements.iter().try_for_each(|element| self.take(element, depth + 1)),
            Value::Object(members) => members.values().try_for_each(|member| self.take(member, depth + 1)),
            _ => Ok(()),
        }
    }
}

impl Slot {
    /// What it selects: the node of a path that has one at most, else all nodes in an array.
    fn select<'c>(&'c self, context: &'c Context) -> Result<Cow<'c, Value>> {
        let nodes = self.path.query(&context.0);
        if !self.is_singular {
            // Nodes may lie within each other: they are measured before they are copied.
            let mut room = Room { bytes: MOST_RENDERED };
            nodes.iter().try_for_each(|node| room.take(node, 0))?;
            return Ok(match (nodes.is_empty(), &self.default) {
                (true, Some(default)) => Cow::Borrowed(default),
                _ => Cow::Owned(Value::Array(nodes.iter().map(|node| (*node).clone()).collect())),
            });
        }
        match nodes.first().or(self.default.as_ref()) {
            Some(value) => Ok(Cow::Borrowed(value)),
            None => Err(Error::bad_argument(format!("\"{{{{ {} }}}}\" selects nothing", self.written))
                .hint("Add a default where it may be missing, as in {{ path | default: null }}.")),
        }
    }
}

impl Condition {
    /// Reads an expression.
    ///
    /// # Errors
    /// 22023 for one that cannot be read; the message begins with `place`.
    pub fn read(text: &str, place: &str) -> Result<Condition> {
        match path::expression(text) {
            Ok(query) => Ok(Condition { path: query.path, references: query.references }),
            Err(error) => Err(Error { message: format!("{place}: {error}"), ..error }),
        }
    }

    /// What it refers to.
    pub fn references(&self) -> &[Reference] {
        &self.references
    }

    /// Whether it holds. What it compares and is not there is equal to nothing, as RFC 9535 has it.
    pub fn holds(&self, context: &Context) -> bool {
        !self.path.query(&context.0).is_empty()
    }
}

impl Context {
    /// With these values beside `steps`, which is empty.
    pub fn new(roots: impl IntoIterator<Item = (&'static str, Value)>) -> Context {
        let mut members: Map<String, Value> = roots.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        members.insert("steps".to_owned(), json!({}));
        Context(Value::Array(vec![Value::Object(members)]))
    }

    fn members(&mut self) -> Option<&mut Map<String, Value>> {
        self.0.get_mut(0).and_then(Value::as_object_mut)
    }

    /// A value of the context's own, as `item`.
    pub fn set(&mut self, name: &str, value: Value) {
        if let Some(members) = self.members() {
            members.insert(name.to_owned(), value);
        }
    }

    /// Takes a value of its own away.
    pub fn unset(&mut self, name: &str) {
        if let Some(members) = self.members() {
            members.swap_remove(name);
        }
    }

    /// What a step came to: `{status, output, error}`; `None`: it has not ended.
    pub fn set_step(&mut self, step: &str, ended: Option<Value>) {
        let steps = self.members().and_then(|members| members.get_mut("steps")).and_then(Value::as_object_mut);
        if let Some(steps) = steps {
            match ended {
                Some(value) => drop(steps.insert(step.to_owned(), value)),
                None => drop(steps.swap_remove(step)),
            }
        }
    }

    /// A step's output.
    pub fn output(&self, step: &str) -> Option<&Value> {
        self.0.get(0)?.get("steps")?.get(step)?.get("output")
    }
}

/// Whether a text has a template in it that this module would read: one that stands where none is read is a mistake.
pub fn has_template(text: &str) -> bool {
    let mut found = text.match_indices("{{").map(|(at, _)| read_slot(&text[at + 2..], &mut Vec::new()));
    found.any(|slot| slot.is_ok())
}
