//! Tests of workflows as a whole.

mod definitions;
mod formats;
mod properties;
mod runs;
mod values;
