//! The HTTP client, and a provider's request put together for it.

use crate::core::error::{Error, Result};
use crate::core::wire::Provider;
use crate::gateway::http::egress::{self, Lookup, Resolver};
use crate::gateway::http::{Addressee, credential, fault::Fault};
use crate::provider;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Certificate, Client, Method, Request, Url};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Clients kept; each has connections of its own.
const CLIENTS: usize = 32;

/// What the client is told when the gateway starts.
pub struct Settings {
    /// Certificate authorities besides those of Mozilla.
    pub authorities: Vec<Certificate>,
    /// How addresses are found.
    pub lookup: Lookup,
    /// The longest wait before the first repetition; it doubles with each.
    pub backoff: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { authorities: Vec::new(), lookup: egress::system_lookup(), backoff: Duration::from_millis(500) }
    }
}

impl Settings {
    /// Trusts the certificate authorities in a file in PEM format as well.
    pub fn trust(mut self, file: &Path) -> Result<Settings> {
        let unreadable = |why: String| {
            Error::not_ready(format!("cannot read certificate authorities from \"{}\"", file.display())).detail(why)
        };
        let pem = std::fs::read(file).map_err(|error| unreadable(format!("The system said: {error}.")))?;
        let found = Certificate::from_pem_bundle(&pem).map_err(|_| unreadable("It is not in PEM format.".into()))?;
        if found.is_empty() {
            return Err(unreadable("It holds no certificate.".into()));
        }
        self.authorities.extend(found);
        Ok(self)
    }
}

/// The client, once for each way to connect: where to, and for how long to try.
///
/// What may have a private address never shares connections with one that may not.
pub struct Clients {
    settings: Settings,
    made: Mutex<HashMap<(bool, u32), Client>>,
}

impl Clients {
    /// No connection is made yet.
    pub fn new(settings: Settings) -> Clients {
        Clients { settings, made: Mutex::default() }
    }

    /// The client that may connect to private addresses or not, and tries for so many milliseconds.
    fn of(&self, allow_private: bool, connect_timeout_ms: u32) -> Result<Client> {
        let key = (allow_private, connect_timeout_ms);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = made.get(&key) {
            return Ok(client.clone());
        }
        if made.len() >= CLIENTS {
            // Requests under way keep theirs.
            made.clear();
        }
        let client = self.make(key.0, Duration::from_millis(u64::from(key.1)))?;
        made.insert(key, client.clone());
        Ok(client)
    }

    fn make(&self, allow_private: bool, connect_timeout: Duration) -> Result<Client> {
        let resolver = Resolver { lookup: self.settings.lookup.clone(), allow_private };
        let mut client = Client::builder()
            .user_agent(concat!("helper_ai/", env!("CARGO_PKG_VERSION")))
            .use_rustls_tls()
            .https_only(!allow_private)
            .no_proxy()
            .referer(false)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .dns_resolver(Arc::new(resolver))
            .connect_timeout(connect_timeout)
            .pool_idle_timeout(Duration::from_secs(60))
            .pool_max_idle_per_host(32)
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(30))
            .http2_keep_alive_interval(Duration::from_secs(20))
            .http2_adaptive_window(true);
        for authority in &self.settings.authorities {
            client = client.add_root_certificate(authority.clone());
        }
        client.build().map_err(|_| Error::bug("cannot make an HTTP client"))
    }

    /// A request of a provider, with its key; it can be sent as often as needed.
    pub async fn request(&self, provider: &Provider, call: provider::Call) -> std::result::Result<Ready, Fault> {
        let name = &provider.name;
        let base = match provider.base_url.as_str() {
            "" => provider::default_base_url(provider.kind).unwrap_or_default(),
            given => given,
        };
        let base = egress::base_url(name, base, provider.allow_private)?;
        if !call.path.starts_with('/') {
            return Err(Error::bug("a path does not begin with a slash").into());
        }
        let url = Url::parse(&[base.as_str().trim_end_matches('/'), &call.path].concat())
            .map_err(|_| Error::bad_argument(format!("model's name is not fit for a URL of provider \"{name}\"")))?;
        let method = Method::from_bytes(call.method.as_bytes()).map_err(|_| Error::bug("unknown HTTP method"))?;
        let mut headers = HeaderMap::with_capacity(call.headers.len() + 2);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (header, value) in call.headers {
            let value = HeaderValue::try_from(value).map_err(|_| Error::bug("a header has a control character"))?;
            headers.insert(named(header)?, value);
        }
        if let Some(auth) = provider::auth(provider.kind)
            && let Some(key) = credential::header(Addressee::Provider(name), &provider.credential, auth.prefix).await?
        {
            headers.insert(named(auth.header)?, key);
        }
        let mut request = Request::new(method, url);
        *request.headers_mut() = headers;
        *request.body_mut() = Some(call.body.into());
        Ok(Ready { client: self.of(provider.allow_private, provider.connect_timeout_ms)?, request })
    }

    /// A request of another kind, which is complete but for the way to connect.
    pub fn ready(&self, request: Request, allow_private: bool, connect_timeout_ms: u32) -> Result<Ready> {
        Ok(Ready { client: self.of(allow_private, connect_timeout_ms)?, request })
    }
}

fn named(header: &'static str) -> Result<HeaderName> {
    HeaderName::from_bytes(header.as_bytes()).map_err(|_| Error::bug("a header's name is not one"))
}

/// A request that is ready to be sent.
pub struct Ready {
    client: Client,
    request: Request,
}

impl Ready {
    /// Sends it.
    pub async fn send(&self, to: Addressee<'_>) -> std::result::Result<reqwest::Response, Fault> {
        // The body is bytes, which are shared and not copied.
        let request = self.request.try_clone().ok_or_else(|| Error::bug("a request cannot be sent twice"))?;
        self.client.execute(request).await.map_err(|error| Fault::of_client(&error, to, false))
    }
}
