//! Diagrams of definitions and runs as Mermaid flowcharts.

use super::definition::Definition;
use super::row::Row;

/// A definition's graph; with rows, coloured by their states.
pub fn mermaid(_definition: &Definition, _rows: Option<&[Row]>) -> String {
    todo!()
}
