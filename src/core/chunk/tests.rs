#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

/// Words and marks, as a word-piece model would count them.
fn words(text: &str) -> usize {
    text.split_whitespace().map(|word| word.chars().count().div_ceil(8)).sum()
}

fn options(max_tokens: usize, overlap_tokens: usize) -> Options {
    Options { max_tokens, overlap_tokens }
}

/// Blocks of a text in which `#` marks headings, `|` rows, `!` header rows, and all else is a paragraph, a line each.
fn blocks(text: &str) -> Vec<Block> {
    let mut start = 0;
    let mut found = Vec::new();
    for line in text.split_inclusive('\n') {
        let body = line.trim_end();
        let level = body.len() - body.trim_start_matches('#').len();
        let kind = match body.chars().next() {
            Some('#') => BlockKind::Heading(level as u8),
            Some('|') => BlockKind::TableRow,
            Some('!') => BlockKind::TableHeader,
            _ => BlockKind::Paragraph,
        };
        let skipped = if level > 0 { level + 1 } else { 0 };
        if !body.is_empty() {
            found.push(Block { kind, start: start + skipped.min(body.len()), end: start + body.len() });
        }
        start += line.len();
    }
    found
}

fn cut(text: &str, max: usize, overlap: usize) -> Vec<Chunk> {
    let chunks = chunk(text, &blocks(text), &options(max, overlap), &words);
    check(text, &chunks, max);
    chunks
}

fn check(text: &str, chunks: &[Chunk], max: usize) {
    let chars: Vec<char> = text.chars().collect();
    let mut covered = 0;
    let mut last_start = None;
    for chunk in chunks {
        let (start, end) = (chunk.start as usize, chunk.end as usize);
        assert_eq!(chunk.content, chars[start..end].iter().collect::<String>());
        assert!(last_start.is_none_or(|last| start > last), "chunks are in order");
        assert!(chars[covered.min(start)..start].iter().all(|c| c.is_whitespace()), "nothing is lost before {start}");
        assert_eq!(chunk.tokens as usize, words(&chunk.content));
        assert!(chunk.tokens as usize <= max, "{} tokens", chunk.tokens);
        let mut at = start;
        for (from, to) in &chunk.sentences {
            let (from, to) = (*from as usize, *to as usize);
            assert!(at <= from && from < to && to <= end, "sentences are in order and within");
            assert!(chars[at..from].iter().all(|c| c.is_whitespace()));
            assert!(!chars[from].is_whitespace() && !chars[to - 1].is_whitespace());
            at = to;
        }
        assert_eq!(at, end);
        last_start = Some(start);
        covered = covered.max(end);
    }
    assert!(chars[covered..].iter().all(|c| c.is_whitespace()), "nothing is lost at the end");
}

fn prose(sentences: usize) -> String {
    (0..sentences).map(|at| format!("Sentence {at} speaks of some matter. ")).collect()
}

#[test]
fn small_sections_of_one_parent_share_a_chunk() {
    let text = "# Guide\n\n## One\nFirst is short.\n\n## Two\nSecond is short.\n\n# Other\nMore.\n";
    let chunks = cut(text, 100, 0);
    assert_eq!(chunks.len(), 1);
    let chunks = cut(text, 8, 0);
    assert_eq!(chunks[0].heading, "Guide › One");
    assert_eq!(chunks[1].heading, "Guide › Two");
    assert_eq!(chunks.last().unwrap().heading, "Other");
}

#[test]
fn a_heading_starts_a_chunk_when_enough_stands_before() {
    let text = format!("# One\n{}\n# Two\n{}\n", prose(10), prose(2));
    let chunks = cut(&text, 80, 0);
    assert_eq!(chunks.iter().map(|chunk| chunk.heading.as_str()).collect::<Vec<_>>(), ["One", "Two"]);
}

#[test]
fn a_long_section_is_cut_in_even_parts_between_sentences() {
    let text = format!("# One\n{}", prose(40));
    let chunks = cut(&text, 100, 0);
    assert!(chunks.iter().all(|chunk| chunk.content.ends_with('.') && chunk.heading == "One"));
    assert!(chunks.iter().all(|chunk| chunk.tokens > 60), "{:?}", chunks.iter().map(|c| c.tokens).collect::<Vec<_>>());
}

#[test]
fn overlap_repeats_whole_sentences_and_stays_under_its_heading() {
    let text = format!("# One\n{}\n# Two\n{}\n", prose(20), prose(20));
    let chunks = cut(&text, 60, 12);
    let mut repeats = 0;
    for pair in chunks.windows(2) {
        if pair[1].start < pair[0].end {
            repeats += 1;
            assert!(pair[1].content.starts_with("Sentence"));
            assert_eq!(pair[0].heading, pair[1].heading);
        }
    }
    assert!(repeats >= 2, "{repeats}");
    assert!(cut(&text, 60, 0).windows(2).all(|pair| pair[1].start >= pair[0].end));
}

#[test]
fn rows_of_a_cut_table_know_its_header() {
    let rows: String = (0..30).map(|at| format!("| city {at} | {at}000 people\n")).collect();
    let text = format!("# Cities\n!City | Population\n{rows}");
    let chunks = cut(&text, 40, 10);
    assert_eq!(chunks[0].heading, "Cities");
    assert!(chunks.len() > 2);
    assert!(chunks[1..].iter().all(|chunk| chunk.heading == "Cities › !City | Population"));
    assert!(chunks.iter().all(|chunk| !chunk.content.ends_with('|')));
}

#[test]
fn a_word_of_a_hundred_thousand_letters_is_cut() {
    let chunks = cut(&"x".repeat(100_000), 50, 10);
    assert!(chunks.len() > 100);
}

#[test]
fn a_word_of_one_token_does_not_make_a_chunk_without_bound() {
    let text = format!("{}\n", "x".repeat(300)).repeat(1000);
    let chunks = chunk(&text, &[], &options(100, 0), &|text| text.split_whitespace().count());
    assert!(chunks.iter().all(|chunk| chunk.content.len() < 2_500));
}

#[test]
fn each_text_is_counted_about_twice() {
    let text = format!("# One\n{}", prose(5_000));
    let counted = std::cell::Cell::new(0);
    let chunks = chunk(&text, &blocks(&text), &options(200, 30), &|part| {
        counted.set(counted.get() + part.len());
        words(part)
    });
    assert!(chunks.len() > 100);
    assert!(counted.get() < 3 * text.len(), "{} of {}", counted.get(), text.len());
}

#[test]
fn marks_outside_of_blocks_are_kept() {
    let text = "---\nfront: matter\n---\n\n# Title\n\nBody.\n\n***\n";
    let start = text.find("Title").unwrap();
    let blocks = [
        Block { kind: BlockKind::Heading(1), start, end: start + 5 },
        Block { kind: BlockKind::Paragraph, start: start + 7, end: start + 12 },
    ];
    let chunks = chunk(text, &blocks, &options(100, 0), &words);
    check(text, &chunks, 100);
    assert!(chunks.iter().any(|chunk| chunk.content.contains("# Title")));
}

#[test]
fn nothing_comes_of_nothing() {
    assert!(cut("", 10, 0).is_empty());
    assert!(cut(" \n\t ", 10, 0).is_empty());
}

proptest! {
    #[test]
    fn chunks_are_verbatim_ordered_and_complete(
        lines in proptest::collection::vec("#{0,3} ?[!|]?[a-zé.,;:日 ]{0,60}|\\PC{0,40}", 0..30),
        max in 2usize..60,
        overlap in 0usize..30,
    ) {
        cut(&lines.join("\n"), max, overlap);
    }

    #[test]
    fn damaged_blocks_do_no_harm(
        text in "\\PC{0,80}",
        ranges in proptest::collection::vec((0usize..120, 0usize..120, 0u8..4), 0..8),
    ) {
        let blocks: Vec<_> = ranges
            .into_iter()
            .map(|(start, end, level)| Block { kind: BlockKind::Heading(level), start, end })
            .collect();
        let chunks = chunk(&text, &blocks, &options(5, 2), &words);
        check(&text, &chunks, 5);
    }
}
