//! The inside of square brackets, read as citation marks: `[1]`, `[1, 3]`, `[1-3]`, `[^1]`, `[doc 1]`, `[Document 2; 3]`,
//! `【1】`, `【1†source】`.

/// What a bracket and the text after it are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// A mark so far.
    Open,
    /// A mark with these numbers, each once.
    Closed(Vec<u32>),
    /// No mark.
    Other,
}

/// Words that may stand before a number.
const WORDS: [&str; 10] =
    ["doc", "docs", "document", "documents", "source", "sources", "ref", "citation", "passage", "and"];

/// A longer one is no mark.
const LONGEST: usize = 96;

/// Reads a text that begins with its bracket. Directly after a name, a bare number is an index and no mark.
pub(super) fn read(text: &str, after_name: bool) -> Group {
    if text.len() > LONGEST {
        return Group::Other;
    }
    let mut chars = text.chars();
    let close = if chars.next() == Some('【') { '】' } else { ']' };
    let mut rest = chars.as_str();
    let mut numbers: Vec<u32> = Vec::new();
    let mut range_from = None;
    let mut plain = close == ']' && after_name;
    loop {
        rest = rest.trim_start_matches(' ');
        let word = leading(rest, char::is_alphabetic);
        if !word.is_empty() {
            let lower = word.to_lowercase();
            let known = WORDS.contains(&lower.as_str());
            rest = &rest[word.len()..];
            if rest.is_empty() && WORDS.iter().any(|whole| whole.starts_with(&lower)) {
                return Group::Open;
            }
            if !known || lower == "and" && numbers.is_empty() {
                return Group::Other;
            }
            plain = false;
        }
        rest = rest.trim_start_matches([' ', '#', '.', ':', '^']);
        if rest.is_empty() {
            return Group::Open;
        }
        let digits = leading(rest, |c| c.is_ascii_digit());
        // Four digits are a year.
        let number = match digits.len() {
            1..=3 if !plain => digits.parse::<u32>().ok(),
            _ => None,
        };
        let Some(number) = number else { return Group::Other };
        rest = rest[digits.len()..].trim_start_matches(' ');
        for number in range_from.take().unwrap_or(number)..=number {
            if !numbers.contains(&number) {
                numbers.push(number);
            }
        }
        // What OpenAI's assistants put after the number.
        if close == '】' && rest.starts_with('†') {
            rest = rest.trim_start_matches(|c: char| c != '】' && c != '\n');
        }
        let mut chars = rest.chars();
        match chars.next() {
            None => return Group::Open,
            Some(c) if c == close => return Group::Closed(numbers),
            Some('-' | '–') => range_from = Some(number),
            Some(',' | ';' | '、' | '，' | '&') => {}
            Some('a' | 'A') => {
                // An `and`, which the next round reads.
                continue;
            }
            Some(_) => return Group::Other,
        }
        rest = chars.as_str();
        if rest.is_empty() {
            return Group::Open;
        }
    }
}

fn leading(text: &str, is: impl Fn(char) -> bool) -> &str {
    &text[..text.find(|c| !is(c)).unwrap_or(text.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_marks_are_read() {
        for (text, numbers) in [
            ("[1]", vec![1]),
            ("[ 1 , 3 ]", vec![1, 3]),
            ("[1; 3、4]", vec![1, 3, 4]),
            ("[1-3]", vec![1, 2, 3]),
            ("[^2]", vec![2]),
            ("【2】", vec![2]),
            ("【2†source】", vec![2]),
            ("[doc 1]", vec![1]),
            ("[Document 2, 3]", vec![2, 3]),
            ("[Source #1, Source: 2]", vec![1, 2]),
            ("[1 and 2]", vec![1, 2]),
            ("[1, 1]", vec![1]),
        ] {
            assert_eq!(read(text, false), Group::Closed(numbers), "{text}");
            // Every beginning of it may yet be a mark.
            for (at, _) in text.char_indices().skip(1) {
                assert_eq!(read(&text[..at], false), Group::Open, "{}", &text[..at]);
            }
        }
    }

    #[test]
    fn other_brackets_are_no_marks() {
        for text in [
            "[]", "[ ]", "[x", "[2024", "[1\n", "[1:", "[1b", "[doc]", "[docu1", "[and 1", "[1,]", "[1.5", "[-1", "[[",
            "【x",
        ] {
            assert_eq!(read(text, false), Group::Other, "{text}");
        }
        assert_eq!(read("[1", true), Group::Other);
        assert_eq!(read("[doc 1]", true), Group::Closed(vec![1]));
        assert_eq!(read("【1】", true), Group::Closed(vec![1]));
    }
}
