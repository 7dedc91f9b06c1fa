//! How much work a schema asks for, at most: found from the schema and the depth of the value before anything is checked.
//!
//! A part of the value is met by a subschema, and by all that it applies to the same part; parts of that part are met by
//! what these say of them. As references let one subschema be applied many times, this can double with every level.

use crate::core::error::{Error, Result};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// What a subschema of the specification itself is taken for.
const META: u64 = 200;

/// A subschema and what it applies.
#[derive(Default)]
struct Node {
    own: u64,
    /// To the same part of the value.
    same: Vec<usize>,
    /// To each part of that part.
    parts: Vec<usize>,
    /// Of these one at most, to each part of that part.
    one: Vec<usize>,
}

/// Subschemas that are applied in checking the value, at most. Fails where a reference leads out of the schema, or
/// back to where it stands.
pub(super) fn most(schema: &Value, value: &Value) -> Result<u64> {
    let nodes = nodes(schema)?;
    let order = inside_out(&nodes)?;
    let (depth, parts) = extent(value);
    let mut before: Vec<u64> = Vec::new();
    for _ in 0..=depth {
        let mut costs = vec![0u64; nodes.len()];
        for at in &order {
            let node = &nodes[*at];
            let below = |at: &usize| before.get(*at).copied().unwrap_or_default();
            let same = node.same.iter().map(|at| costs[*at]);
            let parts = node.parts.iter().map(below);
            let one = node.one.iter().map(below).max();
            costs[*at] = same.chain(parts).chain(one).fold(node.own, u64::saturating_add);
        }
        before = costs;
    }
    Ok(before.first().copied().unwrap_or_default().saturating_mul(parts))
}

/// How deep a value is, and of how many parts.
fn extent(value: &Value) -> (usize, u64) {
    let (mut deepest, mut parts) = (0, 0);
    let mut waiting = vec![(value, 0)];
    while let Some((value, depth)) = waiting.pop() {
        deepest = deepest.max(depth);
        parts += 1;
        match value {
            Value::Array(items) => waiting.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(members) => waiting.extend(members.values().map(|member| (member, depth + 1))),
            _ => {}
        }
    }
    (deepest, parts)
}

/// The subschemas that can be reached, the whole schema first.
fn nodes(root: &Value) -> Result<Vec<Node>> {
    let resources = resources(root);
    let mut found: Vec<&Value> = vec![root];
    let mut known: HashMap<*const Value, usize> = HashMap::from([(std::ptr::from_ref(root), 0)]);
    let mut nodes = Vec::new();
    while nodes.len() < found.len() {
        let mut node = Node { own: 1, ..Node::default() };
        if let Value::Object(members) = found[nodes.len()] {
            let mut number = |schema| {
                *known.entry(std::ptr::from_ref(schema)).or_insert_with(|| {
                    found.push(schema);
                    found.len() - 1
                })
            };
            for (name, value) in members {
                match name.as_str() {
                    "allOf" | "anyOf" | "oneOf" | "not" | "if" | "then" | "else" | "dependentSchemas"
                    | "dependencies" => {
                        node.same.extend(inner(name, value).map(&mut number));
                    }
                    "properties" | "prefixItems" => node.one.extend(inner(name, value).map(&mut number)),
                    "items"
                    | "additionalItems"
                    | "unevaluatedItems"
                    | "contains"
                    | "patternProperties"
                    | "additionalProperties"
                    | "unevaluatedProperties"
                    | "propertyNames" => {
                        node.parts.extend(inner(name, value).map(&mut number));
                    }
                    "$ref" | "$dynamicRef" | "$recursiveRef" => {
                        let Some(reference) = value.as_str() else { continue };
                        if reference.starts_with("https://json-schema.org/draft")
                            || reference.starts_with("http://json-schema.org/draft")
                        {
                            node.own += META;
                            continue;
                        }
                        let targets = targets(&resources, reference);
                        if targets.is_empty() {
                            return Err(Error::bad_argument("schema refers to what is not in it").hint(
                                "Put what it refers to under \"$defs\" and refer to it as \"#/$defs/name\"; nothing is fetched.",
                            ));
                        }
                        node.same.extend(targets.into_iter().map(&mut number));
                    }
                    _ => {}
                }
            }
        }
        nodes.push(node);
    }
    Ok(nodes)
}

/// The subschemas that a keyword holds: itself, or those in its list, or under its names.
fn inner<'a>(keyword: &str, value: &'a Value) -> Box<dyn Iterator<Item = &'a Value> + 'a> {
    let named = matches!(keyword, "properties" | "patternProperties" | "dependentSchemas" | "dependencies");
    match value {
        Value::Array(items) => Box::new(items.iter()),
        Value::Object(members) if named => Box::new(members.values()),
        Value::Object(_) => Box::new(std::iter::once(value)),
        _ => Box::new(std::iter::empty()),
    }
}

/// Whatever bears an id or an anchor, the whole schema first.
fn resources(root: &Value) -> Vec<(&Value, &Map<String, Value>)> {
    let mut named = Vec::new();
    let mut waiting = vec![root];
    while let Some(value) = waiting.pop() {
        match value {
            Value::Array(items) => waiting.extend(items),
            Value::Object(members) => {
                let names = ["$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor"];
                if std::ptr::eq(value, root) || names.iter().any(|name| members.contains_key(*name)) {
                    named.push((value, members));
                }
                waiting.extend(members.values());
            }
            _ => {}
        }
    }
    named
}

/// What a reference may be to: rather too much than too little.
fn targets<'a>(resources: &[(&'a Value, &'a Map<String, Value>)], reference: &str) -> Vec<&'a Value> {
    let (base, fragment) = reference.split_once('#').unwrap_or((reference, ""));
    let fragment = decoded(fragment);
    let is = |members: &Map<String, Value>, names: &[&str], wanted: &str| {
        names.iter().any(|name| members.get(*name).and_then(Value::as_str) == Some(wanted))
    };
    let ids = ["$id", "id"];
    let mut targets: Vec<&Value> = Vec::new();
    for (at, (value, members)) in resources.iter().enumerate() {
        // Without a base it is within whichever resource it stands in.
        let within = if base.is_empty() {
            at == 0 || ids.iter().any(|id| members.get(*id).is_some_and(Value::is_string))
        } else {
            is(members, &ids, base) || is(members, &ids, &format!("{base}#"))
        };
        if within && (fragment.is_empty() || fragment.starts_with('/')) {
            targets.extend(value.pointer(&fragment));
        }
        let anchors = ["$anchor", "$dynamicAnchor"];
        if !fragment.is_empty() && (is(members, &anchors, &fragment) || is(members, &ids, &format!("#{fragment}"))) {
            targets.push(value);
        }
    }
    targets
}

/// A fragment without its percent signs.
fn decoded(fragment: &str) -> String {
    let mut bytes = Vec::with_capacity(fragment.len());
    let mut rest = fragment.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let pair = after.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        match pair.filter(|_| *first == b'%').and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The subschemas such that each comes after all that it applies to the same part of a value.
fn inside_out(nodes: &[Node]) -> Result<Vec<usize>> {
    let mut waits: Vec<usize> = nodes.iter().map(|node| node.same.len()).collect();
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (at, node) in nodes.iter().enumerate() {
        for same in &node.same {
            users[*same].push(at);
        }
    }
    let mut order: Vec<usize> = (0..nodes.len()).filter(|at| waits[*at] == 0).collect();
    let mut next = 0;
    while let Some(at) = order.get(next).copied() {
        next += 1;
        for user in &users[at] {
            waits[*user] -= 1;
            if waits[*user] == 0 {
                order.push(*user);
            }
        }
    }
    if order.len() < nodes.len() {
        return Err(Error::bad_argument("schema refers to itself without end")
            .hint("Refer to the schema from what it says of properties or items, not of itself."));
    }
    Ok(order)
}
