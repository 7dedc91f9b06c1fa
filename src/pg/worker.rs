//! A database's worker: takes jobs from the queue and brings them to their end, many at once on one connection to the
//! gateway, with no transaction open while it waits.

mod calls;
mod documents;
mod ledger;
mod reembeds;
mod replies;
mod sent;
mod settling;
mod tidying;
mod whatsapp;

use replies::{Fetching, Unended, Unstored};
use settling::Inherited;

use crate::core::error::{Error, Kind, Result};
use crate::core::wire::{Frame, Request, ToolReply};
use crate::pg::acting::Errand;
use crate::pg::gateway::Link;
use crate::pg::indexing::{self, Indexing};
use crate::pg::jobs::{Job, end, first, requeue};
use crate::pg::reembedding::Reembedding;
use crate::pg::replying::Replying;
use crate::pg::report::Notes;
use crate::pg::transaction::{extension_exists, transaction};
use crate::pg::whatsapp::Message;
use crate::pg::worker::sent::Sent;
use crate::pg::worker::tidying::Chore;
use crate::pg::{session, shared, spi, wait};
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
    /// What an earlier worker left behind.
    inherited: Inherited,
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
    /// Those that runners make, by the call.
    with_runners: HashMap<pgrx::Uuid, (pgrx::Uuid, Errand)>,
    /// Replies that are whole but could not be stored, because of a lock say.
    unstored: Vec<Unstored>,
    /// Replies that have ended otherwise, which could not be stored.
    unended: Vec<Unended>,
    /// Calls of HTTP tools that were sent.
    calls: HashMap<u32, Sent>,
    /// Calls whose answer is here but could not be stored.
    unstored_calls: Vec<(Sent, ToolReply)>,
    /// When calls are looked at again that could not be sent.
    calls_again: Instant,
    /// Messages of WhatsApp's outbox that were sent.
    messages: HashMap<u32, Message>,
    /// Messages whose answer is here but could not be stored.
    unstored_messages: Vec<(Message, ToolReply)>,
    /// The request that brings the records of calls.
    ledger: u32,
    /// When they are read again, where they could not be stored.
    ledger_again: Instant,
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
    notes: Notes,
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
    if !enter(database, me) {
        return;
    }
    BackgroundWorker::connect_worker_to_spi_by_oid(Some(database.into()), None);
    session::configure(c"helper_ai worker");
    session::relax();
    let leave = Worker::new().run(database, me);
    let mut runners = Vec::new();
    shared::change(|state| {
        let Some(slot) = state.slot(database).filter(|slot| slot.worker == me) else { return };
        slot.worker = 0;
        match leave {
            Leave::NotNeeded if slot.held_by == 0 && !slot.wanted => {
                runners.extend(slot.started().map(|runner| runner.pid));
                *slot = shared::Slot::default();
            }
            // Another one looks: somebody may have made the extension since this one did.
            Leave::NotNeeded => {}
            // Whoever asked, there is work to come back to.
            Leave::Asked => slot.wanted = true,
        }
    });
    // Without a slot they leave too.
    runners.into_iter().for_each(shared::wake_process);
    shared::say_gone();
}

/// Enters itself into the database's slot, which makes it the one that is wanted; `false` where there is another worker,
/// somebody needs the database, or it has no slot any more.
fn enter(database: u32, me: i32) -> bool {
    shared::change(|state| {
        let Some(slot) = state.slot(database) else { return false };
        if slot.worker != 0 && slot.worker != me && shared::is_alive(slot.worker) {
            return false;
        }
        if slot.held_by != 0 {
            // The launcher starts another one after the statement.
            slot.worker = 0;
            slot.wanted = true;
            return false;
        }
        slot.worker = me;
        slot.wanted = false;
        true
    })
}

impl Worker {
    fn new() -> Self {
        let now = Instant::now();
        Worker {
            inherited: Inherited::Unknown,
            link: None,
            tasks: HashMap::new(),
            share: 1,
            most_share: indexing::TOGETHER,
            reembeds: HashMap::new(),
            replies: HashMap::new(),
            fetching: HashMap::new(),
            errands: HashMap::new(),
            with_runners: HashMap::new(),
            unstored: Vec::new(),
            unended: Vec::new(),
            calls: HashMap::new(),
            unstored_calls: Vec::new(),
            calls_again: now,
            messages: HashMap::new(),
            unstored_messages: Vec::new(),
            ledger: 0,
            ledger_again: now,
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
            notes: Notes::of("worker"),
        }
    }

    fn run(&mut self, database: u32, me: i32) -> Leave {
        loop {
            // SAFETY: a flag that the signal handler sets.
            if unsafe { (&raw const pg_sys::ProcDiePending).read_volatile() } != 0 {
                return Leave::Asked;
            }
            if BackgroundWorker::sighup_received() {
                // SAFETY: the server's own way to read its configuration again.
                unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
                // What is kept for how long may have changed.
                self.next_cleaning = Instant::now();
                self.next_chore = Instant::now();
            }
            wait::attend();
            let told = shared::change(|state| {
                let slot = state.slot(database).filter(|slot| slot.worker == me && slot.held_by == 0)?;
                Some((std::mem::take(&mut slot.wanted), std::mem::take(&mut slot.runner_lost)))
            });
            // Somebody needs the database, or the slot is another's.
            let Some((woken, lost)) = told else { return Leave::Asked };
            let now = Instant::now();
            let is_due = woken || lost || now >= self.next_look;
            if is_due && !extension_exists() {
                return Leave::NotNeeded;
            }
            if is_due {
                self.next_look = now + ROUND;
                if lost {
                    let released = transaction(|| spi::run("select helper._release_leases(null)", &[]));
                    self.note(released);
                }
            }
            if is_due && self.settle() {
                self.give_back();
                self.read_ledger_again();
                self.cancel_replies();
                self.hear_runners();
                self.store_again();
                self.store_calls();
                self.store_messages();
                self.claim_documents();
                self.claim_reembeds();
                self.claim_replies();
                self.expire_calls();
                self.send_calls();
                self.send_messages();
                self.call_runners();
            }
            self.receive();
            self.write_replies();
            self.tidy();
            let socket = self.link.as_ref().map(Link::interest);
            let due = self.replies.values().filter_map(|reply| reply.due()).min();
            let next = due.map_or(self.next_look, |due| due.min(self.next_look));
            // Whole milliseconds, rounded up, or the last one would be waited for in many short waits.
            let pause = next.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
            // Who wanted it while it waited for a lock has woken it from that.
            wait::wait(socket, Some(if shared::is_wanted(database) { Duration::ZERO } else { pause }));
        }
    }

    /// Logs an error; the work goes on.
    fn note<T>(&mut self, outcome: Result<T>) -> Option<T> {
        self.notes.note(outcome)
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
            && self.messages.is_empty()
            && self.unstored_messages.is_empty()
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
            self.read_ledger();
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
        if self.ledger != 0 && frame.id == self.ledger {
            return self.record(frame);
        }
        if let Some(sent) = self.calls.remove(&frame.id) {
            return self.call_frame(sent, frame);
        }
        if let Some(message) = self.messages.remove(&frame.id) {
            return self.message_frame(message, frame);
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
            let Some(reply) = self.keep_unchecked(reply) else { continue };
            if reply.has_begun() && !reply.is_asked() {
                let error = Error::not_ready("the helper_ai gateway went away during the reply").hint("Ask again.");
                self.reply_failed(reply, &error);
            } else {
                self.reply_again(reply, 0.0);
            }
        }
        self.fetching_lost();
        for (_, reembed) in std::mem::take(&mut self.reembeds) {
            self.give(&reembed.job, 0.0, false);
        }
        self.calls_lost();
        self.messages_lost();
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
