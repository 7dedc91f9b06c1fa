//! Signatures of webhooks. In: the secrets of an endpoint, a request's headers and its body, and what time it is. Out:
//! what makes the delivery the same one when it comes again, or nothing.
//!
//! Why a request is refused is not said: whoever cannot sign learns nothing. All comparisons with what a secret made take
//! the same time wherever they differ.

use crate::core::error::{Error, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

/// Seconds that a signature's time may be away from ours, before or after.
pub const TOLERANCE: i64 = 300;
/// Bytes of a delivery's identifier at most.
const LONGEST_ID: usize = 200;
/// Signatures in one header at most.
const MOST: usize = 10;
/// What a secret of Standard Webhooks begins with.
const PREFIX: &str = "whsec_";

/// Who signs how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Standard Webhooks: identifier, time and body.
    Standard,
    /// `X-Hub-Signature-256` over the body, as GitHub and Meta send it.
    Hub,
}

/// A request's headers, names in any case.
pub struct Headers<'a>(pub &'a serde_json::Map<String, serde_json::Value>);

impl<'a> Headers<'a> {
    /// The value of a header; `None` where it is missing, not a text, or there twice in different cases.
    fn get(&self, name: &str) -> Option<&'a str> {
        let mut found = self.0.iter().filter(|(given, _)| given.eq_ignore_ascii_case(name));
        match (found.next(), found.next()) {
            (Some((_, value)), None) => value.as_str(),
            _ => None,
        }
    }
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Result<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(|_| Error::bug("a key of any length is fit for HMAC"))?;
    parts.iter().for_each(|part| mac.update(part));
    Ok(mac)
}

/// HMAC-SHA256 (RFC 2104) over the parts one after the other.
pub fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> Result<[u8; 32]> {
    Ok(mac(key, parts)?.finalize().into_bytes().into())
}

/// Bytes in hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    text.as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect()
}

/// The key that a secret stands for: of Standard Webhooks, what is encoded after `whsec_`.
pub fn key(kind: Kind, secret: &str) -> Result<Vec<u8>> {
    match kind {
        Kind::Hub => Ok(secret.as_bytes().to_vec()),
        Kind::Standard => STANDARD
            .decode(secret.strip_prefix(PREFIX).unwrap_or(secret))
            .ok()
            .filter(|key| (16..=64).contains(&key.len()))
            .ok_or_else(|| {
                Error::bad_argument("secret is not one of Standard Webhooks")
                    .detail(format!("It is {PREFIX} and 16 to 64 bytes in base64."))
            }),
    }
}

/// A secret of Standard Webhooks, of bytes that nobody can guess.
pub fn secret(bytes: &[u8]) -> String {
    format!("{PREFIX}{}", STANDARD.encode(bytes))
}

/// Whether a request is signed with one of the keys, and what identifies the delivery: the signed `webhook-id`, or else
/// the body's digest, as the other kinds sign nothing but the body.
pub fn verified(kind: Kind, keys: &[Vec<u8>], headers: &Headers, body: &[u8], now: i64) -> Result<Option<String>> {
    match kind {
        Kind::Standard => standard(keys, headers, body, now),
        Kind::Hub => hub(keys, headers, body),
    }
}

/// Whether one of the keys made one of the tags. All pairs are tried, so that the time tells nothing.
fn any_fits(keys: &[Vec<u8>], parts: &[&[u8]], tags: &[Vec<u8>]) -> Result<bool> {
    let mut fits = false;
    for key in keys {
        let mac = mac(key, parts)?;
        for tag in tags {
            fits |= mac.clone().verify_slice(tag).is_ok();
        }
    }
    Ok(fits)
}

fn standard(keys: &[Vec<u8>], headers: &Headers, body: &[u8], now: i64) -> Result<Option<String>> {
    let id = headers.get("webhook-id").unwrap_or_default();
    let timestamp = headers.get("webhook-timestamp").unwrap_or_default();
    let signatures = headers.get("webhook-signature").unwrap_or_default();
    let tags: Vec<Vec<u8>> = signatures
        .split_ascii_whitespace()
        .take(MOST)
        .filter_map(|signature| STANDARD.decode(signature.strip_prefix("v1,")?).ok())
        .collect();
    let fits = any_fits(keys, &[id.as_bytes(), b".", timestamp.as_bytes(), b".", body], &tags)?;
    let is_digits = !timestamp.is_empty() && timestamp.bytes().all(|byte| byte.is_ascii_digit());
    let in_time = is_digits && timestamp.parse().is_ok_and(|then: i64| now.abs_diff(then) <= TOLERANCE as u64);
    // An identifier with a full stop in it could be signed as another one with another time.
    let is_one =
        !id.is_empty() && id.len() <= LONGEST_ID && !id.contains('.') && id.bytes().all(|b| b.is_ascii_graphic());
    Ok((fits && in_time && is_one).then(|| id.to_owned()))
}

fn hub(keys: &[Vec<u8>], headers: &Headers, body: &[u8]) -> Result<Option<String>> {
    let signature = headers.get("x-hub-signature-256").unwrap_or_default();
    let tags: Vec<Vec<u8>> = signature.strip_prefix("sha256=").and_then(unhex).into_iter().collect();
    Ok(any_fits(keys, &[body], &tags)?.then(|| hex(&Sha256::digest(body))))
}

/// The answer to Meta's question whether the endpoint is ours: `hub.challenge`, where `hub.verify_token` is the one that
/// was agreed on. The question is a query string.
pub fn challenge(token: &str, query: &str) -> Result<Option<String>> {
    let (mut mode, mut given, mut challenge) = (None, None, None);
    for pair in query.trim_start_matches('?').split('&').take(MOST) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let place = match name {
            "hub.mode" => &mut mode,
            "hub.verify_token" => &mut given,
            "hub.challenge" => &mut challenge,
            _ => continue,
        };
        *place = decoded(value);
    }
    // Digests have one length, whatever is compared.
    let expected = hmac_sha256(b"", &[token.as_bytes()])?;
    let fits = mac(b"", &[given.as_deref().unwrap_or_default().as_bytes()])?.verify_slice(&expected).is_ok();
    let fits = fits && !token.is_empty() && mode.as_deref() == Some("subscribe");
    let is_plain = |text: &String| text.len() <= LONGEST_ID && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    Ok(challenge.filter(|text| fits && is_plain(text)))
}

/// A value of a query string, as forms encode it.
fn decoded(value: &str) -> Option<String> {
    let bytes = value.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'%' => {
                out.extend(unhex(value.get(at + 1..at + 3)?)?);
                at += 2;
            }
            b'+' => out.push(b' '),
            byte => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8(out).ok()
}

/// The headers of a delivery, signed: what a sender does.
pub fn signed(kind: Kind, key: &[u8], id: &str, time: i64, body: &[u8]) -> Result<serde_json::Value> {
    Ok(match kind {
        Kind::Standard => {
            let tag = hmac_sha256(key, &[id.as_bytes(), b".", time.to_string().as_bytes(), b".", body])?;
            let signature = format!("v1,{}", STANDARD.encode(tag));
            serde_json::json!({ "webhook-id": id, "webhook-timestamp": time.to_string(), "webhook-signature": signature })
        }
        Kind::Hub => {
            serde_json::json!({ "X-Hub-Signature-256": format!("sha256={}", hex(&hmac_sha256(key, &[body])?)) })
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const TIME: i64 = 1_614_265_330;
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn check(kind: Kind, keys: &[&str], headers: &Value, body: &[u8], now: i64) -> Option<String> {
        let keys: Vec<Vec<u8>> = keys.iter().map(|secret| key(kind, secret).unwrap()).collect();
        verified(kind, &keys, &Headers(headers.as_object().unwrap()), body, now).unwrap()
    }

    fn headers() -> Value {
        json!({ "webhook-id": ID, "webhook-timestamp": TIME.to_string(), "webhook-signature": SIGNATURE })
    }

    #[test]
    fn the_mac_is_that_of_rfc_4231() {
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(hex(&hmac_sha256(b"Jefe", &[b"what do ya want ", b"for nothing?"]).unwrap()), expected);
        let expected = "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54";
        let text = b"Test Using Larger Than Block-Size Key - Hash Key First";
        assert_eq!(hex(&hmac_sha256(&[0xaa; 131], &[text]).unwrap()), expected);
    }

    #[test]
    fn the_published_example_of_standard_webhooks_fits() {
        assert_eq!(check(Kind::Standard, &[SECRET], &headers(), BODY, TIME).as_deref(), Some(ID));
        let ours = signed(Kind::Standard, &key(Kind::Standard, SECRET).unwrap(), ID, TIME, BODY).unwrap();
        assert_eq!(ours, headers());
    }

    #[test]
    fn the_published_example_of_github_fits() {
        let headers =
            json!({ "x-hub-signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17" });
        assert!(check(Kind::Hub, &["It's a Secret to Everybody"], &headers, b"Hello, World!", 0).is_some());
        assert_eq!(check(Kind::Hub, &["another"], &headers, b"Hello, World!", 0), None);
        assert_eq!(check(Kind::Hub, &["It's a Secret to Everybody"], &headers, b"Hello, World", 0), None);
    }

    #[test]
    fn two_secrets_live_side_by_side_and_a_header_may_hold_several_signatures() {
        let other = secret(&[9; 24]);
        assert!(check(Kind::Standard, &[&other, SECRET], &headers(), BODY, TIME).is_some());
        assert_eq!(check(Kind::Standard, &[&other], &headers(), BODY, TIME), None);
        let mut several = headers();
        several["webhook-signature"] = format!("v1,AAAA v1a,{} {SIGNATURE}", &SIGNATURE[3..]).into();
        assert!(check(Kind::Standard, &[SECRET], &several, BODY, TIME).is_some());
        several["webhook-signature"] = format!("v2,{}", &SIGNATURE[3..]).into();
        assert_eq!(check(Kind::Standard, &[SECRET], &several, BODY, TIME), None);
    }

    #[test]
    fn a_signature_is_good_for_five_minutes_both_ways() {
        for (now, fits) in [(TIME - 301, false), (TIME - 300, true), (TIME + 300, true), (TIME + 301, false)] {
            assert_eq!(check(Kind::Standard, &[SECRET], &headers(), BODY, now).is_some(), fits, "{now}");
        }
    }

    #[test]
    fn what_is_missing_changed_or_there_twice_does_not_fit() {
        for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
            let mut without = headers();
            without.as_object_mut().unwrap().remove(name);
            assert_eq!(check(Kind::Standard, &[SECRET], &without, BODY, TIME), None, "{name}");
            let mut twice = headers();
            twice[name.to_uppercase()] = twice[name].clone();
            assert_eq!(check(Kind::Standard, &[SECRET], &twice, BODY, TIME), None, "{name}");
        }
        // An identifier and a time that are signed alike.
        let key_bytes = key(Kind::Standard, SECRET).unwrap();
        let shifted = signed(Kind::Standard, &key_bytes, "a.1", TIME, BODY).unwrap();
        assert_eq!(check(Kind::Standard, &[SECRET], &shifted, BODY, TIME), None);
        assert_eq!(check(Kind::Standard, &[], &headers(), BODY, TIME), None);
    }

    #[test]
    fn a_secret_is_16_to_64_bytes() {
        assert_eq!(key(Kind::Standard, SECRET).unwrap().len(), 24);
        assert_eq!(key(Kind::Standard, &secret(&[1; 32])).unwrap(), [1; 32]);
        for wrong in ["", "whsec_", "whsec_AAAA", "whsec_not base64"] {
            assert!(key(Kind::Standard, wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn meta_gets_its_challenge_back_for_the_right_token_alone() {
        let query = "hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token=meaty%20ham";
        assert_eq!(challenge("meaty ham", query).unwrap().as_deref(), Some("1158201444"));
        assert_eq!(
            challenge("meaty ham", &format!("?{}", query.replace("%20", "+"))).unwrap().as_deref(),
            Some("1158201444")
        );
        assert_eq!(challenge("other", query).unwrap(), None);
        assert_eq!(challenge("", "hub.mode=subscribe&hub.challenge=1").unwrap(), None);
        assert_eq!(challenge("meaty ham", &query.replace("subscribe", "unsubscribe")).unwrap(), None);
        // Not a way to have a page of one's own shown by our host.
        assert_eq!(challenge("meaty ham", &query.replace("1158201444", "%3Cscript%3E")).unwrap(), None);
    }

    proptest! {
        #[test]
        fn no_byte_of_a_signed_request_can_change(at in 0usize..BODY.len(), by in 1u8..=255) {
            let mut body = BODY.to_vec();
            body[at] ^= by;
            prop_assert_eq!(check(Kind::Standard, &[SECRET], &headers(), &body, TIME), None);
            prop_assert_eq!(check(Kind::Standard, &[SECRET], &headers(), &BODY[..at], TIME), None);
        }

        #[test]
        fn any_request_is_answered(
            id in any::<String>(), time in any::<String>(), signature in any::<String>(), body in any::<Vec<u8>>(),
        ) {
            let headers = json!({
                "webhook-id": id, "webhook-timestamp": time, "webhook-signature": signature, "x-hub-signature-256": signature,
            });
            prop_assert_eq!(check(Kind::Standard, &[SECRET], &headers, &body, TIME), None);
            prop_assert_eq!(check(Kind::Hub, &[SECRET], &headers, &body, TIME), None);
            prop_assert_eq!(challenge("token", &signature).unwrap(), None);
        }
    }
}
