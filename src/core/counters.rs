//! Counters of budgets, all that a server counts at once, in one table of fixed size: what each has left is decided here,
//! with the clock given. Where the table is, and who may look at it when, is the caller's.

/// Counters in the table.
pub const COUNTERS: usize = 4096;
/// Counters of one database: the others always have some.
pub const OF_DATABASE: usize = 3072;
/// Counters of one workspace, so that one with thousands of people leaves the rest of its database most of the table.
pub const OF_WORKSPACE: usize = 1024;
/// Counters that one person's calls have made. Three units by two periods, for all and for each, of the workspace and of
/// all workspaces: a call needs 36 at most, and a person works in several workspaces. Whoever makes a thousand
/// workspaces with budgets holds a part in thirty of the table.
pub const OF_PERSON: usize = 128;

/// Seconds after which one that no call needs may make room for another. By then the records of its calls are stored,
/// from which it begins again.
pub const IDLE: i64 = 60;
/// Seconds after which a call under way is taken for one that nobody ends: its session was terminated. No call may take
/// half as long.
const ABANDONED: i64 = 2 * 3600;

/// Whose counter it is; a part that is absent stands for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The database.
    pub database: u32,
    /// The workspace, where the budget is of one.
    pub workspace: Option<[u8; 16]>,
    /// The person whose call made it.
    pub person: Option<[u8; 16]>,
}

impl Owner {
    /// Whether two have the person, the workspace and the database in common.
    fn in_common(&self, other: &Owner) -> [bool; 3] {
        let database = self.database == other.database;
        let workspace = database && self.workspace.is_some() && self.workspace == other.workspace;
        let person = database && self.person.is_some() && self.person == other.person;
        [person, workspace, database]
    }
}

#[derive(Clone, Copy, Default)]
struct Counter {
    key: [u8; 16],
    /// End of the period, in seconds since 1970; a counter whose period is over is free.
    until: i64,
    used: i64,
    /// Which of all that ever were it is.
    number: u64,
    /// Calls that have something set aside.
    under_way: u32,
    /// When a call last began or ended.
    touched: i64,
    owner: Owner,
}

impl Counter {
    fn is_idle(&self, now: i64) -> bool {
        let rest = if self.under_way == 0 { IDLE } else { ABANDONED };
        self.touched.saturating_add(rest) <= now
    }
}

/// The table.
#[derive(Clone, Copy)]
pub struct Counters {
    counters: [Counter; COUNTERS],
    made: u64,
    evicted: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Counters { counters: [Counter::default(); COUNTERS], made: 0, evicted: 0 }
    }
}

/// What a call may take of a budget.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// Which budget.
    pub key: [u8; 16],
    /// End of its period.
    pub until: i64,
    /// How much it allows.
    pub limit: i64,
    /// How much the call may take.
    pub amount: i64,
}

/// Something set aside.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    at: usize,
    number: u64,
    amount: i64,
}

/// What became of setting aside.
#[derive(Debug)]
pub enum Outcome {
    /// All of it, in the order of the needs.
    Held(Vec<Held>),
    /// Nothing: this need is more than what is left.
    Over {
        /// Which need.
        which: usize,
        /// What is left.
        left: i64,
    },
    /// Nothing: some have no counter.
    Missing,
}

/// What became of making a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// It is there.
    There,
    /// What is used has to be read again.
    Stale,
    /// There is no room.
    Full,
}

impl Counters {
    fn find(&self, key: &[u8; 16], until: i64) -> Option<usize> {
        self.counters.iter().position(|counter| counter.key == *key && counter.until == until)
    }

    /// Whether a budget has a counter.
    pub fn knows(&self, key: &[u8; 16], until: i64) -> bool {
        self.find(key, until).is_some()
    }

    /// Sets aside what a call may take, of every budget or of none.
    pub fn reserve(&mut self, needs: &[Need], now: i64) -> Outcome {
        let mut held = Vec::with_capacity(needs.len());
        for (which, need) in needs.iter().enumerate() {
            let Some(at) = self.find(&need.key, need.until) else { return Outcome::Missing };
            let counter = &self.counters[at];
            if counter.used.saturating_add(need.amount) > need.limit {
                return Outcome::Over { which, left: need.limit.saturating_sub(counter.used) };
            }
            held.push(Held { at, number: counter.number, amount: need.amount });
        }
        for part in &held {
            let counter = &mut self.counters[part.at];
            counter.used += part.amount;
            counter.under_way += 1;
            counter.touched = now;
        }
        Outcome::Held(held)
    }

    /// Puts what a call took in place of what was set aside. A counter that was made anew meanwhile knows it already.
    pub fn settle(&mut self, held: &Held, amount: i64, now: i64) {
        let counter = &mut self.counters[held.at];
        if counter.number == held.number {
            counter.used = counter.used.saturating_add(amount.saturating_sub(held.amount));
            counter.under_way = counter.under_way.saturating_sub(1);
            counter.touched = now;
        }
    }

    /// Changes whenever a counter makes room for another; see [`Counters::make`].
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Makes a counter that begins with what is recorded as used, which was read when [`Counters::evicted`] was
    /// `evicted`: one that was counting and is gone since may have counted more than that.
    pub fn make(&mut self, (key, until): (&[u8; 16], i64), owner: Owner, used: i64, evicted: u64, now: i64) -> Made {
        if self.knows(key, until) {
            return Made::There;
        }
        if self.evicted != evicted {
            return Made::Stale;
        }
        let Some(at) = self.room(owner, now) else { return Made::Full };
        if self.counters[at].until > now {
            self.evicted += 1;
        }
        self.made += 1;
        self.counters[at] = Counter { key: *key, until, used, number: self.made, under_way: 0, touched: now, owner };
        Made::There
    }

    /// Where a counter may be made: a free place, or that of an idle one. Whoever has all of a share gives up one of it.
    fn room(&self, owner: Owner, now: i64) -> Option<usize> {
        let live = || self.counters.iter().enumerate().filter(|(_, counter)| counter.until > now);
        for (share, most) in [OF_PERSON, OF_WORKSPACE, OF_DATABASE].into_iter().enumerate() {
            let belongs = |counter: &Counter| owner.in_common(&counter.owner)[share];
            if live().filter(|(_, counter)| belongs(counter)).count() >= most {
                let idle = live().filter(|(_, counter)| belongs(counter) && counter.is_idle(now));
                return idle.min_by_key(|(_, counter)| counter.touched).map(|(at, _)| at);
            }
        }
        self.counters.iter().position(|counter| counter.until <= now).or_else(|| {
            let idle = live().filter(|(_, counter)| counter.is_idle(now));
            idle.min_by_key(|(_, counter)| counter.touched).map(|(at, _)| at)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNTIL: i64 = 1_000_000;

    fn key(of: usize) -> [u8; 16] {
        (of as u128 + 1).to_le_bytes()
    }

    fn person(number: u8) -> Owner {
        Owner { database: 1, workspace: None, person: Some([number; 16]) }
    }

    fn make(counters: &mut Counters, of: usize, owner: Owner, used: i64, now: i64) -> Made {
        let evicted = counters.evicted();
        counters.make((&key(of), UNTIL), owner, used, evicted, now)
    }

    fn need(of: usize, amount: i64) -> Need {
        Need { key: key(of), until: UNTIL, limit: 10, amount }
    }

    fn hold(counters: &mut Counters, of: usize, amount: i64, now: i64) -> Option<Held> {
        match counters.reserve(&[need(of, amount)], now) {
            Outcome::Held(held) => held.first().copied(),
            _ => None,
        }
    }

    fn table() -> Box<Counters> {
        Box::default()
    }

    #[test]
    fn what_is_set_aside_is_nobody_elses() {
        let mut counters = table();
        assert!(matches!(counters.reserve(&[need(1, 1)], 0), Outcome::Missing));
        assert_eq!(make(&mut counters, 1, person(1), 4, 0), Made::There);
        let held = hold(&mut counters, 1, 5, 0).unwrap();
        assert!(matches!(counters.reserve(&[need(1, 2)], 0), Outcome::Over { which: 0, left: 1 }));
        counters.settle(&held, 1, 0);
        assert!(matches!(counters.reserve(&[need(1, 6)], 0), Outcome::Over { left: 5, .. }));
        assert!(hold(&mut counters, 1, 5, 0).is_some());
    }

    #[test]
    fn one_budget_that_is_used_up_leaves_the_others_as_they_were() {
        let mut counters = table();
        make(&mut counters, 1, person(1), 0, 0);
        make(&mut counters, 2, person(1), 10, 0);
        assert!(matches!(counters.reserve(&[need(1, 1), need(2, 1)], 0), Outcome::Over { which: 1, left: 0 }));
        assert!(hold(&mut counters, 1, 10, 0).is_some());
    }

    #[test]
    fn one_person_cannot_take_the_place_of_others() {
        let mut counters = table();
        for of in 0..OF_PERSON {
            assert_eq!(make(&mut counters, of, person(1), 0, 0), Made::There);
        }
        assert_eq!(make(&mut counters, 5000, person(1), 0, 0), Made::Full);
        assert_eq!(make(&mut counters, 5001, person(2), 0, 0), Made::There);
        // Not a workspace with many people either, nor a database.
        let mut made = OF_PERSON + 1;
        let mut fill = |counters: &mut Counters, workspace: u8, most: usize| {
            let owner = |person| Owner { database: 1, workspace: Some([workspace; 16]), person: Some([person; 16]) };
            let begin = made;
            while make(counters, made, owner(3 + (made / 100) as u8), 0, 0) == Made::There {
                made += 1;
                assert!(made < begin + most + 1);
            }
            made - begin
        };
        assert_eq!(fill(&mut counters, 1, OF_WORKSPACE), OF_WORKSPACE);
        assert_eq!(fill(&mut counters, 2, OF_WORKSPACE), OF_WORKSPACE);
        assert_eq!(fill(&mut counters, 3, OF_WORKSPACE), OF_DATABASE - 2 * OF_WORKSPACE - OF_PERSON - 1);
        let elsewhere = Owner { database: 2, ..person(9) };
        assert_eq!(make(&mut counters, 6000, elsewhere, 0, 0), Made::There);
    }

    #[test]
    fn a_counter_that_no_call_needs_makes_room_and_one_in_use_does_not() {
        let mut counters = table();
        for of in 0..OF_PERSON {
            make(&mut counters, of, person(1), 0, 0);
        }
        // The one with a call under way stays; of the others the one that rested longest goes.
        let held = hold(&mut counters, 0, 1, 0).unwrap();
        for of in 2..OF_PERSON {
            let held = hold(&mut counters, of, 1, 1).unwrap();
            counters.settle(&held, 1, 1);
        }
        assert_eq!(make(&mut counters, 5000, person(1), 0, IDLE - 1), Made::Full);
        assert_eq!(make(&mut counters, 5000, person(1), 0, IDLE), Made::There);
        assert!(!counters.knows(&key(1), UNTIL));
        assert!(counters.knows(&key(0), UNTIL));
        counters.settle(&held, 0, IDLE);
        // A call that nobody ended holds its counter for a while only.
        let mut counters = table();
        for of in 0..OF_PERSON {
            make(&mut counters, of, person(1), 0, 0);
            assert!(hold(&mut counters, of, 1, 0).is_some());
        }
        assert_eq!(make(&mut counters, 5000, person(1), 0, ABANDONED - 1), Made::Full);
        assert_eq!(make(&mut counters, 5000, person(1), 0, ABANDONED), Made::There);
    }

    #[test]
    fn what_was_read_before_a_counter_went_is_read_again() {
        let mut counters = table();
        let before = counters.evicted();
        for of in 0..OF_PERSON {
            make(&mut counters, of, person(1), 0, 0);
        }
        assert_eq!(make(&mut counters, 5000, person(1), 0, IDLE), Made::There);
        // The counter 0 may have counted calls since `before`, and it is gone.
        assert_eq!(counters.make((&key(0), UNTIL), person(2), 0, before, IDLE), Made::Stale);
    }

    #[test]
    fn what_was_set_aside_before_a_counter_was_made_anew_is_not_given_back() {
        let mut counters = table();
        for of in 0..OF_PERSON {
            make(&mut counters, of, person(1), 0, 0);
        }
        let held = hold(&mut counters, 0, 9, 0).unwrap();
        for of in 0..OF_PERSON {
            make(&mut counters, 5000 + of, person(1), 0, ABANDONED);
        }
        for of in 0..OF_PERSON {
            make(&mut counters, of, person(1), 9, 2 * ABANDONED);
        }
        counters.settle(&held, 0, 2 * ABANDONED);
        for of in 0..OF_PERSON {
            assert!(matches!(counters.reserve(&[need(of, 2)], 2 * ABANDONED), Outcome::Over { left: 1, .. }));
        }
    }

    #[test]
    fn a_period_that_is_over_leaves_its_place() {
        let mut counters = table();
        for of in 0..OF_PERSON {
            make(&mut counters, of, person(1), 0, 0);
        }
        let later = counters.make((&key(0), 2 * UNTIL), person(1), 0, 0, UNTIL);
        assert_eq!(later, Made::There);
    }
}
