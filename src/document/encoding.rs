//! Decodes text: bytes come in, text goes out. A byte order mark always wins; then what was declared; then UTF-8; and only
//! for formats that are older than it, a guess.

use crate::core::error::{Error, Result};
use encoding_rs::{EUC_JP, Encoding, SHIFT_JIS, UTF_8, WINDOWS_1251, WINDOWS_1252};

/// Most bytes looked at for a guess.
const SAMPLE: usize = 64 * 1024;

/// Text that must be what it says: UTF-8 unless there is a byte order mark or a declared `charset`.
pub(super) fn strict(bytes: &[u8], declared: Option<&str>) -> Result<String> {
    if let Some((encoding, length)) = Encoding::for_bom(bytes) {
        if encoding != UTF_8 {
            return exactly(encoding, &bytes[length..]);
        }
        return utf8(&bytes[length..], length);
    }
    match declared.and_then(|label| Encoding::for_label(label.as_bytes())) {
        Some(encoding) if encoding != UTF_8 => exactly(encoding, bytes),
        _ => utf8(bytes, 0),
    }
}

/// Text of a format that is often in an older encoding. `declared` are labels, best first.
pub(super) fn lenient(bytes: &[u8], declared: &[Option<&str>]) -> String {
    if let Some((encoding, length)) = Encoding::for_bom(bytes) {
        return encoding.decode_without_bom_handling(&bytes[length..]).0.into_owned();
    }
    let label = declared.iter().flatten().find_map(|label| Encoding::for_label(label.as_bytes()));
    // A page that can say in ASCII that it is UTF-16 is not.
    let label = label.map(|encoding| encoding.output_encoding());
    match label {
        Some(encoding) if encoding != UTF_8 => encoding.decode_without_bom_handling(bytes).0.into_owned(),
        _ => match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => guess(bytes).decode_without_bom_handling(bytes).0.into_owned(),
        },
    }
}

/// The charset that a web page declares of itself in its first bytes.
pub(super) fn declared_in_page(bytes: &[u8]) -> Option<String> {
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(4096)]).to_ascii_lowercase();
    let xml = head.strip_prefix("<?xml").and_then(|rest| rest.split("?>").next());
    let metas = head.split("<meta").skip(1).filter_map(|rest| rest.split('>').next());
    let label_after = |text: &str, key: &str| {
        let rest = text.split_once(key)?.1.trim_start().strip_prefix('=')?.trim_start().trim_start_matches(['"', '\'']);
        let end = rest.find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ';' | '/')).unwrap_or(rest.len());
        Some(rest[..end].to_owned()).filter(|label| Encoding::for_label(label.as_bytes()).is_some())
    };
    metas
        .filter_map(|meta| label_after(meta, "charset"))
        .next()
        .or_else(|| xml.and_then(|declaration| label_after(declaration, "encoding")))
}

fn utf8(bytes: &[u8], skipped: usize) -> Result<String> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(Error::bad_argument("file is not valid UTF-8")
            .detail(format!("The first invalid byte is at offset {}.", skipped + error.valid_up_to()))
            .hint("Convert the file to UTF-8, or name its charset in its media type.")),
    }
}

fn exactly(encoding: &'static Encoding, bytes: &[u8]) -> Result<String> {
    match encoding.decode_without_bom_handling_and_without_replacement(bytes) {
        Some(text) => Ok(text.into_owned()),
        None => Err(Error::bad_argument(format!("file is not valid {}", encoding.name()))
            .hint("Convert the file to UTF-8, or name its charset in its media type.")),
    }
}

/// What a text that is not UTF-8 is most likely in: Japanese and Cyrillic encodings are told by their runs, and all else
/// is taken for western.
fn guess(bytes: &[u8]) -> &'static Encoding {
    // Not cut within a character: a line ends between two.
    let sample = match bytes[..bytes.len().min(SAMPLE)].iter().rposition(|byte| *byte == b'\n') {
        Some(at) if bytes.len() > SAMPLE => &bytes[..at],
        _ => &bytes[..bytes.len().min(SAMPLE)],
    };
    for encoding in [SHIFT_JIS, EUC_JP] {
        if encoding.decode_without_bom_handling_and_without_replacement(sample).is_some_and(|text| is_japanese(&text)) {
            return encoding;
        }
    }
    let high = sample.iter().filter(|byte| **byte >= 0xc0).count();
    let letters = sample.iter().filter(|byte| byte.is_ascii_alphabetic()).count();
    let paired = sample.windows(2).filter(|pair| pair[0] >= 0xc0 && pair[1] >= 0xc0).count();
    if high > letters / 2 && paired * 2 > high { WINDOWS_1251 } else { WINDOWS_1252 }
}

/// Whether a decoded text has its foreign characters in runs, and few of those that other encodings decode to by chance.
fn is_japanese(text: &str) -> bool {
    let is_wide = |c: char| matches!(c, '\u{3000}'..='\u{30ff}' | '\u{4e00}'..='\u{9fff}' | '\u{ff01}'..='\u{ff60}');
    let (mut wide, mut other, mut runs) = (0, 0, 0);
    let mut previous = false;
    for c in text.chars().filter(|c| !c.is_ascii()) {
        if is_wide(c) {
            wide += 1;
        } else {
            other += 1;
        }
    }
    for c in text.chars() {
        let is = is_wide(c);
        if is && previous {
            runs += 1;
        }
        previous = is;
    }
    wide > 0 && other * 5 < wide && runs * 5 >= wide * 2
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_must_be_utf8_or_say_what_it_is() {
        let error = strict(b"caf\xe9", None).unwrap_err();
        assert_eq!(error.message, "file is not valid UTF-8");
        assert_eq!(error.detail.unwrap(), "The first invalid byte is at offset 3.");
        assert_eq!(strict(b"caf\xe9", Some("iso-8859-1")).unwrap(), "café");
        assert_eq!(strict(b"\xef\xbb\xbfx", None).unwrap(), "x");
        assert_eq!(strict(b"\xfe\xff\0x", None).unwrap(), "x");
        assert!(strict(b"\xff\xfe\x00\xd8", None).is_err());
    }

    #[test]
    fn older_encodings_are_told_apart() {
        for (encoding, text) in [
            (SHIFT_JIS, "名前,年齢,住所\n佐藤太郎,30,東京"),
            (EUC_JP, "これは日本語の文章です。東京に住んでいます。"),
            (WINDOWS_1251, "Это обычный русский текст, записанный давно."),
            (WINDOWS_1252, "Die schöne Frau hat einen Kaffee für 15,50 €"),
            (WINDOWS_1252, "L'été était très chaud cette année. naïve façade"),
        ] {
            let (bytes, _, _) = encoding.encode(text);
            assert_eq!(lenient(&bytes, &[]), text, "{}", encoding.name());
        }
    }

    #[test]
    fn a_declared_charset_is_heeded() {
        assert_eq!(lenient(b"\xd0\xd2", &[None, Some("koi8-r")]), "пр");
        assert_eq!(lenient("é".as_bytes(), &[Some("utf-16")]), "é");
    }
}
