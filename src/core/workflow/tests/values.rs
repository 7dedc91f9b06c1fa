use crate::core::workflow::value::{Condition, Context, Template};
use proptest::prelude::*;
use serde_json::{Value, json};

fn context() -> Context {
    let mut context = Context::new([(
        "input",
        json!({"name": "Ada", "n": 7, "list": [{"x": 1}, {"x": 2}], "evil": "{{ input.n }}"}),
    )]);
    context.set_step("a", Some(json!({"status": "succeeded", "output": {"rows": [{"name": "r"}]}})));
    context
}

fn render(value: Value) -> Value {
    Template::read(&value, "t").unwrap().render(&context()).unwrap()
}

fn holds(text: &str) -> bool {
    Condition::read(text, "when").unwrap().holds(&context())
}

#[test]
fn a_template_alone_keeps_its_type_and_in_text_it_is_text() {
    assert_eq!(render(json!("{{ input.n }}")), json!(7));
    assert_eq!(render(json!(" {{input.n}}")), json!(" 7"));
    assert_eq!(render(json!({"a": ["{{ input.list }}", 1]})), json!({"a": [[{"x": 1}, {"x": 2}], 1]}));
    assert_eq!(render(json!("{{ input.name }}: {{ input.list[0] }}")), json!("Ada: {\"x\":1}"));
    assert_eq!(render(json!("{{ steps.a.output.rows[0].name }}")), json!("r"));
    assert_eq!(render(json!("{{ input.list[*].x }}")), json!([1, 2]));
    assert_eq!(render(json!("{{ input.list[?@.x > 1].x }}")), json!([2]));
    assert_eq!(render(json!("{{ input['name'] }}")), json!("Ada"));
}

#[test]
fn what_is_missing_has_a_default_or_is_an_error() {
    assert_eq!(render(json!("{{ input.x | default: {\"a\": {\"b\": \"}}\"}} }}")), json!({"a": {"b": "}}"}}));
    assert_eq!(render(json!("{{ steps.a.error.message | default: null }}")), json!(null));
    let error = Template::read(&json!("{{ input.x }}"), "t").unwrap().render(&context()).unwrap_err();
    assert_eq!(error.message, "\"{{ input.x }}\" selects nothing");
}

#[test]
fn a_value_is_never_read_as_a_template() {
    assert_eq!(render(json!("{{ input.evil }}")), json!("{{ input.n }}"));
    assert_eq!(render(json!("a {{ input.evil }}")), json!("a {{ input.n }}"));
}

#[test]
fn expressions_are_filters_over_the_context() {
    assert!(holds("@.input.n >= 7 && @.steps.a.output.rows[0].name == 'r'"));
    assert!(holds("{{ input.n }} == 7"));
    assert!(holds("{{ input.evil }} == '{' || @.input.list[?@.x == $.input.list[1].x]"));
    assert!(holds("length(@.input.list) == 2 && search(@.input.name, 'd[a]')"));
    assert!(!holds("@.input.nothing") && !holds("{{ input.n }} < 7"));
    for text in [
        "",
        "7",
        "@",
        "$",
        "@.steps",
        "@.input.n = 7",
        "@.a == '{{ input.n }}'",
        "{{ input.n",
        "{{ input.n || @.input.x }}",
        "$..a[?@..b]",
    ] {
        assert!(Condition::read(text, "when").is_err(), "{text}");
    }
}

#[test]
fn brackets_within_brackets_are_read_fast_or_refused() {
    for (open, close) in [("@.a[?", "]"), ("length(", ")"), ("!(", ")"), ("count(@[?", "])==1"), ("value(@.a[?", "])")]
    {
        for depth in [2, 3, 5, 50, 300] {
            let text = format!("{}@.x{}", open.repeat(depth), close.repeat(depth));
            let before = std::time::Instant::now();
            let _ = Condition::read(&text, "when");
            assert!(before.elapsed().as_millis() < 1000, "{text}: {:?}", before.elapsed());
        }
    }
}

#[test]
fn what_becomes_too_large_is_refused() {
    let mut context = context();
    context.set("input", json!({"big": "x".repeat(600_000)}));
    let error =
        Template::read(&json!(["{{ input.big }}", "{{ input.big }}"]), "t").unwrap().render(&context).unwrap_err();
    assert_eq!(error.kind.sqlstate(), "53400");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,60}", path in "[@$.a-z0-9\\[\\]?*:,'\"(){}| &=<>!\\\\-]{0,40}") {
        for text in [text.clone(), format!("{{{{{text}}}}}"), path.clone(), format!("{{{{ {path} }}}}"), format!("{{{{ input.{path} | default: {text} }}}}")] {
            if let Ok(template) = Template::read(&json!(text), "t") {
                let _ = template.render(&context());
            }
            if let Ok(condition) = Condition::read(&text, "t") {
                condition.holds(&context());
            }
        }
    }

    #[test]
    fn a_value_comes_out_as_it_went_in(value in ".{0,80}") {
        let mut context = context();
        context.set("input", json!({"v": value.clone()}));
        let rendered = Template::read(&json!(["{{ input.v }}", "<{{ input.v }}>"]), "t").unwrap().render(&context).unwrap();
        prop_assert_eq!(rendered, json!([value.clone(), format!("<{value}>")]));
    }
}
