//! The end of a turn: what the model said is stored, or calls tools, or is tried again.

use super::{Next, Replying};
use crate::core::chat::Said;
use crate::core::error::{Error, Kind, Result};
use crate::core::wire::{CallEnd, Outcome, Problem, Request};
use crate::core::workflow::row::Reason;
use crate::pg::acting::Turns;
use crate::pg::budget::Reservation;
use crate::pg::{answering, calling, completing, messages};

/// A reply that was heard whole and cannot be stored is tried again so often, a second apart.
const MOST_STORES: u32 = 300;

/// What came of the end of a turn. The reply takes it once the transaction is committed: one that fails is tried again with
/// the reply as it was.
pub enum Ended {
    /// Whether its value fits has to be asked first.
    Check(Box<Request>),
    Heard {
        turns: Box<Turns>,
        reservation: Option<Reservation>,
        next: Next,
    },
}

impl Replying {
    /// What the end of a turn comes to, which is settled, inside a transaction: calls the tools that the model called, or stores the whole
    /// reply. An error is the job's. [`Replying::take`] has it once that is committed.
    pub fn ended(&mut self, end: &CallEnd) -> Result<Ended> {
        if let Some(error) = &end.error {
            return Err(error.clone());
        }
        if end.outcome == Outcome::Cancelled {
            return Err(Error::new(Kind::Cancelled, "the reply was cancelled"));
        }
        if let Some(error) = calling::refused(&self.said, end) {
            return Err(error);
        }
        let (Some(question), Some(before)) = (&self.question, &self.turns) else {
            return Err(Error::bug("a reply has no question"));
        };
        // A transaction that fails is tried again with the turn as it was.
        let mut turns = before.clone();
        let stored = self.stored;
        let mut check = None;
        let errands = self.asker.does(|| {
            if turns.heard(self.said.clone(), end.clone()) {
                let errands = turns.act(question, &stored, true)?;
                turns.keep(question, &stored)?;
                return Ok(Some(errands));
            }
            match (turns.check(question)?, &self.problems) {
                (Some(request), None) => {
                    check = Some(request);
                    return Ok(None);
                }
                (Some(_), Some(problems)) => completing::unfit(problems).map_or(Ok(()), Err)?,
                (None, _) => {}
            }
            let reply = turns.reply(question)?;
            answering::finish(question, &stored, &turns, &reply)?;
            Ok(None)
        })?;
        if let Some(request) = check {
            return Ok(Ended::Check(Box::new(request)));
        }
        let (next, reservation) = match errands {
            Some(errands) => self.acted(&turns, errands)?,
            None => (Next::Done, None),
        };
        if self.is_asked() {
            self.note_asked(false)?;
        }
        Ok(Ended::Heard { turns: Box::new(turns), reservation, next })
    }

    /// Takes what the end of a turn came to, which is committed.
    pub fn take(&mut self, ended: Ended, end: CallEnd) -> Next {
        match ended {
            // The same turn is taken again with what comes of it.
            Ended::Check(request) => {
                self.to_check = Some(end);
                Next::Ask(request)
            }
            Ended::Heard { turns, reservation, next } => {
                self.asked = 0;
                self.stores = 0;
                self.turns = Some(*turns);
                self.reservation = reservation;
                if !self.said.text().trim().is_empty() {
                    self.shown.push_str("\n\n");
                }
                self.said = Said::default();
                next
            }
        }
    }

    /// The end of a turn that was heard whole and is not stored, where the gateway that was asked whether its value fits is
    /// gone.
    pub fn unchecked(&mut self) -> Option<CallEnd> {
        self.to_check.take()
    }

    /// Whether it is tried once more to store what was heard.
    pub fn stores_again(&mut self) -> bool {
        self.stores += 1;
        self.stores <= MOST_STORES
    }

    /// Takes what is wrong with the value that it came to; the end of its turn is to be taken again.
    pub fn checked(&mut self, problems: Vec<Problem>) -> Option<CallEnd> {
        self.problems = Some(problems);
        self.to_check.take()
    }

    /// Stores why there is no reply, or no whole one, inside a transaction. Errors: 55000 where somebody holds its row.
    pub fn fail(&self, status: &str, error: Option<&Error>) -> Result<()> {
        self.check_free()?;
        let calls = self.turns.as_ref().map(Turns::tool_calls);
        let facts = error.map(messages::facts);
        messages::fail(self.job.workspace, self.stored.reply, &self.shown, status, facts, calls)
    }

    /// Stores that nobody heard what the model said, which may have been asked, inside a transaction. Errors: as [`Replying::fail`].
    pub fn lose(&self, error: &Error) -> Result<()> {
        self.check_free()?;
        let calls = self.turns.as_ref().map(Turns::tool_calls);
        let mut facts = messages::facts(error);
        facts["reason"] = Reason::Unanswered.name().into();
        messages::fail(self.job.workspace, self.stored.reply, &self.shown, "error", Some(facts), calls)
    }
}

/// Stores that there is no whole reply, and nothing of what it has, inside a transaction: what was stored of it stays.
/// Errors: 55000 where somebody holds its row.
pub fn give_up(workspace: pgrx::Uuid, reply: pgrx::Uuid) -> Result<()> {
    super::check_free(workspace, reply)?;
    let facts = messages::facts(&Error::bug("the reply could not be stored").hint("The server log says why."));
    messages::fail(workspace, reply, "", "error", Some(facts), None)
}
