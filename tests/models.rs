//! Models of the catalogue: what is known of each reaches its provider.

#![allow(clippy::unwrap_used, clippy::panic)]

mod cluster;
mod place;
mod provider;

use place::Place;
use serde_json::{Value, json};

/// What reached the provider last.
fn asked(place: &Place) -> Value {
    serde_json::from_slice(&place.server.seen().pop().unwrap().body).unwrap()
}

#[tokio::test]
async fn a_model_is_told_what_it_takes_and_nothing_that_it_refuses() {
    let place = Place::new().await;
    let ask = async |model: &str, options: &str| {
        let sql = format!(
            "select helper.ask('Hello', mode => 'copy', knowledge => false, model => '{model}', options => '{options}')"
        );
        place.ann.one::<String>(&sql, &[]).await;
        asked(&place)
    };
    // The mode names a temperature, and so does the call.
    for (model, temperature) in
        [("open/gpt-6.2-sol", Value::Null), ("claude/claude-opus-5-5", Value::Null), ("open/gpt-4.1", json!(0.5))]
    {
        let body = ask(model, r#"{"temperature": 0.5}"#).await;
        assert_eq!(body["temperature"], temperature, "{model}");
        assert_eq!(body["reasoning_effort"], Value::Null, "{model}");
    }
    let body = ask("open/gpt-6.2-sol", r#"{"tools": "all"}"#).await;
    assert!(!body["tools"].as_array().unwrap().is_empty());
    assert_eq!(body["reasoning_effort"], "none");
    assert_eq!(ask("open/gpt-4.1", r#"{"tools": "all"}"#).await["reasoning_effort"], Value::Null);

    // What an administrator says of a model is believed, and the rest is the catalogue's.
    place.admin.run(r#"select helper.set_model('open', 'gpt-6.2-sol', options => '{"tool_effort": "low"}')"#).await;
    let body = ask("open/gpt-6.2-sol", r#"{"tools": "all", "temperature": 0.5}"#).await;
    assert_eq!((&body["reasoning_effort"], &body["temperature"]), (&json!("low"), &Value::Null));
    let wrong = place.admin.error(r#"select helper.set_model('open', 'm', options => '{"tool_effort": 1}')"#).await;
    assert_eq!(wrong.code().code(), "22023");
}

#[tokio::test]
async fn the_catalogue_has_models_of_each_purpose_with_dated_prices() {
    let place = Place::new().await;
    let missing: i64 = place
        .ann
        .one(
            "select count(*) from helper.model_catalog c where c.input_price is null or c.priced_on < '2026-11-01' \
             or c.purpose = 'chat' and (c.output_price is null or c.context_window is null or c.output_limit is null) \
             or c.purpose = 'embedding' and c.dimensions is null",
            &[],
        )
        .await;
    assert_eq!(missing, 0);
    let purposes: Vec<String> =
        place.ann.one("select array_agg(distinct c.purpose order by c.purpose) from helper.model_catalog c", &[]).await;
    assert_eq!(purposes, ["chat", "embedding", "image", "speech", "transcription"]);
}
