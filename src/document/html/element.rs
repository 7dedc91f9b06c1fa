//! What the elements of a page are for: a page comes in, and for each element its role, and whether it is read, goes out.

use super::super::builder::one_line;
use ego_tree::iter::Edge;
use scraper::node::Element;
use scraper::{Html, Node};
use std::collections::HashSet;

type NodeRef<'a> = ego_tree::NodeRef<'a, Node>;

/// What an element does to the text around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Heading(u8),
    /// The name of a note or warning, such as `Caution`.
    NoteTitle,
    Pre,
    Quote,
    Item,
    Term,
    Description,
    Table,
    Row,
    /// A cell, and whether it names a column or row.
    Cell(bool),
    Break,
    Block,
    Inline,
}

/// Elements that no reader sees, or that are controls.
const UNSEEN: &[&str] = &[
    "script",
    "style",
    "noscript",
    "template",
    "iframe",
    "object",
    "embed",
    "svg",
    "canvas",
    "audio",
    "video",
    "button",
    "select",
    "textarea",
    "input",
    "datalist",
    "annotation",
    "head",
];

/// Elements, roles and classes of what surrounds a page's own matter.
const AROUND: &[&str] = &["nav", "footer", "aside"];
const AROUND_ROLES: &[&str] = &["navigation", "banner", "contentinfo", "search", "complementary", "menu", "menubar"];
const AROUND_CLASSES: &[&str] = &[
    "navheader",
    "navfooter",
    "toc",
    "navbox",
    "navigation",
    "navbar",
    "breadcrumb",
    "breadcrumbs",
    "noprint",
    "catlinks",
    "printfooter",
    "mw-editsection",
    "mw-jump-link",
    "reference",
    "hash-link",
    "theme-doc-toc-desktop",
    "sr-only",
];
const NOTES: &[&str] = &["note", "tip", "warning", "caution", "important"];

/// What an element does.
pub(super) fn role(node: NodeRef) -> Role {
    let Node::Element(element) = node.value() else {
        return Role::Inline;
    };
    match element.name() {
        "h1" => Role::Heading(1),
        "h2" | "h3" | "h4" | "h5" | "h6" if is_note(node) => Role::NoteTitle,
        // The manual's reference pages name their subject at the same level as its parts.
        "h2" if node.children().any(|child| has_class(child, &["refentrytitle"])) => Role::Heading(1),
        "h2" => Role::Heading(2),
        "h3" => Role::Heading(3),
        "h4" => Role::Heading(4),
        "h5" => Role::Heading(5),
        "h6" => Role::Heading(6),
        "pre" | "listing" | "xmp" => Role::Pre,
        "blockquote" => Role::Quote,
        "li" => Role::Item,
        "dt" => Role::Term,
        "dd" => Role::Description,
        "table" => Role::Table,
        "tr" => Role::Row,
        "td" => Role::Cell(false),
        "th" => Role::Cell(true),
        "br" => Role::Break,
        "address" | "article" | "aside" | "body" | "caption" | "center" | "details" | "dialog" | "dir" | "div"
        | "dl" | "fieldset" | "figcaption" | "figure" | "footer" | "form" | "header" | "hgroup" | "hr" | "html"
        | "legend" | "main" | "menu" | "nav" | "ol" | "option" | "p" | "section" | "summary" | "tbody" | "tfoot"
        | "thead" | "title" | "ul" => Role::Block,
        _ => Role::Inline,
    }
}

fn is_note(node: NodeRef) -> bool {
    node.parent().is_some_and(|parent| has_class(parent, NOTES))
}

fn has_class(node: NodeRef, classes: &[&str]) -> bool {
    matches!(node.value(), Node::Element(element) if element.classes().any(|class| classes.contains(&class)))
}

/// What is read of a page.
pub(super) struct Visit<'a> {
    /// Where reading begins: the page's main matter where it is told apart.
    pub root: NodeRef<'a>,
    pub title: Option<String>,
    pub language: Option<String>,
    skip: bool,
    /// Whether the root is the page's own matter, whose header is a part of it.
    is_matter: bool,
    layout: HashSet<ego_tree::NodeId>,
}

impl<'a> Visit<'a> {
    pub fn of(html: &'a Html, skip: bool) -> Self {
        let whole = html.tree.root();
        let mut visit =
            Visit { root: whole, title: None, language: None, skip, is_matter: false, layout: HashSet::new() };
        visit.look();
        visit
    }

    /// One walk over the page: its title, its language, its layout tables, and how much text each candidate for the main
    /// matter has.
    fn look(&mut self) {
        let mut tables = Vec::new();
        let mut candidates: Vec<(NodeRef<'a>, usize, bool)> = Vec::new();
        let mut best: Option<(NodeRef<'a>, usize, bool)> = None;
        let mut skipped: Option<NodeRef<'a>> = None;
        let mut seen = 0;
        for edge in self.root.traverse() {
            match edge {
                Edge::Open(node) => match node.value() {
                    Node::Text(text) if skipped.is_none() => seen += text.len(),
                    Node::Element(element) => {
                        self.note(node, element, &mut tables);
                        if is_main(element) || element.name() == "article" {
                            candidates.push((node, seen, is_main(element)));
                        }
                        if skipped.is_none() && self.is_skipped(node) {
                            skipped = Some(node);
                        }
                    }
                    _ => {}
                },
                Edge::Close(node) => {
                    if skipped == Some(node) {
                        skipped = None;
                    }
                    if tables.last() == Some(&node.id()) {
                        tables.pop();
                    }
                    let Some((_, before, is_main)) = candidates.pop_if(|(candidate, ..)| *candidate == node) else {
                        continue;
                    };
                    let length = seen - before;
                    if best.is_none_or(|(_, most, was_main)| (is_main, length) > (was_main, most)) {
                        best = Some((node, length, is_main));
                    }
                }
            }
        }
        if let Some((node, ..)) = best.filter(|(_, length, _)| self.skip && length * 2 > seen) {
            self.root = node;
            self.is_matter = true;
        }
    }

    fn note(&mut self, node: NodeRef<'a>, element: &Element, tables: &mut Vec<ego_tree::NodeId>) {
        match element.name() {
            "html" => {
                let told = element.attr("lang").or_else(|| element.attr("xml:lang"));
                self.language = told.and_then(super::super::language::primary);
            }
            "title" if self.title.is_none() => {
                let text: String =
                    node.children().filter_map(|child| child.value().as_text().map(|text| &**text)).collect();
                self.title = Some(one_line(&text)).filter(|title| !title.is_empty());
            }
            // What holds headings or other tables places them on the page.
            "table" => {
                self.layout.extend(tables.last());
                if matches!(element.attr("role"), Some("presentation" | "none")) {
                    self.layout.insert(node.id());
                }
                tables.push(node.id());
            }
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" | "main" | "article" => self.layout.extend(tables.last()),
            _ => {}
        }
    }

    pub fn is_layout(&self, table: NodeRef) -> bool {
        self.layout.contains(&table.id())
    }

    /// Whether an element is left out with all that is in it.
    pub fn is_skipped(&self, node: NodeRef) -> bool {
        let Node::Element(element) = node.value() else {
            return false;
        };
        if UNSEEN.contains(&element.name()) {
            return true;
        }
        let style = element.attr("style").unwrap_or_default();
        let is_hidden = element.attr("hidden").is_some()
            || element.attr("aria-hidden") == Some("true")
            || (style.contains("display") && style.replace(' ', "").contains("display:none"));
        if is_hidden {
            return true;
        }
        if !self.skip {
            return false;
        }
        AROUND.contains(&element.name())
            || (element.name() == "header" && !self.is_matter && !is_within_matter(node))
            || element.attr("role").is_some_and(|role| AROUND_ROLES.contains(&role))
            || element.classes().any(|class| AROUND_CLASSES.contains(&class))
    }
}

fn is_main(element: &Element) -> bool {
    element.name() == "main" || element.attr("role") == Some("main")
}

fn is_within_matter(node: NodeRef) -> bool {
    node.ancestors()
        .any(|above| matches!(above.value(), Node::Element(element) if is_main(element) || element.name() == "article"))
}
