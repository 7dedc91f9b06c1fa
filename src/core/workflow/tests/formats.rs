use crate::core::workflow::definition::Definition;
use crate::core::workflow::formats::translate;
use serde_json::{Value, json};

fn translated(definition: Value) -> (Value, Option<Value>) {
    let translated = translate(&definition).unwrap().unwrap();
    Definition::read(&translated.definition).unwrap();
    (translated.definition, translated.trigger)
}

#[test]
fn calls_with_variables_are_tools_with_templates() {
    let (definition, trigger) = translated(json!({
        "trigger_type": "event", "trigger_config": {"event_type": "wa_message_received"},
        "steps": [
            {"step": 1, "function": "get_ai_insights", "params": {"dataSource": "{{event.message}} {{tone}}"}, "output_var": "analysis"},
            {"step": 2, "function": "tag_contact", "params": {"contactId": "{{event.contact_id}}", "addTags": "{{analysis.suggested_tags}}"}},
        ],
    }));
    assert_eq!(
        definition,
        json!({"timeout": "300 s", "steps": [
            {"name": "step_1", "type": "tool", "tool": "get_ai_insights", "retry": {"attempts": 4},
             "arguments": {"data_source": "{{ input.message }} {{ input.tone }}"}},
            {"name": "step_2", "type": "tool", "tool": "tag_contact", "retry": {"attempts": 4},
             "arguments": {"contact_id": "{{ input.contact_id }}", "add_tags": "{{ steps.step_1.output.suggested_tags }}"}},
        ]})
    );
    assert_eq!(trigger, Some(json!({"type": "event", "event": "wa_message_received", "condition": null})));
}

#[test]
fn actions_conditions_and_delays_follow_each_other() {
    let (definition, trigger) = translated(json!({
        "trigger_type": "message_received",
        "steps": [
            {"id": "is-vip", "type": "condition", "condition": {"field": "contact.tier", "operator": "equals", "value": "v'ip"}},
            {"id": "1", "type": "action", "action": "send_message", "params": {"to": "{{event.phone}}", "message": "hi {{contact.name}}"}},
            {"id": "nap", "type": "delay", "delay_seconds": 90},
            {"id": "tag", "type": "action", "action": "add_tag", "params": {"tag": "new"}},
            {"id": "tell", "type": "action", "action": "notify_team", "params": {"user_id": "u", "message": "done"}},
            {"id": "more", "type": "condition", "condition": "{{text}} == 'x'"},
            {"id": "reply", "type": "action", "action": "ai_response", "params": {}},
        ],
    }));
    let steps = definition["steps"].as_array().unwrap();
    assert_eq!(
        steps[0],
        json!({"name": "is_vip", "type": "condition", "if": "$.input.contact.tier == \"v'ip\"", "then": ["step_1"]})
    );
    assert_eq!(
        steps[1]["arguments"],
        json!({"phone_number": "{{ input.phone }}", "message": "hi {{ input.contact.name }}"})
    );
    assert_eq!(steps[2], json!({"name": "nap", "type": "wait", "for": "90 s"}));
    assert_eq!(steps[3]["arguments"], json!({"contact_id": "{{ input.contact_id }}", "add_tags": ["new"]}));
    assert_eq!(steps[4]["arguments"], json!({"user_id": "u", "title": "done", "body": "done"}));
    assert_eq!(steps[5]["if"], json!("{{ input.text }} == 'x'"));
    assert_eq!(steps[6]["question"], json!("{{ input.message }}"));
    assert_eq!(trigger, Some(json!({"type": "event", "event": "wa_message_received", "condition": null})));
}

#[test]
fn ours_stays_and_what_has_no_counterpart_is_named() {
    assert_eq!(translate(&json!({"steps": [{"name": "a", "type": "sql", "sql": "s"}]})).unwrap(), None);
    let refused = |step: Value| translate(&json!({"steps": [step]})).unwrap_err().message;
    assert!(
        refused(json!({"id": "a", "type": "action", "action": "dance"})).starts_with("steps[0].action: is not one of")
    );
    assert_eq!(
        refused(json!({"id": "a", "type": "action", "action": "notify_team"})),
        "steps[0].params.user_id: is missing"
    );
    assert_eq!(refused(json!({"id": "a", "type": "delay"})), "steps[0].delay_seconds: is missing");
}

fn starts(definition: Value) -> Result<Option<Value>, String> {
    let mut definition = definition;
    definition["steps"] = json!([{"step": 1, "function": "report"}]);
    translate(&definition).map(|read| read.unwrap().trigger).map_err(|error| error.message)
}

#[test]
fn what_starts_it_is_handed_back_with_all_that_was_said() {
    let schedule = json!({"type": "schedule", "cron": "0 9 * * 1", "time_zone": "Asia/Jakarta"});
    for said in [
        json!({"trigger_type": "schedule", "trigger_config": {"cron": "0 9 * * 1", "timezone": "Asia/Jakarta"}}),
        json!({"trigger": {"type": "scheduled", "cron": "0 9 * * 1", "time_zone": "Asia/Jakarta"}}),
    ] {
        assert_eq!(starts(said), Ok(Some(schedule.clone())));
    }
    let condition = |filters: Value| {
        let said = json!({"trigger_type": "event", "trigger_config": {"event_type": "order.paid", "filters": filters}});
        starts(said).map(|trigger| trigger.unwrap()["condition"].clone())
    };
    assert_eq!(condition(Value::Null), Ok(Value::Null));
    assert_eq!(condition(json!({})), Ok(Value::Null));
    assert_eq!(
        condition(json!({"kind": "te\"xt", "event.contact.tier": ["vip", 2]})),
        Ok(json!(
            "@.payload.kind == \"te\\\"xt\" && (@.payload.contact.tier == \"vip\" || @.payload.contact.tier == 2)"
        ))
    );
    assert_eq!(
        condition(
            json!([{"field": "amount", "operator": "greater_than", "value": 5}, {"field": "tag", "operator": "exists"}])
        ),
        Ok(json!("@.payload.amount > 5 && @.payload.tag"))
    );
    let secret = json!({"type": "webhook", "secret": "0123456789abcdef"});
    let said = json!({"trigger_type": "webhook", "trigger_config": {"secret": "0123456789abcdef", "allowed_ips": []}});
    assert_eq!(starts(said), Ok(Some(secret)));
    assert_eq!(starts(json!({"trigger_type": "manual"})), Ok(Some(json!({"type": "manual"}))));
    assert_eq!(starts(json!({})), Ok(None));
}

#[test]
fn what_cannot_start_it_is_refused_by_its_place_and_no_secret_is_told() {
    for (said, message) in [
        (json!({"trigger_config": {"cron": "0 9 * * *"}}), "trigger_type: is missing"),
        (json!({"trigger_type": "moon"}), "trigger_type: \"moon\" is not a trigger"),
        (json!({"trigger_type": "schedule"}), "trigger_config.cron: is missing"),
        (
            json!({"trigger_type": "schedule", "trigger_config": {"cron": "at night"}}),
            "trigger_config: cron expression is not valid",
        ),
        (
            json!({"trigger": {"type": "schedule", "cron": "0 9 * * *", "timezone": "Mars"}}),
            "trigger: time zone \"Mars\" is not known",
        ),
        (
            json!({"trigger_type": "schedule", "trigger_config": {"cron": "0 9 * * *", "jitter": 3}}),
            "trigger_config.jitter: is not a known field",
        ),
        (
            json!({"trigger_type": "manual", "trigger_config": {"cron": "0 9 * * *"}}),
            "trigger_config.cron: is not a known field",
        ),
        (
            json!({"trigger_type": "event", "trigger_config": {"event_type": "a b"}}),
            "trigger_config.event_type: \"a b\" is not an event's name",
        ),
        (
            json!({"trigger_type": "message_received", "trigger_config": {"filters": {"a b": 1}}}),
            "trigger_config.filters.a b: is not the name of a field",
        ),
        (
            json!({"trigger_type": "tag_added", "trigger_config": {"filters": {"tag": {"not": 1}}}}),
            "trigger_config.filters.tag: is neither a text, a number, true, false nor a list of them",
        ),
        (
            json!({"trigger_type": "webhook", "trigger_config": {"secret": "0123456789abcdef", "allowed_ips": ["10.0.0.1"]}}),
            "trigger_config.allowed_ips: cannot be kept to",
        ),
        (
            json!({"trigger_type": "webhook", "trigger_config": {"secret": "hush"}}),
            "trigger_config.secret: is not one that requests can be signed with",
        ),
        (json!({"trigger": {"type": "manual"}, "trigger_type": "manual"}), "trigger: stands beside trigger_type"),
    ] {
        assert_eq!(starts(said), Err(message.to_owned()));
    }
}

#[test]
fn conditions_compare_as_their_operators_say() {
    let holds = |condition: Value, tags: Value| {
        let (definition, _) = translated(json!({"steps": [
            {"id": "if", "type": "condition", "condition": condition},
            {"id": "then", "type": "action", "action": "add_tag", "params": {"tag": "new"}}]}));
        let test = crate::core::workflow::value::Condition::read(definition["steps"][0]["if"].as_str().unwrap(), "if")
            .unwrap();
        let input = json!({"amount": 7, "text": "two bags (of 5.0 kg)", "tags": tags});
        test.holds(&crate::core::workflow::value::Context::new([("input", input)]))
    };
    for (operator, field, value, expected) in [
        ("equals", "amount", json!(7), true),
        ("equals", "text", json!("two"), false),
        ("not_equals", "amount", json!(7), false),
        ("not_equals", "event.amount", json!(8), true),
        ("greater_than", "amount", json!(6.5), true),
        ("greater_than", "amount", json!(7), false),
        ("less_than", "amount", json!(8), true),
        ("less_than", "text", json!(8), false),
        ("contains", "text", json!("(of 5.0"), true),
        ("contains", "text", json!("of 5x0"), false),
        ("contains", "tags", json!("vip"), true),
        ("contains", "tags", json!("vi"), false),
        ("exists", "text", Value::Null, true),
        ("exists", "nothing", Value::Null, false),
    ] {
        let condition = json!({"field": field, "operator": operator, "value": value});
        assert_eq!(holds(condition, json!(["new", "vip"])), expected, "{operator} {field} {value}");
    }
}
