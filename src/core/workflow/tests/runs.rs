use crate::core::workflow::definition::Definition;
use crate::core::workflow::machine::{Action, Event, Given, Progress, Work, replayed};
use crate::core::workflow::row::{Failure, Place, Reason, Row, Run, RunStatus, StepStatus};
use serde_json::{Value, json};

fn read(steps: Value) -> Definition {
    Definition::read(&json!({"steps": steps})).unwrap()
}

fn start(definition: &Definition) -> Progress<'_> {
    Progress::load(definition, Given { input: json!({"n": 1}), ..Given::default() }, Run::queued(), Vec::new()).unwrap()
}

fn next(progress: &mut Progress, now: i64) -> Vec<(Place, u32, Work)> {
    let actions = progress.next(now, &mut || 0.5);
    let begun = actions.into_iter().map(|action| match action {
        Action::Begin { place, attempt, work } => (place, attempt, work),
        Action::CallOff { .. } => panic!("{action:?}"),
    });
    begun.collect()
}

fn at(step: usize) -> Place {
    Place { step, item: None }
}

fn gives(output: Value) -> Event {
    Event::Succeeded { output }
}

fn fails(retryable: bool) -> Event {
    Event::Failed { error: Failure::new("38000", "no"), retryable }
}

fn waits() -> Event {
    Event::Waiting { waits_for: json!({"call": 1}), wake_at: None }
}

fn statuses(progress: &Progress) -> Vec<StepStatus> {
    (0..progress.definition().steps.len()).map(|step| progress.row(at(step)).unwrap().status).collect()
}

fn sql(name: &str) -> Value {
    json!({"name": name, "type": "sql", "sql": "select 1"})
}

use StepStatus::*;

#[test]
fn steps_follow_each_other_with_what_the_ones_before_gave() {
    let definition = read(json!([
        {"name": "a", "type": "sql", "sql": "select $1", "parameters": {"n": "{{ input.n }}"}},
        {"name": "b", "type": "tool", "tool": "t", "arguments": {"text": "n={{ steps.a.output.n }}"}},
    ]));
    let mut progress = start(&definition);
    let begun = next(&mut progress, 0);
    assert_eq!(begun, [(at(0), 1, Work::Sql { sql: "select $1".into(), parameters: json!({"n": 1}) })]);
    assert!(next(&mut progress, 0).is_empty());
    assert!(progress.apply(at(0), 1, gives(json!({"n": 7})), 0, 0.0));
    let arguments = json!({"text": "n=7"});
    assert_eq!(next(&mut progress, 0), [(at(1), 1, Work::Tool { tool: "t".into(), arguments, is_http: false })]);
    assert!(progress.apply(at(1), 1, gives(json!("done")), 0, 0.0));
    assert!(next(&mut progress, 0).is_empty());
    assert_eq!((progress.run().status, progress.run().output.clone()), (RunStatus::Succeeded, Some(json!("done"))));
}

#[test]
fn a_branch_chooses_and_the_other_is_skipped() {
    let definition = read(json!([
        {"name": "if", "type": "condition", "if": "{{ input.n }} > 5", "then": "big", "else": ["small"]},
        sql("big"), sql("small"),
        {"name": "after", "type": "sql", "sql": "select 1", "needs": ["big", "small"]},
    ]));
    let mut progress = start(&definition);
    assert_eq!(next(&mut progress, 0)[0].0, at(2));
    progress.apply(at(2), 1, gives(json!(1)), 0, 0.0);
    assert_eq!(next(&mut progress, 0)[0].0, at(3));
    progress.apply(at(3), 1, gives(json!(1)), 0, 0.0);
    next(&mut progress, 0);
    assert_eq!(statuses(&progress), [Succeeded, Skipped, Succeeded, Succeeded]);
}

#[test]
fn a_failure_pauses_before_another_attempt_and_what_the_other_end_asks_for_wins() {
    let mut step = sql("a");
    step["retry"] = json!({"attempts": 3, "delay": "10 s", "factor": 3, "most": "20 s"});
    let definition = read(json!([step]));
    let mut progress = start(&definition);
    next(&mut progress, 0);
    assert!(progress.apply(at(0), 1, fails(true), 100, 0.5));
    assert_eq!((progress.wake_at(), progress.run().status), (Some(5100), RunStatus::Running));
    assert!(next(&mut progress, 5099).is_empty());
    assert_eq!(next(&mut progress, 5100)[0].1, 2);
    let error = Failure { retry_after: Some(77), ..Failure::new("53000", "slow down") };
    assert!(progress.apply(at(0), 2, Event::Failed { error, retryable: true }, 6000, 0.5));
    assert_eq!(next(&mut progress, 6077)[0].1, 3);
    assert!(progress.apply(at(0), 3, fails(true), 7000, 0.5));
    next(&mut progress, 7000);
    assert_eq!(progress.run().error.as_ref().unwrap().step.as_deref(), Some("a"));
    assert_eq!(progress.run().status, RunStatus::Failed);
}

#[test]
fn events_of_other_attempts_and_of_what_has_ended_change_nothing() {
    let mut step = sql("a");
    step["retry"] = json!({"attempts": 2});
    let definition = read(json!([step]));
    let mut progress = start(&definition);
    next(&mut progress, 0);
    assert!(progress.apply(at(0), 1, waits(), 0, 0.0));
    assert!(!progress.apply(at(0), 1, waits(), 0, 0.0));
    assert!(!progress.apply(at(0), 2, gives(json!(1)), 0, 0.0));
    assert!(progress.apply(at(0), 1, fails(true), 0, 0.0));
    assert!(!progress.apply(at(0), 1, gives(json!(1)), 0, 0.0));
    next(&mut progress, 0);
    assert!(!progress.apply(at(0), 1, gives(json!(1)), 0, 0.0));
    assert!(progress.apply(at(0), 2, gives(json!(2)), 0, 0.0));
    assert!(!progress.apply(at(0), 2, fails(false), 0, 0.0));
    next(&mut progress, 0);
    assert_eq!(progress.run().output, Some(json!(2)));
}

#[test]
fn a_failure_fails_the_run_after_what_does_not_depend_on_it() {
    let definition = read(json!([
        sql("a"), sql("b"),
        {"name": "c", "type": "sql", "sql": "select 1", "needs": []},
        sql("d"),
    ]));
    let mut progress = start(&definition);
    assert_eq!(next(&mut progress, 0).len(), 2);
    progress.apply(at(0), 1, fails(false), 0, 0.0);
    assert!(next(&mut progress, 0).is_empty());
    assert!(!progress.run().status.is_end());
    progress.apply(at(2), 1, gives(json!(1)), 0, 0.0);
    assert_eq!(next(&mut progress, 0)[0].0, at(3));
    progress.apply(at(3), 1, gives(json!(1)), 0, 0.0);
    next(&mut progress, 0);
    assert_eq!(statuses(&progress), [Failed, Cancelled, Succeeded, Succeeded]);
    assert_eq!(progress.run().status, RunStatus::Failed);

    progress.retry("a", 0).unwrap();
    assert_eq!(progress.run().status, RunStatus::Running);
    assert_eq!(next(&mut progress, 0)[0].1, 2);
    progress.apply(at(0), 2, gives(json!(1)), 0, 0.0);
    assert_eq!(next(&mut progress, 0)[0].0, at(1));
    progress.apply(at(1), 1, gives(json!(1)), 0, 0.0);
    next(&mut progress, 0);
    assert_eq!(progress.run().status, RunStatus::Succeeded);
    assert!(progress.retry("a", 0).unwrap_err().message.contains("is succeeded, not failed"));
}

#[test]
fn a_failure_goes_where_the_definition_says() {
    let definition = read(json!([
        {"name": "a", "type": "sql", "sql": "select 1", "on_error": {"goto": "rescue"}},
        sql("b"),
        {"name": "rescue", "type": "ask", "question": "what of {{ steps.a.error.message }}?"},
    ]));
    let mut progress = start(&definition);
    next(&mut progress, 0);
    progress.apply(at(0), 1, fails(false), 0, 0.0);
    let begun = next(&mut progress, 0);
    assert!(matches!(&begun[0].2, Work::Ask { question, .. } if question == "what of no?"), "{begun:?}");
    progress.apply(at(2), 1, gives(json!(1)), 0, 0.0);
    next(&mut progress, 0);
    assert_eq!(statuses(&progress), [Failed, Skipped, Succeeded]);
    assert_eq!(progress.run().status, RunStatus::Succeeded);
}

#[test]
fn a_map_begins_within_its_concurrency_and_joins_in_order() {
    let definition = read(json!([{"name": "m", "type": "map", "over": "{{ input.list }}", "concurrency": 2,
        "step": {"type": "tool", "tool": "t", "arguments": {"x": "{{ item }}", "i": "{{ index }}"}, "on_error": "skip"}}]));
    let given = Given { input: json!({"list": ["a", "b", "{{ item }}"]}), ..Given::default() };
    let mut progress = Progress::load(&definition, given.clone(), Run::queued(), Vec::new()).unwrap();
    let item = |item| Place { step: 0, item: Some(item) };
    assert_eq!(next(&mut progress, 0).iter().map(|begun| begun.0).collect::<Vec<_>>(), [item(0), item(1)]);
    assert!(next(&mut progress, 0).is_empty());
    assert!(!progress.apply(at(0), 1, gives(json!(1)), 0, 0.0), "a map ends by itself");
    progress.apply(item(1), 1, fails(false), 0, 0.0);
    let rows: Vec<Row> = progress.take_changes();
    let mut progress = Progress::load(&definition, given, progress.run().clone(), rows).unwrap();
    let begun = next(&mut progress, 0);
    assert_eq!(begun.iter().map(|begun| (begun.0, begun.1)).collect::<Vec<_>>(), [(item(0), 1), (item(2), 1)]);
    assert!(matches!(&begun[1].2, Work::Tool { arguments, .. } if *arguments == json!({"x": "{{ item }}", "i": 2})));
    progress.apply(item(2), 1, gives(json!("z")), 0, 0.0);
    progress.apply(item(0), 1, gives(json!("x")), 0, 0.0);
    next(&mut progress, 0);
    assert_eq!(progress.run().output, Some(json!(["x", null, "z"])));
}

#[test]
fn an_item_that_failed_fails_its_map_and_is_tried_again_alone() {
    let definition =
        read(json!([{"name": "m", "type": "map", "over": [1, 2], "step": {"type": "sql", "sql": "select 1"}}]));
    let mut progress = start(&definition);
    let item = |item| Place { step: 0, item: Some(item) };
    next(&mut progress, 0);
    progress.apply(item(0), 1, gives(json!("x")), 0, 0.0);
    progress.apply(item(1), 1, Event::Uncertain { error: Failure::new("57014", "lost") }, 0, 0.0);
    next(&mut progress, 0);
    assert_eq!(progress.run().error.as_ref().unwrap().item, Some(1));
    progress.retry("m", 0).unwrap();
    assert_eq!(next(&mut progress, 0).iter().map(|begun| (begun.0, begun.1)).collect::<Vec<_>>(), [(item(1), 2)]);
    progress.apply(item(1), 2, gives(json!("y")), 0, 0.0);
    next(&mut progress, 0);
    assert_eq!(progress.run().output, Some(json!(["x", "y"])));
}

#[test]
fn a_map_whose_time_is_over_is_as_uncertain_as_what_was_sent_of_it() {
    let each = json!({"type": "http", "tool": "t"});
    let definition = read(json!([{"name": "m", "type": "map", "over": [1, 2], "timeout": "5 s", "step": each}]));
    let mut progress = start(&definition);
    let item = |item| Place { step: 0, item: Some(item) };
    next(&mut progress, 0);
    progress.apply(item(0), 1, waits(), 0, 0.0);
    progress.apply(item(1), 1, waits(), 0, 0.0);
    assert_eq!(progress.next(5_000, &mut || 0.0).len(), 2);
    assert_eq!((progress.run().status, statuses(&progress)), (RunStatus::Failed, vec![Failed]));
    progress.settle(item(0), 1, fails(false), 5_000);
    assert_eq!(statuses(&progress), [Failed]);
    progress.settle(item(1), 1, Event::Uncertain { error: Failure::new("57014", "lost") }, 5_000);
    assert_eq!(statuses(&progress), [Uncertain]);
    assert_eq!(progress.row(at(0)).unwrap().error.as_ref().unwrap().item, Some(1));
    progress.redrive();
    assert_eq!(progress.row(item(1)).unwrap().status, Uncertain);
}

#[test]
fn times_that_come_end_waits_attempts_and_runs() {
    let definition = Definition::read(&json!({"timeout": "1 min", "steps": [
        {"name": "nap", "type": "wait", "for": "10 s"},
        {"name": "call", "type": "http", "tool": "t", "timeout": "5 s", "on_error": "skip"},
        {"name": "ok", "type": "approval", "title": "go?", "needs": ["nap"], "lapse": "5 s", "on_lapse": "skip"},
        {"name": "event", "type": "wait", "event": "e", "needs": ["nap"]},
    ]}))
    .unwrap();
    let mut progress = start(&definition);
    assert!(next(&mut progress, 0).is_empty());
    assert_eq!((progress.wake_at(), progress.run().status), (Some(10_000), RunStatus::Waiting));
    let begun = next(&mut progress, 10_000);
    assert_eq!(begun.len(), 3);
    begun.iter().for_each(|begun| assert!(progress.apply(begun.0, 1, waits(), 10_000, 0.0)));
    assert_eq!(progress.waiting().count(), 3);
    assert_eq!(progress.wake_at(), Some(15_000));
    let called_off = progress.next(15_000, &mut || 0.0);
    assert!(called_off.iter().all(|action| matches!(action, Action::CallOff { .. })) && called_off.len() == 2);
    assert_eq!(statuses(&progress), [Succeeded, Uncertain, Skipped, Waiting]);
    assert_eq!(progress.row(at(2)).unwrap().error.as_ref().unwrap().reason, Some(Reason::Lapsed));
    assert!(progress.pause(20_000));
    assert!(progress.next(90_000, &mut || 0.0).is_empty());
    assert!(progress.resume(80_000));
    assert_eq!(progress.run().deadline, Some(120_000));
    assert!(progress.hold(Failure::new("42501", "no"), 80_000) && progress.run().error.is_some());
    assert!(progress.resume(80_000) && progress.run().error.is_none());
    assert_eq!(progress.next(120_000, &mut || 0.0).len(), 1);
    assert_eq!(progress.run().status, RunStatus::TimedOut);
    assert_eq!(statuses(&progress)[3], Cancelled);
    assert!(!progress.hold(Failure::new("42501", "no"), 120_000));
}

#[test]
fn a_stop_ends_the_run_and_cancels_what_is_left() {
    let definition = read(json!([
        {"name": "stop", "type": "stop", "status": "failed", "message": "n is {{ input.n }}", "output": {"n": "{{ input.n }}"}},
        sql("never"),
    ]));
    let mut progress = start(&definition);
    assert!(next(&mut progress, 0).is_empty());
    assert_eq!(progress.run().status, RunStatus::Failed);
    assert_eq!(progress.run().error.as_ref().unwrap().message, "n is 1");
    assert_eq!(progress.run().output, Some(json!({"n": 1})));
    assert_eq!(statuses(&progress), [Succeeded, Cancelled]);
}

#[test]
fn a_value_that_is_missing_fails_the_step_and_is_not_tried_again() {
    let definition = read(json!([{"name": "a", "type": "tool", "tool": "t", "retry": {"attempts": 5},
        "arguments": {"x": "{{ input.nothing }}"}}]));
    let mut progress = start(&definition);
    assert!(next(&mut progress, 0).is_empty());
    let error = progress.run().error.clone().unwrap();
    assert_eq!((error.sqlstate.as_str(), error.message.as_str()), ("22023", "\"{{ input.nothing }}\" selects nothing"));
}

#[test]
fn a_replay_copies_what_does_not_come_after_the_step() {
    let definition =
        read(json!([sql("a"), sql("b"), sql("c"), {"name": "d", "type": "sql", "sql": "select 1", "needs": ["a"]}]));
    let row = |step, status| Row { status, attempt: 1, ..Row::new(at(step)) };
    let rows = vec![row(0, Succeeded), row(1, Succeeded), row(2, Failed), row(3, Failed)];
    let kept =
        |from| replayed(&definition, rows.clone(), from).unwrap().iter().map(|row| row.place.step).collect::<Vec<_>>();
    assert_eq!((kept("a"), kept("b"), kept("c"), kept("d")), (vec![], vec![0], vec![0, 1], vec![0, 1]));
    assert_eq!(replayed(&definition, rows, "x").unwrap_err().message, "step \"x\" does not exist");
}

#[test]
fn a_run_is_redriven_from_where_it_failed_or_timed_out_and_not_where_a_stop_was_meant() {
    let definition = Definition::read(&json!({"timeout": "10 s", "steps": [
        sql("a"), sql("b"), {"name": "handled", "type": "sql", "sql": "select 1", "needs": [], "on_error": "skip"}]}))
    .unwrap();
    let mut progress = start(&definition);
    next(&mut progress, 0);
    progress.apply(at(0), 1, fails(false), 0, 0.0);
    progress.apply(at(2), 1, fails(false), 0, 0.0);
    assert!(!progress.redrive());
    next(&mut progress, 0);
    assert_eq!((progress.run().status, statuses(&progress)), (RunStatus::Failed, vec![Failed, Cancelled, Failed]));
    assert!(progress.redrive());
    assert_eq!(statuses(&progress), [Ready, Pending, Failed]);
    assert_eq!(next(&mut progress, 20_000).len(), 1);
    progress.apply(at(0), 2, gives(json!(1)), 20_000, 0.0);
    next(&mut progress, 20_000);
    progress.apply(at(1), 1, waits(), 20_000, 0.0);
    progress.next(30_000, &mut || 0.5);
    assert_eq!((progress.run().status, statuses(&progress)), (RunStatus::TimedOut, vec![Succeeded, Cancelled, Failed]));
    assert!(progress.redrive());
    next(&mut progress, 40_000);
    progress.apply(at(1), 2, gives(json!(2)), 40_000, 0.0);
    next(&mut progress, 40_000);
    assert_eq!((progress.run().status, progress.redrive()), (RunStatus::Succeeded, false));

    let definition = read(json!([{"name": "no", "type": "stop", "status": "failed"}]));
    let mut progress = start(&definition);
    next(&mut progress, 0);
    assert_eq!((progress.run().status, progress.redrive()), (RunStatus::Failed, false));
}
