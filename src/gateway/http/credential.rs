//! A secret, found where its credential says.

use crate::core::error::{Error, Result};
use crate::core::wire::Credential;
use crate::gateway::http::Addressee;
use reqwest::header::HeaderValue;
use std::io::Read;

/// The longest file that a key may be the first line of.
const FILE_BYTES: u64 = 64 * 1024;

/// The value of the header that the key goes into, marked as a secret; `None` where none is wanted.
pub async fn header(to: Addressee<'_>, credential: &Credential, prefix: &str) -> Result<Option<HeaderValue>> {
    let Some(key) = key(to, credential).await? else { return Ok(None) };
    let mut value = HeaderValue::try_from([prefix, &key].concat())
        .map_err(|_| missing(to, "It has characters that a header cannot hold.").hint("Set its credential again."))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn missing(to: Addressee<'_>, what: impl Into<String>) -> Error {
    Error::not_ready(format!("{to} has no key")).detail(what)
}

/// The key itself, which is not empty; `None` where none is wanted.
pub async fn key(to: Addressee<'_>, credential: &Credential) -> Result<Option<String>> {
    let missing = |what: String| missing(to, what);
    let key = match credential {
        Credential::None => return Ok(None),
        Credential::Key(key) => first_line(key),
        Credential::Env(name) => {
            let value = std::env::var(name).map_err(|_| {
                missing(format!("The gateway's environment has no variable \"{name}\"."))
                    .hint(format!("Set \"{name}\" in the environment of the Postgres server and restart it."))
            })?;
            first_line(&value)
        }
        Credential::File(path) => {
            let path = path.clone();
            // A disk may be slow, or a mount gone.
            let read = tokio::task::spawn_blocking(move || read(&path)).await;
            let unreadable = |error: std::io::Error| {
                let Credential::File(path) = credential else { return missing(String::new()) };
                missing(format!("File \"{path}\" cannot be read: {error}."))
                    .hint(format!("Put the key into \"{path}\", readable by the user that runs the Postgres server."))
            };
            let text = read.map_err(|_| Error::bug("reading a credential panicked"))?.map_err(unreadable)?;
            first_line(&text)
        }
    };
    if key.is_empty() {
        return Err(missing("It is empty.".into()).hint("Set its credential again."));
    }
    Ok(Some(key))
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().to_owned()
}

fn read(path: &str) -> std::io::Result<String> {
    // A pipe would keep the thread for as long as nobody writes to it.
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is not a file"));
    }
    let mut text = String::new();
    let read = std::fs::File::open(path)?.take(FILE_BYTES + 1).read_to_string(&mut text)?;
    if read as u64 > FILE_BYTES {
        return Err(std::io::Error::other(format!("it has more than {FILE_BYTES} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::error::Kind;

    async fn of(credential: Credential) -> Result<Option<HeaderValue>> {
        header(Addressee::Provider("p"), &credential, "Bearer ").await
    }

    #[tokio::test]
    async fn a_key_is_the_first_line_and_is_never_shown() {
        let value = of(Credential::Key("  secret \nmore".into())).await.unwrap().unwrap();
        assert_eq!(value.as_bytes(), b"Bearer secret");
        assert!(!format!("{value:?}").contains("secret"));
        let path = std::env::temp_dir().join(format!("helper-key-{}", std::process::id()));
        std::fs::write(&path, "secret\r\nmore\n").unwrap();
        let value = of(Credential::File(path.display().to_string())).await.unwrap().unwrap();
        assert_eq!(value.as_bytes(), b"Bearer secret");
        std::fs::write(&path, vec![b'x'; FILE_BYTES as usize + 1]).unwrap();
        assert_eq!(of(Credential::File(path.display().to_string())).await.unwrap_err().kind, Kind::NotReady);
        std::fs::remove_file(&path).unwrap();
        assert!(of(Credential::None).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_is_missing_is_named() {
        let error = of(Credential::Env("HELPER_NO_SUCH_KEY".into())).await.unwrap_err();
        assert_eq!(error.kind, Kind::NotReady);
        assert!(error.hint.unwrap().contains("HELPER_NO_SUCH_KEY"));
        let error = of(Credential::File("/no/such/file".into())).await.unwrap_err();
        assert!(error.hint.unwrap().contains("/no/such/file"));
        assert_eq!(of(Credential::File("/".into())).await.unwrap_err().kind, Kind::NotReady);
        let error = of(Credential::Key("bad\u{0}secret".into())).await.unwrap_err();
        assert!(!format!("{error:?}").contains("secret"));
        assert_eq!(of(Credential::Key(" \n".into())).await.unwrap_err().kind, Kind::NotReady);
    }
}
