//! A bucket that fills in a minute.

use std::time::{Duration, Instant};

/// What may still be used now of so much in a minute; 0 a minute is no limit.
#[derive(Debug, Default)]
pub struct Bucket {
    most: u64,
    left: f64,
    filled: Option<Instant>,
}

impl Bucket {
    /// What it holds when full.
    pub fn most(&self) -> u64 {
        self.most
    }

    /// Another limit; a new bucket is full.
    pub fn set(&mut self, most: u64, now: Instant) {
        if most != self.most {
            self.fill(now);
            self.left += most as f64 - self.most as f64;
            self.most = most;
        }
    }

    /// Fills it up to `now`.
    pub fn fill(&mut self, now: Instant) {
        let since = self.filled.map_or(Duration::ZERO, |filled| now.saturating_duration_since(filled));
        self.left = (self.left + since.as_secs_f64() * self.most as f64 / 60.0).min(self.most as f64);
        self.filled = Some(now);
    }

    /// Whether there is room; one that asks for more than a full bucket gets it when it is full.
    pub fn has(&self, amount: u64) -> bool {
        self.most == 0 || self.left >= self.enough(amount)
    }

    /// Puts back, or takes where negative.
    pub fn give(&mut self, amount: f64) {
        if self.most > 0 {
            self.left = (self.left + amount).min(self.most as f64);
        }
    }

    /// Until there is room.
    pub fn wait(&self, amount: u64) -> Duration {
        let lacking = (self.enough(amount) - self.left).max(0.0);
        let wait = Duration::try_from_secs_f64(lacking * 60.0 / self.most.max(1) as f64);
        // Never so early that it has to be asked twice.
        wait.unwrap_or(Duration::from_secs(60)) + Duration::from_millis(1)
    }

    fn enough(&self, amount: u64) -> f64 {
        // What was added in small steps may be short of the whole by a rounding.
        amount.min(self.most) as f64 - 1e-6
    }
}
