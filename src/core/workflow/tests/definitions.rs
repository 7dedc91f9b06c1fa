use crate::core::workflow::definition::Definition;
use crate::core::workflow::diagram::mermaid;
use serde_json::{Value, json};

fn refused(definition: Value) -> String {
    let error = Definition::read(&definition).unwrap_err();
    assert_eq!(error.kind.sqlstate(), "22023");
    [Some(error.message), error.hint].into_iter().flatten().collect::<Vec<_>>().join(" / ")
}

fn refused_steps(steps: Value) -> String {
    refused(json!({"steps": steps}))
}

#[test]
fn what_is_wrong_is_named_by_its_place() {
    let sql = |name: &str| json!({"name": name, "type": "sql", "sql": "select 1"});
    let with = |field: &str, value: Value| {
        let mut step = sql("b");
        step[field] = value;
        json!([sql("a"), step])
    };
    for (steps, part) in [
        (with("needs", json!(["x"])), "steps[1].needs[0]: step \"x\" does not exist"),
        (with("needs", json!(["b"])), "steps[1]: steps wait for each other in a circle: b -> b"),
        (with("name", json!("a")), "steps[1].name: \"a\" is the name of steps[0] already"),
        (with("name", json!("a-b")), "steps[1].name: \"a-b\" is not a name"),
        (with("timeot", json!("1 s")), "steps[1].timeot: is not a known field / Perhaps you meant \"timeout\"."),
        (with("timeout", json!("1 moon")), "steps[1].timeout: is not an interval"),
        (with("type", json!("sqll")), "steps[1].type: is not one of"),
        (with("when", json!("@.input.a ==")), "steps[1].when: \"@.input.a ==\" cannot be read"),
        (with("when", json!("@.steps.b.output")), "steps[1].when: step \"b\" does not come before this one"),
        (with("when", json!("@.steps.c.output")), "steps[1].when: step \"c\" does not exist"),
        (
            with("when", json!("@.inputs.c")),
            "steps[1].when: value \"inputs\" does not exist / Perhaps you meant \"input\".",
        ),
        (with("parameters", json!({"a": ["{{ input."]})), "steps[1].parameters.a[0]:"),
        (with("sql", json!("select {{ input.a }}")), "steps[1].sql: holds a template, and none is read there"),
        (with("on_error", json!({"goto": "c"})), "steps[1].on_error.goto: step \"c\" does not exist"),
        (with("retry", json!({"attempts": 0})), "steps[1].retry.attempts: is not a whole number from 1 to 20"),
    ] {
        let message = refused_steps(steps.clone());
        assert!(message.contains(part), "{steps}: {message}");
    }
    assert_eq!(refused(json!([])), "definition is not an object");
    assert!(refused(json!({"steps": []})).starts_with("steps: has 0 elements"));
    assert!(refused(json!({"steps": [sql("a")], "output": "x".repeat(300_000)})).contains("is larger than"));
    let circle = json!([{"name": "a", "type": "sql", "sql": "s", "needs": ["c"]}, sql("b"), sql("c")]);
    assert!(refused_steps(circle).contains("steps wait for each other in a circle: a -> b -> c -> a"));
}

#[test]
fn needs_that_are_left_out_are_the_step_before_or_who_chooses() {
    let definition = Definition::read(&json!({"steps": [
        {"name": "a", "type": "condition", "if": "@.input.x", "then": "c", "else": "b"},
        {"name": "b", "type": "sql", "sql": "s"},
        {"name": "c", "type": "sql", "sql": "s"},
        {"name": "d", "type": "sql", "sql": "s"},
        {"name": "e", "type": "sql", "sql": "s", "needs": []},
    ]}))
    .unwrap();
    let needs: Vec<_> = definition.steps.iter().map(|step| step.needs.clone()).collect();
    assert_eq!(needs, [vec![], vec![0], vec![0], vec![2], vec![]]);
}

#[test]
fn a_diagram_has_labels_and_nothing_else_from_names_and_titles() {
    let evil = "a\"]\nclick s0 href \"javascript:alert(1)\" <img src=x onerror=y> `*_#quot; %%{init}%%";
    let definition = Definition::read(&json!({"steps": [
        {"name": "end", "type": "approval", "title": evil, "on_error": {"goto": "stop"}},
        {"name": "go", "type": "tool", "tool": evil},
        {"name": "stop", "type": "stop", "status": "failed"},
    ]}))
    .unwrap();
    let text = mermaid(&definition, Some(&[]));
    assert_eq!(text.lines().count(), 1 + 3 + 2 + 9 + 3, "{text}");
    for line in text.lines().filter(|line| line.contains("approval") || line.contains("tool")) {
        assert_eq!(line.matches('"').count(), 2, "{line}");
        let label = line.split('"').nth(1).unwrap().replace("<br/>", "");
        assert!(!label.contains(['<', '>', '[', ']', '(', ')', '`', '%', '{', '}', '*', ':']), "{line}");
    }
    assert!(text.contains("s0 -.->|\"error\"| s2") && text.contains("class s2 pending"), "{text}");
}

#[test]
fn a_key_counts_runs_by_their_input() {
    let definition = json!({"concurrency": {"limit": 1, "key": "{{ input.customer }}"}, "steps": [{"name": "a", "type": "sql", "sql": "s"}]});
    let definition = Definition::read(&definition).unwrap();
    assert_eq!(definition.concurrency_key(&json!({"customer": 5}), &json!(null)).unwrap(), "5");
    assert!(definition.concurrency_key(&json!({}), &json!(null)).is_err());
}
