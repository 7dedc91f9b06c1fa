//! Who may answer a call: the provider and model that it names, or the ones that are set for its purpose.

use crate::core::chat::{Abilities, Kind};
use crate::core::error::{Error, Result};
use crate::core::wire::{Credential, Prices, Provider, Route};
use crate::pg::kept::Kept;
use crate::pg::{owner, spi};
use pgrx::JsonB;
use serde_json::Value;

/// Models that may answer, in the order in which they are asked, and what the first one can do.
#[derive(Clone)]
pub struct Chosen {
    /// The first, and those that take its place.
    pub routes: Vec<Route>,
    /// Tokens of prompt and reply together.
    pub window: u32,
    /// Tokens of a reply at most; 0 where unknown.
    pub output: u32,
    /// Numbers in an embedding, where somebody has said how many.
    pub dimensions: Option<u32>,
    /// What else is known of the model.
    pub options: Value,
    /// Milliseconds for a call in all.
    pub timeout_ms: u64,
}

/// Where nobody has said how long a model's prompt may be.
const WINDOW: u32 = 8192;

const COLUMNS: &str = "r.provider_id, r.provider, r.kind, r.base_url, r.credential, r.secret, r.options, r.model, r.context_window, \
     r.output_limit, r.dimensions, r.input_price, r.cached_price, r.cache_write_price, r.output_price, r.model_options, r.token_ratio, \
     r.enabled, r.purpose, r.workspace_id is not null";

/// A workspace, a purpose and the model that was named.
type Wanted = ([u8; 16], String, Option<String>);

thread_local! {
    static CHOSEN: Kept<Wanted, Option<Vec<Chosen>>> = Kept::new();
}

/// The models for a purpose in a workspace: the one that is named (`model`, or `provider/model`), else those that are set;
/// `None` where that is the local one.
pub fn choose(workspace: pgrx::Uuid, purpose: &str, model: Option<&str>) -> Result<Option<Chosen>> {
    choose_able(workspace, purpose, model, Abilities { tools: false, images: false, documents: false })
}

/// The same, of those that can take what a question has in it.
pub fn choose_able(
    workspace: pgrx::Uuid,
    purpose: &str,
    model: Option<&str>,
    needs: Abilities,
) -> Result<Option<Chosen>> {
    let Some(found) = known(workspace, purpose, model)? else { return Ok(None) };
    let mut lacking = None;
    let mut able = found.into_iter().filter(|chosen| {
        let lacks = chosen.routes.first().and_then(|route| route.abilities.lacks(needs));
        lacking = lacking.or(lacks);
        lacks.is_none()
    });
    let first = able.next();
    let others: Vec<Chosen> = able.collect();
    let Some(mut chosen) = first else { return Err(unable(lacking.unwrap_or("answers"))) };
    chosen.routes.extend(others.into_iter().flat_map(|other| other.routes));
    Ok(Some(chosen))
}

/// Routes whose models can take what a call has in it.
pub fn able(routes: &[Route], needs: Abilities) -> Result<Vec<Route>> {
    let able: Vec<Route> = routes.iter().filter(|route| route.abilities.lacks(needs).is_none()).cloned().collect();
    match routes.first().and_then(|route| route.abilities.lacks(needs)) {
        Some(lacks) if able.is_empty() => Err(unable(lacks)),
        _ => Ok(able),
    }
}

fn unable(what: &str) -> Error {
    Error::bad_argument(format!("no model that may answer {what}")).hint(
        "Leave them out, choose another model with model => ..., or correct what is known of it with helper.set_model.",
    )
}

/// All that there are, each with its own route alone.
fn known(workspace: pgrx::Uuid, purpose: &str, model: Option<&str>) -> Result<Option<Vec<Chosen>>> {
    let named = match model {
        Some("local" | "extractive" | "local/extractive") => return Ok(None),
        None | Some("auto" | "") => None,
        Some(model) => Some(model),
    };
    let wanted = (*workspace.as_bytes(), purpose.to_owned(), named.map(str::to_owned));
    CHOSEN.with(|chosen| chosen.get(wanted, || find(workspace, purpose, named)))
}

fn find(workspace: pgrx::Uuid, purpose: &str, named: Option<&str>) -> Result<Option<Vec<Chosen>>> {
    let mut found = owner::as_owner(|| match named {
        // One plan with both conditions would look through every model of the catalog for a default.
        Some(model) => read(
            &format!(
                "select {COLUMNS} from helper._routes r \
                 where (r.workspace_id = $1 or r.workspace_id is null) and r.purpose = $2 and r.enabled \
                   and (r.model = $3 or r.provider || '/' || r.model = $3) \
                 order by r.workspace_id nulls last, r.provider limit 1"
            ),
            &[workspace.into(), purpose.into(), model.into()],
            purpose,
        ),
        None => read(
            &format!(
                "select {COLUMNS} from helper.model_defaults d \
                 join helper._routes r on r.provider_id = d.provider_id and r.model = d.model \
                 where d.purpose = $2 and d.workspace_id is not distinct from \
                   (select e.workspace_id from helper.model_defaults e where e.purpose = $2 \
                    and (e.workspace_id = $1 or e.workspace_id is null) order by e.workspace_id nulls last limit 1) \
                 order by d.place"
            ),
            &[workspace.into(), purpose.into()],
            purpose,
        ),
    })?;
    if found.is_empty() {
        return match named {
            Some(model) => Err(Error::unknown_object(format!("model \"{model}\" does not exist")).hint(
                "Name it as model or provider/model; helper.set_provider and helper.set_model make models known.",
            )),
            None => Ok(None),
        };
    }
    // One that is not ready, disabled or for want of its key say, is left out where another can take its place.
    let at = found.iter().position(Result::is_ok).unwrap_or(0);
    let first = found.remove(at)?;
    Ok(Some(std::iter::once(first).chain(found.into_iter().flatten()).collect()))
}

/// A provider's model by its identity, as the owner; `None` where there is none that may be asked.
pub fn of(provider: pgrx::Uuid, model: &str) -> Result<Option<Chosen>> {
    let found = read(
        &format!(
            "select {COLUMNS} from helper._routes r where r.provider_id = $1 and r.model = $2 and r.enabled limit 1"
        ),
        &[provider.into(), model.into()],
        "embedding",
    )?;
    found.into_iter().next().transpose()
}

/// Models as they are found, each with what keeps it from being asked.
fn read(sql: &str, args: &[pgrx::datum::DatumWithOid], purpose: &str) -> Result<Vec<Result<Chosen>>> {
    spi::select(sql, args, |row| {
        let name = row.get::<String>(2)?;
        let kind = row.get::<String>(3)?;
        let base_url = row.get::<String>(4)?;
        let options = row.get::<JsonB>(7)?.0;
        let number = |name: &str, default: u64| options.get(name).and_then(Value::as_u64).unwrap_or(default);
        let flag = |name: &str| options.get(name).and_then(Value::as_bool).unwrap_or(false);
        let short = |name: &str, default: u64| u32::try_from(number(name, default)).unwrap_or(u32::MAX);
        let price = |column: usize| row.get::<i64>(column).map(|price| u64::try_from(price).unwrap_or_default());
        let size = |column: usize| row.opt::<i32>(column).map(|size| size.and_then(|size| u32::try_from(size).ok()));
        let model = row.get::<String>(8)?;
        let credential = if !row.get::<bool>(18)? {
            Err(Error::not_ready(format!("provider \"{name}\" of the default model \"{name}/{model}\" is disabled"))
                .hint("Enable it with helper.set_provider, or choose another model with helper.set_default."))
        } else if row.get::<String>(19)? != purpose {
            Err(Error::not_ready(format!("the default model \"{name}/{model}\" is not for {purpose}"))
                .hint("Correct its kind with helper.set_model, or choose another model with helper.set_default."))
        } else {
            credential(&name, &kind, row.opt::<String>(5)?, row.opt::<String>(6)?)
        };
        let Some(kind) = Kind::named(&kind) else { return Err(Error::bug("a provider of unknown kind")) };
        let output = size(10)?.unwrap_or(0);
        let model_options = row.get::<JsonB>(16)?.0;
        let can = |name: &str| model_options.get(name).and_then(Value::as_bool).unwrap_or(true);
        let route = Route {
            provider: Provider {
                id: *row.get::<pgrx::Uuid>(1)?.as_bytes(),
                own: row.get(20)?,
                name,
                kind,
                base_url,
                credential: Credential::None,
                allow_private: flag("allow_private"),
                max_concurrent: short("max_concurrent", 0),
                requests_per_minute: short("requests_per_minute", 0),
                tokens_per_minute: number("tokens_per_minute", 0),
                connect_timeout_ms: short("connect_timeout_ms", 5_000),
                first_byte_timeout_ms: short("first_byte_timeout_ms", 120_000),
                idle_timeout_ms: short("idle_timeout_ms", 60_000),
                max_retries: short("max_retries", 2),
                max_reply_bytes: number("max_reply_bytes", 32 * 1024 * 1024),
                options: options.to_string(),
            },
            model,
            output_limit: output,
            prices: Prices { input: price(12)?, cached: price(13)?, cache_written: price(14)?, output: price(15)? },
            tokens_percent: (row.get::<f32>(17)? * 100.0).round() as u32,
            temperature: can("temperature"),
            tool_effort: model_options.get("tool_effort").and_then(Value::as_str).map(str::to_owned),
            abilities: Abilities { tools: can("tools"), images: can("images"), documents: can("documents") },
        };
        let chosen = Chosen {
            window: size(9)?.unwrap_or(WINDOW),
            output,
            dimensions: size(11)?,
            options: model_options,
            timeout_ms: number("timeout_ms", 300_000),
            routes: vec![route],
        };
        Ok(credential.map(|credential| {
            let mut chosen = chosen;
            if let Some(route) = chosen.routes.first_mut() {
                route.provider.credential = credential;
            }
            chosen
        }))
    })
}

/// A provider's key, or where the gateway finds it.
fn credential(name: &str, kind: &str, reference: Option<String>, secret: Option<String>) -> Result<Credential> {
    if let Some(secret) = secret {
        return Ok(Credential::Key(secret));
    }
    let Some(reference) = reference else {
        return match kind {
            "ollama" | "openai_compatible" => Ok(Credential::None),
            _ => Err(Error::not_ready(format!("provider \"{name}\" has no key"))
                .hint("Give it one with helper.set_provider(credential => ...) or the view helper.provider_keys.")),
        };
    };
    self::secret(&format!("provider \"{name}\""), &reference)
}

/// The secret that a reference (`env:NAME`, `file:/path`, `vault:name`) stands for, or where the gateway finds it; of what
/// it is the secret is for messages. As the owner.
pub fn secret(whose: &str, reference: &str) -> Result<Credential> {
    match reference.split_once(':') {
        Some(("env", variable)) => Ok(Credential::Env(variable.to_owned())),
        Some(("file", path)) => Ok(Credential::File(path.to_owned())),
        // A vault that is not a superuser's own would run its maker's code as the extension's owner.
        Some(("vault", _))
            if spi::first("select helper._has_vault()", &[], |row| row.get::<bool>(1))? != Some(true) =>
        {
            Err(Error::not_ready(format!("there is no vault for {whose}")))
        }
        Some(("vault", secret)) => spi::first(
            "select s.decrypted_secret::text from vault.decrypted_secrets s where s.name = $1",
            &[secret.into()],
            |row| row.opt::<String>(1),
        )?
        .flatten()
        .map(Credential::Key)
        .ok_or_else(|| Error::not_ready(format!("vault has no secret \"{secret}\" for {whose}"))),
        _ => Err(Error::bug("a credential of unknown kind")),
    }
}
