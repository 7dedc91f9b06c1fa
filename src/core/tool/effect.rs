//! What a call would change, as rows before and after.
