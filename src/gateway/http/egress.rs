//! Where the gateway may connect to. An address is checked where it is found, and that one is used: a literal in the
//! URL here, the answers for a name in the resolver that the connection takes its addresses from.

use crate::core::error::{Error, Kind, Result};
use crate::gateway::http::Addressee;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use url::{Host, Url};

/// Finds the addresses of a name; tests bring their own.
pub type Lookup =
    Arc<dyn Fn(String) -> Pin<Box<dyn Future<Output = std::io::Result<Vec<IpAddr>>> + Send>> + Send + Sync>;

/// Asks the system.
pub fn system_lookup() -> Lookup {
    Arc::new(|name| {
        Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect()) })
    })
}

/// Whether an address is one of the public internet's.
///
/// Not so are the special ranges of RFC 6890 and its updates, multicast, and the metadata services of clouds. An address
/// that carries another (IPv4-mapped, NAT64, 6to4) is what it carries; Teredo and the rest outside 2000::/3 are refused.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, d] = address.octets();
    !matches!(
        (a, b, c, d),
        (0 | 10 | 127 | 224.., ..)
            | (100, 64..=127, ..)
            | (169, 254, ..)
            | (172, 16..=31, ..)
            | (192, 0, 0 | 2, _)
            | (192, 88, 99, _)
            | (192, 168, ..)
            | (198, 18 | 19, ..)
            | (198, 51, 100, _)
            | (203, 0, 113, _)
            // Azure's metadata service.
            | (168, 63, 129, 16)
    )
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let carried = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            carried(high, low)
        }
        // Teredo and the rest of 2001::/23, documentation, segment routing.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, ..] => false,
        [first, ..] => (0x2000..0x4000).contains(&first),
    }
}

/// A provider's base URL, read and checked as far as it can be without asking for addresses.
pub fn base_url(provider: &str, text: &str, allow_private: bool) -> Result<Url> {
    let to = Addressee::Provider(provider);
    let url = url(to, text, allow_private)?;
    match url.query().is_some() || url.fragment().is_some() {
        true => Err(Error::bad_argument(format!("{} of {to} has a query or a fragment", to.url()))),
        false => Ok(url),
    }
}

/// A URL to send to, read and checked as far as it can be without asking for addresses.
pub fn url(to: Addressee<'_>, text: &str, allow_private: bool) -> Result<Url> {
    let bad = |what: &str| Error::bad_argument(format!("{} of {to} {what}", to.url()));
    let url = Url::parse(text).map_err(|_| bad("is not a URL"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("has a user or a password in it").hint("Give the key as its credential."));
    }
    match url.scheme() {
        "https" => {}
        "http" if allow_private => {}
        "http" => {
            return Err(
                bad("is not https").hint("Plain http is spoken only where an administrator allows private addresses.")
            );
        }
        _ => return Err(bad("is not https")),
    }
    let literal = match url.host() {
        None => return Err(bad("has no host")),
        Some(Host::Domain(_)) => None,
        Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
    };
    match literal {
        Some(address) if !allow_private && !is_public(address) => Err(refused(to)),
        _ => Ok(url),
    }
}

/// The error for a host that may not be connected to.
pub fn refused(to: Addressee<'_>) -> Error {
    Error::new(Kind::NotPermitted, format!("{to} has an address that is not public"))
        .detail("Private, loopback, link-local and other special addresses are refused.")
        .hint("An administrator can allow private addresses for it.")
}

/// All that a name has for an address is not public.
#[derive(Debug)]
pub struct NotPublic;

impl std::fmt::Display for NotPublic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("address is not public")
    }
}

impl std::error::Error for NotPublic {}

/// A name has no address.
#[derive(Debug)]
pub struct NoAddress;

impl std::fmt::Display for NoAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("name has no address")
    }
}

impl std::error::Error for NoAddress {}

/// The resolver of one client: gives those addresses alone that may be connected to.
pub struct Resolver {
    /// Where it asks.
    pub lookup: Lookup,
    /// Whether any address will do.
    pub allow_private: bool,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (found, allow_private) = ((self.lookup)(name.as_str().to_owned()), self.allow_private);
        Box::pin(async move {
            let mut addresses = found.await.unwrap_or_default();
            if addresses.is_empty() {
                return Err(NoAddress.into());
            }
            addresses.retain(|address| allow_private || is_public(*address));
            if addresses.is_empty() {
                return Err(NotPublic.into());
            }
            Ok(Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_not_public() {
        for text in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.255.255.255",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "100::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        for text in [
            "1.1.1.1",
            "172.32.0.1",
            "100.128.0.1",
            "198.20.0.1",
            "2606:4700::1111",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
        ] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn an_address_in_any_spelling_is_checked() {
        for host in [
            "127.0.0.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "017700000001",
            "127.1",
            "0",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "169.254.169.254",
            "①②⑦.0.0.1",
            "127。0。0。1",
            "[fd00:ec2::254]",
            "[64:ff9b::7f00:1]",
        ] {
            let text = format!("https://{host}/v1");
            let error = base_url("p", &text, false).expect_err(host);
            assert_eq!(error.kind, Kind::NotPermitted, "{host}");
            assert!(base_url("p", &text, true).is_ok(), "{host}");
        }
        assert!(base_url("p", "https://api.example.com/v1", false).is_ok());
    }

    #[test]
    fn a_url_holds_no_secret_and_no_other_scheme() {
        for text in [
            "https://user:secret@api.example.com",
            "https://secret@api.example.com",
            "https://api.example.com/?key=secret",
            "https://api.example.com/#secret",
            "http://api.example.com",
            "file:///secret",
            "ftp://secret.example.com",
            "secret",
            "https://",
            "unix:/secret",
        ] {
            let error = base_url("p", text, false).expect_err(text);
            assert_eq!(error.kind, Kind::BadArgument, "{text}");
            assert!(!format!("{error:?}").contains("secret"), "{text}");
        }
        assert!(base_url("p", "http://api.example.com", true).is_ok());
    }

    #[tokio::test]
    async fn of_a_names_answers_the_public_ones_alone_are_used() {
        let lookup: Lookup = Arc::new(|name| {
            let both = ["10.0.0.1".parse().unwrap(), "1.1.1.1".parse().unwrap()];
            Box::pin(async move { Ok(if name == "both" { both.to_vec() } else { both[..1].to_vec() }) })
        });
        let ask = async |name: &str, allow_private| {
            let resolver = Resolver { lookup: lookup.clone(), allow_private };
            resolver.resolve(name.parse().unwrap()).await.map(Iterator::count)
        };
        assert_eq!(ask("both", false).await.unwrap(), 1);
        assert!(ask("private", false).await.unwrap_err().is::<NotPublic>());
        assert_eq!(ask("private", true).await.unwrap(), 1);
    }
}
