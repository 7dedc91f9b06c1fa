//! The records of calls that ended, kept for each database until it has stored them.

use crate::core::wire::{Asker, CallEnd, Record};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;

/// Records kept of a database that does not take them; the oldest are dropped beyond that.
const KEPT: usize = 100_000;
/// Records sent in one frame.
const TOGETHER: usize = 256;
/// Dropped records between two lines in the log.
const DROPPED_LINE: u64 = 10_000;

/// The records of all databases.
pub struct Ledger {
    books: Mutex<HashMap<u32, Book>>,
    /// Before the first number: a number of an earlier gateway, acknowledged late, must not stand for one of ours.
    begun: u64,
}

struct Book {
    records: VecDeque<Record>,
    last: u64,
    dropped: u64,
    /// Counts subscribers; the newest alone is served.
    subscriber: u64,
    news: Arc<Notify>,
}

impl Default for Ledger {
    fn default() -> Self {
        let begun = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
        Ledger { books: Mutex::default(), begun }
    }
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Book>> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn book<'a>(&self, books: &'a mut HashMap<u32, Book>, database: u32) -> &'a mut Book {
        books.entry(database).or_insert_with(|| Book {
            records: VecDeque::new(),
            last: self.begun,
            dropped: 0,
            subscriber: 0,
            news: Arc::default(),
        })
    }

    /// Adds the record of a call.
    pub fn add(&self, asker: Asker, call: CallEnd, began_ms: u64) {
        let database = asker.database;
        let mut books = self.lock();
        let book = self.book(&mut books, database);
        book.last += 1;
        book.records.push_back(Record { number: book.last, asker, call, began_ms });
        let mut dropped = None;
        if book.records.len() > KEPT {
            book.records.pop_front();
            book.dropped += 1;
            dropped = (book.dropped % DROPPED_LINE == 1).then_some(book.dropped);
        }
        book.news.notify_waiters();
        drop(books);
        if let Some(count) = dropped {
            eprintln!(
                "helper_ai gateway: dropped {count} usage records of database {database}, which does not take them"
            );
        }
    }

    /// Removes the records up to a number.
    pub fn recorded(&self, database: u32, upto: u64) {
        if let Some(book) = self.lock().get_mut(&database) {
            let stored = book.records.partition_point(|record| record.number <= upto);
            book.records.drain(..stored);
        }
    }

    /// Begins to read a database's records; whoever read them before stops.
    pub fn subscribe(self: &Arc<Self>, database: u32) -> Subscription {
        let mut books = self.lock();
        let book = self.book(&mut books, database);
        book.subscriber += 1;
        book.news.notify_waiters();
        Subscription {
            ledger: Arc::clone(self),
            database,
            subscriber: book.subscriber,
            news: book.news.clone(),
            seen: 0,
        }
    }
}

/// A database's records, as they come.
pub struct Subscription {
    ledger: Arc<Ledger>,
    database: u32,
    subscriber: u64,
    news: Arc<Notify>,
    seen: u64,
}

impl Subscription {
    /// The next records, those that nobody has acknowledged first; `None` where a newer subscriber takes them.
    pub async fn next(&mut self) -> Option<Vec<Record>> {
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            // From here on no news is missed.
            news.as_mut().enable();
            {
                let books = self.ledger.lock();
                let book = books.get(&self.database)?;
                if book.subscriber != self.subscriber {
                    return None;
                }
                let from = book.records.partition_point(|record| record.number <= self.seen);
                let records: Vec<Record> = book.records.range(from..).take(TOGETHER).cloned().collect();
                if let Some(last) = records.last() {
                    self.seen = last.number;
                    return Some(records);
                }
            }
            news.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::chat::Usage;
    use crate::core::wire::Outcome;

    fn add(ledger: &Ledger, database: u32) {
        let asker = Asker {
            id: [0; 16],
            database,
            workspace: [0; 16],
            user: None,
            conversation: None,
            message: None,
            purpose: String::new(),
        };
        let call = CallEnd {
            provider_id: [0; 16],
            own: false,
            provider: String::new(),
            model: String::new(),
            outcome: Outcome::Succeeded,
            usage: Usage::default(),
            estimated: false,
            guessed_tokens: 0,
            cost_nanos: 0,
            latency_ms: 0,
            first_token_ms: None,
            attempts: 0,
            lost: false,
            provider_request_id: None,
            error: None,
        };
        ledger.add(asker, call, 0);
    }

    #[tokio::test]
    async fn records_are_told_again_until_they_are_acknowledged() {
        let ledger = Arc::new(Ledger::default());
        for _ in 0..3 {
            add(&ledger, 1);
        }
        add(&ledger, 2);
        let mut first = ledger.subscribe(1);
        let records = first.next().await.unwrap();
        assert_eq!(records.len(), 3);
        ledger.recorded(1, records[1].number);
        let again = ledger.subscribe(1).next().await.unwrap();
        assert_eq!(again[..], records[2..]);
        assert!(first.next().await.is_none(), "the newer one takes its place");
    }

    #[tokio::test]
    async fn whoever_waits_is_told_as_they_happen() {
        let ledger = Arc::new(Ledger::default());
        let mut subscription = ledger.subscribe(1);
        let waiting = tokio::spawn(async move { subscription.next().await.map(|records| records.len()) });
        tokio::task::yield_now().await;
        add(&ledger, 1);
        assert_eq!(waiting.await.unwrap(), Some(1));
    }

    #[tokio::test]
    async fn the_oldest_are_dropped() {
        let ledger = Arc::new(Ledger::default());
        for _ in 0..KEPT + 5 {
            add(&ledger, 1);
        }
        let first = ledger.subscribe(1).next().await.unwrap()[0].number;
        assert_eq!(first, ledger.begun + 6);
        assert_eq!(ledger.lock()[&1].records.len(), KEPT);
    }
}
