//! Tells the language of a text: a document comes in, an ISO 639-1 code goes out, or nothing where it cannot be told.

use super::Document;
use crate::core::block::BlockKind;
use whatlang::Lang;

/// Most bytes of text looked at.
const SAMPLE: usize = 16 * 1024;

/// Fewest letters from which a language is told.
const MIN_LETTERS: usize = 24;

/// Words without which hardly three sentences are written.
const ENGLISH: &[&str] =
    &["the", "of", "and", "to", "is", "in", "that", "for", "are", "with", "this", "be", "on", "you"];
const INDONESIAN: &[&str] = &[
    "yang", "dan", "di", "dengan", "untuk", "tidak", "adalah", "ini", "itu", "pada", "dari", "ke", "akan", "oleh",
    "dalam", "atau", "juga", "sebagai", "dapat", "telah", "anda", "kami", "saya", "ada", "bisa", "karena",
];

/// The language of a document: as it is told from its prose, else as the document declares.
pub fn of(document: &Document) -> Option<String> {
    let mut sample = String::new();
    for block in &document.blocks {
        if !matches!(block.kind, BlockKind::Code | BlockKind::TableHeader) {
            sample.push_str(document.text.get(block.start..block.end).unwrap_or_default());
            sample.push('\n');
        }
        if sample.len() > SAMPLE {
            break;
        }
    }
    // Pages are often made from a template that declares another language than they are written in.
    detect(&sample).map(str::to_owned).or_else(|| document.language.clone())
}

/// The language of a text. Malay is told as Indonesian.
pub fn detect(text: &str) -> Option<&'static str> {
    let mut end = text.len().min(SAMPLE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = &text[..end];
    if text.chars().filter(|c| c.is_alphabetic()).take(MIN_LETTERS).count() < MIN_LETTERS && is_spaced(text) {
        return None;
    }
    if let Some(code) = by_words(text) {
        return Some(code);
    }
    let info = whatlang::detect(text)?;
    if info.is_reliable() { code(info.lang()) } else { None }
}

/// The two languages that most texts here are in, by their small words: three-letter statistics take short Indonesian for
/// its neighbours.
fn by_words(text: &str) -> Option<&'static str> {
    let (mut words, mut english, mut indonesian) = (0usize, 0usize, 0usize);
    for word in text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()) {
        words += 1;
        let word = word.to_lowercase();
        english += usize::from(ENGLISH.contains(&word.as_str()));
        indonesian += usize::from(INDONESIAN.contains(&word.as_str()));
    }
    let leads = |most: usize, least: usize| most >= 2 && most * 8 >= words && most >= 4 * least;
    if leads(english, indonesian) {
        Some("en")
    } else if leads(indonesian, english) {
        Some("id")
    } else {
        None
    }
}

/// Whether a text is in a script that parts its words, so that few letters say little.
fn is_spaced(text: &str) -> bool {
    text.chars().filter(|c| c.is_alphabetic()).take(8).any(|c| c < '\u{3000}') || text.chars().count() < 8
}

/// The primary part of a language tag such as `en-GB`, where it is an ISO 639-1 code.
pub(super) fn primary(tag: &str) -> Option<String> {
    let code = tag.trim().split(['-', '_']).next()?.to_ascii_lowercase();
    let code = match code.as_str() {
        // Codes that were renamed long ago.
        "in" => "id".to_owned(),
        "iw" => "he".to_owned(),
        _ => code,
    };
    (code.len() == 2 && code.bytes().all(|byte| byte.is_ascii_lowercase())).then_some(code)
}

fn code(language: Lang) -> Option<&'static str> {
    Some(match language.code() {
        "epo" => "eo",
        "eng" => "en",
        "rus" => "ru",
        "cmn" => "zh",
        "spa" => "es",
        "por" => "pt",
        "ita" => "it",
        "ben" => "bn",
        "fra" => "fr",
        "deu" => "de",
        "ukr" => "uk",
        "kat" => "ka",
        "ara" => "ar",
        "hin" => "hi",
        "jpn" => "ja",
        "heb" => "he",
        "yid" => "yi",
        "pol" => "pl",
        "amh" => "am",
        "jav" => "jv",
        "kor" => "ko",
        "nob" => "nb",
        "dan" => "da",
        "swe" => "sv",
        "fin" => "fi",
        "tur" => "tr",
        "nld" => "nl",
        "hun" => "hu",
        "ces" => "cs",
        "ell" => "el",
        "bul" => "bg",
        "bel" => "be",
        "mar" => "mr",
        "kan" => "kn",
        "ron" => "ro",
        "slv" => "sl",
        "hrv" => "hr",
        "srp" => "sr",
        "mkd" => "mk",
        "lit" => "lt",
        "lav" => "lv",
        "est" => "et",
        "tam" => "ta",
        "vie" => "vi",
        "urd" => "ur",
        "tha" => "th",
        "guj" => "gu",
        "uzb" => "uz",
        "pan" => "pa",
        "aze" => "az",
        "ind" => "id",
        "tel" => "te",
        "pes" => "fa",
        "mal" => "ml",
        "ori" => "or",
        "mya" => "my",
        "nep" => "ne",
        "sin" => "si",
        "khm" => "km",
        "tuk" => "tk",
        "aka" => "ak",
        "zul" => "zu",
        "sna" => "sn",
        "afr" => "af",
        "lat" => "la",
        "slk" => "sk",
        "cat" => "ca",
        "tgl" => "tl",
        "hye" => "hy",
        "cym" => "cy",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_told() {
        for (text, language) in [
            ("Refunds are paid within five working days of the return.", Some("en")),
            ("Pengembalian dana dibayarkan dalam lima hari kerja untuk barang yang rusak.", Some("id")),
            ("Barang dapat dikembalikan dengan menghubungi kami melalui aplikasi.", Some("id")),
            (
                "Die Rückzahlung erfolgt innerhalb von fünf Werktagen, nachdem die Ware bei uns eingegangen ist.",
                Some("de"),
            ),
            ("Возврат денег производится в течение пяти рабочих дней, если товар ещё не был использован.", Some("ru")),
            ("東京に住んでいます。これは日本語です。", Some("ja")),
            ("ok", None),
            ("12345 67890 !!!", None),
        ] {
            assert_eq!(detect(text), language, "{text}");
        }
    }

    #[test]
    fn tags_are_shortened() {
        assert_eq!(primary("en-GB").as_deref(), Some("en"));
        assert_eq!(primary("in").as_deref(), Some("id"));
        assert_eq!(primary("mul"), None);
    }
}
