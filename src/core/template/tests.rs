use super::*;
use crate::core::error::Kind;
use proptest::prelude::*;
use serde_json::json;

fn arguments(value: Value) -> Arguments {
    value.as_object().cloned().unwrap()
}

fn fill(form: Value, given: Value) -> Result<Filled> {
    Template::read(&form).unwrap().fill(&arguments(given))
}

fn refused(form: Value, given: Value) -> String {
    let error = fill(form, given).unwrap_err();
    assert_eq!(error.kind, Kind::BadArgument, "{error:?}");
    error.message
}

#[test]
fn arguments_go_where_the_template_names_them() {
    let form = json!({
        "method": "patch",
        "url": "https://API.example.com:8443/v1/items/{id}?fields=name&tag={tags}&page={page}&q=a-{word}",
        "headers": {"X-Tenant": "t-{{tenant}}", "X-Optional": "{{missing}}"},
        "body": {"name": "{{name}}", "note": "by {{name}}: {{list}}", "list": ["{{list}}", "{{missing}}", 1], "gone": "{{missing}}", "null": "{{null}}"},
    });
    let given = json!({"id": "a b/ü", "tags": ["x&y", "z"], "word": true, "tenant": 7, "name": "\"Ada\"", "list": [1, {"a": 2}], "null": null});
    let filled = fill(form, given).unwrap();
    assert_eq!(filled.method, "PATCH");
    assert_eq!(filled.url, "https://api.example.com:8443/v1/items/a%20b%2F%C3%BC?fields=name&tag=x%26y&tag=z&q=a-true");
    assert_eq!(filled.headers, [("x-tenant".to_owned(), "t-7".to_owned())]);
    let body: Value = serde_json::from_str(&filled.body.unwrap()).unwrap();
    let expected =
        json!({"name": "\"Ada\"", "note": "by \"Ada\": [1,{\"a\":2}]", "list": [[1, {"a": 2}], 1], "null": null});
    assert_eq!(body, expected);
}

#[test]
fn arguments_that_are_named_nowhere_are_sent_all_the_same() {
    let given = json!({"id": 5, "q": "a b", "flag": false, "none": null});
    let filled = fill(json!({"method": "GET", "url": "https://h/{id}"}), given.clone()).unwrap();
    assert_eq!((filled.url.as_str(), filled.body), ("https://h/5?q=a%20b&flag=false", None));
    let filled = fill(json!({"url": "https://h/{id}?x"}), given).unwrap();
    assert_eq!(filled.url, "https://h/5?x");
    assert_eq!(filled.body.unwrap(), r#"{"q":"a b","flag":false,"none":null}"#);
    assert_eq!(fill(json!({"url": "https://h"}), json!({})).unwrap().url, "https://h/");
}

#[test]
fn a_step_of_the_path_cannot_lead_elsewhere() {
    let form = json!({"method": "GET", "url": "https://h/items/{id}/x"});
    for id in ["", ".", "..", "../admin", "a/../b", "..\\admin", "a/.."] {
        refused(form.clone(), json!({"id": id}));
    }
    for id in [json!(null), json!([1]), json!({"a": 1})] {
        refused(form.clone(), json!({"id": id}));
    }
    refused(form, json!({}));
    for half in ["https://h/.{id}", "https://h/%2e{id}", "https://h/{id}%2E"] {
        refused(json!({"method": "GET", "url": half}), json!({"id": "."}));
    }
    let filled = fill(json!({"method": "GET", "url": "https://h/{id}"}), json!({"id": "%2e%2e"})).unwrap();
    assert_eq!(filled.url, "https://h/%252e%252e");
}

#[test]
fn a_header_ends_where_it_ends() {
    let form = json!({"url": "https://h/", "headers": {"x-name": "{{name}}"}});
    for name in ["a\r\nX-Admin: 1", "a\n", "a\r", "a\u{0}", "ü", "a\u{7f}"] {
        let message = refused(form.clone(), json!({"name": name}));
        assert!(message.contains("x-name") && !message.contains("Admin"), "{message}");
    }
    assert_eq!(fill(form, json!({"name": "a b"})).unwrap().headers[0].1, "a b");
}

#[test]
fn a_template_that_is_not_fit_for_use_is_refused() {
    for (form, part) in [
        (json!({}), "https://"),
        (json!({"url": "ftp://h/"}), "https://"),
        (json!({"url": "https://{host}/"}), "argument in its host"),
        (json!({"url": "https://h{x}.example.com/"}), "argument in its host"),
        (json!({"url": "https://h:{port}/"}), "argument in its host"),
        (json!({"url": "https://{user}@h/"}), "argument in its host"),
        (json!({"url": "https://user:secret@h/"}), "password"),
        (json!({"url": "https:///x"}), "no host"),
        (json!({"url": "https://h\\@evil/"}), "password"),
        (json!({"url": "https://h%2eexample/"}), "no host"),
        (json!({"url": "https://h/a b"}), "percent-encoded"),
        (json!({"url": "https://h/\n"}), "percent-encoded"),
        (json!({"url": "https://h/#x"}), "percent-encoded"),
        (json!({"url": "https://h/a\\b"}), "percent-encoded"),
        (json!({"url": "https://h/ü"}), "percent-encoded"),
        (json!({"url": "https://h/{a"}), "brace"),
        (json!({"url": "https://h/{}"}), "brace"),
        (json!({"url": "https://h/{{a}}"}), "brace"),
        (json!({"url": "https://h/?{a}=1"}), "name of a parameter"),
        (json!({"url": "https://h/?{a}"}), "name of a parameter"),
        (json!({"url": "https://h/", "method": "TRACE"}), "method"),
        (json!({"url": "https://h/", "method": 1}), "method"),
        (json!({"url": "https://h/", "method": "GET", "body": {}}), "no body"),
        (json!({"url": "https://h/", "headers": []}), "headers"),
        (json!({"url": "https://h/", "headers": {"x": 1}}), "not a text"),
        (json!({"url": "https://h/", "headers": {"x": "a\r\nb"}}), "cannot hold"),
        (json!({"url": "https://h/", "headers": {"x y": "a"}}), "not the name"),
        (json!({"url": "https://h/", "headers": {"Host": "a"}}), "cannot be set"),
        (json!({"url": "https://h/", "headers": {"Content-Length": "1"}}), "cannot be set"),
        (json!({"url": "https://h/", "headers": {"Idempotency-Key": "1"}}), "cannot be set"),
        (json!({"url": "https://h/", "headers": {"Proxy-Authorization": "1"}}), "cannot be set"),
    ] {
        let error = Template::read(&form).expect_err(&form.to_string());
        assert_eq!(error.kind, Kind::BadArgument);
        assert!(error.message.contains(part), "{form} {error:?}");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
}

#[test]
fn every_place_has_its_argument_and_every_argument_its_place() {
    let schema = json!({"properties": {"id": {}, "name": {}}, "required": ["id"]});
    let check = |form: Value| Template::read(&form).unwrap().check(&schema).map_err(|error| error.message);
    check(json!({"url": "https://h/{id}"})).unwrap();
    check(json!({"url": "https://h/{id}", "body": {"a": ["{{name}}"]}})).unwrap();
    assert!(check(json!({"url": "https://h/{other}"})).unwrap_err().contains("other"));
    assert!(check(json!({"url": "https://h/", "headers": {"x": "{{other}}"}})).unwrap_err().contains("other"));
    assert!(check(json!({"url": "https://h/{name}"})).unwrap_err().contains("not required"));
    assert!(check(json!({"url": "https://h/{id}", "body": {}})).unwrap_err().contains("no place"));
}

#[test]
fn a_url_is_bounded() {
    let form = json!({"method": "GET", "url": "https://h/{id}"});
    let error = fill(form, json!({"id": "x".repeat(MAX_URL)})).unwrap_err();
    assert_eq!(error.kind, Kind::OverLimit);
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                u8::from_str_radix(&String::from_utf8(vec![rest.next().unwrap(), rest.next().unwrap()]).unwrap(), 16)
                    .unwrap()
            }
            other => other,
        });
    }
    String::from_utf8(bytes).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_argument_leaves_its_place(step in ".{0,40}|[./\\\\%a]{1,6}", value in ".{0,40}", header in "[ -~]{0,20}|.{0,20}", name in "[a-z&=?#/]{1,6}") {
        let form = json!({
            "url": "https://api.example.com/a/{step}/b?v={value}",
            "method": "GET",
            "headers": {"x-h": "{{header}}"},
        });
        let mut given = arguments(json!({"step": step, "value": value, "header": header}));
        given.insert(format!("rest{name}"), json!(value));
        let Ok(filled) = Template::read(&form).unwrap().fill(&given) else { return Ok(()) };
        let rest = filled.url.strip_prefix("https://api.example.com/a/").unwrap();
        let (path, query) = rest.split_once('?').unwrap();
        let (one, last) = path.split_once('/').unwrap();
        prop_assert_eq!((decode(one), last), (step, "b"));
        let pairs: Vec<&str> = query.split('&').collect();
        prop_assert_eq!(pairs.len(), 2);
        prop_assert_eq!(decode(pairs[0].strip_prefix("v=").unwrap()), value.clone());
        let (key, sent) = pairs[1].split_once('=').unwrap();
        prop_assert_eq!((decode(key), decode(sent)), (format!("rest{name}"), value));
        prop_assert!(filled.url.bytes().all(|byte| byte.is_ascii_graphic()));
        prop_assert!(filled.headers[0].1.bytes().all(|byte| (b' '..=b'~').contains(&byte) || byte == b'\t'));
        prop_assert_eq!(&filled.headers[0].1, &header);
    }

    #[test]
    fn a_body_holds_each_value_as_it_is(text in ".{0,60}", number in any::<i64>()) {
        let form = json!({"url": "https://h/", "body": {"text": "{{text}}", "number": "{{number}}", "in": ["<{{text}}>"]}});
        let filled = fill(form, json!({"text": text, "number": number})).unwrap();
        let body: Value = serde_json::from_str(&filled.body.unwrap()).unwrap();
        prop_assert_eq!(body, json!({"text": text, "number": number, "in": [format!("<{text}>")]}));
    }

    #[test]
    fn any_url_is_read_or_refused(url in ".{0,40}|https?://[a-z{}@./?&=#]{0,30}") {
        let _ = Template::read(&json!({"url": url}));
    }
}
