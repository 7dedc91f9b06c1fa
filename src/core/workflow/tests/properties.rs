//! Random graphs, and what happens to them in any order, with duplicates, stale attempts and crashes.

use crate::core::workflow::definition::Definition;
use crate::core::workflow::machine::{Action, Event, Given, Progress};
use crate::core::workflow::row::{Failure, Place, Row, Run, RunStatus, StepStatus};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A step of a random graph: its kind, the steps before it that it needs, and how its attempts end.
type Drawn = (u8, Vec<prop::sample::Index>, u8);
/// What a run came to, and its steps.
type End = (RunStatus, Option<Value>, Option<Failure>, Vec<(Place, StepStatus, u32, Option<Value>)>);
type Attempts = Vec<(Place, u32)>;

fn fixed(cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

fn definition(drawn: &[Drawn]) -> Value {
    let name = |step: usize| format!("s{step}");
    let mut steps: Vec<Value> = Vec::new();
    for (at, (kind, needs, _)) in drawn.iter().enumerate() {
        let needs: BTreeSet<usize> = needs.iter().filter(|_| at > 0).map(|need| need.index(at)).collect();
        let needs: Vec<String> = needs.into_iter().map(name).collect();
        let mut step = match kind % 8 {
            0 if at + 1 < drawn.len() => {
                json!({"type": "condition", "if": "@.input.yes == true", "then": name(at + 1)})
            }
            1 if at + 1 < drawn.len() => {
                json!({"type": "condition", "if": "@.input.yes == false", "then": [], "else": name(at + 1)})
            }
            2 => json!({"type": "map", "over": [1, 2, 3], "concurrency": 2, "on_error": "skip",
                "step": {"type": "sql", "sql": "select 1", "retry": {"attempts": 2}}}),
            3 => json!({"type": "wait", "for": "1 s"}),
            4 if at + 1 < drawn.len() => json!({"type": "sql", "sql": "select 1", "on_error": {"goto": name(at + 1)}}),
            5 => json!({"type": "http", "tool": "t", "on_error": "skip", "retry": {"attempts": 2}}),
            6 => json!({"type": "sql", "sql": "select 1", "when": "@.input.yes == true"}),
            _ => json!({"type": "sql", "sql": "select 1", "retry": {"attempts": 3}}),
        };
        step["name"] = json!(name(at));
        step["needs"] = json!(needs);
        steps.push(step);
    }
    json!({"steps": steps})
}

/// What comes of an attempt: always the same, whenever it is asked.
fn outcome(drawn: &[Drawn], place: Place, attempt: u32) -> Event {
    let draw = u32::from(drawn[place.step].2) + place.item.unwrap_or(0) * 7 + attempt * 3;
    match draw % 8 {
        0 => Event::Failed { error: Failure::new("38000", "no"), retryable: true },
        1 => Event::Failed { error: Failure::new("22023", "never"), retryable: false },
        2 if attempt > 1 => Event::Uncertain { error: Failure::new("57014", "lost") },
        _ => Event::Succeeded { output: json!({"step": place.step, "attempt": attempt}) },
    }
}

/// A run with what is stored of it.
struct World<'d> {
    definition: &'d Definition,
    progress: Progress<'d>,
    stored: BTreeMap<Place, Row>,
    run: Run,
    now: i64,
}

fn given() -> Given {
    Given { input: json!({"yes": true}), ..Given::default() }
}

impl<'d> World<'d> {
    fn new(definition: &'d Definition) -> World<'d> {
        let progress = Progress::load(definition, given(), Run::queued(), Vec::new()).unwrap();
        World { definition, progress, stored: BTreeMap::new(), run: Run::queued(), now: 0 }
    }

    /// Stores, and checks that no step leaves an end, and that none begins before what it needs.
    fn store(&mut self) {
        for row in self.progress.take_changes() {
            if let Some(before) = self.stored.get(&row.place) {
                assert!(!before.status.is_end() || *before == row, "{before:?} became {row:?}");
            }
            self.stored.insert(row.place, row);
        }
        self.run = self.progress.run().clone();
    }

    fn crash(&mut self) {
        let rows = self.stored.values().cloned().collect();
        self.progress = Progress::load(self.definition, given(), self.run.clone(), rows).unwrap();
    }

    /// Begins what can be begun; all of it is handed over, so that it may end in any order.
    fn advance(&mut self, open: &mut Vec<(Place, u32)>) {
        for action in self.progress.next(self.now, &mut || 0.25) {
            let Action::Begin { place, attempt, .. } = action else { continue };
            for need in &self.definition.steps[place.step].needs {
                let need = self.progress.row(Place { step: *need, item: None }).unwrap();
                assert!(need.status.is_end(), "{place:?} begins before {need:?}");
            }
            let waits_for = json!({"of": place.step});
            assert!(self.progress.apply(place, attempt, Event::Waiting { waits_for, wake_at: None }, self.now, 0.0));
            assert!(!open.contains(&(place, attempt)), "{place:?} begins twice");
            open.push((place, attempt));
        }
        self.store();
    }

    fn end(&self) -> End {
        let rows = self.stored.values().map(|row| (row.place, row.status, row.attempt, row.output.clone())).collect();
        (self.run.status, self.run.output.clone(), self.run.error.clone(), rows)
    }
}

/// Runs to the end in the order that the choices make.
fn run<'d>(definition: &'d Definition, drawn: &[Drawn], choices: &[u8]) -> World<'d> {
    let mut world = World::new(definition);
    let (mut open, mut past): (Attempts, Attempts) = (Vec::new(), Vec::new());
    let mut choices = choices.iter().copied().chain(std::iter::repeat(0));
    for _ in 0..10_000 {
        world.advance(&mut open);
        if world.run.status.is_end() {
            return world;
        }
        let choice = choices.next().unwrap();
        match choice % 8 {
            1 => world.crash(),
            2 => {
                for (place, attempt) in &past {
                    let late = Event::Succeeded { output: json!("late") };
                    assert!(!world.progress.apply(*place, *attempt, late, world.now, 0.0));
                }
            }
            3 => {
                assert!(world.progress.pause(world.now));
                assert!(world.progress.next(world.now, &mut || 0.0).is_empty());
                world.store();
                world.crash();
                if let Some((place, attempt)) = open.pop() {
                    assert!(world.progress.apply(place, attempt, outcome(drawn, place, attempt), world.now, 0.25));
                    past.push((place, attempt));
                }
                world.store();
                assert!(world.progress.resume(world.now));
            }
            4 if !open.is_empty() => {
                let (place, attempt) = open[0];
                let stale = Event::Failed { error: Failure::new("38000", "stale"), retryable: false };
                assert!(!world.progress.apply(place, attempt + 1, stale, world.now, 0.0));
            }
            _ if open.is_empty() => world.now = world.progress.wake_at().unwrap_or(world.now),
            _ => {
                let (place, attempt) = open.remove(usize::from(choice / 8) % open.len());
                assert!(world.progress.apply(place, attempt, outcome(drawn, place, attempt), world.now, 0.25));
                past.push((place, attempt));
            }
        }
    }
    panic!("the run does not end: {:?}", world.stored);
}

#[test]
fn every_order_ends_in_the_same_state() {
    let step = (any::<u8>(), prop::collection::vec(any::<prop::sample::Index>(), 0..3), any::<u8>());
    let graph = prop::collection::vec(step, 1..9);
    let choices = prop::collection::vec(any::<u8>(), 0..60);
    let test = |(drawn, one, other): (Vec<Drawn>, Vec<u8>, Vec<u8>)| {
        let definition = Definition::read(&definition(&drawn)).unwrap();
        let (one, other) = (run(&definition, &drawn, &one), run(&definition, &drawn, &other));
        prop_assert_eq!(one.end(), other.end());
        prop_assert!(one.stored.values().all(|row| row.status.is_end()));
        Ok(())
    };
    fixed(400).run(&(graph, choices.clone(), choices), test).unwrap();
}

#[test]
fn a_cancelled_run_calls_off_all_that_it_waits_for() {
    let step = (any::<u8>(), prop::collection::vec(any::<prop::sample::Index>(), 0..3), any::<u8>());
    let test = |(drawn, steps): (Vec<Drawn>, usize)| {
        let definition = Definition::read(&definition(&drawn)).unwrap();
        let (mut world, mut open) = (World::new(&definition), Vec::new());
        for _ in 0..steps {
            world.advance(&mut open);
            if let Some((place, attempt)) = open.pop() {
                world.progress.apply(place, attempt, outcome(&drawn, place, attempt), 0, 0.0);
            }
        }
        world.advance(&mut open);
        world.crash();
        if world.progress.cancel(0) {
            let called_off = world.progress.next(0, &mut || 0.0).len();
            prop_assert_eq!(called_off, open.len());
            world.store();
            prop_assert!(world.stored.values().all(|row| row.status.is_end()));
            prop_assert_eq!(world.run.status, RunStatus::Cancelled);
        }
        for (place, attempt) in open {
            prop_assert!(!world.progress.apply(place, attempt, outcome(&drawn, place, attempt), 0, 0.0));
        }
        Ok(())
    };
    fixed(200).run(&(prop::collection::vec(step, 1..9), 0usize..6), test).unwrap();
}
