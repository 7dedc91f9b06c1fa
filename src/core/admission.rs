//! How many requests are let in in a second, counted for many doors in a table of fixed size. Two processes with one table
//! count together.

const SLOTS: usize = 1024;
/// Places in which a door may have its count.
const PROBES: usize = 16;

#[derive(Clone, Copy, Default)]
struct Slot {
    door: u64,
    second: u64,
    count: u32,
}

/// The counts of the present second.
#[derive(Clone, Copy)]
pub struct Admissions {
    slots: [Slot; SLOTS],
}

impl Default for Admissions {
    fn default() -> Self {
        Admissions { slots: [Slot::default(); SLOTS] }
    }
}

impl Admissions {
    /// Counts a request at a door; `false` where there were as many as `limit` in this second already. Where more doors
    /// than there is room for are busy in one second, some are not counted.
    pub fn admit(&mut self, door: u64, second: u64, limit: u32) -> bool {
        let places = (0..PROBES).map(|probe| (door as usize).wrapping_add(probe) % SLOTS);
        let current = |slot: &Slot| slot.second == second;
        let found = places
            .clone()
            .find(|at| current(&self.slots[*at]) && self.slots[*at].door == door)
            .or_else(|| places.clone().find(|at| !current(&self.slots[*at])));
        let Some(at) = found else { return true };
        let slot = &mut self.slots[at];
        if !current(slot) {
            *slot = Slot { door, second, count: 0 };
        }
        slot.count = slot.count.saturating_add(1);
        slot.count <= limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_the_limit_come_in_in_a_second_at_each_door() {
        let mut admissions = Admissions::default();
        for door in [1, 2, 1 + SLOTS as u64] {
            let admitted = (0..10).filter(|_| admissions.admit(door, 7, 3)).count();
            assert_eq!(admitted, 3, "{door}");
        }
        assert!(admissions.admit(1, 8, 3));
    }

    #[test]
    fn more_doors_than_there_is_room_for_are_let_in() {
        let mut admissions = Admissions::default();
        assert!((0..4000).all(|door| admissions.admit(door, 7, 1)));
    }
}
