//! A question whose reply nobody waits for.

use crate::pg::asking::{self, Arguments};
use crate::pg::report::Reported;
use crate::pg::{messages, owner, spi};
use pgrx::JsonB;
use pgrx::prelude::*;

/// `helper.ask_async`.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
#[allow(clippy::too_many_arguments)]
fn ask_queued(
    question: Option<&str>,
    conversation: Option<pgrx::Uuid>,
    mode: Option<&str>,
    knowledge: Option<bool>,
    model: Option<&str>,
    workspace: Option<pgrx::Uuid>,
    options: Option<JsonB>,
) -> Reported<pgrx::Uuid> {
    crate::pg::shared::check_preloaded()?;
    let asked = asking::read(Arguments { question, conversation, mode, knowledge, model, workspace, options })?;
    let stored = messages::begin(&asked, "pending")?;
    let mut payload = asked.asked.clone();
    payload["question_id"] = stored.question.to_string().into();
    payload["message_id"] = stored.reply.to_string().into();
    owner::as_owner(|| {
        spi::run(
            "select helper._enqueue($1, 'reply', $2, $3)",
            &[asked.workspace.into(), JsonB(payload).into(), stored.conversation.into()],
        )
    })?;
    Ok(stored.reply)
}
