//! Conditions of what starts workflows by what happens.

use crate::core::error;
use crate::core::workflow::value::{Condition, Context};
use crate::pg::report::Reported;
use pgrx::JsonB;
use pgrx::prelude::*;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// What a condition may speak of, beside which an event has nothing.
const MEMBERS: [&str; 5] = ["event", "payload", "operation", "new", "old"];
/// Conditions that a session keeps; one that needs more begins anew.
const MOST: usize = 256;

thread_local! {
    static CONDITIONS: RefCell<HashMap<String, Rc<Condition>>> = RefCell::default();
}

fn compiled(text: &str) -> error::Result<Rc<Condition>> {
    if let Some(condition) = CONDITIONS.with_borrow(|conditions| conditions.get(text).cloned()) {
        return Ok(condition);
    }
    let condition = Rc::new(Condition::read(text, "condition")?);
    CONDITIONS.with_borrow_mut(|conditions| {
        if conditions.len() >= MOST {
            conditions.clear();
        }
        conditions.insert(text.to_owned(), Rc::clone(&condition));
    });
    Ok(condition)
}

/// `helper._condition_holds`.
#[pg_extern(sql = false, immutable, parallel_safe)]
fn condition_holds(condition: Option<&str>, happened: Option<JsonB>) -> Reported<Option<bool>> {
    let Some(text) = condition else { return Ok(None) };
    let condition = compiled(text)?;
    let Some(JsonB(mut happened)) = happened else { return Ok(None) };
    let roots = MEMBERS.into_iter().filter_map(|name| Some((name, happened.get_mut(name)?.take())));
    Ok(Some(condition.holds(&Context::new(roots))))
}
