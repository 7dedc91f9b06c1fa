//! The socket server: hellos and requests in, replies out, one task for each request.
//!
//! Only processes of the same user are let in. A connection that closes, or a `Cancel`, ends its requests at once;
//! nothing here outlives them. It never opens a file or a network connection itself.

use crate::core::error::{Error, Result};
use crate::core::wire::{self, Frame, Frames, Hello, Item, PROTOCOL, Reply, Request, Status, Tag};
use crate::gateway::batch::Batcher;
use crate::gateway::http::{Providers, Sink, tokens};
use crate::gateway::{parse, schema};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Frames that wait to be written on a connection before its requests wait in turn.
const WAITING_FRAMES: usize = 32;

/// What all connections share.
pub struct Gateway {
    batcher: Batcher,
    limits: parse::Limits,
    providers: Arc<Providers>,
    started: Instant,
    connections: AtomicU32,
    in_flight: AtomicU32,
    cancelled: AtomicU64,
}

/// Counts a request while it is under way, and as cancelled when it is dropped before its end. Where it panics, the asker
/// is told.
struct UnderWay {
    gateway: Arc<Gateway>,
    id: u32,
    out: mpsc::Sender<Vec<u8>>,
    ended: bool,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.gateway.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.ended {
            return;
        }
        self.gateway.cancelled.fetch_add(1, Ordering::Relaxed);
        if std::thread::panicking()
            && let Ok(last) = wire::encode(Tag::Error, self.id, &Error::bug("the gateway panicked at a request"))
        {
            let _ = self.out.try_send(last);
        }
    }
}

impl Gateway {
    /// A gateway around a model and the providers.
    pub fn new(batcher: Batcher, limits: parse::Limits, providers: Arc<Providers>) -> Arc<Self> {
        Arc::new(Gateway {
            batcher,
            limits,
            providers,
            started: Instant::now(),
            connections: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            cancelled: AtomicU64::new(0),
        })
    }

    /// Serves connections on a socket for ever.
    ///
    /// The socket appears under its name only when it can be connected to and by its owner alone.
    pub async fn serve(self: Arc<Self>, socket: &Path) -> std::io::Result<()> {
        let fresh = socket.with_extension(format!("sock.{}", std::process::id()));
        let _ = std::fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh)?;
        std::fs::set_permissions(&fresh, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        std::fs::rename(&fresh, socket)?;
        let me = rustix::process::geteuid().as_raw();
        loop {
            let (stream, _) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, say: the ones that are open go on.
                    eprintln!("helper_ai gateway: cannot accept a connection: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            };
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == me => {
                    tokio::spawn(Arc::clone(&self).connection(stream));
                }
                _ => eprintln!("helper_ai gateway: refused a connection of another user"),
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: UnixStream) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let mut running: HashMap<u32, AbortHandle> = HashMap::new();
        if let Err(error) = self.converse(stream, &mut running).await {
            eprintln!("helper_ai gateway: closed a connection: {error}");
        }
        for (_, task) in running {
            task.abort();
        }
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    async fn converse(self: &Arc<Self>, stream: UnixStream, running: &mut HashMap<u32, AbortHandle>) -> Result<()> {
        let (mut reader, mut writer) = stream.into_split();
        let (out, mut frames_out) = mpsc::channel::<Vec<u8>>(WAITING_FRAMES);
        let hello = Hello { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").into() };
        // There is room: the channel is new.
        let _ = out.try_send(wire::encode(Tag::Hello, 0, &hello)?);
        tokio::spawn(async move {
            while let Some(frame) = frames_out.recv().await {
                if writer.write_all(&frame).await.is_err() {
                    return;
                }
            }
        });
        let mut frames = Frames::default();
        let mut buffer = vec![0; 256 * 1024];
        let mut greeted = false;
        loop {
            while let Some(frame) = frames.next()? {
                match frame.tag {
                    Tag::Hello => {
                        let hello: Hello = wire::decode(&frame.body)?;
                        if hello.protocol != PROTOCOL {
                            return Err(Error::not_ready(format!(
                                "the database speaks protocol {}, this gateway {PROTOCOL}",
                                hello.protocol
                            )));
                        }
                        greeted = true;
                    }
                    Tag::Request if greeted => {
                        running.retain(|_, task| !task.is_finished());
                        let id = frame.id;
                        let task = tokio::spawn(Arc::clone(self).request(frame, out.clone()));
                        running.insert(id, task.abort_handle());
                    }
                    Tag::Cancel => {
                        if let Some(task) = running.remove(&frame.id) {
                            task.abort();
                        }
                    }
                    _ => return Err(Error::bug("unexpected frame from the database")),
                }
            }
            match reader.read(&mut buffer).await {
                Ok(0) | Err(_) => return Ok(()),
                Ok(count) => frames.push(&buffer[..count]),
            }
        }
    }

    async fn request(self: Arc<Self>, frame: Frame, out: mpsc::Sender<Vec<u8>>) {
        let id = frame.id;
        let request = wire::decode::<Request>(&frame.body);
        // It lasts as long as its connection, which is neither work nor a cancellation.
        if let Ok(Request::Ledger { database }) = request {
            return self.ledger(id, database, out).await;
        }
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let mut under_way = UnderWay { gateway: Arc::clone(&self), id, out: out.clone(), ended: false };
        let answer = match request {
            Ok(request) => self.answer(id, request, &out).await,
            Err(error) => Err(error),
        };
        let last = match answer {
            Ok(reply) => wire::encode(Tag::End, id, &reply),
            Err(error) => wire::encode(Tag::Error, id, &error),
        };
        let last = last.or_else(|error| wire::encode(Tag::Error, id, &error));
        under_way.ended = true;
        drop(under_way);
        if let Ok(last) = last {
            let _ = out.send(last).await;
        }
    }

    async fn answer(&self, id: u32, request: Request, out: &mpsc::Sender<Vec<u8>>) -> Result<Reply> {
        match request {
            Request::Status => Ok(Reply::Status(self.status())),
            Request::Embed { model, inputs, interactive } => {
                let mut slices = self.batcher.embed_slices(&model, inputs, interactive)?;
                while let Some(slice) = slices.next().await {
                    let slice = slice?;
                    let dimensions = slice.first().map_or(0, Vec::len) as u32;
                    let item = Item::Embeddings { dimensions, values: slice.concat() };
                    let _ = out.send(wire::encode(Tag::Item, id, &item)?).await;
                }
                Ok(Reply::Done { tokens: slices.tokens() })
            }
            Request::CountTokens { model, inputs } => Ok(Reply::Counts(match tokens::Encoding::named(&model) {
                Some(encoding) => tokens::count(encoding, inputs).await?,
                None => self.batcher.count_tokens(&model, inputs).await?,
            })),
            Request::Chat(call) => {
                Ok(Reply::Chat(Box::new(self.providers.chat(*call, &Sink::new(id, out.clone())).await)))
            }
            Request::CheckJson { schema, value } => schema::check_apart(schema, value).await.map(Reply::Checked),
            Request::EmbedWith(call) => {
                Ok(Reply::Call(Box::new(self.providers.embed(*call, &Sink::new(id, out.clone())).await)))
            }
            Request::Tool(request) => Ok(Reply::Tool(Box::new(self.providers.tool(*request).await))),
            Request::McpList(server) => {
                self.providers.mcp_tools(*server).await.map(|offer| Reply::Mcp(Box::new(offer)))
            }
            Request::Providers => Ok(Reply::Providers(self.providers.states())),
            Request::Recorded { database, upto } => {
                self.providers.ledger().recorded(database, upto);
                Ok(Reply::Done { tokens: 0 })
            }
            Request::Ledger { .. } => Err(Error::bug("a ledger is read elsewhere")),
            Request::Prepare(requests) => {
                for request in &requests {
                    self.batcher.check(&request.model)?;
                }
                let model = self.batcher.model().await?;
                let name = model.name().to_owned();
                let documents = parse::prepare(requests, move |text| model.count_tokens(text), &self.limits).await;
                Ok(Reply::Prepared { documents, model: name })
            }
        }
    }

    /// Sends a database's records until its connection closes, or another one takes them.
    async fn ledger(&self, id: u32, database: u32, out: mpsc::Sender<Vec<u8>>) {
        let mut records = self.providers.ledger().subscribe(database);
        let sink = Sink::new(id, out.clone());
        while let Some(records) = records.next().await {
            if sink.send(&Item::Records(records)).await.is_err() {
                break;
            }
        }
        if let Ok(last) = wire::encode(Tag::End, id, &Reply::Done { tokens: 0 }) {
            let _ = out.send(last).await;
        }
    }

    fn status(&self) -> Status {
        let loaded = self.batcher.loaded();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            connections: self.connections.load(Ordering::Relaxed),
            in_flight: self.in_flight.load(Ordering::Relaxed).saturating_sub(1),
            queued_texts: self.batcher.queued() as u32,
            cancelled: self.cancelled.load(Ordering::Relaxed),
            model: self.batcher.name().to_owned(),
            dimensions: loaded.map_or(0, |model| model.dimensions() as u32),
            tokens: self.batcher.tokens(),
        }
    }
}
