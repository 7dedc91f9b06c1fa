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
    assert_eq!(trigger, Some(json!({"type": "event", "config": {"event_type": "wa_message_received"}})));
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
    assert_eq!(trigger, Some(json!({"type": "event", "config": {"event_type": "wa_message_received"}})));
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
