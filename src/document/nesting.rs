//! Bounds how deeply a web page nests: a page comes in, the same page without the tags beyond [`MAX_DEPTH`] goes out. The
//! tree builder walks all open elements at many a tag, so that without a bound a page of open tags takes quadratic time.

use std::borrow::Cow;
use std::collections::HashMap;

/// Deepest nesting that is kept, half of what browsers keep; the text below it is kept without its tags.
pub(super) const MAX_DEPTH: usize = 256;

/// Elements that end by themselves or hold nothing, and so add no depth of their own.
const FLAT: &[&str] = &[
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr", "p",
    "li", "dt", "dd", "tr", "td", "th", "thead", "tbody", "tfoot", "colgroup", "option", "optgroup", "rp", "rt",
    "html", "head", "body",
];

/// Elements whose content is not markup.
const RAW: &[&str] = &["script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes"];

/// The page with its nesting bounded.
pub(super) fn bounded(page: &str) -> Cow<'_, str> {
    let bytes = page.as_bytes();
    let mut kept: Option<String> = None;
    let mut copied = 0;
    let mut open: HashMap<String, usize> = HashMap::new();
    let mut dropped: HashMap<String, usize> = HashMap::new();
    let mut depth = 0;
    let mut at = 0;
    while let Some(found) = page[at..].find('<') {
        let start = at + found;
        if bytes[start..].starts_with(b"<!--") {
            at = page[start + 4..].find("-->").map_or(page.len(), |end| start + 4 + end + 3);
            continue;
        }
        let closes = bytes.get(start + 1) == Some(&b'/');
        let name_start = start + 1 + usize::from(closes);
        if !bytes.get(name_start).is_some_and(u8::is_ascii_alphabetic) {
            at = start + 1;
            continue;
        }
        let name_end = bytes[name_start..]
            .iter()
            .position(|byte| byte.is_ascii_whitespace() || matches!(byte, b'>' | b'/'))
            .map_or(page.len(), |length| name_start + length);
        let name = page[name_start..name_end].to_ascii_lowercase();
        let end = tag_end(bytes, name_end);
        at = end;
        if FLAT.contains(&name.as_str()) {
            continue;
        }
        let drops = if closes {
            if take(&mut dropped, &name) {
                true
            } else {
                depth -= usize::from(take(&mut open, &name));
                false
            }
        } else if depth < MAX_DEPTH {
            if !RAW.contains(&name.as_str()) {
                depth += 1;
                *open.entry(name.clone()).or_default() += 1;
            }
            false
        } else {
            *dropped.entry(name.clone()).or_default() += 1;
            true
        };
        if drops {
            let kept = kept.get_or_insert_with(String::new);
            kept.push_str(&page[copied..start]);
            kept.push(' ');
            copied = end;
        }
        if !closes && !drops && RAW.contains(&name.as_str()) {
            at = raw_end(bytes, end, name.as_bytes());
        }
    }
    match kept {
        Some(mut kept) => {
            kept.push_str(&page[copied..]);
            Cow::Owned(kept)
        }
        None => Cow::Borrowed(page),
    }
}

fn take(counts: &mut HashMap<String, usize>, name: &str) -> bool {
    match counts.get_mut(name) {
        Some(count) if *count > 0 => {
            *count -= 1;
            true
        }
        _ => false,
    }
}

/// One past the `>` of a tag whose name ends at `at`; quoted values may hold one.
fn tag_end(bytes: &[u8], mut at: usize) -> usize {
    let mut quote = None;
    while let Some(byte) = bytes.get(at) {
        at += 1;
        match (quote, byte) {
            (None, b'>') => return at,
            (None, b'"' | b'\'') if bytes[..at - 1].iter().rev().find(|b| !b.is_ascii_whitespace()) == Some(&b'=') => {
                quote = Some(*byte);
            }
            (Some(open), byte) if open == *byte => quote = None,
            _ => {}
        }
    }
    bytes.len()
}

/// Where the end tag of an element whose content is not markup begins.
fn raw_end(bytes: &[u8], mut at: usize, name: &[u8]) -> usize {
    while let Some(found) = bytes[at..].iter().position(|byte| *byte == b'<') {
        let start = at + found;
        let is_end = bytes.get(start + 1) == Some(&b'/')
            && bytes.get(start + 2..start + 2 + name.len()).is_some_and(|end| end.eq_ignore_ascii_case(name));
        if is_end {
            return start;
        }
        at = start + 1;
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_pages_are_left_alone() {
        let page = format!(
            "<script>{}</script><!-- {} -->{}<p title='a>b'>x",
            "<div>".repeat(900),
            "<b>".repeat(900),
            "<p>one<li>two<br><div class=\"a>b\">three</div>".repeat(900)
        );
        assert!(matches!(bounded(&page), Cow::Borrowed(_)));
    }

    #[test]
    fn what_is_too_deep_loses_its_tags_and_keeps_its_text() {
        let page = format!("{}deep{}<p>after", "<div>".repeat(2000), "</div>".repeat(2000));
        let bounded = bounded(&page);
        assert_eq!(bounded.matches("<div>").count(), MAX_DEPTH);
        assert_eq!(bounded.matches("</div>").count(), MAX_DEPTH);
        assert!(bounded.contains("deep") && bounded.ends_with("<p>after"));
    }
}
