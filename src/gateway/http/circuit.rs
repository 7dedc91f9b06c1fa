//! Leaves a provider alone that keeps failing. The clock comes in as an argument.

use std::time::{Duration, Instant};

/// Failures in a row that open it.
const FAILURES: u32 = 5;
/// The first cooldown; it doubles with every probe that fails.
const SHORTEST: Duration = Duration::from_secs(5);
/// The longest cooldown of our own.
const LONGEST: Duration = Duration::from_secs(60);
/// The longest that a provider may ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(600);

/// A provider's circuit.
#[derive(Debug, Default)]
pub struct Circuit {
    state: State,
    failures: u32,
    cooldown: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Closed,
    Open {
        until: Instant,
    },
    /// One request is trying.
    HalfOpen,
}

impl Circuit {
    /// How long it is to be left alone, or `None` where a request may try.
    pub fn remaining(&self, now: Instant) -> Option<Duration> {
        match self.state {
            State::Closed => None,
            State::Open { until } => Some(until.saturating_duration_since(now)).filter(|left| !left.is_zero()),
            State::HalfOpen => Some(Duration::from_secs(1)),
        }
    }

    /// Lets a request through and says whether it is the probe, or says how long it is to be left alone.
    pub fn admit(&mut self, now: Instant) -> Result<bool, Duration> {
        match (self.remaining(now), self.state) {
            (Some(left), _) => Err(left),
            (None, State::Open { .. }) => {
                self.state = State::HalfOpen;
                Ok(true)
            }
            (None, _) => Ok(false),
        }
    }

    /// The provider answered, if only to say what is wrong with the request.
    pub fn answered(&mut self) {
        *self = Circuit::default();
    }

    /// The provider could not answer.
    pub fn failed(&mut self, now: Instant, probe: bool, retry_after: Option<Duration>) {
        self.failures = self.failures.saturating_add(1);
        self.cooldown = match self.state {
            State::Closed if self.failures >= FAILURES => SHORTEST,
            State::HalfOpen if probe => (self.cooldown * 2).clamp(SHORTEST, LONGEST),
            // Begun before it opened.
            _ => return,
        };
        let cooldown = retry_after.map_or(self.cooldown, |asked| asked.min(LONGEST_ASKED));
        self.state = State::Open { until: now + cooldown };
    }

    /// The probe went away without an answer: the next request may try.
    pub fn abandoned(&mut self, now: Instant, probe: bool) {
        if probe && matches!(self.state, State::HalfOpen) {
            self.state = State::Open { until: now };
        }
    }

    /// Its name in views.
    pub fn name(&self, now: Instant) -> &'static str {
        match self.state {
            State::Closed => "closed",
            State::Open { until } if until > now => "open",
            State::Open { .. } | State::HalfOpen => "half_open",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(now: Instant) -> Circuit {
        let mut circuit = Circuit::default();
        for _ in 0..FAILURES {
            assert_eq!(circuit.admit(now), Ok(false));
            circuit.failed(now, false, None);
        }
        circuit
    }

    #[test]
    fn five_failures_in_a_row_open_it_and_one_probe_at_a_time_tries() {
        let now = Instant::now();
        let mut circuit = opened(now);
        assert_eq!(circuit.admit(now), Err(SHORTEST));
        let later = now + SHORTEST;
        assert_eq!(circuit.admit(later), Ok(true));
        assert!(circuit.admit(later).is_err());
        circuit.failed(later, true, None);
        assert_eq!(circuit.remaining(later), Some(SHORTEST * 2));
        let later = later + SHORTEST * 2;
        assert_eq!(circuit.admit(later), Ok(true));
        circuit.answered();
        assert_eq!(circuit.admit(later), Ok(false));
        assert_eq!(circuit.name(later), "closed");
    }

    #[test]
    fn an_answer_between_failures_keeps_it_closed() {
        let now = Instant::now();
        let mut circuit = Circuit::default();
        for _ in 0..20 {
            for _ in 1..FAILURES {
                circuit.failed(now, false, None);
            }
            circuit.answered();
        }
        assert_eq!(circuit.remaining(now), None);
    }

    #[test]
    fn the_cooldown_is_bounded_and_the_providers_own_wins() {
        let mut now = Instant::now();
        let mut circuit = opened(now);
        for _ in 0..10 {
            now += circuit.remaining(now).unwrap();
            assert_eq!(circuit.admit(now), Ok(true));
            circuit.failed(now, true, None);
        }
        assert_eq!(circuit.remaining(now), Some(LONGEST));
        now += LONGEST;
        assert_eq!(circuit.admit(now), Ok(true));
        circuit.failed(now, true, Some(Duration::from_secs(90)));
        assert_eq!(circuit.remaining(now), Some(Duration::from_secs(90)));
        now += Duration::from_secs(90);
        assert_eq!(circuit.admit(now), Ok(true));
        circuit.failed(now, true, Some(Duration::MAX));
        assert_eq!(circuit.remaining(now), Some(LONGEST_ASKED));
    }

    #[test]
    fn an_abandoned_probe_lets_the_next_one_try() {
        let now = Instant::now();
        let mut circuit = opened(now);
        let later = now + SHORTEST;
        assert_eq!(circuit.admit(later), Ok(true));
        circuit.abandoned(later, true);
        assert_eq!(circuit.admit(later), Ok(true));
    }
}
