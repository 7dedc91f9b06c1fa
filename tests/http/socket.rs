//! The requests for providers over the gateway's socket.

use super::*;
use helper_ai::core::wire::{Hello, PROTOCOL, Reply, Request, decode, encode};
use helper_ai::gateway::batch::Batcher;
use helper_ai::gateway::parse::Limits;
use helper_ai::gateway::server::Gateway;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The database's end of a connection.
struct Database {
    stream: UnixStream,
    frames: Frames,
}

impl Database {
    async fn connect(socket: &Path) -> Database {
        until("the socket", || socket.exists()).await;
        let stream = UnixStream::connect(socket).await.unwrap();
        let mut database = Database { stream, frames: Frames::default() };
        let hello = encode(Tag::Hello, 0, &Hello { protocol: PROTOCOL, version: String::new() }).unwrap();
        database.stream.write_all(&hello).await.unwrap();
        assert_eq!(database.frame().await.tag, Tag::Hello);
        database
    }

    async fn ask(&mut self, id: u32, request: Request) {
        self.stream.write_all(&encode(Tag::Request, id, &request).unwrap()).await.unwrap();
    }

    async fn frame(&mut self) -> wire::Frame {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            if let Some(frame) = self.frames.next().unwrap() {
                return frame;
            }
            let read = tokio::time::timeout(Duration::from_secs(10), self.stream.read(&mut buffer)).await;
            let count = read.unwrap().unwrap();
            assert!(count > 0, "the gateway hung up");
            self.frames.push(&buffer[..count]);
        }
    }

    async fn reply(&mut self, id: u32) -> Reply {
        let frame = self.frame().await;
        assert_eq!((frame.tag, frame.id), (Tag::End, id));
        decode(&frame.body).unwrap()
    }

    async fn records(&mut self, id: u32) -> Vec<Record> {
        let frame = self.frame().await;
        assert_eq!((frame.tag, frame.id), (Tag::Item, id));
        let Item::Records(records) = decode(&frame.body).unwrap() else { panic!("not records") };
        records
    }
}

fn gateway(name: &str) -> PathBuf {
    let socket = std::env::temp_dir().join(format!("helper-http-{}-{name}", std::process::id()));
    let _ = std::fs::remove_file(&socket);
    let gateway = Gateway::new(Batcher::start(Path::new("/no/model"), 1), Limits::default(), room());
    let path = socket.clone();
    tokio::spawn(async move { gateway.serve(&path).await });
    socket
}

#[tokio::test]
async fn a_question_its_words_its_end_and_its_record_cross_the_socket() {
    let server = Server::start().await;
    server.answer_by(|_| Answer::say(WORDS));
    let socket = gateway("question");
    let (mut database, mut worker) = (Database::connect(&socket).await, Database::connect(&socket).await);
    let route = route(Kind::OpenAi, &server);
    worker.ask(1, Request::Ledger { database: 1 }).await;
    database.ask(2, Request::Chat(Box::new(call(&[&route])))).await;
    let mut events = Vec::new();
    let end = loop {
        let frame = database.frame().await;
        match frame.tag {
            Tag::Item => {
                let Item::Events(more) = decode(&frame.body).unwrap() else { panic!("not events") };
                events.extend(more);
            }
            _ => break decode::<Reply>(&frame.body).unwrap(),
        }
    };
    let Reply::Chat(end) = end else { panic!("{end:?}") };
    assert_eq!((text(&events).as_str(), end.outcome), (WORDS, Outcome::Succeeded));
    let records = worker.records(1).await;
    assert_eq!((records.len(), &records[0].call), (1, &*end));
    worker.ask(3, Request::Recorded { database: 1, upto: records[0].number }).await;
    assert!(matches!(worker.reply(3).await, Reply::Done { .. }));
    // A newer subscriber takes the older one's place, and is told what nobody has acknowledged.
    database.ask(4, Request::EmbedWith(Box::new(embed(&route, &["a"])))).await;
    assert_eq!(database.frame().await.tag, Tag::Item);
    assert!(matches!(database.reply(4).await, Reply::Call(_)));
    let told = worker.records(1).await;
    database.ask(5, Request::Ledger { database: 1 }).await;
    assert_eq!(database.records(5).await, told);
    assert!(matches!(worker.reply(1).await, Reply::Done { .. }));
    worker.ask(6, Request::Providers).await;
    let Reply::Providers(states) = worker.reply(6).await else { panic!("not providers") };
    assert_eq!((states.len(), states[0].requests, states[0].circuit.as_str()), (1, 2, "closed"));
    worker
        .ask(7, Request::CountTokens { model: "tiktoken/o200k_base".into(), inputs: vec!["hello world".into()] })
        .await;
    let Reply::Counts(counts) = worker.reply(7).await else { panic!("not counts") };
    assert_eq!(counts, [2]);
    worker.ask(8, Request::Status).await;
    let Reply::Status(status) = worker.reply(8).await else { panic!("not a status") };
    assert_eq!(status.in_flight, 0, "a subscription is no work");
}

#[tokio::test]
async fn a_cancelled_or_abandoned_question_ends_at_once_and_is_recorded() {
    let server = Server::start().await;
    server.answer_by(|_| Answer::Hang);
    let socket = gateway("cancel");
    let mut worker = Database::connect(&socket).await;
    worker.ask(1, Request::Ledger { database: 1 }).await;
    for hang_up in [false, true] {
        let mut database = Database::connect(&socket).await;
        let (count, gone) = (server.count(), server.gone().len());
        database.ask(2, Request::Chat(Box::new(call(&[&route(Kind::Anthropic, &server)])))).await;
        until("the request", || server.count() > count).await;
        let ended = Instant::now();
        if hang_up {
            drop(database);
        } else {
            database.stream.write_all(&encode(Tag::Cancel, 2, &()).unwrap()).await.unwrap();
        }
        until("the connection closes", || server.gone().len() > gone).await;
        assert!(server.gone()[gone].duration_since(ended) < Duration::from_secs(1));
        assert_eq!(worker.records(1).await[0].call.outcome, Outcome::Cancelled);
    }
}
