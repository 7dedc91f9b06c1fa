//! A question to a language model: the routes in order, and the reply as it comes.

use crate::core::chat::{Chat, Event};
use crate::core::error::Error;
use crate::core::wire::{CallEnd, ChatCall, Item, Outcome, Provider, Route};
use crate::gateway::http::account::{Account, Guess, Heard};
use crate::gateway::http::exchange::{Body, Exchange, Reader};
use crate::gateway::http::fault::Fault;
use crate::gateway::http::{Addressee, Providers, Sink, deadline, too_slow};
use crate::provider::{self, Decoder, Failure};
use std::borrow::Cow;
use std::time::Instant;
use tokio::time::timeout_at;

/// Tokens that a reply is taken to have where nobody limits it.
const REPLY_TOKENS: u32 = 1024;

impl Providers {
    /// Asks a language model. Its words go to `sink` as they come; how it ended, also in an error, is returned.
    pub async fn chat(&self, call: ChatCall, sink: &Sink) -> CallEnd {
        let began = Instant::now();
        let deadline = deadline(began, call.timeout_ms);
        let ChatCall { asker, routes, chat, timeout_ms, guessed_tokens, all_text, output_tokens, once } = call;
        let workspace = asker.workspace;
        let whole_reply = if chat.stream { 0 } else { output_tokens };
        let guess = Guess { prompt: guessed_tokens, whole_reply, compares: all_text };
        let mut account = Account::open(self.ledger(), asker, began, guess);
        let mut error = None;
        for route in &routes {
            account.goes_to(route);
            let chat = accepted(route, &chat);
            let ask = Ask { route, chat: &chat, workspace, deadline, timeout_ms, once };
            let lost = match self.ask(&ask, &mut account, sink).await {
                Ok(()) => return account.close(Outcome::Succeeded, None).await,
                Err(fault) => {
                    if let Some(id) = fault.request_id {
                        account.heard.set_id(&id);
                    }
                    error = Some(fault.error);
                    fault.lost
                }
            };
            if account.heard.first.is_some() {
                return account.close(Outcome::Interrupted, error).await;
            }
            if Instant::now() >= deadline || once && lost {
                break;
            }
        }
        let error = error.unwrap_or_else(|| Error::bad_argument("no model is given that may answer"));
        account.close(Outcome::Failed, Some(error)).await
    }

    async fn ask(&self, ask: &Ask<'_>, account: &mut Account, sink: &Sink) -> Result<(), Fault> {
        let Route { provider, model, output_limit, .. } = ask.route;
        let peer = self.peers.of(provider.id);
        let dialect = provider::dialect(provider.kind, &options(provider));
        let call = provider::chat(provider.kind, &dialect, model, *output_limit, ask.chat)?;
        let ready = match timeout_at(ask.deadline.into(), self.clients.request(provider, call)).await {
            Ok(ready) => ready?,
            Err(_) => return Err(too_slow(Addressee::Provider(&provider.name), ask.timeout_ms).into()),
        };
        let most_said = match (ask.chat.max_output_tokens, *output_limit) {
            (Some(asked), 0) => asked,
            (Some(asked), limit) => asked.min(limit),
            (None, 0) => REPLY_TOKENS,
            (None, limit) => limit,
        };
        let Account { sent, heard, .. } = account;
        let exchange = Exchange {
            provider,
            model,
            peer: &peer,
            workspace: ask.workspace,
            tokens: heard.prompt + u64::from(most_said),
            deadline: ask.deadline,
            timeout_ms: ask.timeout_ms,
            sent,
            backoff: self.backoff,
            patient: false,
            once: ask.once,
        };
        let mut listener = Listener { provider, model, chat: ask.chat, heard, sink, events: Vec::new(), noted: 0 };
        exchange.run(&ready, &mut listener).await
    }
}

/// The question as a model takes it: one that knows no temperature refuses whoever names it, and one may not reason as
/// long as it usually does where it may call tools.
fn accepted<'a>(route: &Route, chat: &'a Chat) -> Cow<'a, Chat> {
    let mut accepted = Cow::Borrowed(chat);
    if !route.temperature && (chat.temperature.is_some() || chat.top_p.is_some()) {
        let chat = accepted.to_mut();
        chat.temperature = None;
        chat.top_p = None;
    }
    if route.tool_effort.is_some() && !chat.tools.is_empty() {
        accepted.to_mut().reasoning_effort.clone_from(&route.tool_effort);
    }
    accepted
}

/// What sets a provider's server apart; without it, nothing does.
fn options(provider: &Provider) -> serde_json::Value {
    match provider.options.as_str() {
        "" | "{}" => serde_json::Value::Null,
        text => serde_json::from_str(text).unwrap_or_default(),
    }
}

struct Ask<'a> {
    route: &'a Route,
    chat: &'a Chat,
    workspace: [u8; 16],
    deadline: Instant,
    timeout_ms: u64,
    once: bool,
}

/// Takes a reply's bytes and passes on what they say, all that came together in one frame.
struct Listener<'a> {
    provider: &'a Provider,
    model: &'a str,
    chat: &'a Chat,
    heard: &'a mut Heard,
    sink: &'a Sink,
    events: Vec<Event>,
    /// Events at the beginning of `events` that were noted.
    noted: usize,
}

impl Listener<'_> {
    fn fault(&self, failure: Failure) -> Fault {
        Fault::of_failure(failure, &self.provider.name, self.model)
    }

    fn note(&mut self) {
        for event in &self.events[self.noted..] {
            self.heard.note(event);
        }
        self.noted = self.events.len();
    }

    /// Shows the events so far. Ids and figures alone are held back: the request could still be sent again.
    async fn show(&mut self) -> Result<(), Fault> {
        let says = |event: &Event| !matches!(event, Event::Id(_) | Event::Usage(_));
        if self.events.is_empty() || self.heard.first.is_none() && !self.events.iter().any(says) {
            return Ok(());
        }
        self.heard.first.get_or_insert_with(Instant::now);
        self.noted = 0;
        let item = Item::Events(std::mem::take(&mut self.events));
        let sent = self.sink.send(&item).await;
        if let Item::Events(events) = item {
            self.events = events;
            self.events.clear();
        }
        sent.map_err(Fault::from)
    }

    async fn listen(&mut self, decoder: &mut dyn Decoder, body: &mut Body<'_>) -> Result<(), Fault> {
        loop {
            let failed = match body.next().await {
                Ok(Some(part)) => {
                    decoder.push(part.as_ref(), &mut self.events).err().map(|failure| self.fault(failure))
                }
                Ok(None) => break,
                // A server that said all may yet fail to close its reply.
                Err(_) if self.heard.stopped && decoder.finish(&mut self.events).is_ok() => break,
                Err(fault) => Some(fault),
            };
            self.note();
            match failed {
                None => self.show().await?,
                Some(fault) => {
                    if self.heard.first.is_some() {
                        self.show().await?;
                    }
                    return Err(fault);
                }
            }
        }
        let ended = decoder.finish(&mut self.events);
        self.note();
        match ended {
            Ok(()) => self.show().await,
            Err(failure) => {
                let fault = self.fault(failure);
                if self.heard.first.is_some() {
                    self.show().await?;
                }
                Err(fault)
            }
        }
    }
}

impl Reader for Listener<'_> {
    type Output = ();

    async fn read(&mut self, body: &mut Body<'_>) -> Result<(), Fault> {
        self.heard.restart();
        self.events.clear();
        self.noted = 0;
        let mut decoder = provider::decoder(self.provider.kind, self.chat);
        let result = self.listen(&mut *decoder, body).await;
        if self.heard.id.is_none()
            && let Some(id) = body.request_id()
        {
            self.heard.set_id(&id);
        }
        result
    }

    fn shown(&self) -> bool {
        self.heard.first.is_some()
    }

    fn used(&self) -> Option<u64> {
        self.heard.told.map(|told| told.input + told.output)
    }
}
