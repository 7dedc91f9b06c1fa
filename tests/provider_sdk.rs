//! Our requests, sent by the providers' own Python SDKs to a provider that follows a script: they are of the SDKs' types,
//! leave the SDKs as they went in, and what the SDKs read in replies is what we read in them.

#![allow(clippy::unwrap_used, clippy::panic)]

mod cluster;
mod provider;

use helper_ai::core::chat::{
    Chat, Kind, Media, Message, Output, Part, Purpose, Role, Said, SystemPart, Tool, ToolCall, ToolChoice,
};
use helper_ai::provider::{Call, chat, decoder, dialect, embed};
use provider::{Answer, Say, Server};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

const KINDS: [Kind; 5] = [Kind::OpenAi, Kind::OpenAiCompatible, Kind::Anthropic, Kind::Gemini, Kind::Ollama];

/// The program that speaks by the SDKs.
struct Sdks {
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    _program: Child,
}

impl Sdks {
    fn start() -> Sdks {
        let cache = std::env::var_os("HELPER_CACHE").map(PathBuf::from);
        let python = cache.map(|cache| cache.join("test-venv/bin/python")).filter(|python| python.exists());
        let python =
            python.unwrap_or_else(|| panic!("run \"scripts/setup test\", and these tests after \". scripts/env\""));
        let mut program = Command::new(python)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/speak.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(program.stdout.take().unwrap()).lines();
        Sdks { stdin: program.stdin.take().unwrap(), lines, _program: program }
    }

    async fn ask(&mut self, task: &Value) -> Value {
        self.stdin.write_all(format!("{task}\n").as_bytes()).await.unwrap();
        serde_json::from_str(&self.lines.next_line().await.unwrap().unwrap()).unwrap()
    }

    /// Has a request sent, and gives what the SDK read in the reply, or why it did not come to that.
    async fn send(&mut self, kind: Kind, server: &Server, path: &str, body: &Value) -> Result<Value, String> {
        let is_openai = matches!(kind, Kind::OpenAi | Kind::OpenAiCompatible);
        let base = if is_openai { "/v1" } else { "" };
        let what = if path.contains("mbed") { "/embeddings" } else { "" };
        let mut task = json!({ "kind": format!("{}{what}", name(kind)), "base_url": server.url(base), "body": body });
        if kind == Kind::Gemini {
            let (model, verb) = path.strip_prefix("/v1beta/models/").unwrap().split_once(':').unwrap();
            task["model"] = model.into();
            if what.is_empty() {
                task["stream"] = verb.starts_with("stream").into();
            }
        }
        let before = server.count();
        let answer = self.ask(&task).await;
        for why in ["refused", "failed"] {
            if let Some(told) = answer[why].as_str() {
                return Err(format!("{why}: {told}"));
            }
        }
        let seen = server.seen().split_off(before);
        assert_eq!(seen.len(), 1);
        let (sent, given) = (spelled(kind, seen[0].json()), format!("{base}{path}"));
        match sent == *body && seen[0].path == given {
            true => Ok(answer["read"].clone()),
            false => Err(format!("the SDK would send {} {sent}\nand not {given} {body}", seen[0].path)),
        }
    }

    /// The same for a request of ours.
    async fn send_ours(&mut self, kind: Kind, server: &Server, call: &Call) -> Value {
        let body = known(kind, serde_json::from_slice(&call.body).unwrap());
        self.send(kind, server, &call.path, &body).await.unwrap_or_else(|why| panic!("{kind:?}: {why}"))
    }
}

/// What an SDK sent, as we would spell it.
fn spelled(kind: Kind, mut sent: Value) -> Value {
    match &mut sent {
        // It asks for base64 wherever it is not told what to ask for.
        Value::Object(body) if kind == Kind::OpenAiCompatible && body.contains_key("input") => {
            body.shift_remove("encoding_format");
        }
        Value::Object(body) if kind == Kind::Ollama && body.get("tools") == Some(&json!([])) => {
            body.shift_remove("tools");
        }
        // Protobuf's JSON has two spellings of each name, and two alphabets of base64.
        Value::Object(fields) if kind == Kind::Gemini => {
            let all = std::mem::take(fields).into_iter().map(|(name, value)| match (name.as_str(), value) {
                ("mime_type", value) => ("mimeType".to_owned(), value),
                ("parameters_json_schema", value) => ("parametersJsonSchema".to_owned(), value),
                ("data", Value::String(text)) => (name, text.replace('-', "+").replace('_', "/").into()),
                (_, value) => (name, spelled(kind, value)),
            });
            *fields = all.filter(|(name, value)| name != "generationConfig" || *value != json!({})).collect();
        }
        Value::Array(values) => *values = values.drain(..).map(|value| spelled(kind, value)).collect(),
        _ => {}
    }
    sent
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::OpenAi | Kind::OpenAiCompatible => "openai",
        Kind::Anthropic => "anthropic",
        Kind::Gemini => "gemini",
        Kind::Ollama => "ollama",
    }
}

/// A body without what the SDK does not know, though servers do.
fn known(kind: Kind, mut body: Value) -> Value {
    let unknown: &[&str] = match kind {
        // Of vLLM, DeepSeek and others.
        Kind::OpenAiCompatible => &["reasoning_content"],
        // Ollama itself has had the ids of calls for longer than its SDK.
        Kind::Ollama => &["tool_call_id"],
        _ => &[],
    };
    for message in body.get_mut("messages").and_then(Value::as_array_mut).into_iter().flatten() {
        message.as_object_mut().unwrap().retain(|name, _| !unknown.contains(&name.as_str()));
        if kind == Kind::Ollama {
            for call in message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
                call.as_object_mut().unwrap().remove("id");
            }
        }
    }
    body
}

/// A conversation with all that a protocol has words for.
fn conversation(kind: Kind) -> Chat {
    let media = |mime_type: &str, data: &[u8]| Media { mime_type: mime_type.into(), data: data.to_vec() };
    let call = |id: &str, name: &str, arguments: &str, signature: Option<&str>| {
        let (id, name, arguments) = (id.into(), name.into(), arguments.into());
        Part::ToolCall(ToolCall { id, name, arguments, signature: signature.map(str::to_owned) })
    };
    let result = |id: &str, name: &str, content: &str, is_error| {
        let (id, name, content) = (id.into(), name.into(), content.into());
        Part::ToolResult { id, name, content, is_error }
    };
    let tool = |name: &str, property: &str| Tool {
        name: name.into(),
        description: "Looks it up.".into(),
        parameters: json!({
            "type": "object",
            "properties": { property: { "type": "string", "description": "What to look for." } },
            "required": [property],
        })
        .to_string(),
    };
    let mut asked = vec![Part::Text("What are these?".into()), Part::Image(media("image/png", b"\x89PNG"))];
    asked.push(Part::Image(media("image/jpeg", b"\xff\xd8\xff")));
    if kind != Kind::Ollama {
        asked.push(Part::Document { name: "a.pdf".into(), media: media("application/pdf", b"%PDF-1.7") });
    }
    if kind == Kind::Anthropic {
        asked.push(Part::Document { name: "a.txt".into(), media: media("text/plain", "Öl".as_bytes()) });
    }
    let thinking = |text: &str, signature: &str| Part::Thinking { text: text.into(), signature: signature.into() };
    let said = vec![
        thinking("Look first.", ""),
        thinking("Sealed.", "c2ln"),
        thinking("", "redacted:c2ln"),
        Part::Text("Let me see.".into()),
        call("one", "search", r#"{"query":"Öl"}"#, Some("c2VhbA==")),
        call("two", "weather", r#"{"city":"Köln"}"#, None),
    ];
    let said = said.into_iter().filter(|part| match part {
        // Another provider's seal is not of Gemini's base64.
        Part::Thinking { signature, .. } => kind == Kind::Anthropic || !signature.starts_with("redacted"),
        _ => true,
    });
    let given = vec![result("one", "search", "found", false), result("two", "weather", "no such city", true)];
    let turn = |role, parts, cache| Message { role, parts, cache };
    Chat {
        system: vec![
            SystemPart { text: "Be brief.".into(), cache: true },
            SystemPart { text: "Today is Monday.".into(), cache: false },
        ],
        messages: vec![
            Message::text(Role::User, "Hello."),
            Message::text(Role::Assistant, "Hello!"),
            turn(Role::User, asked, true),
            turn(Role::Assistant, said.collect(), false),
            turn(Role::User, given, true),
            Message::text(Role::User, "And now?"),
        ],
        tools: vec![tool("search", "query"), tool("weather", "city")],
        max_output_tokens: Some(500),
        temperature: Some(0.7),
        top_p: Some(0.9),
        stop: vec!["END".into()],
        user: Some("u1".into()),
        ..Chat::default()
    }
}

/// The conversation with each form of the reply, each choice of tools, streamed and not.
fn variations(kind: Kind) -> Vec<Chat> {
    let schema = json!({
        "type": "object",
        "properties": { "good": { "type": "boolean" }, "why": { "type": "string" } },
        "required": ["good", "why"],
        "additionalProperties": false,
    });
    let outputs = [Output::Text, Output::Json, Output::Schema { name: "verdict".into(), schema: schema.to_string() }];
    let choices = [ToolChoice::Auto, ToolChoice::None, ToolChoice::Required, ToolChoice::Named("search".into())];
    let mut all = Vec::new();
    for output in outputs {
        for choice in choices.iter().filter(|choice| kind != Kind::Ollama || **choice == ToolChoice::Auto) {
            for stream in [true, false] {
                let (output, tool_choice) = (output.clone(), choice.clone());
                all.push(Chat { output, tool_choice, stream, ..conversation(kind) });
            }
        }
    }
    let question = vec![Message::text(Role::User, "How are you?")];
    all.push(Chat { messages: question, ..Chat::default() });
    all
}

fn request(kind: Kind, options: &Value, asked: &Chat) -> Call {
    chat(kind, &dialect(kind, options), "model-1", 100, asked).unwrap()
}

#[tokio::test]
async fn requests_are_what_the_sdks_send() {
    let server = Server::start().await;
    let mut sdks = Sdks::start();
    for kind in KINDS {
        for asked in variations(kind) {
            for options in [json!({}), json!({ "json_schema": kind == Kind::Anthropic, "num_ctx": 8192 })] {
                sdks.send_ours(kind, &server, &request(kind, &options, &asked)).await;
            }
        }
    }
    let fewer = json!({ "max_tokens": true, "stream_usage": false });
    sdks.send_ours(Kind::OpenAi, &server, &request(Kind::OpenAi, &fewer, &conversation(Kind::OpenAi))).await;
}

#[tokio::test]
async fn every_tool_that_ships_has_a_schema_and_is_accepted_by_every_sdk() {
    let cluster = cluster::Cluster::start().await;
    let functions = "select f.function_name, f.description, f.parameters_schema from helper.functions f order by 1";
    let rows = cluster.admin().await.query(functions, &[]).await.unwrap();
    println!("{} functions", rows.len());
    assert!(rows.len() >= 50, "{}", rows.len());
    let tools = rows.iter().map(|row| {
        let (name, schema): (String, Value) = (row.get(0), row.get(2));
        if let Err(error) = jsonschema::draft202012::meta::validate(&schema) {
            panic!("{name}: {error}");
        }
        assert_eq!((&schema["type"], &schema["additionalProperties"]), (&json!("object"), &json!(false)), "{name}");
        Tool { name, description: row.get(1), parameters: schema.to_string() }
    });
    let tools: Vec<Tool> = tools.collect();
    let (server, mut sdks) = (Server::start().await, Sdks::start());
    for kind in KINDS {
        let asked = Chat { tools: tools.clone(), ..conversation(kind) };
        let call = request(kind, &json!({}), &asked);
        if kind == Kind::Ollama {
            // It takes them, and leaves out the words of a schema that its own types have no field for.
            let body = known(kind, serde_json::from_slice(&call.body).unwrap());
            let sent = sdks.send(kind, &server, &call.path, &body).await;
            assert!(sent.as_ref().err().is_none_or(|why| why.starts_with("the SDK would send")), "{sent:?}");
        } else {
            sdks.send_ours(kind, &server, &call).await;
        }
    }
}

#[tokio::test]
async fn requests_for_embeddings_are_what_the_sdks_send() {
    let server = Server::start().await;
    let mut sdks = Sdks::start();
    let texts = ["one".to_owned(), "Öl".to_owned()];
    for kind in KINDS.into_iter().filter(|kind| *kind != Kind::Anthropic) {
        for (dimensions, purpose) in [(None, Purpose::Document), (Some(3), Purpose::Query)] {
            let call = embed(kind, "model-1", &texts, dimensions, purpose).unwrap();
            let read = sdks.send_ours(kind, &server, &call).await;
            let vectors = read["said"].as_array().unwrap();
            assert_eq!(vectors.len(), 2, "{kind:?}");
            let vector: Vec<f32> = serde_json::from_value(vectors[1].clone()).unwrap();
            assert_eq!(vector, provider::embedding("Öl", dimensions.unwrap_or(8) as usize), "{kind:?}");
        }
    }
}

#[tokio::test]
async fn a_wrong_request_is_refused_however_deep_the_mistake_lies() {
    let server = Server::start().await;
    let mut sdks = Sdks::start();
    for (kind, path, value, why) in [
        (Kind::OpenAi, "/n_choices", json!(1), "n_choices: Extra inputs"),
        (
            Kind::OpenAi,
            "/max_completion_tokens",
            json!("500"),
            "max_completion_tokens: Input should be a valid integer",
        ),
        (Kind::OpenAi, "/messages/3/content/1/image_url/uri", json!("x"), "image_url.uri: Extra inputs"),
        (Kind::OpenAi, "/messages/3/content/0/text", json!(5), "text: Input should be a valid string"),
        (Kind::OpenAi, "/messages/4/tool_calls/1/function/arguments", json!({}), "arguments: Input should be a valid"),
        (Kind::OpenAi, "/messages/5/name", json!("search"), "name: Extra inputs"),
        (Kind::Anthropic, "/system_prompt", json!("x"), "system_prompt: Extra inputs"),
        (Kind::Anthropic, "/messages/2/content/1/source/mime_type", json!("image/png"), "mime_type: Extra inputs"),
        (
            Kind::Anthropic,
            "/messages/2/content/1/source/media_type",
            json!("image/tiff"),
            "media_type: Input should be",
        ),
        (Kind::Anthropic, "/messages/4/content/1/is_error", json!("yes"), "is_error: Input should be a valid boolean"),
        (Kind::Anthropic, "/messages/0/content/0/lang", json!("en"), "lang: Extra inputs"),
        (Kind::Anthropic, "/messages/3/content/0/sealed", json!(true), "sealed: Extra inputs"),
        (Kind::Anthropic, "/tools/0/parameters", json!({}), "parameters: Extra inputs"),
        (Kind::Gemini, "/contents/2/parts/1/inlineData/mediaType", json!("image/png"), "mediaType: Extra inputs"),
        (Kind::Gemini, "/contents/3/parts/2/functionCall/args", json!("{}"), "args: Input should be"),
        (Kind::Gemini, "/generationConfig/maxTokens", json!(500), "maxTokens: Extra inputs"),
        (Kind::Gemini, "/generationConfig/maxOutputTokens", json!("500"), "the SDK would send"),
        (Kind::Ollama, "/messages/4/tool_calls/0/function/arguments", json!("{}"), "arguments: Input should be"),
        (Kind::Ollama, "/messages/3/audio", json!(["x"]), "the SDK would send"),
        (Kind::Ollama, "/tool_choice", json!("auto"), "unexpected keyword argument"),
        (Kind::Ollama, "/options/max_tokens", json!(5), "max_tokens: Extra inputs"),
    ] {
        let call = request(kind, &json!({}), &conversation(kind));
        let mut body = known(kind, serde_json::from_slice(&call.body).unwrap());
        let (parent, name) = path.rsplit_once('/').unwrap();
        body.pointer_mut(parent).unwrap()[name] = value;
        let sent = sdks.send(kind, &server, &call.path, &body).await;
        let refused = sent.err().unwrap_or_else(|| panic!("{kind:?} takes {path}"));
        assert!(refused.contains(why), "{kind:?} {path}: {refused}");
    }
}

#[tokio::test]
async fn the_scripted_provider_speaks_as_the_sdks_understand() {
    let server = Server::start().await;
    let mut sdks = Sdks::start();
    let tools = vec![("search".to_owned(), r#"{"query":"Öl"}"#.to_owned()), ("weather".to_owned(), "{}".to_owned())];
    for (kind, ends) in [
        (Kind::OpenAi, ["stop", "tool_calls"]),
        (Kind::Anthropic, ["end_turn", "tool_use"]),
        (Kind::Gemini, ["STOP", "STOP"]),
        (Kind::Ollama, ["stop", "stop"]),
    ] {
        for stream in [true, false] {
            let call = request(kind, &json!({}), &Chat { stream, ..conversation(kind) });
            let text = "Grüße aus Köln.";
            for (tools, end, calls) in [
                (Vec::new(), ends[0], json!([])),
                (tools.clone(), ends[1], json!([["search", { "query": "Öl" }], ["weather", {}]])),
            ] {
                server.next(Answer::Say(Say { text: text.into(), tools, ..Say::default() }));
                let read = sdks.send_ours(kind, &server, &call).await;
                assert_eq!(
                    (&read["said"], &read["calls"], &read["stop"]),
                    (&json!(text), &calls, &json!(end)),
                    "{kind:?}"
                );
                assert_eq!(read["tokens"][1], 3, "{kind:?} {read}");
            }
        }
    }
}

/// What our decoder reads.
fn read(kind: Kind, asked: &Chat, bytes: &[u8]) -> Option<Said> {
    let (mut decoder, mut events, mut said) = (decoder(kind, asked), Vec::new(), Said::default());
    decoder.push(bytes, &mut events).and_then(|()| decoder.finish(&mut events)).ok()?;
    events.iter().for_each(|event| said.add(event));
    Some(said)
}

#[tokio::test]
async fn recorded_replies_say_to_the_sdks_what_they_say_to_us() {
    let server = Server::start().await;
    let mut sdks = Sdks::start();
    let mut replayed = 0;
    for kind in [Kind::OpenAi, Kind::Anthropic, Kind::Gemini, Kind::Ollama] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cassettes").join(name(kind));
        for file in std::fs::read_dir(folder).unwrap() {
            let file = file.unwrap().path();
            let (ending, bytes) = (file.extension().unwrap().to_str().unwrap(), std::fs::read(&file).unwrap());
            let content_type = match ending {
                "sse" => "text/event-stream",
                "ndjson" => "application/x-ndjson",
                _ => "application/json",
            };
            let headers = vec![("content-type".to_owned(), content_type.to_owned())];
            server.next(Answer::Reply { status: 200, headers, body: bytes.clone() });
            let asked = Chat { stream: ending != "json", ..conversation(kind) };
            let call = request(kind, &json!({}), &asked);
            let body = known(kind, serde_json::from_slice(&call.body).unwrap());
            let theirs = sdks.send(kind, &server, &call.path, &body).await;
            let name = format!("{}: {theirs:?}", file.display());
            replayed += 1;
            let Some(ours) = read(kind, &asked, &bytes) else {
                // Gemini's SDK leaves it to its caller to look why a reply ended.
                let is_error = |read: &Value| read["stop"] == "MALFORMED_FUNCTION_CALL";
                assert!(theirs.map_or_else(|why| why.starts_with("failed: "), |read| is_error(&read)), "{name}");
                continue;
            };
            let theirs = theirs.unwrap_or_else(|_| panic!("{name}"));
            let arguments = |call: &ToolCall| match call.arguments.as_str() {
                "" => json!({}),
                text => serde_json::from_str(text).unwrap(),
            };
            let calls: Vec<Value> = ours.tool_calls().map(|call| json!([call.name, arguments(call)])).collect();
            let tokens = ours.usage.map(|usage| json!([usage.input, usage.output]));
            assert_eq!((&theirs["said"], &theirs["calls"]), (&json!(ours.text()), &json!(calls)), "{name}");
            assert_eq!(theirs["tokens"], tokens.unwrap_or_default(), "{name}");
        }
    }
    assert!(replayed > 20);
}
