//! Values of a run in templates and expressions: JSON with `{{ path }}` in it and a context come in, JSON goes out. What
//! a template puts in is never read as a template, a path or an expression.

use crate::core::error::Result;
use serde_json::Value;
use serde_json_path::JsonPath;

/// JSON whose texts may have templates in them, compiled.
#[derive(Debug)]
pub struct Template(Value);

/// An expression, compiled.
#[derive(Debug)]
pub struct Condition(JsonPath);

/// What templates and expressions see.
#[derive(Clone, Debug)]
pub struct Context(Value);

impl Template {
    /// Puts the values in.
    ///
    /// # Errors
    /// 22023 that names the template which selects nothing, 53400 for a value that is too large.
    pub fn render(&self, _context: &Context) -> Result<Value> {
        todo!()
    }
}
