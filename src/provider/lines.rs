//! Bytes, cut anywhere, into lines: ended by LF, CRLF or CR, or by LF alone where a value stands on each line.

/// Longest line, and longest event, of a reply; one call of a tool with long arguments comes whole from some providers.
pub(super) const LONGEST: usize = 8 << 20;

/// The reply has a line, or an event, longer than [`LONGEST`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// Lines of which the last may not have ended yet.
#[derive(Default)]
pub(super) struct Lines {
    begun: Vec<u8>,
    /// A lone CR ends a line too, as in server-sent events.
    returns: bool,
    /// The last byte was a CR, so an LF that follows belongs to it.
    returned: bool,
}

impl Lines {
    /// Lines that a CR may end as well.
    pub fn with_returns() -> Self {
        Lines { returns: true, ..Lines::default() }
    }

    /// Takes more bytes and gives each line that they end, without its end.
    pub fn push(
        &mut self,
        mut bytes: &[u8],
        mut line: impl FnMut(&[u8]) -> Result<(), TooLong>,
    ) -> Result<(), TooLong> {
        if self.returned && bytes.first() == Some(&b'\n') {
            bytes = &bytes[1..];
            self.returned = false;
        } else if !bytes.is_empty() {
            self.returned = false;
        }
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n' || (self.returns && byte == b'\r')) {
            let next = if bytes[end] == b'\r' && bytes.get(end + 1) == Some(&b'\n') { end + 2 } else { end + 1 };
            self.returned = bytes[end] == b'\r' && end + 1 == bytes.len();
            self.hold(&bytes[..end])?;
            line(&std::mem::take(&mut self.begun))?;
            bytes = &bytes[next..];
        }
        self.hold(bytes)
    }

    /// The line that has not ended, once no more bytes come.
    pub fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.begun)
    }

    fn hold(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        if self.begun.len() + bytes.len() > LONGEST {
            return Err(TooLong);
        }
        self.begun.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn read(lines: &mut Lines, pieces: &[&[u8]]) -> Vec<String> {
        let mut out = Vec::new();
        for piece in pieces {
            lines
                .push(piece, |line| {
                    out.push(String::from_utf8(line.to_vec()).unwrap());
                    Ok(())
                })
                .unwrap();
        }
        out
    }

    #[test]
    fn every_end_of_line_ends_one_line() {
        let mut lines = Lines::with_returns();
        assert_eq!(read(&mut lines, &[b"a\nb\r\nc\rd\n\ne"]), ["a", "b", "c", "d", ""]);
        assert_eq!(lines.rest(), b"e");
    }

    #[test]
    fn an_end_of_line_may_be_cut() {
        assert_eq!(
            read(&mut Lines::with_returns(), &[b"a\r", b"\nb\r", b"c", b"", b"\r", b"", b"\n"]),
            ["a", "b", "c"]
        );
    }

    #[test]
    fn a_return_within_a_line_is_kept_where_only_feeds_end_lines() {
        assert_eq!(read(&mut Lines::default(), &[b"a\rb\nc\n"]), ["a\rb", "c"]);
    }

    #[test]
    fn a_line_is_bounded() {
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; LONGEST], |_| Ok(())).unwrap();
        assert_eq!(lines.push(b"x", |_| Ok(())), Err(TooLong));
        assert_eq!(lines.push(b"x\n", |_| Ok(())), Err(TooLong));
    }
}
