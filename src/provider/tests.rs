#![allow(clippy::unwrap_used)]

use super::*;
use crate::core::chat::*;
use crate::core::error;
use serde_json::json;

/// A question and no settings.
pub(super) fn question() -> Chat {
    Chat { messages: vec![Message::text(Role::User, "What?")], ..Chat::default() }
}

/// A conversation with a part of each kind, and all settings.
pub(super) fn conversation() -> Chat {
    let media = |mime_type: &str, data: &[u8]| Media { mime_type: mime_type.into(), data: data.to_vec() };
    let call = |id: &str, arguments: &str, signature: Option<&str>| {
        let (name, signature) = ("search".to_owned(), signature.map(str::to_owned));
        Part::ToolCall(ToolCall { id: id.into(), name, arguments: arguments.into(), signature })
    };
    let result = |id: &str, content: &str, is_error| Part::ToolResult {
        id: id.into(),
        name: "search".into(),
        content: content.into(),
        is_error,
    };
    let thinking = |text: &str, signature: &str| Part::Thinking { text: text.into(), signature: signature.into() };
    let asked = vec![
        Part::Text("What is this?".into()),
        Part::Image(media("image/png", &[1, 2, 3])),
        Part::Document { name: "a.pdf".into(), media: media("application/pdf", b"%PDF") },
    ];
    let said = vec![
        thinking("Look first.", ""),
        thinking("Sealed.", "c2ln"),
        Part::Text("Let me see.".into()),
        call("a", r#"{"query":"x"}"#, Some("seal")),
        call("b", "{oops", None),
    ];
    let given = vec![Part::Text("Go on.".into()), result("b", "not JSON", true)];
    Chat {
        system: vec![
            SystemPart { text: "Be brief.".into(), cache: true },
            SystemPart { text: "Today is Monday.".into(), cache: false },
        ],
        messages: vec![
            Message { role: Role::User, parts: asked, cache: true },
            Message { role: Role::Assistant, parts: said, cache: false },
            Message { role: Role::User, parts: vec![result("a", "found", false)], cache: false },
            Message { role: Role::User, parts: given, cache: false },
        ],
        tools: vec![Tool {
            name: "search".into(),
            description: "Searches.".into(),
            parameters: r#"{"type":"object","properties":{"query":{"type":"string"}}}"#.into(),
        }],
        max_output_tokens: Some(500),
        temperature: Some(0.7),
        top_p: Some(0.9),
        stop: vec!["END".into()],
        user: Some("u1".into()),
        stream: true,
        ..Chat::default()
    }
}

/// What a reply says.
pub(super) fn read(kind: Kind, chat: &Chat, bytes: &[u8]) -> std::result::Result<Said, Failure> {
    let (mut decoder, mut events, mut said) = (decoder(kind, chat), Vec::new(), Said::default());
    decoder.push(bytes, &mut events)?;
    decoder.finish(&mut events)?;
    events.iter().for_each(|event| said.add(event));
    Ok(said)
}

fn failed(kind: Kind, status: u16, body: &str) -> Failure {
    failure(kind, status, &[], body.as_bytes())
}

#[test]
fn a_cause_is_told_by_code_then_status_then_words() {
    use Cause::*;
    use Kind::*;
    for (kind, status, body, cause, code) in [
        (
            OpenAi,
            429,
            json!({"error":{"type":"insufficient_quota","code":"insufficient_quota"}}),
            Quota,
            "insufficient_quota",
        ),
        (
            OpenAi,
            429,
            json!({"error":{"type":"tokens","code":"rate_limit_exceeded"}}),
            RateLimited,
            "rate_limit_exceeded",
        ),
        (
            OpenAi,
            400,
            json!({"error":{"type":"invalid_request_error","code":"context_length_exceeded"}}),
            TooLarge,
            "context_length_exceeded",
        ),
        (
            OpenAi,
            401,
            json!({"error":{"type":"invalid_request_error","code":"invalid_api_key"}}),
            Authentication,
            "invalid_api_key",
        ),
        (OpenAi, 404, json!({"error":{"type":"invalid_request_error","code":null}}), NotFound, "invalid_request_error"),
        (OpenAi, 200, json!({"error":{"type":"invalid_request_error"}}), BadRequest, "invalid_request_error"),
        (
            OpenAiCompatible,
            413,
            json!({"error":{"type":"tokens","code":"rate_limit_exceeded"}}),
            TooLarge,
            "rate_limit_exceeded",
        ),
        (
            OpenAiCompatible,
            400,
            json!({"object":"error","message":"This model's maximum context length is 4096 tokens","type":"BadRequestError","code":400}),
            TooLarge,
            "BadRequestError",
        ),
        (OpenAiCompatible, 200, json!({"error":{"code":502,"message":"x"}}), Unavailable, ""),
        (OpenAiCompatible, 402, json!({"error":{"code":402}}), Quota, ""),
        (
            Anthropic,
            400,
            json!({"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 9 > 8"}}),
            TooLarge,
            "invalid_request_error",
        ),
        (
            Anthropic,
            400,
            json!({"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low"}}),
            Quota,
            "invalid_request_error",
        ),
        (Anthropic, 529, json!({"type":"error","error":{"type":"overloaded_error"}}), Unavailable, "overloaded_error"),
        (
            Gemini,
            400,
            json!({"error":{"code":400,"status":"INVALID_ARGUMENT","details":[{"reason":"API_KEY_INVALID"}]}}),
            Authentication,
            "API_KEY_INVALID",
        ),
        (Gemini, 503, json!([{"error":{"code":503,"status":"UNAVAILABLE"}}]), Unavailable, "UNAVAILABLE"),
        (
            Gemini,
            400,
            json!({"error":{"status":"INVALID_ARGUMENT","message":"The input token count (9) exceeds"}}),
            TooLarge,
            "INVALID_ARGUMENT",
        ),
        (Ollama, 404, json!({"error":"model 'x' not found"}), NotFound, ""),
        (Ollama, 200, json!({"error":"model 'x' not found, try pulling it first"}), NotFound, ""),
        (Ollama, 400, json!({"error":"the input length exceeds the context length"}), TooLarge, ""),
        (OpenAi, 418, json!({}), BadRequest, ""),
        (OpenAi, 403, json!("x"), Permission, ""),
        (OpenAi, 422, json!({"detail":[]}), BadRequest, ""),
        (OpenAi, 301, json!({}), Nonsense, ""),
    ] {
        let failure = failed(kind, status, &body.to_string());
        assert_eq!((failure.cause, failure.code.as_deref().unwrap_or_default()), (cause, code), "{body}");
        assert_eq!(failure.status, status);
    }
    for (status, cause) in [(502, Unavailable), (200, Nonsense), (404, NotFound), (408, Unavailable)] {
        assert_eq!(failed(OpenAi, status, "<html>prompt is too long</html>").cause, cause);
    }
}

#[test]
fn headers_say_when_to_try_again() {
    let of = |headers: &[(&str, &str)], body: &str| {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        failure(Kind::Gemini, 429, &headers, body.as_bytes())
    };
    let wait = |headers: &[(&str, &str)]| of(headers, "").retry_after;
    assert_eq!(wait(&[("Retry-After", "20")]), Some(Duration::from_secs(20)));
    assert_eq!(wait(&[("retry-after", "20"), ("Retry-After-Ms", "1500.5")]), Some(Duration::from_micros(1_500_500)));
    for nonsense in ["-1", "NaN", "inf", "1e300", "Wed, 21 Oct 2026 07:28:00 GMT", ""] {
        assert_eq!(wait(&[("retry-after", nonsense)]), None, "{nonsense}");
    }
    let body = r#"{"error":{"status":"RESOURCE_EXHAUSTED","details":[{"@type":"x"},{"retryDelay":"34.5s"}]}}"#;
    assert_eq!(of(&[], body).retry_after, Some(Duration::from_millis(34_500)));
    assert_eq!(of(&[("retry-after", "2")], body).retry_after, Some(Duration::from_secs(2)));
    let headers = [("x-should-retry", "false"), ("X-Request-Id", "req_1")];
    assert_eq!((of(&headers, "").retry, of(&headers, "").request_id), (Some(false), Some("req_1".into())));
    assert!(of(&[], "").is_passing() && !of(&headers, "").is_passing());
}

#[test]
fn what_passes_is_tried_again() {
    let passes = |status, body: &str| failed(Kind::OpenAi, status, body).is_passing();
    for status in [408, 409, 429, 500, 503, 529, 200] {
        assert!(passes(status, "{}"), "{status}");
    }
    for status in [400, 401, 402, 403, 404, 413, 422, 302] {
        assert!(!passes(status, "{}"), "{status}");
    }
    let quota = Failure { retry: Some(true), ..failed(Kind::OpenAi, 402, "") };
    assert!(!quota.is_passing());
}

#[test]
fn an_error_shows_facts_and_never_the_reply() {
    let body = r#"{"error":{"message":"SECRET key sk-1 in prompt","type":"SECRET key","code":"SECRET key"},"request_id":"a b"}"#;
    let error = failed(Kind::OpenAi, 401, body).into_error("main", "m");
    assert!(!format!("{error:?}").contains("SECRET") && !format!("{error:?}").contains("sk-1"));
    assert_eq!(error.message, "provider \"main\" does not accept the credential");
    assert_eq!(error.detail.unwrap(), "Provider \"main\", model \"m\", HTTP status 401.");
    assert_eq!(error.hint.unwrap(), "Check the credential with helper.set_provider.");
    let body = r#"{"error":{"code":"rate_limit_exceeded"},"request_id":"req_7"}"#;
    let limited = Failure { retry_after: Some(Duration::from_millis(1200)), ..failed(Kind::OpenAi, 429, body) };
    let error = limited.into_error("main", "m");
    assert_eq!(error.kind, error::Kind::RateLimited);
    assert_eq!(error.hint.unwrap(), "Try again in 2 seconds.");
    let detail = "Provider \"main\", model \"m\", HTTP status 429, code \"rate_limit_exceeded\", request \"req_7\".";
    assert_eq!(error.detail.unwrap(), detail);
}

#[test]
fn options_change_a_dialect() {
    let all =
        dialect(Kind::OpenAi, &json!({ "max_tokens": true, "stream_usage": false, "json_schema": false, "x": 1 }));
    assert_eq!(all, Dialect { max_tokens: true, stream_usage: false, json_schema: false, num_ctx: None });
    let plain = dialect(Kind::OpenAi, &json!({ "max_tokens": "yes" }));
    assert_eq!(plain, Dialect { max_tokens: false, stream_usage: true, json_schema: true, num_ctx: None });
    assert!(dialect(Kind::OpenAiCompatible, &Value::Null).max_tokens);
    assert_eq!(dialect(Kind::Ollama, &json!({ "num_ctx": 99 })).num_ctx, Some(99));
}
