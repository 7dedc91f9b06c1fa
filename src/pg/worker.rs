//! A database's worker: takes jobs from the queue and brings them to their end, many at once on one connection to the
//! gateway, with no transaction open while it waits.

mod calls;
mod documents;
mod ledger;
mod reembeds;
mod replies;
mod sent;
mod tidying;
mod transaction;

use replies::Fetching;

use crate::core::error::{Error, Kind, Result};
use crate::core::wire::{CallEnd, Frame, Request, ToolReply};
use crate::pg::acting::Errand;
use crate::pg::gateway::Link;
use crate::pg::indexing::{self, Indexing, Job};
use crate::pg::reembedding::Reembedding;
use crate::pg::replying::Replying;
use crate::pg::worker::sent::Sent;
use crate::pg::worker::tidying::Chore;
use crate::pg::worker::transaction::{extension_exists, transaction};
use crate::pg::{shared, spi, wait};
use pgrx::JsonB;
use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
#[cfg(not(feature = "pg18"))]
use pgrx::pg_sys::pqsignal;
#[cfg(feature = "pg18")]
use pgrx::pg_sys::pqsignal_be as pqsignal;
use pgrx::prelude::*;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The worker looks at the queue this often even if nobody wakes it: for what was put off, and prepared transactions.
const ROUND: Duration = Duration::from_secs(5);

/// Before every workspace.
fn first() -> pgrx::Uuid {
    pgrx::Uuid::from_bytes([0; 16])
}

unsafe extern "C-unwind" {
    fn die(signal: i32);
}

/// Why the worker stops.
enum Leave {
    /// The extension is not, or no longer, in this database.
    NotNeeded,
    /// Asked to by a signal, or somebody needs the database.
    Asked,
}

struct Worker {
    link: Option<Link>,
    tasks: HashMap<u32, Indexing>,
    /// Documents that are claimed of one workspace at once: more while all of them find room.
    share: usize,
    most_share: usize,
    reembeds: HashMap<u32, Box<Reembedding>>,
    replies: HashMap<u32, Box<Replying>>,
    /// Replies that wait for calls of tools, by their message; and these calls.
    fetching: HashMap<pgrx::Uuid, Fetching>,
    errands: HashMap<u32, (pgrx::Uuid, Errand)>,
    /// Replies that are whole but could not be stored, because of a lock say.
    unstored: Vec<(Box<Replying>, CallEnd)>,
    /// Calls of HTTP tools that were sent.
    calls: HashMap<u32, Sent>,
    /// Calls whose answer is here but could not be stored.
    unstored_calls: Vec<(Sent, ToolReply)>,
    /// When calls are looked at again that could not be sent.
    calls_again: Instant,
    /// The request that brings the records of calls.
    ledger: u32,
    /// Workspace that was served last.
    turn: pgrx::Uuid,
    /// The same for reembeds.
    reembed_turn: pgrx::Uuid,
    /// The same for replies.
    reply_turn: pgrx::Uuid,
    /// The same for calls of tools.
    call_turn: pgrx::Uuid,
    /// After the gateway ended: one document at a time until one goes through, to find the culprit.
    careful: bool,
    next_look: Instant,
    next_cleaning: Instant,
    next_chore: Instant,
    chores: Vec<Chore>,
    /// Some of them will be there again.
    more_chores: bool,
    connect_after: Instant,
    connect_delay: Duration,
    /// The gateway said that it cannot work, for want of its model say: nothing is claimed until then.
    paused_until: Instant,
    pause: Duration,
    /// How often the gateway ended while it was alone with a document.
    deaths: HashMap<[u8; 16], u32>,
    /// Jobs that could not be given back, because of a lock say.
    owed: Vec<Job>,
    /// The trouble that was logged last, and when.
    told: Option<(String, Instant)>,
}

/// The worker's main function; the argument is the database.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn helper_ai_worker_main(arg: pg_sys::Datum) {
    let database = arg.value() as u32;
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP);
    // SAFETY: the server's own handlers; called before anything can wait.
    let me = unsafe {
        pqsignal(pg_sys::SIGTERM as i32, Some(die));
        pg_sys::MyProcPid
    };
    let other = shared::change(|state| {
        let slot = state.slot_or_new(database)?;
        let other = slot.worker;
        if other != 0 && other != me && shared::is_alive(other) {
            return Some(other);
        }
        if slot.held_by != 0 {
            // Somebody needs the database for a statement; the launcher starts another one after it.
            slot.worker = 0;
            slot.wanted = true;
            return Some(slot.held_by);
        }
        slot.worker = me;
        None
    });
    if other.is_some() {
        return;
    }
    BackgroundWorker::connect_worker_to_spi_by_oid(Some(database.into()), None);
    configure();
    let leave = Worker::new().run(database);
    shared::change(|state| {
        if let Some(slot) = state.slot(database) {
            slot.worker = 0;
            match leave {
                Leave::NotNeeded if slot.held_by == 0 => *slot = shared::Slot::default(),
                Leave::NotNeeded => {}
                // Whoever asked, there is work to come back to.
                Leave::Asked => slot.wanted = true,
            }
        }
    });
}

/// Settings of the worker's own session.
fn configure() {
    let set = |name: &std::ffi::CStr, value: &std::ffi::CStr| unsafe {
        // SAFETY: names and values are constants.
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
        );
    };
    set(c"search_path", c"pg_catalog, pg_temp");
    // Nobody's open transaction stops the work for all.
    set(c"lock_timeout", c"2s");
    // What a crash takes back is done again; that is cheaper than a flush for each document.
    set(c"synchronous_commit", c"off");
    // Plans that were made while the tables were small, those of foreign keys too, would read all of them for each row.
    set(c"enable_seqscan", c"off");
    // Where there is no other way than through a table, its cost would have the statement compiled.
    set(c"jit", c"off");
    set(c"application_name", c"helper_ai worker");
}

impl Worker {
    fn new() -> Self {
        let now = Instant::now();
        Worker {
            link: None,
            tasks: HashMap::new(),
            share: 1,
            most_share: indexing::TOGETHER,
            reembeds: HashMap::new(),
            replies: HashMap::new(),
            fetching: HashMap::new(),
            errands: HashMap::new(),
            unstored: Vec::new(),
            calls: HashMap::new(),
            unstored_calls: Vec::new(),
            calls_again: now,
            ledger: 0,
            turn: first(),
            reembed_turn: first(),
            reply_turn: first(),
            call_turn: first(),
            careful: false,
            next_look: now,
            next_cleaning: now + Duration::from_secs(30),
            next_chore: now + Duration::from_secs(2),
            chores: Vec::new(),
            more_chores: false,
            connect_after: now,
            connect_delay: Duration::ZERO,
            paused_until: now,
            pause: Duration::ZERO,
            deaths: HashMap::new(),
            owed: Vec::new(),
            told: None,
        }
    }

    fn run(&mut self, database: u32) -> Leave {
        if !extension_exists() {
            return Leave::NotNeeded;
        }
        // Whatever runs is what an earlier worker left behind: a database has one.
        let released = transaction(|| spi::run("select helper._settle_calls(), helper._release_leases()", &[]));
        self.note(released);
        loop {
            // SAFETY: a flag that the signal handler sets.
            if unsafe { (&raw const pg_sys::ProcDiePending).read_volatile() } != 0 {
                return Leave::Asked;
            }
            if BackgroundWorker::sighup_received() {
                // SAFETY: the server's own way to read its configuration again.
                unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
            }
            // SAFETY: handles barriers and invalidations; a termination leaves above or raises here.
            pgrx::check_for_interrupts!();
            let (woken, held) = shared::change(|state| match state.slot(database) {
                Some(slot) => (std::mem::take(&mut slot.wanted), slot.held_by != 0),
                None => (false, false),
            });
            if held {
                return Leave::Asked;
            }
            let now = Instant::now();
            if (woken || now >= self.next_look) && !extension_exists() {
                return Leave::NotNeeded;
            }
            if woken || now >= self.next_look {
                self.next_look = now + ROUND;
                self.give_back();
                self.cancel_replies();
                self.store_again();
                self.store_calls();
                self.claim_documents();
                self.claim_reembeds();
                self.claim_replies();
                self.expire_calls();
                self.run_calls();
            }
            self.receive();
            self.write_replies();
            self.tidy();
            let socket = self.link.as_ref().map(Link::interest);
            let due = self.replies.values().filter_map(|reply| reply.due()).min();
            let next = due.map_or(self.next_look, |due| due.min(self.next_look));
            // Whole milliseconds, rounded up, or the last one would be waited for in many short waits.
            let pause = next.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
            wait::wait(socket, Some(pause));
        }
    }

    /// Logs an error; the work goes on. The same one is logged once a minute.
    fn note<T>(&mut self, outcome: Result<T>) -> Option<T> {
        let error = match outcome {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        if !self.told.as_ref().is_some_and(|(told, at)| *told == error.message && at.elapsed().as_secs() < 60) {
            log!("helper_ai worker: {} ({})", error.message, error.kind.sqlstate());
            self.told = Some((error.message, Instant::now()));
        }
        None
    }

    /// Gives back what could not be given back before.
    fn give_back(&mut self) {
        for job in std::mem::take(&mut self.owed) {
            let given = transaction(|| requeue(&job, 5.0, true));
            if self.note(given).is_none() {
                self.owed.push(job);
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.tasks.is_empty()
            && self.reembeds.is_empty()
            && self.replies.is_empty()
            && self.fetching.is_empty()
            && self.calls.is_empty()
            && self.unstored_calls.is_empty()
    }

    /// Whether there is a gateway of our version; what is claimed without one would be given up as its fault.
    fn connected(&mut self) -> bool {
        if self.link.is_none() && Instant::now() >= self.connect_after {
            self.connect_delay = (self.connect_delay * 2).clamp(Duration::from_millis(20), Duration::from_secs(1));
            self.connect_after = Instant::now() + self.connect_delay;
            self.link = Link::open().ok();
            // Another one than before may have what it needs.
            self.paused_until = Instant::now();
        }
        if let Some(link) = &mut self.link {
            // The hello goes out; the other side's wakes us when it comes.
            return link.flush().is_ok() && link.greeted();
        }
        self.next_look = self.next_look.min(self.connect_after);
        false
    }

    fn receive(&mut self) {
        let greeted = self.link.as_ref().is_some_and(Link::greeted);
        self.frames();
        if !greeted && self.link.as_ref().is_some_and(Link::greeted) {
            // SAFETY: set once when the process connects.
            let database = unsafe { pg_sys::MyDatabaseId.to_u32() };
            if let Some(link) = &mut self.link {
                self.ledger = link.request(&Request::Ledger { database }).unwrap_or_default();
            }
            self.connect_delay = Duration::ZERO;
            self.next_look = Instant::now();
        }
    }

    fn frames(&mut self) {
        loop {
            let polled = match &mut self.link {
                Some(link) => link.flush().and_then(|()| link.poll()),
                None => return,
            };
            match polled {
                Ok(None) => return,
                Ok(Some(frame)) => self.frame(&frame),
                Err(error) => {
                    if !self.is_idle() || !self.link.as_ref().is_some_and(Link::greeted) {
                        self.note::<()>(Err(error));
                    }
                    self.lost();
                    return;
                }
            }
        }
    }

    fn frame(&mut self, frame: &Frame) {
        if frame.id == self.ledger {
            return self.record(frame);
        }
        if let Some(sent) = self.calls.remove(&frame.id) {
            return self.call_frame(sent, frame);
        }
        if let Some(reply) = self.replies.remove(&frame.id) {
            return self.reply_frame(reply, frame);
        }
        if let Some((message, errand)) = self.errands.remove(&frame.id) {
            return self.errand_frame(message, &errand, frame);
        }
        if let Some(reembed) = self.reembeds.remove(&frame.id) {
            return self.reembed_frame(reembed, frame);
        }
        if let Some(indexing) = self.tasks.remove(&frame.id) {
            self.document_frame(indexing, frame);
        }
    }

    /// Sends a request; an error of the connection is `None`, and means that what was under way is lost.
    fn send(&mut self, request: &Request) -> Result<Option<u32>> {
        match self.link.as_mut().map(|link| link.request(request)) {
            Some(Ok(id)) => Ok(Some(id)),
            Some(Err(error)) if error.kind == Kind::BadArgument => Err(error),
            _ => Ok(None),
        }
    }

    fn finish(&mut self, job: &Job, status: &'static str, error: Option<&Error>) {
        let ended = transaction(|| end(job, status, error));
        if self.note(ended).is_none() {
            self.owed.push(job.clone());
        }
    }

    /// The gateway went away: what was under way goes back to the queue. A document that was alone with it is suspected,
    /// and comes back later each time, so that others get through and that somebody who kills gateways for fun has to be
    /// at it for a minute before a document is given up.
    fn lost(&mut self) {
        self.link = None;
        self.ledger = 0;
        for (_, reply) in std::mem::take(&mut self.replies) {
            if reply.has_begun() {
                let error = Error::not_ready("the helper_ai gateway went away during the reply").hint("Ask again.");
                self.reply_failed(&reply, &error);
            } else {
                self.reply_again(&reply, 0.0);
            }
        }
        self.errands.clear();
        for (_, fetching) in std::mem::take(&mut self.fetching) {
            self.reply_again(&fetching.reply, 0.0);
        }
        for (_, reembed) in std::mem::take(&mut self.reembeds) {
            self.give(&reembed.job, 0.0, false);
        }
        self.calls_lost();
        self.careful = true;
        self.next_look = self.next_look.min(self.connect_after.max(Instant::now()));
        let jobs: Vec<Job> = std::mem::take(&mut self.tasks).values().flat_map(Indexing::jobs).cloned().collect();
        match jobs.as_slice() {
            [job] => self.suspect(job),
            jobs => {
                for job in jobs {
                    self.give(job, 0.0, false);
                }
            }
        }
    }

    /// Cancels a request whose replies are of no use.
    fn no_more_of(&mut self, id: u32) {
        if let Some(link) = &mut self.link {
            // A connection that is gone is noticed by whoever reads it next.
            let _ = link.cancel(id);
        }
    }

    /// Gives a job back to the queue, now or with the next look.
    fn give(&mut self, job: &Job, seconds: f64, count_attempt: bool) {
        let given = transaction(|| requeue(job, seconds, count_attempt));
        if self.note(given).is_none() {
            self.owed.push(job.clone());
        }
    }
}

/// Whether a job of a kind may be claimed, so that a look at an empty queue costs little.
fn is_due(kind: &str) -> Result<bool> {
    let due = spi::change(
        "select true from helper.job_queue q where q.kind = $1 and q.run_at <= clock_timestamp() limit 1",
        &[kind.into()],
        |row| row.get::<bool>(1),
    )?;
    Ok(!due.is_empty())
}

/// Which jobs are wanted.
struct Wanted<'a> {
    kind: &'a str,
    /// The workspace that was served last: those after it come first.
    after: pgrx::Uuid,
    /// Of so many workspaces,
    workspaces: usize,
    /// so many of each,
    share: usize,
    /// and none of these.
    without: &'a [pgrx::Uuid],
}

/// Leases waiting jobs of a kind from some workspaces, going round.
fn claim(wanted: &Wanted) -> Result<Vec<Job>> {
    if !is_due(wanted.kind)? {
        return Ok(Vec::new());
    }
    let mut jobs = claim_after(wanted)?;
    let served = jobs.chunk_by(|a, b| a.workspace == b.workspace).count();
    if served < wanted.workspaces {
        jobs.extend(claim_after(&Wanted { after: first(), workspaces: wanted.workspaces - served, ..*wanted })?);
    }
    Ok(jobs)
}

fn claim_after(wanted: &Wanted) -> Result<Vec<Job>> {
    let mut jobs = spi::change(
        "select workspace_id, job_id, key, attempts, token from helper._claim($1, $2, $3, $4, $5)",
        &[
            wanted.kind.into(),
            wanted.after.into(),
            (wanted.workspaces as i32).into(),
            (wanted.share as i32).into(),
            wanted.without.to_vec().into(),
        ],
        |row| {
            Ok(Job {
                workspace: row.get(1)?,
                id: row.get(2)?,
                key: row.get(3)?,
                attempts: row.get(4)?,
                token: row.get(5)?,
            })
        },
    )?;
    // In the order in which they were asked for; `returning` keeps none.
    jobs.sort_by_key(|job| (*job.workspace.as_bytes(), *job.id.as_bytes()));
    Ok(jobs)
}

fn end(job: &Job, status: &str, error: Option<&Error>) -> Result<()> {
    spi::run(
        "select helper._finish($1, $2, $3, $4, $5)",
        &[
            job.workspace.into(),
            job.id.into(),
            job.token.into(),
            status.into(),
            error.map(|error| JsonB(indexing::facts(error))).into(),
        ],
    )
}

fn requeue(job: &Job, seconds: f64, count_attempt: bool) -> Result<()> {
    spi::run(
        "select helper._requeue($1, $2, $3, pg_catalog.make_interval(secs => $4), $5)",
        &[job.workspace.into(), job.id.into(), job.token.into(), seconds.into(), count_attempt.into()],
    )
}
