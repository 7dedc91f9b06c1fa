//! The worker's workspaces that are embedded by another model.

use super::Worker;
use crate::core::error::{Error, Result};
use crate::core::wire::{self, Frame, Item, Reply, Tag};
use crate::pg::calling;
use crate::pg::indexing::{self, Again};
use crate::pg::jobs::{Job, Wanted, claim, end, requeue};
use crate::pg::reembedding::{self, Next, Reembedding};
use crate::pg::transaction::transaction;
use std::time::Instant;

/// Workspaces that are embedded anew at once, in turn where there are more; documents that are added or changed go beside
/// them.
const AT_ONCE: usize = 2;

impl Worker {
    pub(super) fn claim_reembeds(&mut self) {
        let room = AT_ONCE.saturating_sub(self.reembeds.len());
        if room == 0 || !self.connected() {
            return;
        }
        let wanted = Wanted {
            kind: "reembed",
            after: self.reembed_turn,
            workspaces: room,
            share: 1,
            without: &[],
            runner: None,
        };
        let jobs = transaction(|| claim(&wanted));
        for job in self.note(jobs).unwrap_or_default() {
            self.reembed_turn = job.workspace;
            match transaction(|| Reembedding::load(job.clone())) {
                Ok(Some(mut reembed)) => {
                    let next = transaction(|| reembed.next());
                    self.reembed_on(Box::new(reembed), next);
                }
                Ok(None) => self.finish(&job, "cancelled", None),
                Err(error) => self.reembed_failed(&job, &error, indexing::again(&job, &error)),
            }
        }
    }

    fn reembed_on(&mut self, mut reembed: Box<Reembedding>, next: Result<Next>) {
        match next {
            Ok(Next::Ask(request)) => match self.send(&request) {
                Ok(Some(id)) => {
                    reembed.call.sent();
                    self.reembeds.insert(id, reembed);
                }
                Ok(None) => {
                    self.give(&reembed.job, 0.0, false);
                    self.lost();
                }
                Err(error) => self.reembed_failed(&reembed.job, &error, reembed.call.again(&reembed.job, &error)),
            },
            Ok(Next::Wait) => self.give(&reembed.job, 0.0, false),
            Ok(Next::Done) => {
                self.finish(&reembed.job, "succeeded", None);
                self.next_chore = Instant::now();
            }
            Err(error) => self.reembed_failed(&reembed.job, &error, reembed.call.again(&reembed.job, &error)),
        }
    }

    pub(super) fn reembed_frame(&mut self, mut reembed: Box<Reembedding>, frame: &Frame) {
        let next = match frame.tag {
            Tag::Item => match wire::decode::<Item>(&frame.body) {
                Ok(Item::Embeddings { dimensions, values }) => {
                    let taken = reembed.call.take(dimensions as usize, &values);
                    if taken.is_ok() {
                        self.reembeds.insert(frame.id, reembed);
                        return;
                    }
                    self.no_more_of(frame.id);
                    taken.map(|()| Next::Done)
                }
                Ok(_) => Err(calling::another()),
                Err(error) => Err(error),
            },
            Tag::End => wire::decode::<Reply>(&frame.body).and_then(|reply| {
                match reply {
                    Reply::Done { .. } => {}
                    Reply::Call(end) => reembed.call.ended(&end)?,
                    _ => return Err(calling::another()),
                }
                transaction(|| reembed.store())?;
                if transaction(|| reembed.keeps_others_waiting())? {
                    return Ok(Next::Wait);
                }
                transaction(|| reembed.next())
            }),
            Tag::Error => Err(wire::decode::<Error>(&frame.body).unwrap_or_else(|error| error)),
            Tag::Hello | Tag::Request | Tag::Cancel => Err(calling::another()),
        };
        self.reembed_on(reembed, next);
        // There is room for another one.
        self.next_look = Instant::now();
    }

    /// Tries again after some seconds, or gives the model up.
    fn reembed_failed(&mut self, job: &Job, error: &Error, again: Option<Again>) {
        let outcome = transaction(|| {
            reembedding::failed(job, error, again)?;
            match again {
                Some(again) => requeue(job, again.seconds, again.counts),
                None => end(job, "failed", Some(error)),
            }
        });
        if self.note(outcome).is_none() {
            self.owed.push(job.clone());
        }
    }
}
