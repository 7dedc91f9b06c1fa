//! Whose turn it is: due rows of the queue, locked for one transaction.

use super::Wanted;
use crate::core::error::Result;
use crate::pg::spi;
use pgrx::Uuid;
use pgrx::datum::TimestampWithTimeZone;
use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;
use std::time::{Duration, Instant};

/// Most rows that are claimed for one transaction.
const MOST: usize = 512;
/// And fewest.
const LEAST: usize = 32;

/// A row of the queue that is due, whose run is locked.
#[derive(Clone, Copy)]
pub struct Due {
    pub workspace: Uuid,
    pub id: Uuid,
    pub run: Uuid,
    priority: i32,
    run_at: TimestampWithTimeZone,
}

fn due(row: &spi::Row) -> Result<Due> {
    Ok(Due { workspace: row.get(1)?, id: row.get(2)?, run: row.get(3)?, priority: row.get(4)?, run_at: row.get(5)? })
}

const DUE: &str = "c.workspace_id, c.id, c.run_id, c.priority, c.run_at";

/// Due rows of the next workspace that has some, but for some, and whether others have all that there are.
fn claim(after: Uuid, most: usize, without: &[Uuid]) -> Result<(Vec<Due>, bool)> {
    let sql = format!("select {DUE} from helper._claim_runs($1, $2, $3) c");
    let rows = spi::change(&sql, &[after.into(), (most as i32).into(), without.to_vec().into()], |row| {
        match row.opt::<Uuid>(1)? {
            Some(_) => due(row).map(Some),
            None => Ok(None),
        }
    })?;
    let are_with_others = rows.iter().any(Option::is_none);
    Ok((rows.into_iter().flatten().collect(), are_with_others))
}

/// Due rows of a workspace that come after another in its order, and those of the last moment, which may have been committed
/// after it.
fn claim_after(last: &Due, most: usize) -> Result<Vec<Due>> {
    let sql = format!(
        "select {DUE} from helper._claim_runs_of($1, $2, least($3, clock_timestamp() - pg_catalog.make_interval(secs => $4)), $5) c"
    );
    spi::change(
        &sql,
        &[last.workspace.into(), last.priority.into(), last.run_at.into(), LATE.into(), (most as i32).into()],
        due,
    )
}

/// One row of the queue, unless another runner has its run.
fn claim_one(workspace: Uuid, row: Uuid) -> Result<Vec<Due>> {
    let sql = format!(
        "select {DUE} from helper.workflow_queue c \
         join helper.workflow_runs r on r.workspace_id = c.workspace_id and r.id = c.run_id \
         where c.workspace_id = $1 and c.id = $2 for no key update of r skip locked"
    );
    spi::change(&sql, &[workspace.into(), row.into()], due)
}

/// Where a runner has got to in the queue. While somebody's old snapshot keeps vacuum from removing the rows that were
/// done, a look from the queue's beginning walks over all of them. So the runner goes on after the last row that it took
/// of each workspace, and looks from the beginning only so often that this takes a tenth of its time, and at least every
/// second: for other workspaces, for what is more urgent and for what was committed late.
pub struct Turn {
    /// Workspace whose runs were gone on with last.
    after: Uuid,
    /// The last row of each workspace that had some.
    last: BTreeMap<[u8; 16], Due>,
    /// When it looks from the beginning.
    full_at: Instant,
    /// The last look did not.
    is_partial: bool,
    /// It found what is due with others.
    are_with_others: bool,
    /// How many rows are claimed: what is locked and not come to was locked for nothing.
    most: usize,
    /// Workspaces whose runs are not taken.
    without: Vec<Uuid>,
}

/// When it looks again for what others had.
const AGAIN: Duration = Duration::from_millis(20);
/// Longest time between two looks from the queue's beginning.
const FULL: Duration = Duration::from_secs(1);
/// Seconds that a transaction which enqueues may take for its rows to be found without such a look, by a runner that is busy.
const LATE: f64 = 0.25;
/// Workspaces whose last rows a runner knows, at most.
const PLACES: usize = 64;
/// So many times what such a look took passes before the next one.
const SHARE: u32 = 10;

impl Turn {
    pub fn new(first: Uuid) -> Self {
        Turn {
            after: first,
            last: BTreeMap::new(),
            full_at: Instant::now(),
            is_partial: false,
            are_with_others: false,
            most: LEAST,
            without: Vec::new(),
        }
    }

    pub fn after(&self) -> Uuid {
        self.after
    }

    /// Takes no runs of these workspaces from now on.
    pub fn avoid(&mut self, workspaces: Vec<Uuid>) {
        self.without = workspaces;
    }

    /// When there may be something due that was not looked for, or that others had; `None` where there is nothing due.
    pub fn look_again_at(&self) -> Option<Instant> {
        if self.is_partial {
            return Some(self.full_at);
        }
        self.are_with_others.then(|| self.full_at.max(Instant::now() + AGAIN))
    }

    /// Whether the next look is from the queue's beginning.
    pub fn is_full_due(&self) -> bool {
        Instant::now() >= self.full_at
    }

    /// Rows of the next workspace that has some.
    pub fn claim(&mut self) -> Result<Vec<Due>> {
        let mut rows = Vec::new();
        self.is_partial = !self.is_full_due();
        if self.is_partial {
            let turn = *self.after.as_bytes();
            let later = self.last.range((Bound::Excluded(turn), Bound::Unbounded));
            let all = later.chain(self.last.range(..=turn));
            for (_, last) in all.filter(|(_, last)| !self.without.contains(&last.workspace)) {
                rows = claim_after(last, self.most)?;
                if !rows.is_empty() {
                    break;
                }
            }
        } else {
            rows = self.look(self.most)?;
        }
        Ok(rows)
    }

    /// Rows of the next workspace that has some, from the queue's beginning.
    pub fn look(&mut self, most: usize) -> Result<Vec<Due>> {
        let began = Instant::now();
        let rows;
        (rows, self.are_with_others) = claim(self.after, most, &self.without)?;
        self.is_partial = false;
        self.full_at = Instant::now() + (began.elapsed() * SHARE).min(FULL);
        Ok(rows)
    }

    /// What was gone on with last. The rest that was claimed with it is claimed again.
    pub fn came_to(&mut self, last: Option<&Due>) {
        if let Some(last) = last {
            self.after = last.workspace;
            if self.last.len() >= PLACES {
                self.last.clear();
            }
            self.last.insert(*last.workspace.as_bytes(), *last);
        }
    }

    /// Whether so many rows are all that it claims, so that more of them may be due.
    pub fn takes_at_most(&self, claimed: usize) -> bool {
        claimed >= self.most
    }

    /// How many runs are looked at together: more than `least` where a transaction has the time for many, so that what is
    /// read and written of them is so by few statements.
    pub fn together(&self, least: usize) -> usize {
        least.max(self.most / 2)
    }

    /// How many of the rows that were claimed a transaction had the time for.
    pub fn did(&mut self, claimed: usize, done: usize) {
        if done < claimed {
            self.most = done.max(LEAST);
        } else if self.takes_at_most(claimed) {
            self.most = (self.most * 2).min(MOST);
        }
    }
}

/// Rows of the queue to go on with, of one workspace and each of another run.
pub fn wanted(wanted: &mut Wanted) -> Result<Option<(Uuid, Vec<Due>)>> {
    let mut rows = match wanted {
        Wanted::Next(turn) => turn.claim()?,
        Wanted::One { workspace, row } => claim_one(*workspace, *row)?,
    };
    let Some(workspace) = rows.first().map(|row| row.workspace) else { return Ok(None) };
    let mut known = HashSet::new();
    rows.retain(|row| known.insert(*row.run.as_bytes()));
    Ok(Some((workspace, rows)))
}
