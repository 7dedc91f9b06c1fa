//! What a chat completion from SQL costs over the provider's own time: a provider that answers at once, the same request
//! over a raw keep-alive socket as the floor, and one, eight and thirty-two sessions of an application's user.
//!
//! `bench.py` starts it; it prints `name<TAB>figure<TAB>unit<TAB>peer<TAB>peer's figure<TAB>wanted` for each line.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../../tests/provider/mod.rs"]
mod provider;

use futures_util::StreamExt;
use provider::{Answer, Say, Server};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::{Client, NoTls};

async fn session(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn person(url: &str) -> Client {
    let client = session(url).await;
    client
        .batch_execute("select set_config('request.jwt.claims', '{\"sub\": \"00000000-0000-4000-8000-00000000000a\"}', false); set role authenticated")
        .await
        .unwrap();
    client
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

/// One request over a connection that stays, read to its end; gives the time of the first word, "one", too.
async fn raw(stream: &mut tokio::net::TcpStream, body: &str) -> (Duration, Duration) {
    let begin = Instant::now();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut heard, mut buffer, mut first) = (Vec::new(), vec![0; 65536], None);
    loop {
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0);
        heard.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&heard);
        if first.is_none() && text.contains("\"one") {
            first = Some(begin.elapsed());
        }
        let Some(head) = text.find("\r\n\r\n") else { continue };
        let done = match text.to_ascii_lowercase().split("content-length: ").nth(1) {
            Some(rest) => heard.len() >= head + 4 + rest.split("\r\n").next().unwrap().parse::<usize>().unwrap(),
            None => heard.ends_with(b"0\r\n\r\n"),
        };
        if done {
            return (begin.elapsed(), first.unwrap_or_default());
        }
    }
}

fn tell(name: &str, figure: f64, unit: &str, peer: &str, against: f64, wanted: &str) {
    println!("{name}\t{figure}\t{unit}\t{peer}\t{against}\t{wanted}");
}

/// Medians of the time to the first word, turn about: of a new conversation's reply, and over a raw socket.
async fn first_words(
    ann: &Client,
    socket: &mut tokio::net::TcpStream,
    body: &str,
    rounds: u64,
    delay: Duration,
) -> (f64, f64) {
    let statement = ann.prepare("select (helper.ask_stream('Hello', knowledge => false)).event").await.unwrap();
    // Tokio's clock has whole milliseconds: without a beginning at any time within one, the two might be rounded apart by one.
    let any_time = |round: u64| {
        if !delay.is_zero() {
            std::thread::sleep(Duration::from_micros(round * 617 % 1000));
        }
    };
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        any_time(round);
        let begin = Instant::now();
        let none: [i32; 0] = [];
        let rows = ann.query_raw(&statement, none).await.unwrap();
        let mut rows = std::pin::pin!(rows);
        let mut first = None;
        while let Some(row) = rows.next().await {
            if row.unwrap().get::<_, &str>(0) == "delta" && first.is_none() {
                first = Some(begin.elapsed());
            }
        }
        any_time(round);
        let (_, other) = raw(socket, body).await;
        if round >= 10 {
            ours.push(first.unwrap());
            floor.push(other);
        }
    }
    (median(&mut ours), median(&mut floor))
}

/// A function that asks the same provider from the backend.
fn python_peer(base_url: &str) -> String {
    let packages = std::env::var("BENCH_OPENAI").expect("BENCH_OPENAI");
    format!(
        "create extension if not exists plpython3u;
         create or replace function public.python_complete(prompt text) returns text language plpython3u as $python$
if 'client' not in SD:
    import sys
    sys.path.insert(0, '{packages}')
    import openai
    SD['client'] = openai.OpenAI(base_url='{base_url}', api_key='sk-bench')
reply = SD['client'].chat.completions.create(model='m', messages=[{{'role': 'user', 'content': prompt}}])
return reply.choices[0].message.content
$python$"
    )
}

/// Calls a second of so many sessions, over three seconds.
async fn rate(url: &str, call: &'static str, sessions: usize) -> f64 {
    let mut clients = Vec::new();
    for _ in 0..sessions {
        let client = person(url).await;
        // What a session loads at its first call is not what a call takes.
        client.query_one(call, &[]).await.unwrap();
        clients.push(client);
    }
    let end = Instant::now() + Duration::from_secs(3);
    let tasks: Vec<_> = clients
        .into_iter()
        .map(|client| {
            tokio::spawn(async move {
                let statement = client.prepare(call).await.unwrap();
                let mut count = 0u64;
                while Instant::now() < end {
                    client.query_one(&statement, &[]).await.unwrap();
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut count = 0;
    for task in tasks {
        count += task.await.unwrap();
    }
    count as f64 / 3.0
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let url = std::env::var("BENCH_URL").expect("BENCH_URL");
    let server = Server::start().await;
    server.answer_by(|_| Answer::say("Hello there."));
    let boss = session(&url).await;
    for sql in [
        "do $$ begin if not exists (select from pg_roles where rolname = 'authenticated') then create role authenticated nologin; end if; end $$".to_owned(),
        "select helper.grant_usage('authenticated')".to_owned(),
        format!("select helper.set_provider('bench', 'openai_compatible', '{}', options => '{{\"allow_private\": true}}')", server.url("/v1")),
        "select helper.set_default('chat', 'bench', 'm')".to_owned(),
    ] {
        boss.batch_execute(&sql).await.unwrap();
    }
    let ann = person(&url).await;
    let _ = ann.batch_execute("select helper.create_workspace('Bench')").await;
    boss.batch_execute(&python_peer(&server.url("/v1"))).await.unwrap();
    let call = "select helper.complete('Hello')";
    let body = r#"{"model":"m","messages":[{"role":"user","content":"Hello"}],"stream":false}"#;

    // One session, turn about with the floor.
    let statement = ann.prepare(call).await.unwrap();
    let mut socket = tokio::net::TcpStream::connect(server.address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for round in 0..3000 {
        let begin = Instant::now();
        let _: String = ann.query_one(&statement, &[]).await.unwrap().get(0);
        let took = begin.elapsed();
        let (other, _) = raw(&mut socket, body).await;
        if round >= 200 {
            ours.push(took);
            floor.push(other);
        }
    }
    let (ours, floor) = (median(&mut ours), median(&mut floor));
    tell("overhead: complete, 1 session, p50", ours, "ms", "raw socket", floor, "");
    tell("overhead: added to a raw socket, p50", ours - floor, "ms", "raw socket", floor, "<= 0.5");

    // As pgai does it: plpython in the backend, with OpenAI's package and a client that the session keeps.
    let python = "select public.python_complete('Hello')";
    let statement = ann.prepare(python).await.unwrap();
    let mut peer = Vec::new();
    for round in 0..300 {
        let begin = Instant::now();
        let _: String = ann.query_one(&statement, &[]).await.unwrap().get(0);
        if round >= 20 {
            peer.push(begin.elapsed());
        }
    }
    tell("overhead: complete beside plpython, p50", ours, "ms", "plpython with openai", median(&mut peer), "");
    let (ours, theirs) = (rate(&url, call, 8).await, rate(&url, python, 8).await);
    tell("overhead: calls a second beside plpython, 8 sessions", ours, "/s", "plpython with openai", theirs, "");

    for sessions in [1, 8, 32] {
        let mut tasks = Vec::new();
        let end = Instant::now() + Duration::from_secs(5);
        for _ in 0..sessions {
            let client = person(&url).await;
            tasks.push(tokio::spawn(async move {
                let statement = client.prepare(call).await.unwrap();
                let mut count = 0u64;
                while Instant::now() < end {
                    client.query_one(&statement, &[]).await.unwrap();
                    count += 1;
                }
                count
            }));
        }
        let mut count = 0;
        for task in tasks {
            count += task.await.unwrap();
        }
        let mut sockets = Vec::new();
        let end = Instant::now() + Duration::from_secs(2);
        for _ in 0..sessions {
            let mut socket = tokio::net::TcpStream::connect(server.address).await.unwrap();
            socket.set_nodelay(true).unwrap();
            sockets.push(tokio::spawn(async move {
                let mut count = 0u64;
                while Instant::now() < end {
                    raw(&mut socket, body).await;
                    count += 1;
                }
                count
            }));
        }
        let mut bare = 0;
        for socket in sockets {
            bare += socket.await.unwrap();
        }
        let wanted = if sessions == 8 { ">= 3000" } else { "" };
        let name = format!("overhead: calls a second, {sessions} sessions");
        tell(&name, count as f64 / 5.0, "/s", "raw sockets", bare as f64 / 2.0, wanted);
    }

    // The first word of a stream: of a provider that has it at once, as the other figures; and of one that takes its time,
    // so that the processors have gone to sleep and each of the processes between has to be woken.
    let stream_body = body.replace("\"stream\":false", "\"stream\":true,\"stream_options\":{\"include_usage\":true}");
    for (delay, rounds, of) in [(0, 1000, ""), (20, 200, " after 20 ms")] {
        let delay = Duration::from_millis(delay);
        server.answer_by(move |_| Answer::Say(Say { text: "one two".into(), delay, ..Say::default() }));
        let (ours, floor) = first_words(&ann, &mut socket, &stream_body, rounds, delay).await;
        tell(&format!("overhead: first word{of}, p50"), ours, "ms", "raw socket", floor, "");
        let wanted = if delay.is_zero() { "<= 1" } else { "" };
        tell(
            &format!("overhead: first word{of} over a raw socket, p50"),
            ours - floor,
            "ms",
            "raw socket",
            floor,
            wanted,
        );
    }
}
