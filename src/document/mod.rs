//! Reads documents: bytes of one format come in, text with the places of its blocks goes out. No file, no socket and no
//! clock is touched, and nothing here is trusted with more than the bytes: the gateway calls it in a child program.
//!
//! A format is one file beside this one and one line in [`FORMATS`].

mod builder;
mod csv;
mod encoding;
mod html;
pub mod language;
mod markdown;
mod nesting;
mod plain;
mod sniff;

use crate::core::block::Block;
pub use crate::core::block::BlockKind;
use crate::core::error::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

/// Most blocks that a document may have.
pub const MAX_BLOCKS: usize = 1_000_000;

/// Most bytes of text that may come of a document.
pub const MAX_TEXT: usize = 256 * 1024 * 1024;

/// A document, read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Its own title, where its format has one.
    pub title: Option<String>,
    /// All of its text.
    pub text: String,
    /// The language that the document itself declares, as an ISO 639-1 code.
    pub language: Option<String>,
    /// Where what stands in the text; in order and without overlap.
    pub blocks: Vec<Block>,
}

/// A document's bytes and what was said about them.
struct Source<'a> {
    bytes: &'a [u8],
    /// The `charset` of the media type.
    charset: Option<String>,
}

/// A format: how it is known, and who reads it.
struct Format {
    name: &'static str,
    mime_types: &'static [&'static str],
    extensions: &'static [&'static str],
    read: fn(&Source) -> Result<Document>,
}

static FORMATS: &[Format] = &[
    Format {
        name: "HTML",
        mime_types: &["text/html", "application/xhtml+xml"],
        extensions: &["html", "htm", "xhtml"],
        read: html::read,
    },
    Format {
        name: "Markdown",
        mime_types: &["text/markdown", "text/x-markdown"],
        extensions: &["md", "markdown", "mdown", "mkd"],
        read: markdown::read,
    },
    Format { name: "CSV", mime_types: &["text/csv", "application/csv"], extensions: &["csv"], read: csv::read },
    Format {
        name: "TSV",
        mime_types: &["text/tab-separated-values"],
        extensions: &["tsv", "tab"],
        read: csv::read_tabs,
    },
    PLAIN,
];

/// Also what any other `text/` type is read as.
const PLAIN: Format = Format {
    name: "plain text",
    mime_types: &["text/plain", "application/json", "application/xml", "application/yaml", "application/sql"],
    extensions: &["txt", "text", "log", "json", "xml", "yaml", "yml", "toml", "ini", "sql", "rst", "adoc", "tex"],
    read: plain::read,
};

/// Reads a document. Its format is told by its media type, else by the ending of its name, else by its first bytes.
pub fn read(name: &str, mime_type: Option<&str>, content: &[u8]) -> Result<Document> {
    let (mime_type, charset) = sniff::media_type(mime_type);
    let format = choose(name, mime_type.as_deref(), content)?;
    let document = (format.read)(&Source { bytes: content, charset })?;
    if document.text.contains('\0') {
        return Err(Error::bad_argument("document contains NUL characters")
            .hint("Check that the file is text and that its media type is right."));
    }
    if document.text.trim().is_empty() {
        return Err(Error::bad_argument("document has no text"));
    }
    Ok(document)
}

fn choose(name: &str, mime_type: Option<&str>, content: &[u8]) -> Result<&'static Format> {
    // What is told by its first bytes cannot be text, whatever its name says.
    if let Some(binary) = sniff::binary(content) {
        return Err(unsupported(mime_type.filter(|told| !is_text(told)).unwrap_or(binary)));
    }
    if let Some(told) = mime_type {
        return match FORMATS.iter().find(|format| format.mime_types.contains(&told)) {
            Some(format) => Ok(format),
            None if is_text(told) => Ok(&PLAIN),
            None => Err(unsupported(told)),
        };
    }
    let extension = sniff::extension(name);
    if let Some(format) = FORMATS.iter().find(|format| format.extensions.contains(&extension.as_str())) {
        return Ok(format);
    }
    if let Some(known) = sniff::known_type(&extension) {
        return Err(unsupported(known));
    }
    Ok(if sniff::looks_like_html(content) { &FORMATS[0] } else { &PLAIN })
}

/// Whether a media type is of text, so that it can at least be read as plain text.
fn is_text(mime_type: &str) -> bool {
    (mime_type.starts_with("text/") && !["text/rtf", "text/richtext"].contains(&mime_type))
        || mime_type.ends_with("+json")
        || mime_type.ends_with("+xml") && mime_type != "image/svg+xml"
        || FORMATS.iter().any(|format| format.mime_types.contains(&mime_type))
}

fn unsupported(mime_type: &str) -> Error {
    let names: Vec<_> = FORMATS.iter().map(|format| format.name).collect();
    let (last, others) = names.split_last().unwrap_or((&"", &[]));
    Error::bad_argument(format!("files of type \"{mime_type}\" are not supported"))
        .hint(format!("Supported are {} and {last}.", others.join(", ")))
}

/// The error of a document that passes one of our limits.
fn too_large(what: &str, limit: usize) -> Error {
    Error::new(Kind::OverLimit, format!("document has too many {what}")).detail(format!("Allowed are {limit}."))
}

#[cfg(test)]
mod tests;
