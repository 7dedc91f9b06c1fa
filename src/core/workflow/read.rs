//! Fields of JSON objects by name: each is read with its type or refused by its place.

use super::Span;
use super::time;
use crate::core::error::{Error, Result};
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// An object at a place of the definition.
#[derive(Clone, Copy)]
pub struct Object<'v> {
    /// As in `steps[2].retry`, empty for the whole.
    pub place: &'v str,
    /// Its members.
    pub members: &'v Map<String, Value>,
}

/// What is wrong at a place.
pub fn wrong(place: &str, what: impl std::fmt::Display) -> Error {
    match place.is_empty() {
        true => Error::bad_argument(format!("definition {what}")),
        false => Error::bad_argument(format!("{place}: {what}")),
    }
}

impl<'v> Object<'v> {
    /// A value that has to be an object.
    pub fn of(place: &'v str, value: &'v Value) -> Result<Object<'v>> {
        let members = value.as_object().ok_or_else(|| wrong(place, "is not an object"))?;
        Ok(Object { place, members })
    }

    /// The place of a field.
    pub fn at(&self, name: &str) -> String {
        if self.place.is_empty() { name.to_owned() } else { format!("{}.{name}", self.place) }
    }

    /// A field as it is.
    pub fn get(&self, name: &str) -> Option<&'v Value> {
        self.members.get(name)
    }

    /// A field that has to be there.
    pub fn need(&self, name: &str) -> Result<&'v Value> {
        self.get(name).ok_or_else(|| wrong(&self.at(name), "is missing"))
    }

    /// Refuses fields of other names.
    pub fn only(&self, known: &[&[&str]]) -> Result<()> {
        let known = || known.iter().flat_map(|names| names.iter().copied());
        match self.members.keys().find(|name| !known().any(|other| other == name.as_str())) {
            None => Ok(()),
            Some(name) => {
                let error = wrong(&self.at(name), "is not a known field");
                Err(match nearest(name, known()) {
                    Some(near) => error.hint(format!("Perhaps you meant \"{near}\".")),
                    None => error.hint(format!("Known fields are {}.", known().collect::<Vec<_>>().join(", "))),
                })
            }
        }
    }

    fn typed<T>(&self, name: &str, what: &str, read: impl FnOnce(&'v Value) -> Option<T>) -> Result<Option<T>> {
        let value = self.get(name).map(|value| read(value).ok_or_else(|| wrong(&self.at(name), what)));
        value.transpose()
    }

    /// A text that is not empty, without templates in it.
    pub fn text(&self, name: &str) -> Result<Option<&'v str>> {
        let text = self.typed(name, "is not a text", Value::as_str)?;
        match text {
            Some(text) if text.trim().is_empty() => Err(wrong(&self.at(name), "is empty")),
            Some(text) if super::value::has_template(text) => {
                Err(wrong(&self.at(name), "holds a template, and none is read there"))
            }
            _ => Ok(text),
        }
    }

    /// The same, which has to be there.
    pub fn need_text(&self, name: &str) -> Result<&'v str> {
        self.need(name)?;
        Ok(self.text(name)?.unwrap_or_default())
    }

    /// A whole number between two.
    pub fn whole(&self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>> {
        let what = format!("is not a whole number from {} to {}", range.start(), range.end());
        // As of JSON Schema, 1.0 is one too.
        let read = |value: &Value| {
            let whole = value.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < 1e15);
            value.as_i64().or(whole.map(|number| number as i64)).filter(|number| range.contains(number))
        };
        self.typed(name, &what, read)
    }

    /// A number between two.
    pub fn number(&self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let what = format!("is not a number from {} to {}", range.start(), range.end());
        self.typed(name, &what, |value| value.as_f64().filter(|number| range.contains(number)))
    }

    /// A truth value.
    pub fn truth(&self, name: &str) -> Result<Option<bool>> {
        self.typed(name, "is neither true nor false", Value::as_bool)
    }

    /// An interval.
    pub fn interval(&self, name: &str) -> Result<Option<Span>> {
        let what = "is not an interval of at most ten years";
        let interval = self.typed(name, what, |value| value.as_str().and_then(time::interval));
        interval.map_err(|error| error.hint("Write it as \"90 s\", \"10 min\", \"1 h\", \"1 day\" or \"2 weeks\"."))
    }

    /// An object as it is, empty where it is not there.
    pub fn object(&self, name: &str) -> Result<Map<String, Value>> {
        Ok(self.typed(name, "is not an object", Value::as_object)?.cloned().unwrap_or_default())
    }

    /// One of these texts.
    pub fn one_of(&self, name: &str, known: &[&str]) -> Result<Option<&'v str>> {
        let what = format!("is not one of {}", known.join(", "));
        let read = |value: &'v Value| value.as_str().filter(|text| known.contains(text));
        self.typed(name, &what, read).map_err(|error| match self.get(name).and_then(Value::as_str) {
            Some(text) => match nearest(text, known.iter().copied()) {
                Some(near) => error.hint(format!("Perhaps you meant \"{near}\".")),
                None => error,
            },
            None => error,
        })
    }
}

/// The name that is meant, most likely.
pub fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    // Beyond this it is no slip.
    let most = (name.chars().count() / 3).clamp(1, 3);
    known.map(|other| (distance(name, other), other)).filter(|(far, _)| *far <= most).min().map(|(_, other)| other)
}

/// Letters to insert, delete or replace (Levenshtein), of names and no longer texts.
fn distance(one: &str, other: &str) -> usize {
    let one: Vec<char> = one.chars().take(64).collect();
    let other: Vec<char> = other.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, letter) in one.iter().enumerate() {
        let mut corner = row[0];
        row[0] = at + 1;
        for (column, beside) in other.iter().enumerate() {
            let replaced = corner + usize::from(letter != beside);
            corner = row[column + 1];
            row[column + 1] = replaced.min(corner + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}
