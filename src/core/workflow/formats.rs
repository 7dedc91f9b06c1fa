//! The two formats that the application has for workflows, translated into ours.

use crate::core::error::Result;
use serde_json::Value;

/// A definition in one of the application's two formats, and what it says of its trigger.
#[derive(Clone, Debug, PartialEq)]
pub struct Translated {
    /// In our format.
    pub definition: Value,
    /// `{"type": "schedule" | "webhook" | "event" | "manual", "config": {...}}`, for whoever makes triggers of it.
    pub trigger: Option<Value>,
}

/// A definition in one of the application's formats in ours; `None` where it is ours already.
///
/// # Errors
/// 22023 that names what has no counterpart.
pub fn translate(_definition: &Value) -> Result<Option<Translated>> {
    todo!()
}
