//! The worker's workspaces that are embedded by another model.

use super::transaction::transaction;
use super::{Worker, claim, end, requeue};
use crate::core::error::{Error, Result};
use crate::core::wire::{self, Frame, Item, Reply, Tag};
use crate::pg::calling;
use crate::pg::reembedding::{self, Next, Reembedding};
use std::time::Instant;

/// Workspaces that are embedded anew at once; documents that are added or changed go beside them.
const AT_ONCE: usize = 2;

impl Worker {
    pub(super) fn claim_reembeds(&mut self) {
        let room = AT_ONCE.saturating_sub(self.reembeds.len());
        if room == 0 || !self.connected() {
            return;
        }
        let turn = self.turn;
        let jobs = transaction(|| claim("reembed", turn, room, 1));
        for job in self.note(jobs).unwrap_or_default() {
            match transaction(|| Reembedding::load(job.clone())) {
                Ok(Some(mut reembed)) => {
                    let next = transaction(|| reembed.next());
                    self.reembed_on(Box::new(reembed), next);
                }
                Ok(None) => self.finish(&job, "cancelled", None),
                Err(error) => self.reembed_failed(&job, &error),
            }
        }
    }

    fn reembed_on(&mut self, mut reembed: Box<Reembedding>, next: Result<Next>) {
        match next {
            Ok(Next::Ask(request)) => match self.send(&request) {
                Ok(Some(id)) => {
                    reembed.sent();
                    self.reembeds.insert(id, reembed);
                }
                Ok(None) => {
                    self.give(&reembed.job, 0.0, false);
                    self.lost();
                }
                Err(error) => self.reembed_failed(&reembed.job, &error),
            },
            Ok(Next::Done) => {
                self.finish(&reembed.job, "succeeded", None);
                self.next_packing = Instant::now();
            }
            Err(error) => self.reembed_failed(&reembed.job, &error),
        }
    }

    pub(super) fn reembed_frame(&mut self, mut reembed: Box<Reembedding>, frame: &Frame) {
        let next = match frame.tag {
            Tag::Item => match wire::decode::<Item>(&frame.body) {
                Ok(Item::Embeddings { dimensions, values }) => {
                    let taken = reembed.embeddings(dimensions as usize, &values);
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
                    Reply::Call(end) => reembed.called(&end)?,
                    _ => return Err(calling::another()),
                }
                transaction(|| reembed.store())?;
                transaction(|| reembed.next())
            }),
            Tag::Error => Err(wire::decode::<Error>(&frame.body).unwrap_or_else(|error| error)),
            Tag::Hello | Tag::Request | Tag::Cancel => Err(calling::another()),
        };
        self.reembed_on(reembed, next);
    }

    fn reembed_failed(&mut self, job: &super::Job, error: &Error) {
        let outcome = transaction(|| match reembedding::failed(job, error)? {
            Some(again) => requeue(job, again.seconds, again.counts),
            None => end(job, "failed", Some(error)),
        });
        if self.note(outcome).is_none() {
            self.owed.push(job.clone());
        }
    }
}
