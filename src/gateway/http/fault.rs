//! Why a request to a provider came to nothing, and what may be done about it.

use crate::core::error::{Error, Kind};
use crate::gateway::http::Addressee;
use crate::gateway::http::egress::{self, NoAddress, NotPublic};
use crate::provider::{Cause, Failure};
use std::error::Error as _;
use std::time::Duration;

/// A request that came to nothing.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What the asker is told.
    pub error: Error,
    /// Whether the same request may be sent again.
    pub again: bool,
    /// What it says of the provider.
    pub health: Health,
    /// How long the provider wants us to wait.
    pub retry_after: Option<Duration>,
    /// Nothing was sent, as the provider is left alone for a while.
    pub left_alone: bool,
    /// Whether a smaller request may be accepted.
    pub too_large: bool,
    /// The provider has the request and may do the work all the same, though nobody hears of it.
    pub lost: bool,
    /// The provider's id of the request.
    pub request_id: Option<String>,
}

/// What the end of a request says of the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answers.
    Well,
    /// It cannot answer now.
    Failing,
    /// Nothing.
    Unknown,
}

impl From<Error> for Fault {
    /// An error of ours, which no repetition changes.
    fn from(error: Error) -> Fault {
        Fault {
            error,
            again: false,
            health: Health::Unknown,
            retry_after: None,
            left_alone: false,
            too_large: false,
            lost: false,
            request_id: None,
        }
    }
}

impl Fault {
    /// What a provider's own error comes to.
    pub fn of_failure(failure: Failure, provider: &str, model: &str) -> Fault {
        let passing = failure.is_passing();
        // Even where it asks not to be sent the same again.
        let unwell = matches!(failure.cause, Cause::RateLimited | Cause::Unavailable);
        Fault {
            again: passing,
            health: if passing || unwell { Health::Failing } else { Health::Well },
            retry_after: failure.retry_after,
            left_alone: false,
            too_large: failure.cause == Cause::TooLarge,
            // It answered well, and what it made cannot be read.
            lost: failure.cause == Cause::Nonsense,
            request_id: failure.request_id.clone(),
            error: failure.into_error(provider, model),
        }
    }

    /// The provider did not answer, or not to the end; another attempt may go better.
    pub fn passing(error: Error) -> Fault {
        Fault { again: true, health: Health::Failing, ..Fault::from(error) }
    }

    /// What the HTTP client says. Its own words may hold the URL, so that none of them is repeated.
    pub fn of_client(error: &reqwest::Error, to: Addressee<'_>, began: bool) -> Fault {
        let mut source: Option<&(dyn std::error::Error + 'static)> = error.source();
        let mut why = None;
        while let Some(cause) = source {
            if cause.is::<NotPublic>() {
                return Fault::from(egress::refused(to));
            }
            if cause.is::<NoAddress>() {
                why = Some("Its name has no address.");
            }
            if let Some(io) = cause.downcast_ref::<std::io::Error>() {
                why = why.or(io_reason(io));
                if let Some(error) = of_tls(io, to) {
                    return Fault { again: false, ..Fault::passing(error) };
                }
            }
            source = cause.source();
        }
        let why = why.unwrap_or(match (error.is_timeout(), error.is_connect()) {
            (true, _) => "It did not answer in time.",
            (_, true) => "No connection could be made.",
            _ => "The connection broke off.",
        });
        let message = match (error.is_connect(), began) {
            (true, _) => format!("cannot connect to {to}"),
            (_, false) => format!("{to} did not answer"),
            (_, true) => format!("{to} broke off its reply"),
        };
        let hint = format!("Try again later; check that it is there and its {} is right.", to.url());
        let lost = !error.is_connect();
        Fault { lost, ..Fault::passing(Error::new(Kind::Provider, message).detail(why).hint(hint)) }
    }
}

/// An error of TLS that no repetition changes. The library's own is within others and not ours to name, so that it is
/// known by how it is written.
fn of_tls(error: &std::io::Error, to: Addressee<'_>) -> Option<Error> {
    let written = format!("{error:?}");
    if written.contains("InvalidContentType") {
        let error = Error::new(Kind::Provider, format!("cannot connect to {to}"));
        return Some(error.detail("It does not speak TLS.").hint(format!("Check its {}.", to.url())));
    }
    let (_, reason) = written.split_once("InvalidCertificate(")?;
    let reasons = [
        ("UnknownIssuer", "It is of an authority that the gateway does not trust."),
        ("BadSignature", "It is not signed by the authority that it names."),
        ("NotValidForName", "It is for another name."),
        ("NotValidYet", "It is not valid yet."),
        ("Expired", "It has expired."),
    ];
    let error = Error::new(Kind::Provider, format!("certificate of {to} is not valid"))
        .hint(format!("Check its {}, and the certificate authorities that the gateway trusts.", to.url()));
    let known = reasons.into_iter().find(|(name, _)| reason.starts_with(name));
    Some(match known {
        Some((_, sentence)) => error.detail(sentence),
        None => error,
    })
}

/// A sentence on an operating system's error.
fn io_reason(error: &std::io::Error) -> Option<&'static str> {
    use std::io::ErrorKind;
    Some(match error.kind() {
        ErrorKind::ConnectionRefused => "The connection was refused.",
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => "The connection was reset.",
        ErrorKind::TimedOut => "It did not answer in time.",
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "There is no way to its address.",
        _ => return None,
    })
}
