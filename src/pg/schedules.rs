//! When workflows start by the clock, for `helper._fire_schedules`.

use crate::core::cron::{Misfire, Schedule, Times};
use crate::core::error::Error;
use crate::pg::report::Reported;
use pgrx::prelude::*;

/// `helper._plan`. Times are milliseconds since 1970.
#[pg_extern(sql = false, immutable, parallel_safe)]
#[allow(clippy::too_many_arguments, clippy::type_complexity)]
fn plan_fires(
    id: pgrx::Uuid,
    cron: &str,
    time_zone: &str,
    misfire: &str,
    backfill: i64,
    jitter: i64,
    done_through: i64,
    now: i64,
) -> Reported<
    TableIterator<
        'static,
        (name!(fires, Vec<i64>), name!(missed, i64), name!(done_through, i64), name!(look_at, Option<i64>)),
    >,
> {
    let misfire = match misfire {
        "once" => Misfire::Once,
        "skip" => Misfire::Skip,
        "backfill" => Misfire::Backfill(backfill),
        other => return Err(Error::bug(format!("misfire \"{other}\" is not known")).into()),
    };
    let schedule = Schedule { times: Times::read(cron, time_zone)?, misfire, jitter, id: *id.as_bytes() };
    let plan = schedule.plan(done_through, now);
    Ok(TableIterator::once((plan.fires, plan.missed as i64, plan.through, plan.wake)))
}
