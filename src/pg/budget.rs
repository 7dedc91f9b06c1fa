//! Budgets: what a call may need is set aside before it is sent, and put right when it ended.
//!
//! What is recorded is in `usage_records`; what is under way is known to shared memory alone, where one short lock decides
//! for all sessions. A counter begins with what is recorded and then counts every call itself until its period is over,
//! or until others need its place and no call needs it.

use crate::core::chat::Event;
use crate::core::counters::{self, Counters, Held, Made, Need, Outcome, Owner};
use crate::core::error::{Error, Kind, Result};
use crate::core::prices;
use crate::core::prompt::window::estimate;
use crate::core::wire::{CallEnd, Prices, Route};
use crate::pg::kept::Kept;
use crate::pg::{owner, spi};
use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgLwLock, pg_shmem_init};
use sha2::{Digest, Sha256};
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

static TABLE: PgLwLock<Counters> = unsafe { PgLwLock::new(c"helper_ai_budgets") };

// SAFETY: plain numbers, no pointers.
unsafe impl PGRXSharedMemory for Counters {}

/// Asks for the shared memory; only while the server preloads libraries.
pub fn request() {
    pg_shmem_init!(TABLE);
}

#[derive(Clone, Copy, PartialEq)]
enum Unit {
    Tokens,
    /// Thousand-millionths of a currency unit.
    Money,
    Requests,
}

impl Unit {
    fn of(self, tokens: u64, cost_nanos: u64, requests: u64) -> i64 {
        let amount = match self {
            Unit::Tokens => tokens,
            Unit::Money => cost_nanos,
            Unit::Requests => requests,
        };
        i64::try_from(amount).unwrap_or(i64::MAX / 4)
    }

    fn show(self, amount: i64) -> String {
        match self {
            Unit::Tokens => format!("{} tokens", amount.max(0)),
            Unit::Money => format!("{:.6}", amount.max(0) as f64 / 1e9),
            Unit::Requests => format!("{} requests", amount.max(0)),
        }
    }
}

/// A budget that binds a call.
struct Budget {
    id: pgrx::Uuid,
    key: [u8; 16],
    owner: Owner,
    /// It counts what strangers use, of whom the caller is told nothing.
    of_all: bool,
    unit: Unit,
    limit: i64,
    period: String,
    began: TimestampWithTimeZone,
    until: i64,
    renews: String,
}

impl Budget {
    /// Whether it is for all workspaces.
    fn is_for_all(&self) -> bool {
        self.owner.workspace.is_none()
    }
}

/// What was set aside for a call. Dropped before it is settled, it gives back what was not sent, and of what was sent as
/// much as the call cannot have taken; so it does where the session is ended from outside.
pub struct Reservation(Rc<RefCell<Pending>>);

struct Part {
    held: Held,
    unit: Unit,
    /// Of a budget for all workspaces, which is not about a workspace's own provider.
    for_all: bool,
}

#[derive(Default)]
struct Pending {
    parts: Vec<Part>,
    /// Tokens of the prompt.
    input: u64,
    /// Tokens of the reply that nobody has heard, and that were made all the same where it does not stream.
    unheard: u64,
    heard: u64,
    prices: Prices,
    /// The prices of the first provider that is for all.
    shared_prices: Prices,
    sent: bool,
}

thread_local! {
    /// What this process has set aside. Nothing is dropped where it ends with an error.
    static PENDING: RefCell<Vec<Weak<RefCell<Pending>>>> = const { RefCell::new(Vec::new()) };
    static IS_LISTENING: Cell<bool> = const { Cell::new(false) };
}

impl Reservation {
    fn none() -> Reservation {
        Reservation(Rc::default())
    }

    fn of(parts: Vec<Part>) -> Reservation {
        let reservation = Reservation(Rc::new(RefCell::new(Pending { parts, ..Pending::default() })));
        if !IS_LISTENING.replace(true) {
            // SAFETY: the callback is a static function. It runs while the process still has its place among the others.
            unsafe { pg_sys::before_shmem_exit(Some(at_exit), pg_sys::Datum::from(0)) };
        }
        PENDING.with_borrow_mut(|pending| {
            pending.retain(|one| one.strong_count() > 0);
            pending.push(Rc::downgrade(&reservation.0));
        });
        reservation
    }

    /// Whether any budget binds the call.
    pub fn is_bound(&self) -> bool {
        !self.0.borrow().parts.is_empty()
    }

    /// What the call has taken as soon as it is sent: its prompt, and a reply that comes in one piece.
    pub fn takes(&mut self, input: u64, whole_reply: u64, routes: &[Route]) {
        let mut pending = self.0.borrow_mut();
        (pending.input, pending.unheard) = (input, whole_reply);
        pending.prices = routes.first().map(|route| route.prices).unwrap_or_default();
        let shared = routes.iter().find(|route| !route.provider.own);
        pending.shared_prices = shared.map(|route| route.prices).unwrap_or_default();
    }

    /// Whether the call was sent: from here on the provider may be at work.
    pub fn set_sent(&mut self, sent: bool) {
        self.0.borrow_mut().sent = sent;
    }

    /// More of the reply came. Whoever stops listening before the end has used what they heard.
    pub fn heard(&mut self, event: &Event) {
        if let Event::Text(text) | Event::Thinking(text) | Event::Arguments { fragment: text, .. } = event {
            self.0.borrow_mut().heard += u64::from(estimate(text));
        }
    }

    /// The call ended.
    pub fn settle(self, end: &CallEnd) {
        self.0.borrow_mut().put_right(|part| match part.for_all && end.own {
            true => 0,
            false => part.unit.of(end.tokens(), end.cost_nanos, 1),
        });
    }
}

impl Pending {
    fn put_right(&mut self, took: impl Fn(&Part) -> i64) {
        let parts = std::mem::take(&mut self.parts);
        if parts.is_empty() {
            return;
        }
        let now = now();
        let mut table = TABLE.exclusive();
        for part in &parts {
            table.settle(&part.held, took(part), now);
        }
    }

    fn give_back(&mut self) {
        if !self.sent {
            return self.put_right(|_| 0);
        }
        let (input, output) = (self.input, self.heard.max(self.unheard));
        let (own, shared) = (self.prices, self.shared_prices);
        self.put_right(|part| {
            let prices = if part.for_all { &shared } else { &own };
            part.unit.of(input + output, most_cost(prices, input, output), 1)
        });
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.0.borrow_mut().give_back();
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_exit(_code: i32, _arg: pg_sys::Datum) {
    let pending = PENDING.take();
    for pending in pending.iter().filter_map(Weak::upgrade) {
        if let Ok(mut pending) = pending.try_borrow_mut() {
            pending.give_back();
        }
    }
}

/// Cost of tokens in thousand-millionths, as if nothing came from a cache and all went into it.
pub fn most_cost(prices: &Prices, input: u64, output: u64) -> u64 {
    let written = if prices.cache_written > prices.input { input } else { 0 };
    prices::cost_nanos(
        &crate::core::chat::Usage { input, cache_written: written, output, ..Default::default() },
        prices,
    )
}

/// Seconds since 1970.
fn now() -> i64 {
    // SAFETY: a plain getter.
    let micros = unsafe { pg_sys::GetCurrentTimestamp() };
    micros / 1_000_000 + 946_684_800
}

thread_local! {
    static BOUND: Kept<[u8; 16], bool> = Kept::new();
}

/// Whether there are budgets that may bind calls in a workspace.
fn is_bound(workspace: pgrx::Uuid) -> Result<bool> {
    let any = owner::as_owner(|| {
        spi::first(
            "select true from helper.budgets b where b.workspace_id = $1 or b.workspace_id is null limit 1",
            &[workspace.into()],
            |row| row.get::<bool>(1),
        )
    })?;
    Ok(any.is_some())
}

/// Sets aside what a call may take. `need` tells how many tokens that are and what they cost, of all providers that may
/// answer or of those alone that are for all workspaces; `None` where there are none of these.
pub fn reserve(
    workspace: pgrx::Uuid,
    user: Option<pgrx::Uuid>,
    need: impl Fn(bool) -> Option<(u64, u64)>,
) -> Result<Reservation> {
    if !BOUND.with(|bound| bound.get(*workspace.as_bytes(), || is_bound(workspace)))? {
        return Ok(Reservation::none());
    }
    let mut budgets = owner::as_owner(|| binding(workspace, user))?;
    if budgets.is_empty() {
        return Ok(Reservation::none());
    }
    let (of_all, of_shared) = (need(false), need(true));
    let amount = |budget: &Budget| {
        let (tokens, cost) = if budget.is_for_all() { of_shared } else { of_all }?;
        Some(budget.unit.of(tokens, cost, 1))
    };
    budgets.retain(|budget| amount(budget).is_some());
    let needs: Vec<Need> = budgets
        .iter()
        .map(|budget| Need {
            key: budget.key,
            until: budget.until,
            limit: budget.limit,
            amount: amount(budget).unwrap_or_default(),
        })
        .collect();
    if needs.is_empty() {
        return Ok(Reservation::none());
    }
    loop {
        let outcome = TABLE.exclusive().reserve(&needs, now());
        match outcome {
            Outcome::Held(held) => {
                let part =
                    |(held, budget): (Held, &Budget)| Part { held, unit: budget.unit, for_all: budget.is_for_all() };
                return Ok(Reservation::of(held.into_iter().zip(&budgets).map(part).collect()));
            }
            Outcome::Over { which, left } => return Err(over(&budgets[which], left, needs[which].amount)),
            Outcome::Missing => count(&budgets, user)?,
        }
    }
}

/// Makes the counters that are not there.
fn count(budgets: &[Budget], user: Option<pgrx::Uuid>) -> Result<()> {
    for budget in budgets {
        let (known, evicted) = {
            let table = TABLE.share();
            (table.knows(&budget.key, budget.until), table.evicted())
        };
        if known {
            continue;
        }
        // Read before the lock: whoever counts calls meanwhile has made the counter first, and then ours is not used.
        let used = owner::as_owner(|| recorded(user, budget))?;
        let made = TABLE.exclusive().make((&budget.key, budget.until), budget.owner, used, evicted, now());
        match made {
            Made::There => {}
            // The caller asks again, and comes back here.
            Made::Stale => return Ok(()),
            Made::Full => return Err(full()),
        }
    }
    Ok(())
}

fn full() -> Error {
    Error::new(Kind::RateLimited, "too many budgets are in use at once")
        .detail(format!(
            "The server counts {} at a time, of these {} for a database, {} for a workspace and {} for one person's calls.",
            counters::COUNTERS,
            counters::OF_DATABASE,
            counters::OF_WORKSPACE,
            counters::OF_PERSON
        ))
        .hint(format!(
            "Try again in a minute: one that no call needs for {} seconds makes room. Fewer budgets, or calls in fewer workspaces at once, need less.",
            counters::IDLE
        ))
}

fn over(budget: &Budget, left: i64, need: i64) -> Error {
    let Budget { unit, period, renews, .. } = budget;
    let need = unit.show(need);
    let error = Error::new(Kind::OverLimit, "budget is used up");
    if budget.of_all {
        return error
            .detail(format!("All workspaces together have no more room for it this {period}: this call may take {need}. It renews at {renews} UTC."))
            .hint("Wait, ask for a shorter reply (max_tokens), or have an administrator raise it with helper.set_budget.");
    }
    let keeper = if budget.owner.workspace.is_some() { "an admin of the workspace" } else { "an administrator" };
    error
        .detail(format!(
            "Of {} a {period} {} are left, this call may take {need}. It renews at {renews} UTC.",
            unit.show(budget.limit),
            unit.show(left),
        ))
        .hint(format!("Wait, ask for a shorter reply (max_tokens), or have {keeper} raise it with helper.set_budget."))
}

fn binding(workspace: pgrx::Uuid, user: Option<pgrx::Uuid>) -> Result<Vec<Budget>> {
    // SAFETY: set once when the process connects.
    let database = unsafe { pg_sys::MyDatabaseId.to_u32() };
    spi::change(
        "select b.id, b.each_user, b.unit, b.amount::float8, b.period, b.began, pg_catalog.date_part('epoch', b.renews)::bigint, \
           pg_catalog.to_char(b.renews at time zone 'UTC', 'YYYY-MM-DD HH24:MI'), b.for_all, b.user_id is not null \
         from helper._budgets($1, $2) b",
        &[workspace.into(), user.into()],
        |row| {
            let id = row.get::<pgrx::Uuid>(1)?;
            let each_user = row.get::<bool>(2)?;
            let mut hash = Sha256::new();
            hash.update(database.to_le_bytes());
            hash.update(id.as_bytes());
            if each_user {
                hash.update(user.map(|user| *user.as_bytes()).unwrap_or_default());
            }
            let mut key = [0; 16];
            key.copy_from_slice(&hash.finalize()[..16]);
            let for_all = row.get::<bool>(9)?;
            let of_all = for_all && !each_user && !row.get::<bool>(10)?;
            let owner = Owner {
                database,
                workspace: (!for_all).then(|| *workspace.as_bytes()),
                // Of those for all there are six, whoever calls first.
                person: user.filter(|_| !of_all).map(|user| *user.as_bytes()),
            };
            let amount = row.get::<f64>(4)?;
            let (unit, limit) = match row.get::<String>(3)?.as_str() {
                "money" => (Unit::Money, amount * 1e9),
                "requests" => (Unit::Requests, amount),
                _ => (Unit::Tokens, amount),
            };
            Ok(Budget {
                id,
                key,
                owner,
                of_all,
                unit,
                limit: limit.min(i64::MAX as f64 / 4.0) as i64,
                period: row.get(5)?,
                began: row.get(6)?,
                until: row.get(7)?,
                renews: row.get(8)?,
            })
        },
    )
}

fn recorded(user: Option<pgrx::Uuid>, budget: &Budget) -> Result<i64> {
    // With a snapshot of now, not of the caller's statement.
    let used = spi::change(
        "select helper._used($1, $2, $3)::float8",
        &[budget.id.into(), user.into(), budget.began.into()],
        |row| row.opt::<f64>(1),
    )?
    .pop()
    .flatten()
    .unwrap_or_default();
    Ok(if budget.unit == Unit::Money { used * 1e9 } else { used } as i64)
}
