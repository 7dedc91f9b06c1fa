//! The worker's replies: questions that `helper.ask_async` put into the queue.

use super::Worker;
use crate::core::error::{Error, Kind, Result};
use crate::core::wire::{self, CallEnd, Frame, Item, Reply, Tag, ToolReply};
use crate::pg::acting::Errand;
use crate::pg::jobs::{self, Job, MOST_ATTEMPTS, Wanted, claim, requeue};
use crate::pg::replying::{self, Ended, Next, Replying};
use crate::pg::session::durable;
use crate::pg::transaction::{bare_transaction, lasting_transaction, transaction};
use crate::pg::{calling, owner, settings, spi};
use std::time::{Duration, Instant};

/// Bytes of attachments of the replies under way from which on no more are claimed.
const ATTACHED: usize = 128 * 1024 * 1024;

/// Replies that are claimed at once while none under way has attachments; then it is one.
const FEW: usize = 8;

/// A reply that waits for calls of tools that the gateway or runners make.
pub(super) struct Fetching {
    pub(super) reply: Box<Replying>,
    /// How many have not ended.
    left: usize,
}

/// A turn that was heard whole and could not be stored, because of a lock say.
pub(super) struct Unstored {
    pub(super) reply: Box<Replying>,
    end: CallEnd,
    /// When it is tried again.
    at: Instant,
}

/// When something is stored again that could not be.
const STORE_AGAIN: Duration = Duration::from_secs(1);

/// How a reply ends that is not whole.
enum How {
    /// Nobody heard what the model said.
    Lost(Box<Replying>),
    /// With an error, or because nobody wants it any more.
    Failed(Box<Replying>),
    /// Without its words, which could not be stored.
    Wordless { message: pgrx::Uuid },
}

/// A reply that has ended without being whole.
pub(super) struct Unended {
    job: Job,
    how: How,
    error: Error,
    /// When it is stored.
    at: Instant,
}

impl Unended {
    fn new(mut reply: Box<Replying>, how: impl FnOnce(Box<Replying>) -> How, error: &Error) -> Self {
        // Nothing more comes of what was set aside.
        reply.give_back();
        Unended { job: reply.job.clone(), how: how(reply), error: error.clone(), at: Instant::now() }
    }

    /// Its job.
    pub(super) fn job(&self) -> &Job {
        &self.job
    }

    /// The reply, as long as its words are kept.
    fn reply(&self) -> Option<&Replying> {
        match &self.how {
            How::Lost(reply) | How::Failed(reply) => Some(reply),
            How::Wordless { .. } => None,
        }
    }

    /// Whether it is tried once more to store it so, where that may pass.
    fn stores_again(&mut self) -> bool {
        match &mut self.how {
            How::Lost(reply) | How::Failed(reply) => reply.stores_again(),
            How::Wordless { .. } => true,
        }
    }

    /// Stores it with the end of its job, as the owner; inside a transaction.
    fn store(&self) -> Result<()> {
        let Unended { job, how, error, .. } = self;
        let status = match (how, error.kind) {
            (How::Lost(reply), _) => {
                reply.lose(error)?;
                "failed"
            }
            // Out of time is an error like any other, and says how much it had.
            (How::Failed(reply), Kind::Cancelled) if error.detail.is_none() => {
                reply.fail("cancelled", Some(error))?;
                "cancelled"
            }
            (How::Failed(reply), _) => {
                reply.fail("error", Some(error))?;
                "failed"
            }
            (How::Wordless { message }, _) => {
                replying::give_up(job.workspace, *message)?;
                "failed"
            }
        };
        jobs::end(job, status, Some(error))
    }
}

impl Worker {
    pub(super) fn claim_replies(&mut self) {
        while self.connected() {
            let room = self.room_for_replies();
            if room == 0 {
                return;
            }
            let after = self.reply_turn;
            let wanted = Wanted { kind: "reply", after, workspaces: room, share: 1, without: &[], runner: None };
            let jobs = transaction(|| claim(&wanted));
            let Some(jobs) = self.note(jobs).filter(|jobs| !jobs.is_empty()) else { return };
            for job in jobs {
                self.reply_turn = job.workspace;
                match transaction(|| Replying::load(job.clone())) {
                    // Who asked the model is gone, and with them what it said.
                    Ok(Some(reply)) if reply.is_asked() => self.reply_lost(Box::new(reply), &unheard()),
                    // Some of it has been read, and another try would say something else, and cost as much again.
                    Ok(Some(reply)) if reply.was_begun => {
                        let error = Error::not_ready("the reply was broken off when the server or its worker ended");
                        self.reply_failed(Box::new(reply), &error.hint("Ask again."));
                    }
                    Ok(Some(reply)) if job.attempts > MOST_ATTEMPTS => self.reply_failed(Box::new(reply), &too_often()),
                    Ok(Some(mut reply)) => {
                        let next = bare_transaction(|| reply.begin());
                        self.reply_on(Box::new(reply), next);
                    }
                    Ok(None) => self.finish(&job, "cancelled", None),
                    Err(error) => {
                        // It is no try where somebody holds it.
                        let counts = error.kind != Kind::NotReady;
                        self.note::<()>(Err(error));
                        let given = transaction(|| requeue(&job, 1.0, counts));
                        if self.note(given).is_none() {
                            self.owed.push(job);
                        }
                    }
                }
            }
        }
    }

    /// How many replies may be claimed at once. What goes with one is known once it is claimed, so that they are few.
    fn room_for_replies(&self) -> usize {
        let unstored = self.unstored.iter().map(|unstored| &*unstored.reply);
        let unstored = unstored.chain(self.unended.iter().filter_map(Unended::reply));
        let fetching = self.fetching.values().map(|fetching| &*fetching.reply);
        let weights =
            self.replies.values().map(|reply| &**reply).chain(fetching).chain(unstored).map(|reply| reply.weight());
        let (count, bytes) = weights.fold((0, 0), |(count, bytes), weight| (count + 1, bytes + weight));
        let at_once = match bytes {
            0 => FEW,
            1..ATTACHED => 1,
            _ => 0,
        };
        (settings::REPLY_CONCURRENCY.get() as usize).saturating_sub(count).min(at_once)
    }

    pub(super) fn reply_on(&mut self, mut reply: Box<Replying>, next: Result<Next>) {
        match next {
            Ok(Next::Ask(request)) => {
                let is_noted = reply.notes(&request);
                if is_noted {
                    let noted = lasting_transaction(|| reply.note_asked(true));
                    if self.note(noted).is_none() {
                        return self.reply_again(reply, 1.0);
                    }
                    reply.asking();
                }
                match self.send(&request) {
                    Ok(Some(id)) => {
                        reply.sent();
                        self.replies.insert(id, reply);
                    }
                    // The end of it is not written, so that the gateway has not read it.
                    Ok(None) => {
                        if is_noted {
                            reply.not_asked();
                        }
                        if let Some(reply) = self.keep_unchecked(reply) {
                            self.reply_again(reply, 0.0);
                        }
                        self.lost();
                    }
                    Err(error) => self.reply_failed(reply, &error),
                }
            }
            Ok(Next::Fetch(errands)) => self.fetch(reply, errands),
            Ok(Next::Done) => self.finish(&reply.job, "succeeded", None),
            Err(error)
                if error.kind == Kind::NotReady && is_transient(&error) && reply.job.attempts < MOST_ATTEMPTS =>
            {
                self.note::<()>(Err(error));
                if let Some(reply) = self.keep_unchecked(reply) {
                    self.reply_again(reply, 1.0);
                }
            }
            Err(error) => self.reply_failed(reply, &error),
        }
    }

    /// Sends calls of tools to the gateway, and notes those that runners make; the reply waits for all of them.
    fn fetch(&mut self, reply: Box<Replying>, errands: Vec<Errand>) {
        let message = reply.message();
        let mut fetching = Fetching { reply, left: 0 };
        for errand in errands {
            let Some(request) = &errand.request else {
                fetching.left += 1;
                self.with_runners.insert(errand.call, (message, errand));
                continue;
            };
            match self.send(request) {
                Ok(Some(id)) => {
                    fetching.left += 1;
                    self.errands.insert(id, (message, errand));
                }
                Ok(None) => {
                    self.forget_errands(message, true);
                    self.reply_again(fetching.reply, 0.0);
                    return self.lost();
                }
                Err(error) => {
                    let noted = bare_transaction(|| {
                        durable();
                        let failed = ToolReply::Failed { error, reached: false };
                        fetching.reply.fetched(&errand, Ok(Reply::Tool(Box::new(failed))))
                    });
                    if let Err(error) = noted {
                        self.forget_errands(message, false);
                        return self.reply_failed(fetching.reply, &error);
                    }
                }
            }
        }
        self.fetched(fetching);
    }

    /// Goes on with a reply none of whose errands is under way any more.
    fn fetched(&mut self, mut fetching: Fetching) {
        if fetching.left > 0 {
            self.fetching.insert(fetching.reply.message(), fetching);
            return;
        }
        let next = bare_transaction(|| fetching.reply.fetched_all());
        self.reply_on(fetching.reply, next);
    }

    /// Takes the gateway's reply to an errand.
    pub(super) fn errand_frame(&mut self, message: pgrx::Uuid, errand: &Errand, frame: &Frame) {
        let Some(mut fetching) = self.fetching.remove(&message) else { return };
        let reply = match frame.tag {
            Tag::End => wire::decode::<Reply>(&frame.body),
            Tag::Error => Err(wire::decode::<Error>(&frame.body).unwrap_or_else(|error| error)),
            _ => Err(calling::another()),
        };
        let noted = bare_transaction(|| {
            durable();
            fetching.reply.fetched(errand, reply)
        });
        self.errand_noted(fetching, noted);
    }

    /// Goes on with replies whose calls runners have ended. A call that has not ended when its reply has taken as long as it
    /// may is cancelled.
    pub(super) fn hear_runners(&mut self) {
        if self.with_runners.is_empty() {
            return;
        }
        let late = |message: &pgrx::Uuid| self.fetching.get(message).is_some_and(|fetching| fetching.reply.is_late());
        let late: Vec<&Errand> =
            self.with_runners.values().filter(|(message, _)| late(message)).map(|(_, errand)| errand).collect();
        let (workspaces, calls): (Vec<_>, Vec<_>) =
            self.with_runners.values().map(|(_, errand)| (errand.workspace, errand.call)).unzip();
        let ended = transaction(|| {
            late.iter().try_for_each(|errand| errand.lost())?;
            spi::change(
                "select w.call from unnest($1, $2) w (workspace, call) \
                 left join helper.function_calls c on c.workspace_id = w.workspace and c.id = w.call \
                 where c.id is null or c.finished_at is not null",
                &[workspaces.into(), calls.into()],
                |row| row.get::<pgrx::Uuid>(1),
            )
        });
        for call in self.notes.note(ended).unwrap_or_default() {
            let Some((message, errand)) = self.with_runners.remove(&call) else { continue };
            let Some(mut fetching) = self.fetching.remove(&message) else { continue };
            let noted = bare_transaction(|| {
                durable();
                fetching.reply.called(&errand)
            });
            self.errand_noted(fetching, noted);
        }
    }

    /// Goes on with a reply one of whose errands has ended.
    fn errand_noted(&mut self, mut fetching: Fetching, noted: Result<()>) {
        let message = fetching.reply.message();
        fetching.left -= 1;
        match noted {
            Ok(()) => self.fetched(fetching),
            Err(error) => {
                self.forget_errands(message, false);
                self.reply_failed(fetching.reply, &error);
            }
        }
    }

    /// The gateway went away: replies that waited for it are begun again, and those that wait for runners alone wait on.
    pub(super) fn fetching_lost(&mut self) {
        let lost: Vec<pgrx::Uuid> =
            std::mem::take(&mut self.errands).into_values().map(|(message, _)| message).collect();
        self.with_runners.retain(|_, (message, _)| !lost.contains(message));
        for message in lost {
            if let Some(fetching) = self.fetching.remove(&message) {
                self.reply_again(fetching.reply, 0.0);
            }
        }
    }

    /// Errands of a reply that stops waiting for them; where it will be begun again, it takes up those of runners.
    fn forget_errands(&mut self, message: pgrx::Uuid, is_begun_again: bool) {
        let with_runners: Vec<Errand> =
            self.with_runners.extract_if(|_, (of, _)| *of == message).map(|(_, (_, errand))| errand).collect();
        if !is_begun_again {
            for errand in with_runners {
                let settled = transaction(|| errand.lost());
                self.note(settled);
            }
        }
        let ids: Vec<u32> = self.errands.iter().filter(|(_, (of, _))| *of == message).map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(link) = &mut self.link {
                // A connection that is gone is noticed by whoever reads it next.
                let _ = link.cancel(id);
            }
            if let Some((_, errand)) = self.errands.remove(&id) {
                // Nobody will hear what came of it.
                let settled = transaction(|| errand.lost());
                self.note(settled);
            }
        }
    }

    pub(super) fn reply_frame(&mut self, mut reply: Box<Replying>, frame: &Frame) {
        let id = frame.id;
        match frame.tag {
            Tag::Item => match wire::decode::<Item>(&frame.body) {
                Ok(Item::Embeddings { dimensions, values }) => match reply.call.take(dimensions as usize, &values) {
                    Ok(()) => {
                        self.replies.insert(id, reply);
                    }
                    Err(error) => {
                        self.no_more_of(id);
                        self.reply_failed(reply, &error);
                    }
                },
                Ok(Item::Events(events)) => {
                    reply.events(&events);
                    self.replies.insert(id, reply);
                }
                Ok(Item::Records(_)) => self.reply_failed(reply, &calling::another()),
                Err(error) => self.reply_failed(reply, &error),
            },
            Tag::End => match wire::decode::<Reply>(&frame.body) {
                Ok(Reply::Done { .. }) => {
                    let next = bare_transaction(|| reply.embedded());
                    self.reply_on(reply, next);
                }
                Ok(Reply::Call(end)) => {
                    let next = reply.call.ended(&end).and_then(|()| bare_transaction(|| reply.embedded()));
                    self.reply_on(reply, next);
                }
                Ok(Reply::Chat(end)) if reply.is_folding() => {
                    let next = bare_transaction(|| reply.folded(&end));
                    self.reply_on(reply, next);
                }
                Ok(Reply::Chat(end)) => self.reply_ended(reply, *end),
                Ok(Reply::Counts(counts)) => {
                    let next = bare_transaction(|| reply.counted(counts));
                    self.reply_on(reply, next);
                }
                Ok(Reply::Checked(problems)) => match reply.checked(problems) {
                    Some(end) => self.reply_ended(reply, end),
                    None => self.reply_failed(reply, &calling::another()),
                },
                Ok(_) => self.reply_failed(reply, &calling::another()),
                Err(error) => self.reply_failed(reply, &error),
            },
            Tag::Error => {
                let error = wire::decode::<Error>(&frame.body).unwrap_or_else(|error| error);
                self.reply_on(reply, Err(error));
            }
            Tag::Hello | Tag::Request | Tag::Cancel => self.reply_failed(reply, &calling::another()),
        }
        if self.replies.len() < settings::REPLY_CONCURRENCY.get() as usize {
            self.next_look = self.next_look.min(Instant::now());
        }
    }

    pub(super) fn reply_ended(&mut self, mut reply: Box<Replying>, end: CallEnd) {
        reply.settle(&end);
        let stored = bare_transaction(|| {
            durable();
            owner::as_owner(|| reply.check_free())?;
            let ended = reply.ended(&end)?;
            if matches!(ended, Ended::Heard { next: Next::Done, .. }) {
                owner::as_owner(|| jobs::end(&reply.job, "succeeded", None))?;
            }
            Ok(ended)
        });
        match stored {
            Ok(ended) => match reply.take(ended, end) {
                Next::Done => {}
                next => self.reply_on(reply, Ok(next)),
            },
            Err(error) if end.error.is_none() && error.kind == Kind::NotReady && reply.stores_again() => {
                self.note::<()>(Err(error));
                self.keep_unstored(reply, end);
            }
            // What is wrong with the reply is told, not that it could not be told at once.
            Err(error) if reply.is_once() && end.lost => self.reply_lost(reply, end.error.as_ref().unwrap_or(&error)),
            Err(error) => self.reply_failed(reply, end.error.as_ref().unwrap_or(&error)),
        }
    }

    /// Keeps the end of a turn that was heard whole, to be taken again in a second.
    fn keep_unstored(&mut self, reply: Box<Replying>, end: CallEnd) {
        let at = Instant::now() + STORE_AGAIN;
        self.next_look = self.next_look.min(at);
        self.unstored.push(Unstored { reply, end, at });
    }

    /// Keeps it where the gateway did not say whether the value fits; gives back any other reply.
    pub(super) fn keep_unchecked(&mut self, mut reply: Box<Replying>) -> Option<Box<Replying>> {
        let Some(end) = reply.unchecked() else { return Some(reply) };
        if reply.stores_again() {
            self.keep_unstored(reply, end);
        } else {
            let error = Error::not_ready("nobody could tell whether the value fits its schema").hint("Ask again.");
            self.reply_failed(reply, &error);
        }
        None
    }

    pub(super) fn store_again(&mut self) {
        let now = Instant::now();
        let due: Vec<Unstored> = self.unstored.extract_if(.., |unstored| unstored.at <= now).collect();
        for Unstored { reply, end, .. } in due {
            self.reply_ended(reply, end);
        }
        let due: Vec<Unended> = self.unended.extract_if(.., |unended| unended.at <= now).collect();
        for ending in due {
            self.end_reply(ending);
        }
        let unstored = self.unstored.iter().map(|unstored| unstored.at);
        if let Some(at) = unstored.chain(self.unended.iter().map(|unended| unended.at)).min() {
            self.next_look = self.next_look.min(at);
        }
    }

    pub(super) fn reply_again(&mut self, reply: Box<Replying>, seconds: f64) {
        if reply.is_asked() {
            return self.reply_lost(reply, &unheard());
        }
        if reply.job.attempts >= MOST_ATTEMPTS {
            return self.reply_failed(reply, &too_often());
        }
        let given = transaction(|| {
            if reply.is_once() {
                reply.note_asked(false)?;
            }
            requeue(&reply.job, seconds, true)
        });
        if self.note(given).is_none() {
            self.owed.push(reply.job.clone());
        }
        self.next_look = self.next_look.min(Instant::now() + Duration::from_secs_f64(seconds));
    }

    /// Ends a reply whose model was asked and not heard; the step that waits for it decides whether it is asked again.
    pub(super) fn reply_lost(&mut self, reply: Box<Replying>, error: &Error) {
        self.end_reply(Unended::new(reply, How::Lost, error));
    }

    pub(super) fn reply_failed(&mut self, reply: Box<Replying>, error: &Error) {
        self.end_reply(Unended::new(reply, How::Failed, error));
    }

    /// Stores how a reply ended. Where that cannot be done now it is done later, and nobody is asked again; where it can never
    /// be, what was said or called may be the cause, and the reply ends without.
    fn end_reply(&mut self, mut ending: Unended) {
        let ended = transaction(|| ending.store());
        let passes = ended.as_ref().is_err_and(|error| error.kind == Kind::NotReady);
        if self.note(ended).is_some() {
            return;
        }
        if passes && ending.stores_again() {
            return self.end_later(ending);
        }
        match &ending.how {
            How::Lost(reply) | How::Failed(reply) => {
                ending.how = How::Wordless { message: reply.message() };
                self.end_reply(ending);
            }
            How::Wordless { .. } => self.finish(&ending.job, "failed", Some(&ending.error)),
        }
    }

    fn end_later(&mut self, mut ending: Unended) {
        ending.at = Instant::now() + STORE_AGAIN;
        self.next_look = self.next_look.min(ending.at);
        self.unended.push(ending);
    }

    /// Writes what has come of all replies that are due, in one transaction.
    pub(super) fn write_replies(&mut self) {
        let now = Instant::now();
        let due: Vec<u32> = self
            .replies
            .iter()
            .filter(|(_, reply)| reply.due().is_some_and(|due| due <= now))
            .map(|(id, _)| *id)
            .collect();
        if due.is_empty() {
            return;
        }
        let due: Vec<&mut Replying> =
            self.replies.iter_mut().filter(|(id, _)| due.contains(id)).map(|(_, reply)| &mut **reply).collect();
        let written = transaction(|| due.iter().map(|reply| reply.write()).collect::<Result<Vec<bool>>>());
        // What could not be written now, because somebody holds its row say, comes with what is written next.
        let written = self.notes.note(written).unwrap_or_default();
        let written = written.into_iter().chain(std::iter::repeat(false));
        for (reply, is_written) in due.into_iter().zip(written) {
            reply.written(is_written);
        }
    }

    /// Ends the replies that their askers do not want any more. One that somebody holds just now stays named.
    pub(super) fn cancel_replies(&mut self) {
        let named = transaction(|| {
            spi::change(
                "with named as materialized ( \
                   select c.workspace_id, c.message_id, \
                     helper._cancel_waiting(c.workspace_id, c.message_id) as is_heard \
                   from helper.reply_cancellations c \
                 ), gone as ( \
                   delete from helper.reply_cancellations c using named n \
                   where n.is_heard and c.workspace_id = n.workspace_id and c.message_id = n.message_id \
                 ) \
                 select n.message_id from named n",
                &[],
                |row| row.get::<pgrx::Uuid>(1),
            )
        });
        let Some(named) = self.note(named).filter(|named| !named.is_empty()) else { return };
        let ids: Vec<u32> = self
            .replies
            .iter()
            .filter(|(_, reply)| named.iter().any(|message| *message == reply.message()))
            .map(|(id, _)| *id)
            .collect();
        let unwanted: Vec<Unstored> =
            self.unstored.extract_if(.., |unstored| named.contains(&unstored.reply.message())).collect();
        for Unstored { reply, .. } in unwanted {
            self.reply_failed(reply, &Error::new(Kind::Cancelled, "the reply was cancelled"));
        }
        for message in &named {
            if let Some(fetching) = self.fetching.remove(message) {
                self.forget_errands(*message, false);
                self.reply_failed(fetching.reply, &Error::new(Kind::Cancelled, "the reply was cancelled"));
            }
        }
        for id in ids {
            self.no_more_of(id);
            if let Some(reply) = self.replies.remove(&id) {
                self.reply_failed(reply, &Error::new(Kind::Cancelled, "the reply was cancelled"));
            }
        }
    }
}

fn too_often() -> Error {
    Error::not_ready("the reply was tried too often").hint("The server log says more; ask again.")
}

/// What the model said was lost with whoever asked it.
fn unheard() -> Error {
    Error::not_ready("the model was asked, and nobody heard what it said")
        .detail("The gateway, the worker or the server ended in between.")
        .hint("Ask again, if it may be asked and paid twice.")
}

/// Whether another try may help; what is not configured stays so.
fn is_transient(error: &Error) -> bool {
    error.hint.is_none()
}
