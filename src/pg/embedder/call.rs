//! Texts on their way to an embedder and back: what was set aside for them, and the embeddings that have come.

use super::{Asking, Embedder};
use crate::core::error::{Error, Kind, Result};
use crate::core::wire::{CallEnd, Request};
use crate::pg::budget::Reservation;
use crate::pg::indexing::{self, Again};
use crate::pg::jobs::Job;
use std::slice::ChunksExact;

/// One call after the other for the same work, each with its slice of the texts.
pub struct Call {
    pub embedder: Embedder,
    reservation: Option<Reservation>,
    /// Numbers in each embedding; 0 before the first.
    dimensions: usize,
    values: Vec<f32>,
    trouble: Option<Trouble>,
}

/// What an error's kind does not tell: the same kind has other causes.
enum Trouble {
    /// A budget has no room for it.
    Budget,
    /// The index has no room for what came.
    Misfit,
}

impl Call {
    /// A call that is still to be made.
    pub fn new(embedder: Embedder) -> Call {
        Call { embedder, reservation: None, dimensions: 0, values: Vec::new(), trouble: None }
    }

    /// The question that has texts embedded; what it may take is set aside until it ends.
    pub fn ask(&mut self, asking: &Asking, inputs: Vec<String>) -> Result<Request> {
        let asked = self.embedder.ask(asking, inputs);
        if asked.as_ref().is_err_and(|error| error.kind == Kind::OverLimit) {
            self.trouble = Some(Trouble::Budget);
        }
        let (request, reservation) = asked?;
        self.reservation = reservation;
        Ok(request)
    }

    /// The question is on its way.
    pub fn sent(&mut self) {
        if let Some(reservation) = &mut self.reservation {
            reservation.set_sent(true);
        }
    }

    /// Takes embeddings in the order of the texts, where they fit those that were there before.
    pub fn take(&mut self, dimensions: usize, values: &[f32]) -> Result<()> {
        let before = Some(self.dimensions).filter(|before| *before != 0);
        let taken = self.embedder.check(dimensions, before);
        if taken.is_err() {
            self.trouble = Some(Trouble::Misfit);
        }
        taken?;
        self.dimensions = dimensions;
        self.values.extend_from_slice(values);
        Ok(())
    }

    /// Takes the end of a provider's call.
    pub fn ended(&mut self, end: &CallEnd) -> Result<()> {
        if let Some(reservation) = self.reservation.take() {
            reservation.settle(end);
        }
        end.error.clone().map_or(Ok(()), Err)
    }

    /// Numbers in each embedding; `None` before the first.
    pub fn dimensions(&self) -> Option<i32> {
        i32::try_from(self.dimensions).ok().filter(|dimensions| *dimensions > 0)
    }

    /// The embeddings that have come.
    pub fn embeddings(&self) -> ChunksExact<'_, f32> {
        self.values.chunks_exact(self.dimensions.max(1))
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.values.clear();
    }

    /// When to try its job again after an error, where that can help.
    pub fn again(&self, job: &Job, error: &Error) -> Option<Again> {
        match self.trouble {
            // It is renewed, or raised.
            Some(Trouble::Budget) => Some(Again { seconds: 60.0, counts: false }),
            // The model makes the same again, and is paid for it.
            Some(Trouble::Misfit) => None,
            None => indexing::again(job, error),
        }
    }
}
