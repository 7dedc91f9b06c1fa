//! Which model makes a workspace's embeddings, and how it is asked. A workspace's index has one current model, in
//! `knowledge_models`; another one can be made ready beside it.

mod call;

pub use call::Call;

use crate::core::chat::Purpose;
use crate::core::error::{Error, Result};
use crate::core::prompt::window::estimate;
use crate::core::wire::{Asker, EmbedCall, Request, Route};
use crate::pg::budget::{self, Reservation};
use crate::pg::routes::{self, Chosen};
use crate::pg::{identity, spi};
use pgrx::pg_sys;

/// Most numbers in an embedding that a row of the index has room for.
pub const MOST_DIMENSIONS: usize = 3900;

/// A model that makes embeddings.
#[derive(Clone)]
pub struct Embedder {
    /// What `knowledge_vectors.model` says of its embeddings; empty for the local one while nobody has asked its name.
    pub model: String,
    /// Numbers in each of its embeddings that the index has; `None` while there is none.
    dimensions: Option<usize>,
    /// The provider that runs it; `None` is the gateway's own model.
    remote: Option<Remote>,
}

#[derive(Clone)]
struct Remote {
    route: Route,
    /// Numbers to ask for; the model's own where absent.
    dimensions: Option<u32>,
    timeout_ms: u64,
}

/// Whose texts are embedded, and what for.
pub struct Asking<'a> {
    pub workspace: pgrx::Uuid,
    pub user: Option<pgrx::Uuid>,
    /// `embed`, `search` or `index`.
    pub why: &'a str,
    pub purpose: Purpose,
    /// Somebody waits for each of them.
    pub interactive: bool,
    /// Nobody waits at all.
    pub patient: bool,
}

impl Embedder {
    /// The local model.
    pub fn local() -> Embedder {
        Embedder { model: String::new(), dimensions: None, remote: None }
    }

    fn remote(chosen: Chosen) -> Result<Embedder> {
        let dimensions = chosen.dimensions.filter(|_| chosen.options.get("shorten").is_some());
        let route = chosen.routes.into_iter().next().ok_or_else(|| Error::bug("a choice of no model"))?;
        let mut model = format!("{}/{}", route.provider.name, route.model);
        if let Some(dimensions) = dimensions {
            model.push_str(&format!("@{dimensions}"));
        }
        let remote = Remote { route, dimensions, timeout_ms: chosen.timeout_ms };
        Ok(Embedder { model, dimensions: None, remote: Some(remote) })
    }

    /// The model of that name, or the one that is set for the workspace where there is no name.
    pub fn choose(workspace: pgrx::Uuid, model: Option<&str>) -> Result<Embedder> {
        match routes::choose(workspace, "embedding", model)? {
            Some(chosen) => Embedder::remote(chosen),
            None => Ok(Embedder::local()),
        }
    }

    /// The model that a workspace's index is made with; one without an index takes what is set for it. As the owner.
    pub fn current(workspace: pgrx::Uuid) -> Result<Embedder> {
        match stored(workspace, "current")? {
            Some(embedder) => Ok(embedder),
            None => Embedder::choose(workspace, None),
        }
    }

    /// The model that a workspace's index is being made ready for, as the owner.
    pub fn building(workspace: pgrx::Uuid) -> Result<Option<Embedder>> {
        stored(workspace, "building")
    }

    /// Whether a provider runs it.
    pub fn is_remote(&self) -> bool {
        self.remote.is_some()
    }

    /// The provider and its name for the model.
    pub fn provider(&self) -> Option<([u8; 16], &str)> {
        self.remote.as_ref().map(|remote| (remote.route.provider.id, remote.route.model.as_str()))
    }

    /// Learns the local model's name. An index made by another one cannot be compared with it.
    pub fn is_named(&mut self, name: &str) -> Result<()> {
        if self.model.is_empty() {
            name.clone_into(&mut self.model);
        }
        if self.model == name || self.is_remote() {
            return Ok(());
        }
        Err(Error::not_ready(format!("the workspace is indexed with model \"{}\"", self.model))
            .detail(format!("The gateway runs \"{name}\"."))
            .hint("Set helper_ai.model_path back, or make the embeddings anew with helper.reembed."))
    }

    /// Refuses embeddings of other dimensions than those `before`, or those that the index has, and such that it has no
    /// room for.
    pub fn check(&self, dimensions: usize, before: Option<usize>) -> Result<()> {
        if let Some(before) = before.or(self.dimensions).filter(|before| *before != dimensions) {
            return Err(Error::not_ready(format!("embedding has {dimensions} dimensions, expected {before}"))
                .detail(format!("Model \"{}\" made others for the workspace before.", self.model))
                .hint("If the provider has changed the model, have all embeddings made by another one with helper.reembed."));
        }
        if dimensions <= MOST_DIMENSIONS {
            return Ok(());
        }
        Err(Error::bad_argument(format!(
            "embedding has {dimensions} dimensions, at most {MOST_DIMENSIONS} can be indexed"
        ))
        .hint("Where the model can shorten its embeddings, set dimensions and shorten with helper.set_model."))
    }

    /// The question that has texts embedded, with what was set aside for it.
    pub fn ask(&self, asking: &Asking, inputs: Vec<String>) -> Result<(Request, Option<Reservation>)> {
        let Some(remote) = &self.remote else {
            let request = Request::Embed { model: self.model.clone(), inputs, interactive: asking.interactive };
            return Ok((request, None));
        };
        let tokens: u64 = inputs.iter().map(|input| u64::from(estimate(input))).sum();
        let route = remote.route.clone();
        let mut reservation = budget::reserve(asking.workspace, asking.user, |shared| {
            let tokens = tokens + tokens / 4;
            (!(shared && route.provider.own)).then(|| (tokens, budget::most_cost(&route.prices, tokens, 0)))
        })?;
        reservation.takes(tokens, 0, std::slice::from_ref(&route));
        // SAFETY: set once when the process connects.
        let database = unsafe { pg_sys::MyDatabaseId.to_u32() };
        let call = EmbedCall {
            asker: Asker {
                id: identity::new_id(),
                database,
                workspace: *asking.workspace.as_bytes(),
                user: asking.user.map(|user| *user.as_bytes()),
                conversation: None,
                message: None,
                purpose: asking.why.to_owned(),
            },
            route,
            purpose: asking.purpose,
            patient: asking.patient,
            dimensions: remote.dimensions,
            timeout_ms: remote.timeout_ms,
            inputs,
        };
        Ok((Request::EmbedWith(Box::new(call)), Some(reservation)))
    }
}

/// A model of a workspace's index by its state, as the owner.
fn stored(workspace: pgrx::Uuid, status: &str) -> Result<Option<Embedder>> {
    let found = spi::change(
        "select m.model, m.provider_id, m.provider_model, m.dimensions \
         from helper.knowledge_models m where m.workspace_id = $1 and m.status = $2",
        &[workspace.into(), status.into()],
        |row| Ok((row.get::<String>(1)?, row.opt::<pgrx::Uuid>(2)?, row.opt::<String>(3)?, row.opt::<i32>(4)?)),
    )?
    .pop();
    let Some((model, provider, name, dimensions)) = found else { return Ok(None) };
    let dimensions = dimensions.map(|dimensions| dimensions as usize);
    let (Some(provider), Some(name)) = (provider, name) else {
        return Ok(Some(Embedder { model, dimensions, remote: None }));
    };
    let lost = |why: &str| {
        Error::not_ready(format!("the workspace is indexed with model \"{model}\", {why}"))
            .hint("Set it up again with helper.set_provider and helper.set_model, or make the embeddings anew with helper.reembed.")
    };
    let chosen = routes::of(provider, &name)?.ok_or_else(|| lost("which does not exist or is not enabled"))?;
    let embedder = Embedder { dimensions, ..Embedder::remote(chosen)? };
    if embedder.model == model { Ok(Some(embedder)) } else { Err(lost("which has other dimensions now")) }
}
