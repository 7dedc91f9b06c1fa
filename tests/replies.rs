//! What becomes of a reply, and what the next question finds of it: refused and cut replies, values, attachments, summaries.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
mod place;
mod provider;

use cluster::{Session, until};
use place::{ANN, BEA, Place};
use provider::{Answer, Say};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::Notify;

/// A picture that is none, and how it looks in a request.
const PICTURE: &str =
    r#"{"attachments": [{"mime_type": "image/png", "name": "cat.png", "data": "aGVyZSBpcyBhIGNhdA=="}]}"#;
const DATA: &str = "aGVyZSBpcyBhIGNhdA==";

fn ends(text: &str, stop: &'static str) -> Answer {
    Answer::Say(Say { text: text.into(), stop: Some(stop), ..Say::default() })
}

/// The message of a reply, once it has ended.
async fn ended(ann: &Session, id: &str) -> Value {
    let look = format!("select to_jsonb(m) from helper.messages m where m.id = '{id}'");
    until("the reply's end", async || {
        let message: Value = ann.one(&look, &[]).await;
        (message["status"] != "pending" && message["status"] != "streaming").then_some(message)
    })
    .await
}

/// The events of a stream and its reply's message.
async fn streamed(ann: &Session, ask: &str) -> (Vec<(String, Value)>, Value) {
    let rows = ann.query(&format!("select event, data from helper.ask_stream({ask})"), &[]).await.unwrap();
    let events: Vec<(String, Value)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let message = ended(ann, events[0].1["message_id"].as_str().unwrap()).await;
    (events, message)
}

async fn queued(ann: &Session, ask: &str) -> Value {
    let id: String = ann.one(&format!("select helper.ask_async({ask})::text"), &[]).await;
    ended(ann, &id).await
}

#[tokio::test]
async fn a_reply_that_was_refused_is_an_error_however_it_was_asked_for() {
    let place = Place::new().await;
    let refused = [
        ("open", "content_filter", "filter"),
        ("other", "content_filter", "filter"),
        ("claude", "refusal", "declined"),
        ("gem", "SAFETY", "filter"),
    ];
    for (name, stop, word) in refused {
        place.server.answer_by(move |_| ends("I will", stop));
        let ask = format!("'Do harm', knowledge => false, model => '{name}/m'");
        for function in ["ask", "answer"] {
            let error = place.ann.error(&format!("select helper.{function}({ask})")).await;
            assert_eq!(error.code().code(), "38000", "{name} {error:?}");
            assert!(error.message().contains(word) && error.hint().is_some(), "{name} {error:?}");
        }
        let (events, message) = streamed(&place.ann, &ask).await;
        let [.., (error, facts), (done, end)] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!((error.as_str(), done.as_str(), &end["status"]), ("error", "done", &json!("error")), "{name}");
        assert!(facts["sqlstate"] == "38000" && facts["hint"].is_string(), "{name} {facts}");
        for message in [message, queued(&place.ann, &ask).await] {
            assert_eq!((&message["status"], &message["content"]), (&json!("error"), &json!("I will")), "{name}");
            assert!(message["error"]["message"].as_str().unwrap().contains(word), "{name} {message}");
        }
    }
    // A prompt that Gemini does not take has no candidate at all.
    let blocked = r#"{"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 9}}"#;
    let ask = "'Do harm', knowledge => false, model => 'gem/m'";
    place.server.answer_by(move |seen| {
        if seen.path.contains("stream") {
            Answer::with_headers(200, &[("content-type", "text/event-stream")], &format!("data: {blocked}\n\n"))
        } else {
            Answer::status(200, blocked)
        }
    });
    assert_eq!(place.ann.error(&format!("select helper.ask({ask})")).await.code().code(), "38000");
    assert_eq!(streamed(&place.ann, ask).await.1["status"], "error");
    assert_eq!(queued(&place.ann, ask).await["status"], "error");
    // OpenAI's refusal comes beside the words.
    let refusal = r#"{"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [{"index": 0, "finish_reason": "stop",
        "message": {"role": "assistant", "content": null, "refusal": "I cannot."}}]}"#;
    place.server.answer_by(move |_| Answer::status(200, refusal));
    let error = place.ann.error("select helper.ask('Do harm', knowledge => false)").await;
    assert!(error.message().contains("declined"), "{error:?}");
}

#[tokio::test]
async fn a_character_that_no_text_can_hold_is_replaced() {
    let place = Place::new().await;
    place.server.answer_by(|_| Answer::say("One\0 two."));
    for name in ["open", "claude", "gem", "llama", "other"] {
        let ask = format!("'Count', knowledge => false, model => '{name}/m'");
        let (_, message) = streamed(&place.ann, &ask).await;
        for message in [message, queued(&place.ann, &ask).await] {
            assert_eq!(
                (&message["status"], &message["content"]),
                (&json!("done"), &json!("One\u{fffd} two.")),
                "{name}"
            );
        }
        let text: String = place.ann.one(&format!("select helper.ask({ask})"), &[]).await;
        assert_eq!(text, "One\u{fffd} two.", "{name}");
    }
    // Of a value it is wrong, and the model is told so.
    let value = r#"{"a": "One\u0000"}"#;
    place.server.answer_by(move |seen| match String::from_utf8_lossy(&seen.body).contains("That does not fit") {
        true => Answer::say(r#"{"a": "Two"}"#),
        false => Answer::say(value),
    });
    let sql = r#"select helper.complete_json('Count', '{"type": "object"}')"#;
    assert_eq!(place.ann.one::<Value>(sql, &[]).await, json!({ "a": "Two" }));
    place.server.answer_by(move |_| Answer::say(value));
    let error = place.ann.error(sql).await;
    assert!(error.code().code() == "38000" && error.detail().unwrap().contains("\\u0000"), "{error:?}");
}

#[tokio::test]
async fn a_reply_whose_words_cannot_be_stored_ends_without_them() {
    let place = Place::new().await;
    place
        .admin
        .run(
            "create function public.refuse() returns trigger language plpgsql as $$ begin raise exception 'refused'; end $$; \
             create trigger refuse before update on helper.messages for each row when (new.content like '%unspeakable%') \
             execute function public.refuse()",
        )
        .await;
    place.server.answer_by(|_| Answer::say("This is unspeakable."));
    let message = queued(&place.ann, "'Speak', knowledge => false").await;
    assert_eq!((&message["status"], &message["content"]), (&json!("error"), &json!("")), "{message}");
    assert_eq!(message["error"]["message"], "the reply could not be stored");
    // If that cannot be stored just now either, it is later.
    place
        .admin
        .run(
            "create function public.put_off() returns trigger language plpgsql as $$ begin \
               if not exists (select from public.allowed) then raise exception 'not now' using errcode = '55P03'; end if; \
               return new; end $$; \
             create table public.allowed (); \
             create trigger refuse_yet before update on helper.messages for each row when (new.error is not null) \
             execute function public.put_off()",
        )
        .await;
    let id: String = place.ann.one("select helper.ask_async('Speak', knowledge => false)::text", &[]).await;
    until("the worker to be put off", async || place.cluster.log().contains("not now").then_some(())).await;
    place.admin.run("insert into public.allowed default values").await;
    let message = ended(&place.ann, &id).await;
    assert_eq!((&message["status"], &message["content"]), (&json!("error"), &json!("")), "{message}");
    let jobs = "select string_agg(j.status, ' ') from helper.jobs j where j.kind = 'reply'";
    assert_eq!(place.admin.one::<String>(jobs, &[]).await, "failed failed");
    assert_eq!(place.server.count(), 2, "nobody pays for one twice");
}

#[tokio::test]
async fn a_reply_that_was_cut_short_is_delivered_and_says_so() {
    let place = Place::new().await;
    let stops =
        [("open", "length"), ("other", "length"), ("claude", "max_tokens"), ("gem", "MAX_TOKENS"), ("llama", "length")];
    for (name, stop) in stops {
        place.server.answer_by(move |_| ends("Once upon a", stop));
        let ask = format!("'Tell a story', knowledge => false, model => '{name}/m'");
        let sql = format!("select (a).answer, (a).usage, (a).status from helper.answer({ask}) a");
        let row = place.ann.query_one(&sql, &[]).await.unwrap();
        assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(2)), ("Once upon a", "done"), "{name}");
        assert_eq!(row.get::<_, Value>(1)["stop"], "length", "{name}");
        let (events, message) = streamed(&place.ann, &ask).await;
        let (event, end) = events.last().unwrap();
        assert_eq!((event.as_str(), &end["usage"]["stop"]), ("done", &json!("length")), "{name}");
        for message in [message, queued(&place.ann, &ask).await] {
            assert_eq!((&message["status"], &message["content"]), (&json!("done"), &json!("Once upon a")), "{name}");
            assert_eq!(message["usage"]["stop"], "length", "{name}");
        }
        // What has no word is no reply.
        place.server.answer_by(move |_| ends("", stop));
        let error = place.ann.error(&format!("select helper.ask({ask})")).await;
        assert!(error.message().contains("before its first word") && error.hint().is_some(), "{name} {error:?}");
    }
    place.server.answer_by(|_| Answer::say("The end."));
    let usage: Value = place.ann.one("select (helper.answer('Well?', knowledge => false)).usage", &[]).await;
    assert_eq!(usage["stop"], "end");
}

#[tokio::test]
async fn a_mode_with_a_schema_gives_values_that_fit_it_and_nothing_of_them_is_taken_for_a_mark() {
    let place = Place::new().await;
    let schema = json!({"type": "object", "properties": {"days": {"type": "array", "items": {"type": "integer"}}},
        "required": ["days"]});
    let options = json!({ "output_schema": schema });
    place.ann.run(&format!("select helper.set_mode('facts', 'Extract.', '{options}', '{}')", place.workspace)).await;
    let ask = "'When are refunds paid?', mode => 'facts'";
    let value = r#"{"days": [9], "note": "see [1] and [7]"}"#;
    place.server.answer_by(move |_| Answer::say(value));
    assert_eq!(place.ann.one::<String>(&format!("select helper.ask({ask})"), &[]).await, value);
    let body = place.server.seen().pop().unwrap().json();
    assert!(body["messages"][0]["content"].to_string().contains("JSON Schema"), "{body}");
    let (events, message) = streamed(&place.ann, ask).await;
    let words = events.iter().filter_map(|(_, data)| data["text"].as_str());
    assert_eq!(words.collect::<String>(), value);
    for message in [message, queued(&place.ann, ask).await] {
        assert_eq!((&message["status"], &message["content"]), (&json!("done"), &json!(value)), "{message}");
        assert_eq!(message["grounded"], Value::Null);
    }
    // Greetings around it are none of it.
    place.server.answer_by(|_| Answer::say("Sure:\n```json\n{\"days\": [1]}\n```"));
    assert_eq!(place.ann.one::<String>(&format!("select helper.ask({ask})"), &[]).await, r#"{"days": [1]}"#);
    assert_eq!(queued(&place.ann, ask).await["content"], r#"{"days": [1]}"#);
    for (said, place_of_it) in [(r#"{"days": [1, "two"]}"#, "/days/1"), ("I do not know.{", "not JSON")] {
        place.server.answer_by(move |_| {
            Answer::status(
                200,
                &json!({"choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]})
                    .to_string(),
            )
        });
        let error = place.ann.error(&format!("select helper.ask({ask})")).await;
        assert_eq!(error.code().code(), "38000", "{error:?}");
        assert!(error.detail().unwrap().contains(place_of_it) && error.hint().is_some(), "{error:?}");
    }
    place.server.answer_by(|_| Answer::say(r#"{"days": "two"}"#));
    let (events, message) = streamed(&place.ann, ask).await;
    assert_eq!(events[events.len() - 2].0, "error", "{events:?}");
    for message in [message, queued(&place.ann, ask).await] {
        assert_eq!(message["status"], "error", "{message}");
        assert!(message["error"]["detail"].as_str().unwrap().contains("/days"), "{message}");
    }
}

#[tokio::test]
async fn a_transaction_that_cannot_see_a_reply_end_does_not_wait_for_it() {
    let place = Place::new().await;
    let gate = Arc::new(Notify::new());
    let conversation: String = place.ann.one("select helper.create_conversation('C')::text", &[]).await;
    place.server.next(Answer::Held(Arc::clone(&gate), Box::new(Answer::say("One."))));
    let first: String = place
        .ann
        .one(&format!("select helper.ask_async('One', '{conversation}', knowledge => false)::text"), &[])
        .await;
    until("the request", async || (place.server.count() == 1).then_some(())).await;
    let other = place.cluster.user(ANN).await;
    for level in ["repeatable read", "serializable"] {
        other.run(&format!("begin isolation level {level}")).await;
        let error = other.error(&format!("select helper.ask('Two', '{conversation}', knowledge => false)")).await;
        assert_eq!(error.code().code(), "55000", "{error:?}");
        assert!(error.message().contains("under way") && error.hint().unwrap().contains("READ COMMITTED"), "{error:?}");
        other.run("rollback").await;
    }
    gate.notify_one();
    assert_eq!(ended(&place.ann, &first).await["status"], "done");
    other.run("begin isolation level repeatable read").await;
    other.run(&format!("select helper.ask('Two', '{conversation}', knowledge => false); commit")).await;
}

#[tokio::test]
async fn a_transaction_does_not_wait_for_a_reply_of_its_own() {
    let place = Place::new().await;
    let conversation: String = place.ann.one("select helper.create_conversation('C')::text", &[]).await;
    let queue = format!("select helper.ask_async('One', '{conversation}', knowledge => false)::text");
    let ask = format!("select helper.ask('Two', '{conversation}', knowledge => false)");
    // A subtransaction's are its transaction's.
    for begin in [
        format!("begin; {queue}"),
        format!("begin; savepoint s; {queue}"),
        format!("begin; savepoint s; {queue}; release s"),
    ] {
        place.ann.run(&begin).await;
        let error = place.ann.error(&ask).await;
        assert_eq!(error.code().code(), "55000", "{begin}: {error:?}");
        assert!(error.message().contains("under way") && error.hint().unwrap().contains("Commit"), "{error:?}");
        place.ann.run("rollback").await;
    }
    // What was taken back is not there to be waited for.
    place.ann.run(&format!("begin; savepoint s; {queue}; rollback to s; {ask}; commit")).await;
    assert_eq!(place.server.count(), 1);
    // Another's is waited for, also where it is younger than the transaction.
    let gate = Arc::new(Notify::new());
    place.server.next(Answer::Held(Arc::clone(&gate), Box::new(Answer::say("One."))));
    place.ann.run("begin; select helper.create_conversation('D')").await;
    let other = place.cluster.user(ANN).await;
    let first: String = other.one(&queue, &[]).await;
    until("the request", async || (place.server.count() == 2).then_some(())).await;
    let waits = format!(
        "select count(*) from pg_stat_activity where pid = {} and wait_event = 'PgSleep'",
        place.ann.pid().await
    );
    let let_go = async {
        until("the question to wait", async || (place.admin.one::<i64>(&waits, &[]).await == 1).then_some(())).await;
        gate.notify_one();
    };
    tokio::join!(place.ann.run(&ask), let_go);
    place.ann.run("commit").await;
    assert_eq!(ended(&place.ann, &first).await["content"], "One.");
}

#[tokio::test]
async fn a_picture_goes_with_the_questions_after_its_own() {
    let place = Place::new().await;
    let mut conversations = Vec::new();
    for name in ["open", "claude", "gem", "llama"] {
        let conversation: String = place.ann.one("select helper.create_conversation('Cat')::text", &[]).await;
        let ask = format!("'{conversation}', knowledge => false, model => '{name}/m'");
        place.ann.run(&format!("select helper.ask('What is in it?', {ask}, options => '{PICTURE}')")).await;
        for wait in [true, false] {
            let question = format!("'And its colour?', {ask}");
            if wait {
                place.ann.run(&format!("select helper.ask({question})")).await;
            } else {
                assert_eq!(queued(&place.ann, &question).await["status"], "done");
            }
            let body = place.server.seen().pop().unwrap().json().to_string();
            let (picture, question) = (body.find(DATA).expect(name), body.find("And its colour?").unwrap());
            assert!(picture < question && body.matches(DATA).count() == 1, "{name} {body}");
        }
        conversations.push(conversation);
    }
    let export = async |format: &str| {
        let sql = format!("select helper.export_conversation('{}', '{format}')", conversations[0]);
        place.ann.one::<String>(&sql, &[]).await
    };
    let markdown = export("markdown").await;
    assert!(markdown.contains("What is in it?\n\nAttached: cat.png (image/png)\n"), "{markdown}");
    let exported: Value = serde_json::from_str(&export("json").await).unwrap();
    assert_eq!(exported["messages"][0]["attachments"], json!([{"name": "cat.png", "mime_type": "image/png"}]));
    let kept = "select count(*) from helper.message_attachments";
    assert_eq!(place.ann.one::<i64>(kept, &[]).await, 4);
    // Private as the conversation is, and gone with it.
    place.ann.run(&format!("select helper.add_member('{}', '{BEA}', 'admin')", place.workspace)).await;
    let bea = place.cluster.user(BEA).await;
    assert_eq!(bea.one::<i64>(kept, &[]).await, 0);
    assert_eq!(place.ann.error("delete from helper.message_attachments").await.code().code(), "42501");
    place.ann.run(&format!("select helper.delete_conversation('{}')", conversations[0])).await;
    assert_eq!(place.ann.one::<i64>(kept, &[]).await, 3);
}

#[tokio::test]
async fn a_picture_that_was_refused_does_not_break_its_conversation() {
    let place = Place::new().await;
    for wait in [true, false] {
        let conversation: String = place.ann.one("select helper.create_conversation('Cat')::text", &[]).await;
        let of = format!("'{conversation}', knowledge => false");
        place.server.next(Answer::status(400, r#"{"error": {"message": "unsupported image"}}"#));
        let ask = format!("'What is in it?', {of}, options => '{PICTURE}'");
        let message = if wait { streamed(&place.ann, &ask).await.1 } else { queued(&place.ann, &ask).await };
        assert_eq!(message["status"], "error", "{message}");
        assert!(place.server.seen().pop().unwrap().json().to_string().contains(DATA));
        assert_eq!(queued(&place.ann, &format!("'And its colour?', {of}")).await["status"], "done");
        let body = place.server.seen().pop().unwrap().json().to_string();
        assert!(body.contains("And its colour?") && !body.contains(DATA), "{body}");
    }
}

#[tokio::test]
async fn a_value_that_was_heard_outlives_the_gateway_that_checks_it() {
    let place = Place::new().await;
    // Word boundaries between letters that are not ASCII are slow to look for.
    let patterns: Vec<Value> = (1..=100).map(|n| json!({ "pattern": format!(r"\b\w{{3}}[0-9]{{1,{n}}}$") })).collect();
    let options =
        json!({"output_schema": {"type": "object", "properties": {"t": {"type": "string", "allOf": patterns}}}});
    place.ann.run(&format!("select helper.set_mode('slow', 'Extract.', '{options}', '{}')", place.workspace)).await;
    let value = json!({ "t": format!("{} end7", "é".repeat(200_000)) }).to_string();
    let said = value.clone();
    place.server.answer_by(move |_| Answer::say(&said));
    let sql = "select helper.ask_async('What does it say?', mode => 'slow', knowledge => false)::text";
    let id: String = place.ann.one(sql, &[]).await;
    place.records(1).await;
    let status: String = place.ann.one(&format!("select status from helper.messages where id = '{id}'"), &[]).await;
    assert_ne!(status, "done", "the check is to take longer");
    cluster::signal(place.admin.pids().await.gateway, "KILL");
    let message = ended(&place.ann, &id).await;
    assert_eq!((&message["status"], &message["content"]), (&json!("done"), &json!(value)), "{}", message["error"]);
    assert_eq!(place.server.count(), 1);
}

#[tokio::test]
async fn replies_with_large_attachments_are_begun_as_others_end() {
    let place = Place::new().await;
    let held = Arc::new(Notify::new());
    let hold = held.clone();
    place.server.answer_by(move |_| Answer::Held(hold.clone(), Box::new(Answer::say("A cat."))));
    let sql = "select helper.ask_async('What is in it?', knowledge => false, options => jsonb_build_object('attachments', \
        jsonb_build_array(jsonb_build_object('mime_type', 'image/png', 'data', repeat('AAAA', 10000000)))))::text";
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(place.ann.one::<String>(sql, &[]).await);
    }
    // Three have 120 MB, four more than 128.
    until("replies that are under way", async || (place.server.count() >= 4).then_some(())).await;
    place.ann.one::<i64>("select count(helper.add_document('Cats', 'They sleep.'))", &[]).await;
    place.ann.one::<i64>("select helper.wait_indexed()", &[]).await;
    assert_eq!(place.server.count(), 4, "the worker has looked for more and taken none");
    place.server.answer_by(|_| Answer::say("A cat."));
    (0..4).for_each(|_| held.notify_one());
    held.notify_waiters();
    for id in &ids {
        let message = ended(&place.ann, id).await;
        assert_eq!(message["status"], "done", "{}", message["error"]);
    }
}

#[tokio::test]
async fn what_a_model_is_said_not_to_take_it_is_not_sent() {
    let place = Place::new().await;
    place
        .admin
        .run(r#"select helper.set_model('open', 'blind', options => '{"images": false, "tools": false}')"#)
        .await;
    place.admin.run(r#"select helper.set_model('open', 'reader', options => '{"documents": false}')"#).await;
    place.admin.run("select helper.set_default('chat', 'open', 'blind', fallback => '{claude/m}')").await;
    let ask = format!("'What is in it?', knowledge => false, options => '{PICTURE}'");
    let provider: String = place.ann.one(&format!("select (helper.answer({ask})).provider"), &[]).await;
    assert_eq!((provider.as_str(), place.server.count()), ("claude", 1));
    let provider: String = place.ann.one("select (helper.answer('Hello', knowledge => false)).provider", &[]).await;
    assert_eq!(provider, "open");
    let complete = format!("select helper.complete('What is in it?', options => '{PICTURE}')");
    place.ann.run(&complete).await;
    assert!(place.server.seen().pop().unwrap().path.ends_with("/messages"));
    // Where none is left, it is said at once, also where nobody waits.
    let before = place.server.count();
    for function in ["ask", "ask_async", "ask_stream"] {
        let error = place.ann.error(&format!("select helper.{function}({ask}, model => 'open/blind')")).await;
        assert_eq!(error.code().code(), "22023", "{error:?}");
        assert!(error.message().contains("images") && error.hint().is_some(), "{error:?}");
    }
    let document = PICTURE.replace("image/png", "application/pdf");
    let error = place
        .ann
        .error(&format!("select helper.complete('Sum up', model => 'open/reader', options => '{document}')"))
        .await;
    assert!(error.code().code() == "22023" && error.message().contains("documents"), "{error:?}");
    assert_eq!(place.server.count(), before);
    // What an earlier question had is left out where the model cannot see it.
    let conversation: String = place.ann.one("select helper.create_conversation('Cat')::text", &[]).await;
    let of = format!("'{conversation}', knowledge => false");
    place.ann.run(&format!("select helper.ask('What is in it?', {of}, options => '{PICTURE}')")).await;
    place.ann.run(&format!("select helper.ask('And its colour?', {of}, model => 'open/blind')")).await;
    let body = place.server.seen().pop().unwrap().json().to_string();
    assert!(!body.contains(DATA) && body.contains("you cannot see"), "{body}");
}

#[tokio::test]
async fn a_document_takes_its_part_of_the_window() {
    let place = Place::new().await;
    let pdf = |kilobytes: usize| {
        let data = "JVBERi0x".repeat(kilobytes * 128);
        json!({"attachments": [{"mime_type": "application/pdf", "name": "report.pdf", "data": data}]}).to_string()
    };
    let error =
        place.ann.error(&format!("select helper.ask('Sum up', knowledge => false, options => '{}')", pdf(1000))).await;
    assert_eq!(error.code().code(), "53400", "{error:?}");
    assert!(error.message().contains("too long") && error.hint().unwrap().contains("attach less"), "{error:?}");
    assert_eq!(place.server.count(), 0);
    place.ann.run(&format!("select helper.ask('Sum up', knowledge => false, options => '{}')", pdf(100))).await;
    let error = place
        .ann
        .error(
            "select helper.ask('Sum up', options => jsonb_build_object('attachments', jsonb_build_array( \
             jsonb_build_object('mime_type', 'image/png', 'data', repeat('AAAA', 11200000)))))",
        )
        .await;
    assert_eq!((error.code().code(), error.message()), ("53400", "attachments are too large"));
    // Text that is estimated at more than the window and counted at less.
    let long = "international ".repeat(2500);
    place.ann.run(&format!("select helper.ask('{long}', knowledge => false)")).await;
    let message = queued(&place.ann, &format!("'{long}', knowledge => false")).await;
    assert_eq!(message["status"], "done", "{}", message["error"]);
}

#[tokio::test]
async fn a_conversation_without_a_title_has_that_of_its_first_question() {
    let place = Place::new().await;
    for wait in [true, false] {
        let conversation: String = place.ann.one("select helper.create_conversation()::text", &[]).await;
        let title = format!("select coalesce(c.title, '-') from helper.conversations c where c.id = '{conversation}'");
        assert_eq!(place.ann.one::<String>(&title, &[]).await, "-");
        for question in ["How do refunds work?", "And shipping?"] {
            let ask = format!("'{question}', '{conversation}', knowledge => false");
            if wait {
                place.ann.run(&format!("select helper.ask({ask})")).await;
            } else {
                queued(&place.ann, &ask).await;
            }
            assert_eq!(place.ann.one::<String>(&title, &[]).await, "How do refunds work", "{wait}");
        }
    }
    let named: String = place.ann.one("select helper.create_conversation('Mine')::text", &[]).await;
    place.ann.run(&format!("select helper.ask('How do refunds work?', '{named}', knowledge => false)")).await;
    let kept: String =
        place.ann.one(&format!("select title from helper.conversations where id = '{named}'"), &[]).await;
    assert_eq!(kept, "Mine");
}

/// The blocks of a request to Anthropic up to its last mark of the conversation, without the marks.
fn cached(body: &Value) -> (Value, Vec<Value>, usize) {
    let mut blocks = Vec::new();
    let mut upto = 0;
    for message in body["messages"].as_array().unwrap() {
        for block in message["content"].as_array().unwrap() {
            let mut block = block.clone();
            let is_marked = block.as_object_mut().unwrap().remove("cache_control").is_some();
            blocks.push(json!([message["role"], block]));
            if is_marked {
                upto = blocks.len();
            }
        }
    }
    (body["system"].clone(), blocks, upto)
}

#[tokio::test]
async fn a_prompt_begins_as_the_one_before_also_with_a_summary() {
    let place = Place::new().await;
    place.server.answer_by(|seen| {
        let folds = seen.json().to_string().contains("Summarise the conversation");
        Answer::say(if folds { "They spoke of parcels." } else { "A parcel is on its way." })
    });
    let conversation: String = place.ann.one("select helper.create_conversation('Long')::text", &[]).await;
    let asked = async |words: &str| {
        let sql = format!("select helper.ask($q${words}$q$, '{conversation}', model => 'claude/m')");
        place.ann.run(&sql).await;
        cached(&place.server.seen().pop().unwrap().json())
    };
    let harbour = "The parcel went over the mountain to the harbour. ".repeat(60);
    let mut folded = 0;
    for at in 0..16 {
        asked(&format!("Number {at}: {harbour}")).await;
        let covered = "select coalesce(sum(s.message_count), 0) from helper.conversation_summaries s";
        let covers: i64 = place.ann.one(covered, &[]).await;
        if covers == folded {
            continue;
        }
        folded = covers;
        // Between two summaries nothing changes but what is new.
        let (system, first, upto) = asked("Where is it now?").await;
        let (again, second, further) = asked("When did it arrive?").await;
        assert!(first[0].to_string().contains("They spoke of parcels."), "{}", first[0]);
        assert!(upto > 1 && further > upto, "{upto} {further}");
        assert_eq!(system, again);
        assert_eq!(first[..upto], second[..upto]);
    }
    assert!(folded >= 16, "{folded}");
    // Whoever sees the summary does not see the seal.
    assert_eq!(place.ann.error("select seal from helper.conversation_summaries").await.code().code(), "42501");
}

#[tokio::test]
async fn related_conversations_are_those_of_the_same_subject() {
    let place = Place::new().await;
    place.ann.run(&format!("select helper.add_member('{}', '{BEA}', 'member')", place.workspace)).await;
    let bea = place.cluster.user(BEA).await;
    let subjects = [
        ("bees", ["hive swarm", "swarm queen honey", "honey hive frames", "queen frames hive"]),
        ("boats", ["sail mast", "mast rigging keel", "keel sail anchor", "anchor rigging sail"]),
        ("bread", ["dough yeast", "yeast oven crust", "crust dough flour", "flour oven dough"]),
        ("stars", ["telescope orbit", "orbit comet lens", "lens telescope nebula", "nebula comet telescope"]),
        ("shoes", ["leather sole", "sole laces heel", "heel leather stitching", "stitching laces leather"]),
    ];
    for (subject, words) in &subjects {
        for (at, words) in words.iter().enumerate() {
            for whose in [&place.ann, &bea] {
                let title = format!("{subject} {at}");
                let conversation: String = whose
                    .one(&format!("select helper.create_conversation('{title}', '{}')::text", place.workspace), &[])
                    .await;
                // What all of them say, and say more often than anything else.
                for question in ["Please tell me something about this", "Please tell me more about something", words] {
                    let ask = format!("select helper.ask('{question}', '{conversation}', knowledge => false)");
                    whose.run(&ask).await;
                }
            }
        }
    }
    let mine: BTreeSet<String> = {
        let rows = place.ann.query("select id::text from helper.list_conversations()", &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    let rows = place.ann.query("select id::text, title from helper.list_conversations()", &[]).await.unwrap();
    assert_eq!(rows.len(), 20);
    for row in rows {
        let (id, title): (String, String) = (row.get(0), row.get(1));
        let found = format!("select r.id::text, r.title, r.score from helper.related_conversations('{id}', 100) r");
        let found = place.ann.query(&found, &[]).await.unwrap();
        let subject = title.split(' ').next().unwrap();
        let titles: Vec<String> = found.iter().map(|row| row.get(1)).collect();
        assert!(titles[..2].iter().all(|title| title.starts_with(subject)), "{title}: {titles:?}");
        assert!(found.iter().all(|row| mine.contains(row.get::<_, &str>(0))), "another person's: {title}");
    }
}

#[tokio::test]
async fn usage_says_what_is_left_and_how_long_the_first_word_took() {
    let place = Place::new().await;
    let workspace = &place.workspace;
    place.ann.run(&format!("select helper.add_member('{workspace}', '{BEA}', 'member')")).await;
    for (at, (user, latency, first)) in
        [(ANN, 100, Some(10)), (ANN, 200, Some(20)), (ANN, 300, None), (BEA, 400, Some(30))].into_iter().enumerate()
    {
        place
            .admin
            .run(&format!(
                "insert into helper.usage_records (workspace_id, id, user_id, purpose, provider, model, status, input_tokens, output_tokens, \
                 cost, latency_ms, first_token_ms) values ('{workspace}', helper.uuid_v7(), '{user}', 'ask', 'open', 'm', 'succeeded', {at}, 10, \
                 0.5, {latency}, {})",
                first.map_or("null".into(), |ms: i32| ms.to_string())
            ))
            .await;
    }
    place.ann.run(&format!("select helper.set_budget(100, 'tokens', workspace => '{workspace}')")).await;
    place
        .ann
        .run(&format!("select helper.set_budget(1, 'money', 'day', each_user => true, workspace => '{workspace}')"))
        .await;
    place
        .ann
        .run(&format!("select helper.set_budget(9, 'requests', user_id => '{BEA}', workspace => '{workspace}')"))
        .await;
    place.admin.run("select helper.set_budget(1000, 'requests')").await;
    let usage: Value = place.ann.one("select helper.usage()", &[]).await;
    assert_eq!(usage["latency_ms"], json!({"p50": 250, "p95": 385}), "{usage}");
    assert_eq!(usage["first_token_ms"], json!({"p50": 20, "p95": 29}), "{usage}");
    assert_eq!(
        (&usage["by_model"][0]["first_token_p50"], &usage["by_model"][0]["latency_p95"]),
        (&json!(20), &json!(385))
    );
    let shown = |usage: &Value| -> Vec<(String, Option<f64>, Option<f64>)> {
        let budgets = usage["budgets"].as_array().unwrap().iter();
        budgets
            .map(|budget| {
                let number = |name: &str| budget[name].as_f64();
                (budget["unit"].as_str().unwrap().to_owned(), number("used"), number("left"))
            })
            .collect()
    };
    let of = |unit: &str, used: f64, left: f64| (unit.to_owned(), Some(used), Some(left));
    // Of each person's budget what the caller used; of all workspaces' nothing.
    assert_eq!(shown(&usage), [of("tokens", 46.0, 54.0), of("money", 1.5, 0.0), of("requests", 1.0, 8.0)]);
    let bea = place.cluster.user(BEA).await;
    let usage: Value = bea.one("select helper.usage()", &[]).await;
    // What all use together is the admins' to know.
    let together = ("tokens".to_owned(), None, None);
    assert_eq!(shown(&usage), [together, of("money", 0.5, 0.5), of("requests", 1.0, 8.0)]);
    let renews: bool = place
        .ann
        .one(
            "select bool_and(b.renews_at = (date_trunc(b.period, now() at time zone 'UTC') + ('1 ' || b.period)::interval) at time zone 'UTC') \
             from helper.budget_status() b",
            &[],
        )
        .await;
    assert!(renews);
    let all: i64 = place.admin.one(&format!("select count(*) from helper._budgets('{workspace}', '{ANN}')"), &[]).await;
    assert_eq!(all, 3);
}
