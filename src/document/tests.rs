#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

/// The kinds and texts of a document's blocks.
fn blocks_of(document: &Document) -> Vec<(BlockKind, &str)> {
    document.blocks.iter().map(|block| (block.kind, &document.text[block.start..block.end])).collect()
}

fn page(body: &str) -> Document {
    read("page.html", None, body.as_bytes()).unwrap()
}

fn refused(name: &str, mime_type: Option<&str>, content: &[u8]) -> String {
    read(name, mime_type, content).unwrap_err().message
}

fn check(document: &Document) {
    let mut at = 0;
    for block in &document.blocks {
        assert!(at <= block.start && block.start < block.end, "{block:?} after {at}");
        let part = &document.text[block.start..block.end];
        assert_eq!(part, part.trim());
        at = block.end;
    }
    assert!(at <= document.text.len());
    assert!(!document.text.contains('\0'));
}

use BlockKind::{Code, Heading, ListItem, Paragraph, Quote, TableHeader, TableRow};

#[test]
fn the_format_is_told_by_type_then_name_then_bytes() {
    assert_eq!(page("<p>one").text, "one");
    assert_eq!(read("x.html", Some("text/plain"), b"<p>one").unwrap().text, "<p>one");
    assert_eq!(read("x", Some("text/HTML; charset=utf-8"), b"<p>one").unwrap().text, "one");
    assert_eq!(read("x", Some("application/octet-stream"), b"<!DOCTYPE html><p>one").unwrap().text, "one");
    assert_eq!(read("x", Some("text/x-python"), b"a = 1").unwrap().text, "a = 1");
    assert_eq!(read("notes.unknown", None, b"one").unwrap().text, "one");
}

#[test]
fn what_cannot_be_read_is_named() {
    let error = read("a.pdf", None, b"%PDF-1.7 x").unwrap_err();
    assert_eq!(error.message, "files of type \"application/pdf\" are not supported");
    assert_eq!(error.hint.unwrap(), "Supported are HTML, Markdown, CSV, TSV and plain text.");
    assert!(refused("a.txt", None, b"PK\x03\x04x").contains("application/zip"));
    assert!(refused("a.docx", None, b"x").contains("wordprocessingml"));
    assert!(refused("a", Some("image/png"), b"x").contains("image/png"));
    assert!(refused("mail.eml", None, b"From: x").contains("message/rfc822"));
}

#[test]
fn text_without_text_is_refused() {
    for (name, content) in
        [("a.txt", &b""[..]), ("a.md", b" \n\t"), ("a.html", b"<html><body><script>x</script>"), ("a.csv", b",,\n")]
    {
        assert_eq!(refused(name, None, content), "document has no text", "{name}");
    }
    assert_eq!(refused("a.txt", None, b"a\0b"), "document contains NUL characters");
    assert_eq!(refused("a.txt", None, b"caf\xe9"), "file is not valid UTF-8");
    assert_eq!(refused("a.md", None, b"caf\xe9"), "file is not valid UTF-8");
}

#[test]
fn plain_text_is_kept_and_parted_at_blank_lines() {
    let document = read("a.txt", None, b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\n- four\n").unwrap();
    assert_eq!(document.text, "one\r\ntwo\r\n\r\nthree\n- four\n");
    assert_eq!(blocks_of(&document), [(Paragraph, "one\r\ntwo"), (Paragraph, "three"), (ListItem, "- four")]);
}

#[test]
fn markdown_is_kept_and_its_blocks_are_found() {
    let text = "---\ntitle: \"The Guide\"\n---\n\n# Setting *up*\n\nFirst\nparagraph.\n\n- one\n  - inner\n- two\n\n1. loose\n\n   more\n\n> said\n\n```sql\nselect 1;\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nUnder\n-----\n\nlast";
    let document = read("a.md", None, text.as_bytes()).unwrap();
    assert_eq!(document.title.as_deref(), Some("The Guide"));
    assert_eq!(document.text, text);
    assert_eq!(
        blocks_of(&document),
        [
            (Heading(1), "Setting *up*"),
            (Paragraph, "First\nparagraph."),
            (ListItem, "- one"),
            (ListItem, "- inner"),
            (ListItem, "- two"),
            (ListItem, "1. loose"),
            (ListItem, "more"),
            (Quote, "said"),
            (Code, "```sql\nselect 1;\n```"),
            (TableHeader, "| a | b |"),
            (TableRow, "| 1 | 2 |"),
            (Heading(2), "Under"),
            (Paragraph, "last"),
        ]
    );
    assert_eq!(read("a.md", None, b"x\n\n# Top\n").unwrap().title.as_deref(), Some("Top"));
}

#[test]
fn pages_are_read_as_they_are_seen() {
    let document = page(
        "<html lang=en-GB><head><title> A \n page </title><style>x</style></head><body><nav>Home</nav><header>Shop</header>
        <h1>Big&nbsp;<b>title</b></h1><p>One  <i>two</i>&amp;three<br>four<!-- no --><script>bad()</script></p>loose
        <ul><li>first<ul><li>inner</li></ul></li><li><p>second</p></li></ul>
        <blockquote><p>said</p></blockquote><pre>\n  a\n    b\n</pre><div hidden>no</div><p style='display: none'>no</p>
        <footer>Legal</footer>",
    );
    assert_eq!(document.title.as_deref(), Some("A page"));
    assert_eq!(document.language.as_deref(), Some("en"));
    assert_eq!(
        blocks_of(&document),
        [
            (Heading(1), "Big title"),
            (Paragraph, "One two&three\nfour"),
            (Paragraph, "loose"),
            (ListItem, "first"),
            (ListItem, "inner"),
            (ListItem, "second"),
            (Quote, "said"),
            (Code, "a\n    b"),
        ]
    );
}

#[test]
fn tables_are_read_row_by_row() {
    let document = page(
        "<table><caption>Cities</caption><thead><tr><th>City</th><th>People</th></tr></thead>
        <tbody><tr><td><p>Oslo</p></td><td>700<br>000</td></tr><tr><th>Rome</th><td></td></tr></tbody></table><p>after",
    );
    assert_eq!(
        blocks_of(&document),
        [
            (Paragraph, "Cities"),
            (TableHeader, "City | People"),
            (TableRow, "Oslo | 700 000"),
            (TableRow, "Rome |"),
            (Paragraph, "after"),
        ]
    );
}

#[test]
fn tables_that_place_things_are_not_data() {
    let document = page(
        "<table><tr><td><h1>Title</h1><p>One</p><p>Two</p></td><td><table><tr><td>a<td>b</table></td></tr></table>",
    );
    assert_eq!(
        blocks_of(&document),
        [(Heading(1), "Title"), (Paragraph, "One"), (Paragraph, "Two"), (TableRow, "a | b")]
    );
}

#[test]
fn a_term_stays_with_its_description() {
    let document = page(
        "<dl><dt><code>port</code> (integer)</dt><dd><p>Where it listens.</p><p>Default 5432.</p></dd>
        <dt>a</dt><dt>b:</dt><dd>both</dd></dl><div class=note><h3>Note</h3><p>Mind this.</p></div><p>end",
    );
    assert_eq!(
        blocks_of(&document),
        [
            (ListItem, "port (integer): Where it listens."),
            (ListItem, "Default 5432."),
            (ListItem, "a, b: both"),
            (Paragraph, "Note: Mind this."),
            (Paragraph, "end"),
        ]
    );
}

#[test]
fn the_main_matter_is_preferred_where_it_is_most_of_the_page() {
    let long = "The matter of the page. ".repeat(20);
    let document =
        page(&format!("<div>Menu</div><main><header><h1>Top</h1></header><p>{long}</p></main><div>Ads</div>"));
    assert!(document.text.starts_with("Top") && !document.text.contains("Menu") && !document.text.contains("Ads"));
    let document = page(&format!("<p>{long}</p><article>small</article>"));
    assert!(document.text.contains("matter") && document.text.contains("small"));
}

#[test]
fn a_page_of_navigation_alone_is_read_as_it_stands() {
    assert_eq!(page("<nav><a>Home</a></nav>").text, "Home");
}

#[test]
fn pages_in_older_encodings_are_decoded() {
    assert_eq!(read("a.html", None, b"<meta charset=windows-1252><p>caf\xe9").unwrap().text, "café");
    assert_eq!(read("a.html", Some("text/html; charset=iso-8859-2"), b"<p>\xb1").unwrap().text, "ą");
    assert_eq!(read("a.html", None, b"<?xml version='1.0' encoding='koi8-r'?><p>\xd0\xd2").unwrap().text, "пр");
    assert_eq!(read("a.html", None, b"\xff\xfe<\0p\0>\0x\0").unwrap().text, "x");
}

#[test]
fn deep_pages_are_read_in_linear_time() {
    let depth = 20_000;
    for tag in ["div", "b", "table><tr><td", "ul><li", "blockquote", "svg"] {
        let text = format!("<p>before</p><{}deep", format!("{tag}><").repeat(depth).trim_end_matches('<'));
        check(&page(&text));
    }
}

#[test]
fn rows_of_a_table_of_values_can_be_understood_alone() {
    let read = |text: &str| read("a.csv", None, text.as_bytes()).unwrap();
    let document = read("City,People,Note\nOslo,700000,\"cold, \"\"dark\"\"\nin winter\"\nRome,,warm,extra\n");
    assert_eq!(
        blocks_of(&document),
        [
            (TableHeader, "City | People | Note"),
            (TableRow, "City: Oslo; People: 700000; Note: cold, \"dark\" in winter"),
            (TableRow, "City: Rome; Note: warm; extra"),
        ]
    );
    let document = read("Cups,,\nTeam,Won\nBlues,1\n");
    assert_eq!(document.title.as_deref(), Some("Cups"));
    assert_eq!(blocks_of(&document)[2], (TableRow, "Team: Blues; Won: 1"));
    assert_eq!(blocks_of(&read("a;1,5\nb;2,5\n")), [(TableRow, "a; 1,5"), (TableRow, "b; 2,5")]);
    assert_eq!(blocks_of(&read("a\tb\n1\t2\n"))[1], (TableRow, "a: 1; b: 2"));
    assert_eq!(blocks_of(&read("name\n\"open")).last().unwrap().1, "name: open");
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        for name in ["a.txt", "a.md", "a.html", "a.csv", "a.tsv", "a"] {
            if let Ok(document) = read(name, None, &bytes) {
                check(&document);
            }
        }
    }

    #[test]
    fn random_pages_make_sound_documents(
        parts in proptest::collection::vec(
            "</?(p|div|h1|h2|table|tr|td|th|ul|li|dl|dt|dd|pre|br|main|article|header|nav|b|title|template|svg|select)>|<!--|-->|[a-z é\u{a0}\u{ad}]{1,9}|&nbsp;|&lt;|<",
            0..60,
        ),
    ) {
        if let Ok(document) = read("a.html", None, parts.concat().as_bytes()) {
            check(&document);
        }
    }

    #[test]
    fn random_markdown_makes_sound_documents(
        parts in proptest::collection::vec("[#>*_`|~\\[\\]()!<-]{1,4}|\n{1,2}| {1,4}|[a-zé日]{1,6}|1\\. |\\|---\\|", 0..80),
    ) {
        let text = parts.concat();
        if let Ok(document) = read("a.md", None, text.as_bytes()) {
            check(&document);
            assert_eq!(document.text, text);
        }
    }

    #[test]
    fn random_tables_make_sound_documents(text in "([a-z0-9,;\t|\"\n ]|é){0,200}") {
        if let Ok(document) = read("a.csv", None, text.as_bytes()) {
            check(&document);
        }
    }
}
