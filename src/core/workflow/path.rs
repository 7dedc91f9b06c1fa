//! Paths into a run's context (RFC 9535): text comes in, a compiled query and what it refers to go out.
//!
//! The context is the only element of an array, so that a filter can be asked of it: `$` in what is written here is
//! `$[0]` in what is compiled.

use crate::core::error::{Error, Result};
use serde_json_path::JsonPath;

/// Bytes of a path or an expression at most.
const MOST_BYTES: usize = 2000;

/// Brackets within brackets at most: the parser goes back and tries again at each of them.
/// Commas in brackets.
const MOST_UNIONS: usize = 8;
const MOST_NESTED: usize = 5;

/// What a path or an expression refers to in the context.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// `input`, `steps`, ...
    pub root: String,
    /// The step's name after `steps`.
    pub step: Option<String>,
}

/// A compiled query and what it refers to.
#[derive(Debug)]
pub struct Query {
    /// To be asked of an array with the context in it.
    pub path: JsonPath,
    /// It selects one node at most.
    pub is_singular: bool,
    /// What it refers to.
    pub references: Vec<Reference>,
}

/// Text in which everything refers to the context by `$[0]`, while it is made.
#[derive(Default)]
struct Rewritten {
    text: String,
    is_singular: bool,
    references: Vec<Reference>,
}

/// A path as it stands in `{{ }}`, `$.` left out.
pub fn path(text: &str) -> Result<Query> {
    let text = text.trim();
    let whole = if text.starts_with('$') { text.to_owned() } else { format!("$.{text}") };
    let rewritten = rewrite(&whole, false)?;
    compile(&rewritten.text, text).map(|path| Query {
        path,
        is_singular: rewritten.is_singular,
        references: rewritten.references,
    })
}

/// An expression: a filter whose `@` is the context.
pub fn expression(text: &str) -> Result<Query> {
    let rewritten = rewrite(text.trim(), true)?;
    let path = compile(&format!("$[?{}]", rewritten.text), text.trim())?;
    Ok(Query { path, is_singular: false, references: rewritten.references })
}

fn compile(text: &str, written: &str) -> Result<JsonPath> {
    JsonPath::parse(text).map_err(|error| {
        Error::bad_argument(format!("\"{written}\" cannot be read"))
            .detail(format!("The parser of JSONPath (RFC 9535) says: {}.", error.message()))
    })
}

/// Where a text in quotes ends, its second quote included.
pub fn end_of_quoted(text: &str) -> Option<usize> {
    let quote = text.chars().next()?;
    let mut is_escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            _ if character == quote => return Some(at + character.len_utf8()),
            _ => {}
        }
    }
    None
}

fn rewrite(text: &str, is_expression: bool) -> Result<Rewritten> {
    if text.len() > MOST_BYTES {
        return Err(Error::bad_argument(format!("path or expression is longer than {MOST_BYTES} bytes")));
    }
    let mut made = Rewritten { is_singular: true, ..Rewritten::default() };
    let (mut open, mut descendants, mut unions): (Vec<char>, usize, usize) = (Vec::new(), 0, 0);
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let mut taken = character.len_utf8();
        match character {
            '\'' | '"' => {
                taken = end_of_quoted(rest)
                    .ok_or_else(|| Error::bad_argument(format!("a quote is not closed in \"{text}\"")))?;
                refuse_template(&rest[..taken])?;
                made.text.push_str(&rest[..taken]);
            }
            '{' if is_expression => taken = made.bare(rest)?,
            '$' => made.refer(&rest[1..])?,
            '@' if is_expression && !open.contains(&'[') => made.refer(&rest[1..])?,
            _ => {
                match character {
                    '(' | '[' => open.push(character),
                    ')' | ']' => drop(open.pop()),
                    _ => {}
                }
                if open.len() > MOST_NESTED {
                    return Err(Error::bad_argument(format!("more than {MOST_NESTED} brackets within each other")));
                }
                descendants += usize::from(rest.starts_with(".."));
                unions += usize::from(character == ',' && open.last() == Some(&'['));
                // Each goes through all that it is given for each that the one around it is given.
                if character == '?' && open.iter().filter(|open| **open == '[').count() > 1 {
                    return Err(Error::bad_argument("a filter stands within a filter"));
                }
                made.is_singular &= !(matches!(character, '*' | '?' | ',' | ':') || rest.starts_with(".."));
                made.text.push(character);
            }
        }
        rest = &rest[taken..];
    }
    // Each of them visits every node for every node that the one before it visits.
    if descendants > 1 {
        return Err(Error::bad_argument("\"..\" is there more than once"));
    }
    // Each of them can double what the next is given.
    if unions > MOST_UNIONS {
        return Err(Error::bad_argument(format!("more than {MOST_UNIONS} commas in brackets")));
    }
    Ok(made)
}

/// In quotes a template is text and nothing else, which nobody means who writes it.
fn refuse_template(quoted: &str) -> Result<()> {
    match quoted.contains("{{") {
        false => Ok(()),
        true => Err(Error::bad_argument("a template stands in quotes in an expression")
            .hint("Leave the quotes out: a template in an expression is the value itself.")),
    }
}

impl Rewritten {
    /// `{{ path }}` in an expression: the path itself. Returns its length.
    fn bare(&mut self, rest: &str) -> Result<usize> {
        let unread = || Error::bad_argument("a template in an expression is not closed");
        let inner =
            rest.strip_prefix("{{").ok_or_else(|| Error::bad_argument("\"{\" has no place in an expression"))?;
        let end = end_of_path(inner);
        let after = inner[end..].strip_prefix("}}").ok_or_else(unread)?;
        let written = inner[..end].trim();
        let whole = if written.starts_with('$') { written.to_owned() } else { format!("$.{written}") };
        let path = rewrite(&whole, false)?;
        // An operator in it would be the expression's.
        compile(&path.text, written)?;
        self.text.push_str(&path.text);
        self.references.extend(path.references);
        Ok(rest.len() - after.len())
    }

    /// The context, with what of it is meant.
    fn refer(&mut self, rest: &str) -> Result<()> {
        self.text.push_str("$[0]");
        let (root, rest) = member(rest)
            .ok_or_else(|| Error::bad_argument("a path has to begin with the name of a value, as in input.name"))?;
        let step = match root {
            "steps" => {
                let (step, _) = member(rest).ok_or_else(|| {
                    Error::bad_argument("\"steps\" has to be followed by a step's name, as in steps.fetch.output")
                })?;
                Some(step.to_owned())
            }
            _ => None,
        };
        self.references.push(Reference { root: root.to_owned(), step });
        Ok(())
    }
}

/// Where a path ends in a template: at its end, or at the `|` of a default.
pub fn end_of_path(text: &str) -> usize {
    let (mut at, mut depth) = (0, 0usize);
    while let Some(character) = text[at..].chars().next() {
        match character {
            '\'' | '"' => match end_of_quoted(&text[at..]) {
                Some(length) => {
                    at += length;
                    continue;
                }
                None => return text.len(),
            },
            '[' | '(' => depth += 1,
            ']' | ')' => depth = depth.saturating_sub(1),
            '|' if depth == 0 => return at,
            '}' if text[at..].starts_with("}}") => return at,
            _ => {}
        }
        at += character.len_utf8();
    }
    at
}

/// A member's name, `.name` or `['name']`, and what follows it.
fn member(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    if let Some(text) = text.strip_prefix('.') {
        let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
        return (end > 0).then(|| text.split_at(end));
    }
    let text = text.strip_prefix('[')?.trim_start();
    let quoted = text.starts_with(['\'', '"']).then(|| end_of_quoted(text)).flatten()?;
    let name = &text[1..quoted - 1];
    let rest = text[quoted..].trim_start().strip_prefix(']')?;
    (!name.contains('\\')).then_some((name, rest))
}
