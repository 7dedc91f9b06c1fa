//! Budgets: what a call may need is set aside before it is sent, and put right when it ended.
//!
//! What is recorded is in `usage_records`; what is under way is known to shared memory alone, where one short lock decides
//! for all sessions. A counter begins with what is recorded and then counts every call itself until its period is over.

use crate::core::chat::Event;
use crate::core::error::{Error, Kind, Result};
use crate::core::prompt::window::estimate;
use crate::core::wire::Prices;
use crate::pg::{owner, spi};
use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgLwLock, pg_shmem_init};
use sha2::{Digest, Sha256};

/// Budgets that can be counted at once, each person's share of one on its own.
const COUNTERS: usize = 4096;

static TABLE: PgLwLock<Table> = unsafe { PgLwLock::new(c"helper_ai_budgets") };

#[derive(Clone, Copy, Default)]
struct Counter {
    key: [u8; 16],
    /// End of the period, in seconds since 1970; one that is over is free.
    until: i64,
    used: i64,
}

#[derive(Clone, Copy)]
struct Table {
    counters: [Counter; COUNTERS],
}

impl Default for Table {
    fn default() -> Self {
        Table { counters: [Counter::default(); COUNTERS] }
    }
}

// SAFETY: plain numbers, no pointers.
unsafe impl PGRXSharedMemory for Table {}

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
    fn of(self, tokens: u64, cost_nanos: u64) -> i64 {
        let amount = match self {
            Unit::Tokens => tokens,
            Unit::Money => cost_nanos,
            Unit::Requests => 1,
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
    unit: Unit,
    limit: i64,
    period: String,
    began: TimestampWithTimeZone,
    until: i64,
    renews: String,
}

/// What was set aside for a call. What is not settled when it is dropped stays used as far as `at_least` says.
pub struct Reservation {
    parts: Vec<([u8; 16], i64, Unit, i64)>,
    /// Tokens of prompt and reply that a call has taken at least, as far as is known.
    at_least: (u64, u64),
    prices: Prices,
    settled: bool,
}

impl Reservation {
    /// Whether any budget binds the call.
    pub fn is_bound(&self) -> bool {
        !self.parts.is_empty()
    }

    /// The call is sent: from here on its prompt is used, and what is said of the reply.
    pub fn sent(&mut self, input: u64, prices: Prices) {
        self.at_least.0 = input;
        self.prices = prices;
    }

    /// More of the reply came. Whoever stops listening before the end has used what they heard.
    pub fn heard(&mut self, event: &Event) {
        if let Event::Text(text) | Event::Thinking(text) | Event::Arguments { fragment: text, .. } = event {
            self.at_least.1 += u64::from(estimate(text));
        }
    }

    /// The call ended, and took this.
    pub fn settle(mut self, tokens: u64, cost_nanos: u64) {
        self.put_right(tokens, cost_nanos);
    }

    fn put_right(&mut self, tokens: u64, cost_nanos: u64) {
        if self.settled || self.parts.is_empty() {
            return;
        }
        self.settled = true;
        let mut table = TABLE.exclusive();
        for (key, until, unit, amount) in &self.parts {
            if let Some(counter) = table.counters.iter_mut().find(|c| c.key == *key && c.until == *until) {
                counter.used = counter.used.saturating_add(unit.of(tokens, cost_nanos) - amount);
            }
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let (input, output) = self.at_least;
        self.put_right(input + output, most_cost(&self.prices, input, output));
    }
}

/// Cost of tokens in thousand-millionths, as if nothing came from a cache.
pub fn most_cost(prices: &Prices, input: u64, output: u64) -> u64 {
    let nanos = u128::from(input) * u128::from(prices.input) + u128::from(output) * u128::from(prices.output);
    u64::try_from(nanos / 1000).unwrap_or(u64::MAX)
}

/// Sets aside what a call may take. `bound` is called when budgets bind it, to tell how much that is.
pub fn reserve(
    workspace: pgrx::Uuid,
    user: Option<pgrx::Uuid>,
    need: impl FnOnce() -> (u64, u64),
) -> Result<Reservation> {
    let none = Reservation { parts: Vec::new(), at_least: (0, 0), prices: Prices::default(), settled: false };
    let any = owner::as_owner(|| {
        spi::first("select true from helper.budgets b where b.workspace_id = $1 limit 1", &[workspace.into()], |row| {
            row.get::<bool>(1)
        })
    })?;
    if any.is_none() {
        return Ok(none);
    }
    let budgets = owner::as_owner(|| binding(workspace, user))?;
    if budgets.is_empty() {
        return Ok(none);
    }
    let (tokens, cost) = need();
    loop {
        // SAFETY: a plain getter.
        let now = unsafe { pg_sys::GetCurrentTimestamp() } / 1_000_000 + 946_684_800;
        let missing: Vec<&Budget> = {
            let mut table = TABLE.exclusive();
            let missing: Vec<&Budget> = budgets
                .iter()
                .filter(|b| !table.counters.iter().any(|c| c.key == b.key && c.until == b.until))
                .collect();
            if missing.is_empty() {
                for budget in &budgets {
                    let used = table
                        .counters
                        .iter()
                        .find(|c| c.key == budget.key && c.until == budget.until)
                        .map_or(0, |c| c.used);
                    let need = budget.unit.of(tokens, cost);
                    if used.saturating_add(need) > budget.limit {
                        return Err(over(budget, budget.limit - used, need));
                    }
                }
                let mut parts = Vec::new();
                for budget in &budgets {
                    let need = budget.unit.of(tokens, cost);
                    if let Some(counter) =
                        table.counters.iter_mut().find(|c| c.key == budget.key && c.until == budget.until)
                    {
                        counter.used += need;
                        parts.push((budget.key, budget.until, budget.unit, need));
                    }
                }
                return Ok(Reservation { parts, at_least: (0, 0), prices: Prices::default(), settled: false });
            }
            missing
        };
        for budget in missing {
            // Read before the lock: whoever counts calls meanwhile has made the counter first, and then ours is not used.
            let used = owner::as_owner(|| recorded(workspace, user, budget))?;
            let mut table = TABLE.exclusive();
            if table.counters.iter().any(|c| c.key == budget.key && c.until == budget.until) {
                continue;
            }
            let Some(free) = table.counters.iter_mut().find(|c| c.until <= now) else {
                return Err(Error::not_ready("too many budgets are in use at once")
                    .detail(format!("The server counts {COUNTERS} at a time.")));
            };
            *free = Counter { key: budget.key, until: budget.until, used };
        }
    }
}

fn over(budget: &Budget, left: i64, need: i64) -> Error {
    Error::new(Kind::OverLimit, "budget is used up")
        .detail(format!(
            "Of {} a {} {} are left, this call may take {}. It renews at {} UTC.",
            budget.unit.show(budget.limit),
            budget.period,
            budget.unit.show(left),
            budget.unit.show(need),
            budget.renews,
        ))
        .hint("Wait, ask for a shorter reply (max_tokens), or have an admin of the workspace raise it with helper.set_budget.")
}

fn binding(workspace: pgrx::Uuid, user: Option<pgrx::Uuid>) -> Result<Vec<Budget>> {
    // SAFETY: set once when the process connects.
    let database = unsafe { pg_sys::MyDatabaseId.to_u32() };
    spi::change(
        "select b.id, b.each_user, b.unit, b.amount::float8, b.period, b.began, pg_catalog.date_part('epoch', b.renews)::bigint, \
           pg_catalog.to_char(b.renews at time zone 'UTC', 'YYYY-MM-DD HH24:MI') \
         from helper._budgets($1, $2) b",
        &[workspace.into(), user.into()],
        |row| {
            let id = row.get::<pgrx::Uuid>(1)?;
            let mut hash = Sha256::new();
            hash.update(database.to_le_bytes());
            hash.update(id.as_bytes());
            if row.get::<bool>(2)? {
                hash.update(user.map(|user| *user.as_bytes()).unwrap_or_default());
            }
            let mut key = [0; 16];
            key.copy_from_slice(&hash.finalize()[..16]);
            let amount = row.get::<f64>(4)?;
            let (unit, limit) = match row.get::<String>(3)?.as_str() {
                "money" => (Unit::Money, amount * 1e9),
                "requests" => (Unit::Requests, amount),
                _ => (Unit::Tokens, amount),
            };
            Ok(Budget {
                id,
                key,
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

fn recorded(workspace: pgrx::Uuid, user: Option<pgrx::Uuid>, budget: &Budget) -> Result<i64> {
    // With a snapshot of now, not of the caller's statement.
    let used = spi::change(
        "select helper._used($1, $2, $3, $4)::float8",
        &[workspace.into(), budget.id.into(), user.into(), budget.began.into()],
        |row| row.opt::<f64>(1),
    )?
    .pop()
    .flatten()
    .unwrap_or_default();
    Ok(if budget.unit == Unit::Money { used * 1e9 } else { used } as i64)
}
