//! Server-sent events, as the HTML standard describes them. Only the data of an event matters to any provider here: what
//! kind it is stands in the data once more.

use super::lines::{LONGEST, Lines, TooLong};

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Bytes of a stream in, the data of its events out.
pub(super) struct Events {
    lines: Lines,
    data: Data,
}

#[derive(Default)]
struct Data {
    text: Vec<u8>,
    /// A first line has been seen; a byte order mark can only stand before it.
    begun: bool,
    /// The event has data, be it empty.
    present: bool,
}

impl Default for Events {
    fn default() -> Self {
        Events { lines: Lines::with_returns(), data: Data::default() }
    }
}

impl Events {
    /// Takes more bytes and gives the data of each event that they end.
    pub fn push(&mut self, bytes: &[u8], mut event: impl FnMut(&[u8])) -> Result<(), TooLong> {
        let data = &mut self.data;
        self.lines.push(bytes, |line| data.line(line, &mut event))
    }

    /// The event that no blank line ended: some servers leave that out after the last one.
    pub fn rest(&mut self, mut event: impl FnMut(&[u8])) -> Result<(), TooLong> {
        let last = self.lines.rest();
        self.data.line(&last, &mut event)?;
        self.data.line(b"", &mut event)
    }
}

impl Data {
    fn line(&mut self, mut line: &[u8], event: &mut impl FnMut(&[u8])) -> Result<(), TooLong> {
        if !std::mem::replace(&mut self.begun, true) {
            line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
        }
        if line.is_empty() {
            let text = std::mem::take(&mut self.text);
            if std::mem::take(&mut self.present) && !text.is_empty() {
                event(&text);
            }
            return Ok(());
        }
        let value = match line.strip_prefix(b"data") {
            Some([]) => &[][..],
            Some([b':', b' ', value @ ..] | [b':', value @ ..]) => value,
            // Comments, and fields that are not ours.
            _ => return Ok(()),
        };
        if self.text.len() + value.len() >= LONGEST {
            return Err(TooLong);
        }
        if std::mem::replace(&mut self.present, true) {
            self.text.push(b'\n');
        }
        self.text.extend_from_slice(value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// The events of a stream that comes in pieces of a length.
    fn read(stream: &[u8], length: usize) -> Vec<String> {
        let mut events = Events::default();
        let mut out = Vec::new();
        let mut add = |data: &[u8]| out.push(String::from_utf8(data.to_vec()).unwrap());
        for piece in stream.chunks(length) {
            events.push(piece, &mut add).unwrap();
        }
        events.rest(&mut add).unwrap();
        out
    }

    #[test]
    fn events_are_the_same_however_they_are_cut() {
        for (stream, expected) in [
            ("data: a\n\ndata: b\n\n", vec!["a", "b"]),
            ("data: a\r\n\r\ndata: b\r\n\r\n", vec!["a", "b"]),
            ("data: a\r\rdata: b\r\r", vec!["a", "b"]),
            ("\u{feff}data: a\n\n", vec!["a"]),
            (": ping\n\n: ping\ndata: a\n: ping\n\n", vec!["a"]),
            ("event: x\nid: 1\nretry: 5\ndata:a\n\n", vec!["a"]),
            ("data: a\ndata: b\n\n", vec!["a\nb"]),
            ("data:  a \n\n", vec![" a "]),
            ("data\n\ndata:\n\ndata: \n\n", vec![]),
            ("data: {\ndata: }\n\n", vec!["{\n}"]),
            ("database: a\n\ndata: b", vec!["b"]),
            ("data: grüße 🦉\n\n", vec!["grüße 🦉"]),
        ] {
            for length in 1..=stream.len() {
                assert_eq!(read(stream.as_bytes(), length), expected, "{stream:?} in pieces of {length}");
            }
        }
    }

    #[test]
    fn an_event_of_many_lines_is_bounded() {
        let mut events = Events::default();
        let line = [&b"data: "[..], &vec![b'x'; LONGEST / 4], b"\n"].concat();
        let results: Vec<_> = (0..5).map(|_| events.push(&line, |_| ())).collect();
        assert!(results[0].is_ok());
        assert_eq!(results[4], Err(TooLong));
    }
}
