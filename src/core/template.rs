//! HTTP requests of functions, as templates: where a call's arguments go into the URL, the headers and the body.
//!
//! The template is an administrator's, the arguments are a model's and so anybody's. Whatever they hold stays in the place
//! that the template gave it: no argument reaches the host, or adds a step to the path, a parameter or a header.

#[cfg(test)]
mod tests;

use crate::core::error::{Error, Kind, Result};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeSet;

/// Bytes of a URL at most.
const MAX_URL: usize = 16 * 1024;

/// Headers that say how a message is framed or where it goes, or that are ours to write.
const OWN_HEADERS: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "idempotency-key",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

/// A call's arguments by their names.
pub type Arguments = Map<String, Value>;

/// An HTTP request with places for arguments: `{name}` in path and query, `{{name}}` in headers and JSON body.
#[derive(Debug)]
pub struct Template {
    method: String,
    origin: String,
    path: Vec<Text>,
    query: Vec<(String, Option<Text>)>,
    headers: Vec<(String, Text)>,
    body: Option<Value>,
}

/// An HTTP request, but for what the gateway adds to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Filled {
    /// `GET`, `POST`, `PUT`, `PATCH` or `DELETE`.
    pub method: String,
    /// Percent-encoded.
    pub url: String,
    /// Names in lower case, values of visible ASCII characters, spaces and tabs.
    pub headers: Vec<(String, String)>,
    /// JSON; `None` where the method has no body.
    pub body: Option<String>,
}

impl Template {
    /// Reads a template from its JSON form: `url`, and perhaps `method` (`POST` unless told otherwise), `headers` (an
    /// object of texts) and `body`. Fails with 22023 where it is not fit for use.
    ///
    /// Arguments that are named nowhere go into the query where the method has no body, and are the members of the body
    /// where none is given.
    pub fn read(form: &Value) -> Result<Template> {
        let method = match form.get("method") {
            None | Some(Value::Null) => "POST".to_owned(),
            Some(method) => method.as_str().unwrap_or_default().to_ascii_uppercase(),
        };
        if !["GET", "POST", "PUT", "PATCH", "DELETE"].contains(&method.as_str()) {
            return Err(Error::bad_argument("method is not GET, POST, PUT, PATCH or DELETE"));
        }
        let body = form.get("body").filter(|body| !body.is_null()).cloned();
        if body.is_some() && method == "GET" {
            return Err(Error::bad_argument("method GET has no body"));
        }
        let (origin, path, query) = split(form.get("url").and_then(Value::as_str).unwrap_or_default())?;
        Ok(Template {
            method,
            origin: origin.to_ascii_lowercase(),
            path: path.split('/').map(Text::of_url).collect::<Result<_>>()?,
            query: query.split('&').filter(|pair| !pair.is_empty()).map(parameter).collect::<Result<_>>()?,
            headers: headers(form.get("headers").unwrap_or(&Value::Null))?,
            body,
        })
    }

    /// Scheme, host and port, in lower case.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Checks that it fits the JSON Schema of its arguments: every place has its argument, every argument its place, and
    /// the path needs none that may be missing. Errors: 22023.
    pub fn check(&self, schema: &Value) -> Result<()> {
        let nothing = Arguments::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&nothing);
        let named = self.names();
        if let Some(name) = named.iter().find(|name| !properties.contains_key(name.as_str())) {
            return Err(Error::bad_argument(format!(
                "the request needs argument \"{name}\", which the schema does not have"
            )));
        }
        if self.body.is_some()
            && let Some(name) = properties.keys().find(|name| !named.contains(name.as_str()))
        {
            return Err(Error::bad_argument(format!("argument \"{name}\" has no place in the request")).hint(
                "Name it in the URL, a header or the body, or leave the body out to send all arguments as its members.",
            ));
        }
        let required = |name: &str| {
            let names = schema.get("required").and_then(Value::as_array);
            names.is_some_and(|names| names.iter().any(|required| required == name))
        };
        let in_path = self.path.iter().flat_map(Text::names);
        match in_path.into_iter().find(|name| !required(name)) {
            Some(name) => Err(Error::bad_argument(format!("argument \"{name}\" is in the path, but not required"))),
            None => Ok(()),
        }
    }

    /// The request for these arguments. Errors: 22023 where an argument does not fit its place, 53400 where the URL grows
    /// too long.
    pub fn fill(&self, arguments: &Arguments) -> Result<Filled> {
        let mut url = self.origin.clone();
        for step in &self.path {
            url.push('/');
            url.push_str(&in_path(step, arguments)?);
        }
        let named = self.names();
        let mut rest = arguments.iter().filter(|(name, _)| !named.contains(name.as_str())).peekable();
        let mut pairs = Vec::new();
        for (name, text) in &self.query {
            match text {
                None => pairs.push(name.clone()),
                Some(text) => match text.whole() {
                    Some(argument) => add(&mut pairs, name, argument, arguments.get(argument))?,
                    None => pairs.push(format!("{name}={}", text.fill(arguments, encode)?)),
                },
            }
        }
        let has_body = !["GET", "DELETE"].contains(&self.method.as_str());
        let body = match &self.body {
            Some(body) => Some(filled(body, arguments)?.unwrap_or_default().to_string()),
            None if has_body => {
                let members: Arguments = rest.by_ref().map(|(name, value)| (name.clone(), value.clone())).collect();
                Some(Value::Object(members).to_string())
            }
            None => None,
        };
        if self.body.is_none() {
            for (name, value) in rest {
                add(&mut pairs, &encode(name), name, Some(value))?;
            }
        }
        if !pairs.is_empty() {
            url.push('?');
            url.push_str(&pairs.join("&"));
        }
        if url.len() > MAX_URL {
            return Err(Error::new(Kind::OverLimit, "the request's URL is too long")
                .detail(format!("It has {} bytes, {MAX_URL} are allowed.", url.len())));
        }
        Ok(Filled { method: self.method.clone(), url, headers: self.fill_headers(arguments)?, body })
    }

    fn fill_headers(&self, arguments: &Arguments) -> Result<Vec<(String, String)>> {
        let mut filled = Vec::with_capacity(self.headers.len());
        for (name, text) in &self.headers {
            if text.whole().is_some_and(|argument| arguments.get(argument).is_none_or(Value::is_null)) {
                continue;
            }
            let value = text.fill(arguments, str::to_owned)?;
            check_header_value(name, &value)?;
            filled.push((name.clone(), value));
        }
        Ok(filled)
    }

    /// Names of the arguments that it has places for.
    fn names(&self) -> BTreeSet<String> {
        let texts = self.path.iter().chain(self.query.iter().filter_map(|(_, text)| text.as_ref()));
        let texts = texts.chain(self.headers.iter().map(|(_, text)| text));
        let mut names: BTreeSet<String> = texts.flat_map(Text::names).map(str::to_owned).collect();
        if let Some(body) = &self.body {
            names_in(body, &mut names);
        }
        names
    }
}

/// Checks a header of a request that an administrator writes. Errors: 22023.
pub fn check_header_name(name: &str) -> Result<()> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || name.len() > 200 || !name.bytes().all(token) {
        return Err(Error::bad_argument(format!("\"{}\" is not the name of a header", name.escape_debug())));
    }
    let lower = name.to_ascii_lowercase();
    if OWN_HEADERS.contains(&lower.as_str()) || lower.starts_with("proxy-") {
        return Err(Error::bad_argument(format!("header \"{lower}\" cannot be set")));
    }
    Ok(())
}

fn check_header_value(name: &str, value: &str) -> Result<()> {
    match value.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t')) {
        true => Ok(()),
        false => {
            Err(Error::bad_argument(format!("value of header \"{name}\" has characters that a header cannot hold"))
                .detail("It may have visible ASCII characters, spaces and tabs."))
        }
    }
}

/// A URL template's origin, path without its first slash, and query.
fn split(url: &str) -> Result<(&str, &str, &str)> {
    let bad = |what: &str| Error::bad_argument(format!("the request's URL {what}"));
    let Some(after) = ["https://", "http://"].iter().find_map(|scheme| url.strip_prefix(scheme)) else {
        return Err(bad("does not begin with https://"));
    };
    let host_at = url.len() - after.len();
    let host = after.split(['/', '?', '#']).next().unwrap_or_default();
    if host.contains(['{', '}']) {
        return Err(
            bad("has an argument in its host").hint("A function's host is fixed; its credential is bound to it.")
        );
    }
    if host.contains('@') {
        return Err(bad("has a user or a password in it").hint("Give the function a credential."));
    }
    if host.is_empty() || !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte)) {
        return Err(bad("has no host, or one with characters that a host cannot have"));
    }
    let (origin, rest) = url.split_at(host_at + host.len());
    if !rest.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>\\^`|#".contains(&byte)) {
        return Err(bad("has a fragment, a space or a character that must be percent-encoded"));
    }
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    Ok((origin, path.strip_prefix('/').unwrap_or(path), query))
}

/// A parameter of a query.
fn parameter(pair: &str) -> Result<(String, Option<Text>)> {
    let (name, value) = match pair.split_once('=') {
        Some((name, value)) => (name, Some(Text::of_url(value)?)),
        None => (pair, None),
    };
    match Text::of_url(name)?.names().next() {
        Some(argument) => Err(Error::bad_argument(format!("argument \"{argument}\" is in the name of a parameter"))),
        None => Ok((name.to_owned(), value)),
    }
}

fn headers(form: &Value) -> Result<Vec<(String, Text)>> {
    let Value::Object(members) = form else {
        return if form.is_null() { Ok(Vec::new()) } else { Err(Error::bad_argument("headers is not a JSON object")) };
    };
    let header = |(name, value): (&String, &Value)| {
        check_header_name(name)?;
        let value = value.as_str().ok_or_else(|| Error::bad_argument(format!("header \"{name}\" is not a text")))?;
        check_header_value(name, value)?;
        Ok((name.to_ascii_lowercase(), Text::of_value(value)))
    };
    members.iter().map(header).collect()
}

/// A text with places for arguments.
#[derive(Debug)]
struct Text(Vec<Piece>);

#[derive(Debug)]
enum Piece {
    Literal(String),
    Argument(String),
}

impl Text {
    /// Of a part of a URL, in which braces stand for nothing else.
    fn of_url(text: &str) -> Result<Text> {
        let pieces = Text::read(text, "{", "}");
        let braces = |piece: &Piece| matches!(piece, Piece::Literal(text) if text.contains(['{', '}']));
        if pieces.0.iter().any(braces) {
            return Err(Error::bad_argument("the request's URL has a brace that belongs to no argument"));
        }
        Ok(pieces)
    }

    /// Of a header or a member of the body, which may hold braces of its own.
    fn of_value(text: &str) -> Text {
        Text::read(text, "{{", "}}")
    }

    fn read(text: &str, open: &str, close: &str) -> Text {
        let is_name = |name: &str| {
            let word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
            (1..=200).contains(&name.len()) && name.chars().all(word)
        };
        let mut pieces = Vec::new();
        let (mut literal, mut rest) = (String::new(), text);
        while let Some((before, after)) = rest.split_once(open) {
            literal.push_str(before);
            match after.split_once(close) {
                Some((name, after)) if is_name(name) => {
                    if !literal.is_empty() {
                        pieces.push(Piece::Literal(std::mem::take(&mut literal)));
                    }
                    pieces.push(Piece::Argument(name.to_owned()));
                    rest = after;
                }
                _ => {
                    literal.push_str(open);
                    rest = after;
                }
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Text(pieces)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Argument(name) => Some(name.as_str()),
            Piece::Literal(_) => None,
        })
    }

    /// The argument that is all of it.
    fn whole(&self) -> Option<&str> {
        match self.0.as_slice() {
            [Piece::Argument(name)] => Some(name),
            _ => None,
        }
    }

    /// With each argument's text, written as the place needs it.
    fn fill(&self, arguments: &Arguments, write: impl Fn(&str) -> String) -> Result<String> {
        let mut filled = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Literal(text) => filled.push_str(text),
                Piece::Argument(name) => filled.push_str(&write(&plain(name, present(name, arguments)?)?)),
            }
        }
        Ok(filled)
    }
}

fn present<'a>(name: &str, arguments: &'a Arguments) -> Result<&'a Value> {
    let value = arguments.get(name).filter(|value| !value.is_null());
    value.ok_or_else(|| Error::bad_argument(format!("argument \"{name}\" is missing")))
}

/// A value as text, where text alone can stand.
fn plain<'a>(name: &str, value: &'a Value) -> Result<Cow<'a, str>> {
    match value {
        Value::String(text) => Ok(Cow::Borrowed(text)),
        Value::Number(_) | Value::Bool(_) => Ok(Cow::Owned(value.to_string())),
        _ => Err(Error::bad_argument(format!("argument \"{name}\" is not a text, a number or a boolean"))),
    }
}

/// Percent-encodes all but the unreserved characters of RFC 3986.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// A step of the path. One that is empty, or leads upwards for whoever decodes it, would be another path.
fn in_path(step: &Text, arguments: &Arguments) -> Result<String> {
    for name in step.names() {
        let text = plain(name, present(name, arguments)?)?;
        if text.is_empty() || text.split(['/', '\\']).any(|part| matches!(part, "." | "..")) {
            return Err(Error::bad_argument(format!("argument \"{name}\" cannot stand in a path")));
        }
    }
    let filled = step.fill(arguments, encode)?;
    let decoded = filled.to_ascii_lowercase().replace("%2e", ".");
    if let (Some(name), "." | "..") = (step.names().next(), decoded.as_str()) {
        return Err(Error::bad_argument(format!("argument \"{name}\" cannot stand in a path")));
    }
    Ok(filled)
}

/// Adds a parameter: none for a missing value, one for each element of an array.
fn add(pairs: &mut Vec<String>, parameter: &str, argument: &str, value: Option<&Value>) -> Result<()> {
    let elements = match value {
        None | Some(Value::Null) => &[],
        Some(Value::Array(elements)) => elements.as_slice(),
        Some(one) => std::slice::from_ref(one),
    };
    for element in elements {
        pairs.push(format!("{parameter}={}", encode(&plain(argument, element)?)));
    }
    Ok(())
}

/// A part of the body; `None` for a place whose argument is missing, which is left out.
fn filled(part: &Value, arguments: &Arguments) -> Result<Option<Value>> {
    Ok(Some(match part {
        Value::String(text) => {
            let text = Text::of_value(text);
            match text.whole() {
                Some(name) => return Ok(arguments.get(name).cloned()),
                None => Value::String(in_text(&text, arguments)?),
            }
        }
        Value::Array(elements) => {
            let elements = elements.iter().filter_map(|element| filled(element, arguments).transpose());
            Value::Array(elements.collect::<Result<_>>()?)
        }
        Value::Object(members) => {
            let members = members.iter().filter_map(|(name, member)| {
                let member = filled(member, arguments).transpose()?;
                Some(member.map(|member| (name.clone(), member)))
            });
            Value::Object(members.collect::<Result<_>>()?)
        }
        other => other.clone(),
    }))
}

/// A text of the body, in which arrays and objects are written as JSON.
fn in_text(text: &Text, arguments: &Arguments) -> Result<String> {
    let mut filled = String::new();
    for piece in &text.0 {
        match piece {
            Piece::Literal(literal) => filled.push_str(literal),
            Piece::Argument(name) => match present(name, arguments)? {
                Value::String(text) => filled.push_str(text),
                other => filled.push_str(&other.to_string()),
            },
        }
    }
    Ok(filled)
}

fn names_in(part: &Value, names: &mut BTreeSet<String>) {
    match part {
        Value::String(text) => names.extend(Text::of_value(text).names().map(str::to_owned)),
        Value::Array(elements) => elements.iter().for_each(|element| names_in(element, names)),
        Value::Object(members) => members.values().for_each(|member| names_in(member, names)),
        _ => {}
    }
}
