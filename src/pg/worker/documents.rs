//! The worker's documents: claimed in bundles of one workspace, read, cut, embedded and stored.

use super::Worker;
use crate::core::error::{Error, Kind, Result};
use crate::core::wire::{self, Frame, Item, Reply, Tag};
use crate::pg::indexing::{self, Again, Indexing, Next, Stored, TOGETHER};
use crate::pg::jobs::{Job, Wanted, claim, end, requeue};
use crate::pg::transaction::transaction;
use crate::pg::{calling, settings, spi};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A document is given up after the gateway ended this often while it was alone with it, which takes more than a minute.
const MOST_DEATHS: u32 = 8;

/// The longest time before a gateway that cannot work is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Places for bundles.
struct Places {
    /// A workspace's part, while others wait.
    part: usize,
    /// Bundles of each workspace.
    taken: HashMap<[u8; 16], usize>,
    /// Places that are free when no workspace counts with more than its part: whoever took all of them while it was alone,
    /// and then waits for its provider, does not keep the others waiting. So there may be half as many bundles again.
    room: usize,
    /// Places that are free.
    free: usize,
}

impl Places {
    /// Workspaces that have their part.
    fn full(&self) -> Vec<pgrx::Uuid> {
        let full = self.taken.iter().filter(|(_, count)| **count >= self.part);
        full.map(|(workspace, _)| pgrx::Uuid::from_bytes(*workspace)).collect()
    }

    /// Places for a workspace, of those that are left when `behind` others have one each.
    fn of(&self, workspace: pgrx::Uuid, behind: usize) -> usize {
        let taken = self.taken.get(workspace.as_bytes()).copied().unwrap_or(0);
        self.part.saturating_sub(taken).min(self.room.saturating_sub(behind))
    }
}

impl Worker {
    fn places(&self) -> Places {
        let most = if self.careful { 1 } else { settings::INDEXING_CONCURRENCY.get() as usize };
        let part = (most / 2).max(1);
        let mut taken: HashMap<[u8; 16], usize> = HashMap::new();
        for indexing in self.tasks.values() {
            *taken.entry(*indexing.workspace.as_bytes()).or_default() += 1;
        }
        let counted: usize = taken.values().map(|count| (*count).min(part)).sum();
        Places { part, taken, room: most.saturating_sub(counted), free: most.saturating_sub(self.tasks.len()) }
    }

    pub(super) fn claim_documents(&mut self) {
        // Asked again each time: the gateway may go away meanwhile, and what is claimed without one would be its fault.
        while self.connected() {
            if self.paused_until > Instant::now() {
                self.next_look = self.next_look.min(self.paused_until);
                return;
            }
            let places = self.places();
            let full = places.full();
            let jobs = self.claim_some(places.room, &full);
            let bundles: Vec<&[Job]> = jobs.chunk_by(|a, b| a.workspace == b.workspace).collect();
            for (at, jobs) in bundles.iter().enumerate() {
                let room = self.places().of(jobs[0].workspace, bundles.len() - at - 1);
                self.load(jobs, room);
            }
            if !jobs.is_empty() {
                continue;
            }
            // Nobody else waits: what is free is theirs.
            let jobs = if full.is_empty() { Vec::new() } else { self.claim_some(places.free, &[]) };
            if jobs.is_empty() {
                return;
            }
            for jobs in jobs.chunk_by(|a, b| a.workspace == b.workspace) {
                self.load(jobs, self.places().free);
            }
            if self.places().free == 0 {
                return;
            }
        }
    }

    fn claim_some(&mut self, workspaces: usize, without: &[pgrx::Uuid]) -> Vec<Job> {
        if workspaces == 0 {
            return Vec::new();
        }
        let share = if self.careful { 1 } else { self.share };
        let wanted = Wanted { kind: "index", after: self.turn, workspaces, share, without, runner: None };
        let jobs = transaction(|| claim(&wanted));
        self.note(jobs).unwrap_or_default()
    }

    /// Begins with jobs of one workspace, as at most `room` bundles.
    fn load(&mut self, jobs: &[Job], room: usize) {
        let workspace = jobs[0].workspace;
        self.turn = workspace;
        let loaded = match transaction(|| Indexing::load(workspace, jobs.to_vec(), room)) {
            Ok(loaded) => loaded,
            Err(error) => {
                for job in jobs {
                    self.failed(job, &error, indexing::again(job, &error));
                }
                return;
            }
        };
        for job in loaded.gone {
            self.finish(&job, "cancelled", None);
        }
        if loaded.left.is_empty() {
            self.share = (self.share * 2).min(self.most_share);
            self.most_share = (self.most_share + self.most_share / 4 + 1).min(TOGETHER);
        } else {
            // Next time as many as found room, and then a few more each time.
            self.share = (jobs.len() - loaded.left.len()).max(1);
            self.most_share = self.share;
            let given = transaction(|| loaded.left.iter().try_for_each(|job| requeue(job, 0.0, false)));
            if self.note(given).is_none() {
                self.owed.extend(loaded.left);
            }
        }
        for (indexing, request) in loaded.begun {
            self.go_on(indexing, Ok(Next::Ask(request)));
        }
    }

    fn go_on(&mut self, mut indexing: Indexing, next: Result<Next>) {
        match next {
            Ok(Next::Ask(request)) => match self.send(&request) {
                Ok(Some(id)) => {
                    indexing.call.sent();
                    self.tasks.insert(id, indexing);
                }
                Ok(None) => {
                    // It never reached the gateway, which is not to be blamed on it.
                    for job in indexing.jobs() {
                        self.give(job, 0.0, false);
                    }
                    self.lost();
                }
                Err(error) => self.all_failed(&indexing, &error),
            },
            Ok(Next::Store) => self.store(&indexing),
            Ok(Next::Drop) => {}
            Err(error) => self.all_failed(&indexing, &error),
        }
    }

    pub(super) fn document_frame(&mut self, mut indexing: Indexing, frame: &Frame) {
        let others = self.tasks.len();
        let next = match frame.tag {
            Tag::Item => match wire::decode::<Item>(&frame.body) {
                Ok(Item::Embeddings { dimensions, values }) => {
                    let taken = indexing.call.take(dimensions as usize, &values);
                    if taken.is_ok() {
                        self.tasks.insert(frame.id, indexing);
                        return;
                    }
                    self.no_more_of(frame.id);
                    taken.map(|()| Next::Drop)
                }
                Ok(_) => Err(calling::another()),
                Err(error) => Err(error),
            },
            Tag::End => wire::decode::<Reply>(&frame.body).and_then(|reply| match reply {
                Reply::Prepared { documents, model } => {
                    let unread = transaction(|| indexing.prepared(documents, &model))?;
                    for (job, error) in unread {
                        let again = indexing::again(&job, &error);
                        self.failed(&job, &error, again);
                    }
                    transaction(|| indexing.next())
                }
                Reply::Done { .. } => transaction(|| indexing.next()),
                Reply::Call(end) => {
                    indexing.call.ended(&end)?;
                    transaction(|| indexing.next())
                }
                _ => Err(calling::another()),
            }),
            Tag::Error => match wire::decode::<Error>(&frame.body) {
                Ok(error) if error.kind == Kind::NotReady => return self.refused(&indexing, &error),
                Ok(error) | Err(error) => Err(error),
            },
            Tag::Hello | Tag::Request | Tag::Cancel => Err(calling::another()),
        };
        self.go_on(indexing, next);
        // A look is not for nothing: where somebody's old snapshot keeps the claimed jobs' rows, it goes through all of them.
        if self.tasks.len() <= others {
            self.next_look = Instant::now();
        }
    }

    fn store(&mut self, indexing: &Indexing) {
        let stored = transaction(|| {
            let (mut done, mut tokens) = (Vec::new(), Vec::new());
            for (job, stored) in indexing.store()? {
                match stored {
                    Stored::Done => {
                        done.push(job.id);
                        tokens.push(job.token);
                    }
                    Stored::Gone => end(job, "cancelled", None)?,
                    Stored::Locked => requeue(job, 0.5, false)?,
                }
            }
            match indexing.jobs().next() {
                Some(job) if !done.is_empty() => spi::run(
                    "select helper._finish_all($1, $2, $3, 'succeeded')",
                    &[job.workspace.into(), done.into(), tokens.into()],
                ),
                _ => Ok(()),
            }
        });
        match stored {
            Ok(()) => {
                self.careful = false;
                self.pause = Duration::ZERO;
                for job in indexing.jobs() {
                    self.deaths.remove(job.key.as_bytes());
                }
            }
            Err(error) => self.all_failed(indexing, &error),
        }
        self.next_look = Instant::now();
    }

    /// The gateway cannot work for anybody: the jobs wait with all the others, and one at a time tries again.
    fn refused(&mut self, indexing: &Indexing, error: &Error) {
        let now = Instant::now();
        if now >= self.paused_until {
            self.pause = (self.pause * 2).clamp(Duration::from_millis(500), LONGEST_PAUSE);
            self.paused_until = now + self.pause;
        }
        self.careful = true;
        self.next_look = self.next_look.min(self.paused_until);
        self.note::<()>(Err(error.clone()));
        for job in indexing.jobs() {
            let given = transaction(|| {
                indexing::fail(job, error, false)?;
                requeue(job, 0.0, false)
            });
            if self.note(given).is_none() {
                self.owed.push(job.clone());
            }
        }
    }

    fn all_failed(&mut self, indexing: &Indexing, error: &Error) {
        let together = indexing.jobs().count() > 1;
        for job in indexing.jobs() {
            // Whatever is wrong may be wrong with another one of them: it is given up when it was alone.
            let again = indexing.call.again(job, error).or(together.then_some(Again { seconds: 1.0, counts: true }));
            self.failed(job, error, again);
        }
    }

    /// Tries a document again after some seconds, or gives it up.
    fn failed(&mut self, job: &Job, error: &Error, again: Option<Again>) {
        let outcome = transaction(|| {
            indexing::fail(job, error, again.is_none())?;
            match again {
                Some(again) => requeue(job, again.seconds, again.counts),
                None => end(job, "failed", Some(error)),
            }
        });
        if self.note(outcome).is_none() {
            self.owed.push(job.clone());
        }
        self.next_look = self.next_look.min(Instant::now() + Duration::from_secs(1));
    }

    /// The gateway ended while it was alone with a document.
    pub(super) fn suspect(&mut self, job: &Job) {
        let deaths = self.deaths.entry(*job.key.as_bytes()).or_default();
        *deaths += 1;
        let deaths = *deaths;
        if deaths < MOST_DEATHS {
            return self.give(job, 0.25 * f64::from(1 << deaths), true);
        }
        self.deaths.remove(job.key.as_bytes());
        let error = Error::bad_argument("document could not be read: the gateway ended each time it was tried")
            .hint("The server log says how it ended; remove the document, or try again with helper.reindex.");
        self.failed(job, &error, None);
    }
}
