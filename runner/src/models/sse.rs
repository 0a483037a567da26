//! Server-sent events, parsed as they arrive. Pure; keeps only an event's data, which is all that model
//! APIs use.

/// Turns chunks of bytes, cut anywhere, into the data of events.
#[derive(Debug)]
pub struct SseParser {
    line: Vec<u8>,
    data: Option<Vec<u8>>,
    /// A CR was seen: a LF right after it belongs to the same line end.
    after_cr: bool,
    first_line: bool,
    most: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event is larger than {most} bytes")]
pub struct EventTooLarge {
    pub most: usize,
}

impl SseParser {
    /// A parser that refuses lines and events of more than `most` bytes.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { line: Vec::new(), data: None, after_cr: false, first_line: true, most }
    }

    /// Takes the next bytes and returns the data of every event that they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, EventTooLarge> {
        let mut events = Vec::new();
        for &byte in bytes {
            let line_feed_of_cr = self.after_cr && byte == b'\n';
            self.after_cr = byte == b'\r';
            match byte {
                _ if line_feed_of_cr => {}
                b'\r' | b'\n' => events.extend(self.end_line()),
                _ => self.line.push(byte),
            }
            if self.line.len() + self.data.as_ref().map_or(0, Vec::len) > self.most {
                return Err(EventTooLarge { most: self.most });
            }
        }
        Ok(events)
    }

    /// Takes in the finished line; an empty one completes the event, if it has data.
    fn end_line(&mut self) -> Option<Vec<u8>> {
        let line = std::mem::take(&mut self.line);
        let mut line = line.as_slice();
        if std::mem::take(&mut self.first_line) {
            line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
        }
        if line.is_empty() {
            return self.data.take();
        }
        let value = match line.strip_prefix(b"data") {
            Some([]) => &[],
            Some([b':', b' ', value @ ..] | [b':', value @ ..]) => value,
            // Comments, other fields, and fields whose names only begin like ours.
            Some(_) | None => return None,
        };
        match &mut self.data {
            Some(data) => {
                data.push(b'\n');
                data.extend_from_slice(value);
            }
            None => self.data = Some(value.to_vec()),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use rstest::rstest;

    const STREAM: &str = "\u{feff}: hello\r\ndata: {\"a\":1}\r\n\r\nevent: ping\rdata\r\rid: 7\nretry: 3\n\ndata:two\ndata: lines\ndatum: no\n\ndata: ä€😀\n\ndata: cut";

    fn texts(events: Vec<Vec<u8>>) -> Vec<String> {
        events.into_iter().map(|event| String::from_utf8(event).unwrap()).collect()
    }

    #[test]
    fn a_stream_gives_the_same_events_wherever_it_is_cut() {
        let expected = ["{\"a\":1}", "", "two\nlines", "ä€😀"];
        let bytes = STREAM.as_bytes();
        for cut in 0..=bytes.len() {
            let mut parser = SseParser::new(1024);
            let mut events = parser.push(&bytes[..cut]).unwrap();
            events.extend(parser.push(&bytes[cut..]).unwrap());
            assert_eq!(texts(events), expected, "cut at {cut}");
        }
        let mut parser = SseParser::new(1024);
        let events = bytes.iter().flat_map(|byte| parser.push(&[*byte]).unwrap()).collect();
        assert_eq!(texts(events), expected, "byte by byte");
    }

    #[rstest]
    #[case::one_long_line("data: 0123456789012345")]
    #[case::many_lines("data: 01234567\ndata: 01234567\n")]
    fn an_endless_event_is_refused(#[case] stream: &str) {
        assert_eq!(SseParser::new(16).push(stream.as_bytes()), Err(EventTooLarge { most: 16 }));
    }
}
