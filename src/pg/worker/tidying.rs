//! What the worker does beside its jobs, a little at a time: packs embeddings, deletes those of old models, and calls and
//! runs that ended long ago, cleans up.
//! Each workspace's is a transaction of its own, so that trouble with one never keeps the others waiting.

use super::Worker;
use super::replies::Unended;
use crate::core::error::Result;
use crate::pg::indexing::Indexing;
use crate::pg::transaction::transaction;
use crate::pg::{packing, settings, spi};
use std::time::{Duration, Instant};

/// Calls of tools, and runs, that one transaction deletes at most.
const FORGOTTEN: i32 = 1000;

/// Embeddings that one transaction deletes at most.
const SWEPT: i32 = 5000;

/// Something to be done with a workspace's embeddings by a model.
pub(super) enum Chore {
    Pack(pgrx::Uuid, String),
    Sweep(pgrx::Uuid, String),
    /// Records of calls of tools that ended long ago, of all workspaces.
    Forget,
    /// The same of runs of workflows.
    ForgetRuns,
}

impl Chore {
    /// All there is to do.
    fn find() -> Result<Vec<Chore>> {
        let read = |row: &spi::Row| Ok((row.get::<pgrx::Uuid>(1)?, row.get::<String>(2)?));
        let old = "select m.workspace_id, m.model from helper.knowledge_models m where m.status = 'old'";
        let packable = spi::change("select p.workspace_id, p.model from helper._packable() p", &[], read)?;
        let chores = packable.into_iter().map(|(workspace, model)| Chore::Pack(workspace, model));
        let old = spi::change(old, &[], read)?.into_iter().map(|(workspace, model)| Chore::Sweep(workspace, model));
        Ok([Chore::Forget, Chore::ForgetRuns].into_iter().chain(chores).chain(old).collect())
    }

    /// Does a part of it; says whether there was any.
    fn go_on(&self) -> Result<bool> {
        let count = match self {
            Chore::Pack(workspace, model) => packing::pack(*workspace, model)?,
            Chore::Sweep(workspace, model) => spi::change(
                "select helper._sweep_vectors($1, $2, $3)",
                &[(*workspace).into(), model.as_str().into(), SWEPT.into()],
                |row| row.get::<i64>(1),
            )?
            .pop()
            .unwrap_or(0),
            Chore::Forget => spi::change(
                "select helper._clean_calls($1, $2)",
                &[settings::CALL_RETENTION.get().into(), FORGOTTEN.into()],
                |row| row.get::<i64>(1),
            )?
            .pop()
            .unwrap_or(0),
            Chore::ForgetRuns => spi::change(
                "select helper._clean_runs($1, $2)",
                &[settings::RUN_RETENTION.get().into(), FORGOTTEN.into()],
                |row| row.get::<i64>(1),
            )?
            .pop()
            .unwrap_or(0),
        };
        Ok(count > 0)
    }
}

impl Worker {
    pub(super) fn tidy(&mut self) {
        let now = Instant::now();
        if now >= self.next_chore {
            self.do_chores();
        }
        if now >= self.next_cleaning {
            self.next_cleaning = now + Duration::from_secs(60);
            let (keep, alive) = (settings::JOB_RETENTION.get(), self.alive());
            let cleaned = transaction(|| spi::run("select helper._clean($1, $2)", &[keep.into(), alive.into()]));
            self.note(cleaned);
        }
    }

    /// Does a part of each chore, with a look at the documents between two of them; at once again while there is more.
    fn do_chores(&mut self) {
        let chore = match self.chores.pop() {
            Some(chore) => chore,
            None => {
                let found = transaction(Chore::find);
                self.chores = self.note(found).unwrap_or_default();
                self.chores.reverse();
                match self.chores.pop() {
                    Some(chore) => chore,
                    None => return self.chores_after(Duration::from_secs(10)),
                }
            }
        };
        let done = transaction(|| chore.go_on());
        self.more_chores |= self.note(done).unwrap_or(false);
        let again = !self.chores.is_empty() || std::mem::take(&mut self.more_chores);
        self.chores_after(if again { Duration::ZERO } else { Duration::from_secs(10) });
    }

    fn chores_after(&mut self, pause: Duration) {
        self.next_chore = Instant::now() + pause;
        self.next_look = self.next_look.min(self.next_chore);
    }

    /// Tokens of the leases that the worker holds.
    pub(super) fn alive(&self) -> Vec<pgrx::Uuid> {
        let documents = self.tasks.values().flat_map(Indexing::jobs);
        let reembeds = self.reembeds.values().map(|reembed| &reembed.job);
        let replies = self.replies.values().map(|reply| &reply.job);
        let unstored = self.unstored.iter().map(|unstored| &unstored.reply.job);
        let unended = self.unended.iter().map(Unended::job);
        let fetching = self.fetching.values().map(|fetching| &fetching.reply.job);
        let calls = self.calls.values().chain(self.unstored_calls.iter().map(|(sent, _)| sent)).map(|sent| &sent.job);
        let replies = replies.chain(unstored).chain(unended).chain(fetching);
        let jobs = documents.chain(reembeds).chain(replies).chain(calls).chain(&self.owed);
        jobs.map(|job| job.token).collect()
    }
}
