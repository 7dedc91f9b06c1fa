//! What each protocol's replies look like.

use super::Say;
use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    OpenAi,
    Anthropic,
    Gemini,
    Ollama,
}

/// A streamed reply, cut into what goes out together.
pub struct Parts {
    pub before: Vec<u8>,
    pub words: Vec<Vec<u8>>,
    pub after: Vec<u8>,
}

/// A vector that the text alone decides.
pub fn embedding(text: &str, dimensions: usize) -> Vec<f32> {
    let mut state = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..dimensions).map(|_| next()).collect()
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().enumerate().fold(0_u32, |bits, (at, byte)| bits | u32::from(*byte) << (16 - 8 * at));
        for at in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * at) & 63) as usize] as char;
            text.push(if at > three.len() { '=' } else { letter });
        }
    }
    text
}

fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(texts) => texts.iter().filter_map(|text| text.as_str().map(str::to_owned)).collect(),
        Value::String(text) => vec![text.clone()],
        _ => Vec::new(),
    }
}

fn words(text: &str) -> Vec<&str> {
    text.split_inclusive(' ').collect()
}

fn sse(event: &str, data: &Value) -> Vec<u8> {
    let name = if event.is_empty() { String::new() } else { format!("event: {event}\n") };
    format!("{name}data: {data}\n\n").into_bytes()
}

/// A tool that the request wants to be called, which the script did not think of.
fn forced(request: &Value) -> Option<String> {
    let choice = &request["tool_choice"];
    choice["function"]["name"].as_str().or(choice["name"].as_str()).map(str::to_owned)
}

fn wants_json(request: &Value) -> bool {
    request["response_format"]["type"].as_str().is_some_and(|kind| kind != "text")
        || !request["format"].is_null()
        || !request["output_config"]["format"].is_null()
        || request["generationConfig"]["responseMimeType"] == "application/json"
}

/// The words and the tool calls, as the request wants them.
fn said(request: &Value, say: &Say) -> (String, Vec<(String, String)>) {
    let object = || if say.text.contains('{') { say.text.clone() } else { json!({ "answer": say.text }).to_string() };
    let is_json = serde_json::from_str::<Value>(&say.text).is_ok();
    match (say.tools.as_slice(), forced(request)) {
        ([_, ..], _) => (say.text.clone(), say.tools.clone()),
        ([], Some(name)) => (String::new(), vec![(name, if is_json { say.text.clone() } else { object() })]),
        ([], None) if wants_json(request) && !is_json => (object(), Vec::new()),
        ([], None) => (say.text.clone(), Vec::new()),
    }
}

fn arguments(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| json!({}))
}

/// The id of a call, by its place.
fn call_id(at: usize) -> String {
    format!("call-{}", at + 1)
}

fn finish(tools: &[(String, String)]) -> &'static str {
    if tools.is_empty() { "stop" } else { "tool_calls" }
}

fn stop_reason(tools: &[(String, String)]) -> &'static str {
    if tools.is_empty() { "end_turn" } else { "tool_use" }
}

/// What OpenAI's reply, or a chunk of one, is where a server leaves out what it can.
fn bare(mut reply: Value) -> Value {
    let without = |value: &mut Value, names: &[&str]| {
        value.as_object_mut().into_iter().for_each(|object| object.retain(|name, _| !names.contains(&name.as_str())));
    };
    without(&mut reply, &["id", "usage", "created", "object"]);
    let choice = &mut reply["choices"][0];
    without(choice, &["index", "logprobs"]);
    for part in ["delta", "message"] {
        let calls = choice.get_mut(part).and_then(|message| message.get_mut("tool_calls"));
        for call in calls.and_then(Value::as_array_mut).into_iter().flatten() {
            without(call, &["index", "id"]);
        }
    }
    reply
}

/// Events with the other end of lines.
fn crlf(events: &[u8]) -> Vec<u8> {
    events
        .iter()
        .flat_map(|byte| if *byte == b'\n' { &b"\r\n"[..] } else { std::slice::from_ref(byte) })
        .copied()
        .collect()
}

/// Tokens of prompt and reply.
fn tokens(request: &Value, text: &str, say: &Say) -> (usize, usize) {
    ((request.to_string().len() / 4 + 1) * say.prompt_times, words(text).len())
}

impl Protocol {
    pub fn of(path: &str) -> Option<Protocol> {
        let path = path.split('?').next()?;
        Some(match path {
            _ if path.ends_with("/chat/completions") || path.ends_with("/embeddings") => Protocol::OpenAi,
            _ if path.ends_with("/messages") => Protocol::Anthropic,
            _ if path.contains("/models/") && path.contains(':') => Protocol::Gemini,
            "/api/chat" | "/api/embed" => Protocol::Ollama,
            _ => return None,
        })
    }

    pub fn streams(self, path: &str, request: &Value) -> bool {
        match self {
            Protocol::Gemini => path.contains(":streamGenerateContent"),
            Protocol::Ollama => path.ends_with("/chat") && request["stream"] != false,
            _ => request["stream"] == true,
        }
    }

    pub fn content_type(self) -> &'static str {
        if self == Protocol::Ollama { "application/x-ndjson" } else { "text/event-stream" }
    }

    /// The error that comes in the middle of a stream.
    pub fn error(self) -> Vec<u8> {
        match self {
            Protocol::OpenAi => sse(
                "",
                &json!({"error": {"message": "The server had an error", "type": "server_error", "param": null, "code": null}}),
            ),
            Protocol::Anthropic => {
                sse("error", &json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}))
            }
            Protocol::Gemini => sse(
                "",
                &json!({"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}),
            ),
            Protocol::Ollama => b"{\"error\":\"llama runner process has terminated\"}\n".to_vec(),
        }
    }

    /// A reply in one piece.
    pub fn whole(self, path: &str, request: &Value, say: &Say) -> Value {
        let path = path.split('?').next().unwrap_or_default();
        if path.ends_with("/embeddings") || path.ends_with("/embed") || path.ends_with("EmbedContents") {
            return self.embeddings(request, say);
        }
        let (text, tools) = said(request, say);
        let (input, output) = tokens(request, &text, say);
        let model = &request["model"];
        match self {
            Protocol::OpenAi => {
                let mut message = json!({"role": "assistant", "content": text, "refusal": null});
                let calls = tools.iter().enumerate().map(|(at, (name, arguments))| {
                    json!({"id": call_id(at), "type": "function", "function": {"name": name, "arguments": arguments}})
                });
                if !tools.is_empty() {
                    message["tool_calls"] = calls.collect();
                }
                let mut reply = json!({
                    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model,
                    "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": say.stop.unwrap_or(finish(&tools))}],
                });
                if say.usage {
                    reply["usage"] = openai_usage(input, output);
                }
                if say.bare { bare(reply) } else { reply }
            }
            Protocol::Anthropic => {
                let mut content = Vec::new();
                if !text.is_empty() {
                    content.push(json!({"type": "text", "text": text}));
                }
                for (at, (name, input)) in tools.iter().enumerate() {
                    let (id, input) = (call_id(at), arguments(input));
                    content.push(json!({"type": "tool_use", "id": id, "name": name, "input": input}));
                }
                json!({
                    "id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": content,
                    "stop_reason": say.stop.unwrap_or(stop_reason(&tools)), "stop_sequence": null,
                    "usage": {
                        "input_tokens": input, "output_tokens": output,
                        "cache_creation_input_tokens": say.cache_written, "cache_read_input_tokens": 0,
                    },
                })
            }
            Protocol::Gemini => {
                gemini(&text, &tools, Some(say.stop.unwrap_or("STOP")), say.usage.then_some((input, output)))
            }
            Protocol::Ollama => {
                let mut reply = ollama(model, &text, &tools);
                ollama_end(&mut reply, say, say.usage.then_some((input, output)));
                reply
            }
        }
    }

    fn embeddings(self, request: &Value, say: &Say) -> Value {
        match self {
            Protocol::OpenAi => {
                let dimensions = request["dimensions"].as_u64().map_or(say.dimensions, |count| count as usize);
                let inputs = texts(&request["input"]);
                let data: Vec<Value> = inputs
                    .iter()
                    .enumerate()
                    .map(|(index, text)| {
                        let vector = embedding(text, dimensions);
                        let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                        let is_text = request["encoding_format"] == "base64";
                        let vector = if is_text { json!(base64(&bytes)) } else { json!(vector) };
                        json!({"object": "embedding", "index": index, "embedding": vector})
                    })
                    .collect();
                let mut reply = json!({"object": "list", "data": data, "model": request["model"]});
                if say.usage {
                    let count = inputs.iter().map(|text| words(text).len()).sum::<usize>();
                    reply["usage"] = json!({"prompt_tokens": count, "total_tokens": count});
                }
                reply
            }
            Protocol::Gemini => {
                let requests = request["requests"].as_array().cloned().unwrap_or_default();
                let one = |request: &Value| {
                    let dimensions =
                        request["outputDimensionality"].as_u64().map_or(say.dimensions, |count| count as usize);
                    let text = request["content"]["parts"][0]["text"].as_str().unwrap_or_default();
                    json!({"values": embedding(text, dimensions)})
                };
                json!({"embeddings": requests.iter().map(one).collect::<Vec<_>>()})
            }
            _ => {
                let inputs = texts(&request["input"]);
                let dimensions = request["dimensions"].as_u64().map_or(say.dimensions, |count| count as usize);
                let vectors: Vec<_> = inputs.iter().map(|text| embedding(text, dimensions)).collect();
                let count = inputs.iter().map(|text| words(text).len()).sum::<usize>();
                let mut reply =
                    json!({"model": request["model"], "embeddings": vectors, "total_duration": 1, "load_duration": 1});
                if say.usage {
                    reply["prompt_eval_count"] = json!(count);
                }
                reply
            }
        }
    }

    /// A reply piece by piece.
    pub fn stream(self, request: &Value, say: &Say) -> Parts {
        let (text, tools) = said(request, say);
        let (input, output) = tokens(request, &text, say);
        let usage = say.usage.then_some((input, output));
        let model = &request["model"];
        let mut after = Vec::new();
        match self {
            Protocol::OpenAi => {
                let chunk = |delta: Value, finish: Value| {
                    let chunk = json!({
                        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model,
                        "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}],
                    });
                    if say.bare { bare(chunk) } else { chunk }
                };
                let lines = |bytes: Vec<u8>| if say.bare { crlf(&bytes) } else { bytes };
                let before = sse("", &chunk(json!({"role": "assistant", "content": "", "refusal": null}), Value::Null));
                let word = |word: &&str| lines(sse("", &chunk(json!({"content": word}), Value::Null)));
                let words = words(&text).iter().map(word).collect();
                for (at, (name, arguments)) in tools.iter().enumerate() {
                    let call = json!({"index": at, "id": call_id(at), "type": "function", "function": {"name": name, "arguments": ""}});
                    after.extend(sse("", &chunk(json!({"tool_calls": [call]}), Value::Null)));
                    for part in halves(arguments) {
                        let call = json!({"index": at, "function": {"arguments": part}});
                        after.extend(sse("", &chunk(json!({"tool_calls": [call]}), Value::Null)));
                    }
                }
                after.extend(sse("", &chunk(json!({}), json!(say.stop.unwrap_or(finish(&tools))))));
                if say.bare {
                    return Parts { before: b": ping\r\n\r\n".to_vec(), words, after: lines(after) };
                }
                if usage.is_some() && request["stream_options"]["include_usage"] == true {
                    let mut last = chunk(json!({}), Value::Null);
                    last["choices"] = json!([]);
                    last["usage"] = openai_usage(input, output);
                    after.extend(sse("", &last));
                }
                after.extend(b"data: [DONE]\n\n");
                Parts { before, words, after }
            }
            Protocol::Anthropic => {
                let mut before = sse(
                    "message_start",
                    &json!({"type": "message_start", "message": {
                        "id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": [],
                        "stop_reason": null, "stop_sequence": null,
                        "usage": {"input_tokens": input, "output_tokens": 1,
                            "cache_creation_input_tokens": say.cache_written, "cache_read_input_tokens": 0},
                    }}),
                );
                before.extend(anthropic_block(0, &json!({"type": "text", "text": ""})));
                before.extend(sse("ping", &json!({"type": "ping"})));
                let delta = |index: u32, delta: Value| {
                    sse("content_block_delta", &json!({"type": "content_block_delta", "index": index, "delta": delta}))
                };
                let stop =
                    |index: u32| sse("content_block_stop", &json!({"type": "content_block_stop", "index": index}));
                let words =
                    words(&text).iter().map(|word| delta(0, json!({"type": "text_delta", "text": word}))).collect();
                after.extend(stop(0));
                for (index, (name, arguments)) in (1..).zip(&tools) {
                    let id = call_id(index as usize - 1);
                    let block = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                    after.extend(anthropic_block(index, &block));
                    for part in halves(arguments) {
                        after.extend(delta(index, json!({"type": "input_json_delta", "partial_json": part})));
                    }
                    after.extend(stop(index));
                }
                after.extend(sse(
                    "message_delta",
                    &json!({"type": "message_delta", "delta": {"stop_reason": say.stop.unwrap_or(stop_reason(&tools)), "stop_sequence": null},
                        "usage": {"output_tokens": output}}),
                ));
                after.extend(sse("message_stop", &json!({"type": "message_stop"})));
                Parts { before, words, after }
            }
            Protocol::Gemini => {
                let words = words(&text).iter().map(|word| sse("", &gemini(word, &[], None, None))).collect();
                after.extend(sse("", &gemini("", &tools, Some(say.stop.unwrap_or("STOP")), usage)));
                Parts { before: Vec::new(), words, after }
            }
            Protocol::Ollama => {
                let line = |value: &Value| format!("{value}\n").into_bytes();
                let words = words(&text).iter().map(|word| line(&ollama(model, word, &[]))).collect();
                let mut last = ollama(model, "", &[]);
                if !tools.is_empty() {
                    after.extend(line(&ollama(model, "", &tools)));
                }
                ollama_end(&mut last, say, usage);
                after.extend(line(&last));
                Parts { before: Vec::new(), words, after }
            }
        }
    }
}

fn openai_usage(input: usize, output: usize) -> Value {
    json!({
        "prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output,
        "prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0},
    })
}

fn halves(text: &str) -> [String; 2] {
    let letters: Vec<char> = text.chars().collect();
    let (first, second) = letters.split_at(letters.len() / 2);
    [first.iter().collect(), second.iter().collect()]
}

fn anthropic_block(index: u32, block: &Value) -> Vec<u8> {
    sse("content_block_start", &json!({"type": "content_block_start", "index": index, "content_block": block}))
}

fn gemini(text: &str, tools: &[(String, String)], finish: Option<&str>, usage: Option<(usize, usize)>) -> Value {
    let mut parts = vec![json!({"text": text})];
    for (name, input) in tools {
        parts.push(json!({"functionCall": {"name": name, "args": arguments(input)}}));
    }
    let mut candidate = json!({"content": {"role": "model", "parts": parts}, "index": 0});
    if let Some(finish) = finish {
        candidate["finishReason"] = json!(finish);
    }
    let mut reply = json!({"candidates": [candidate], "modelVersion": "test", "responseId": "resp_1"});
    if let Some((input, output)) = usage {
        reply["usageMetadata"] =
            json!({"promptTokenCount": input, "candidatesTokenCount": output, "totalTokenCount": input + output});
    }
    reply
}

fn ollama(model: &Value, text: &str, tools: &[(String, String)]) -> Value {
    let mut message = json!({"role": "assistant", "content": text});
    let call = |(name, input): &(String, String)| json!({"function": {"name": name, "arguments": arguments(input)}});
    if !tools.is_empty() {
        message["tool_calls"] = tools.iter().map(call).collect();
    }
    json!({"model": model, "created_at": "2026-01-01T00:00:00Z", "message": message, "done": false})
}

fn ollama_end(reply: &mut Value, say: &Say, usage: Option<(usize, usize)>) {
    reply["done"] = json!(true);
    reply["done_reason"] = json!(say.stop.unwrap_or("stop"));
    if let Some((input, output)) = usage {
        reply["prompt_eval_count"] = json!(input);
        reply["eval_count"] = json!(output);
    }
}
