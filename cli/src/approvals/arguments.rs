//! Arguments over several rows. Nothing is parsed and written again: what is shown are the bytes that would be sent, with
//! breaks and indentation between them, and where a part is folded away it says how many bytes that are.

use belay_crds::visible;

/// How much of what is long is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Rows of more than `ROW_CHARACTERS_MAX`, and more than `ROWS_MAX` of them, are folded.
    Folded,
    Full,
}

/// A piece of the arguments; its text is theirs, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Row {
    depth: usize,
    /// Goes on with a string that the row before began.
    continued: bool,
    text: String,
}

const INDENT: usize = 2;
/// Deeper nesting is no longer indented: what is shown stays in proportion to what is sent.
const DEPTH_MAX: usize = 24;
const ROW_CHARACTERS_MAX: usize = 240;
const ROW_HEAD: usize = 160;
const ROW_TAIL: usize = 60;
const ROWS_MAX: usize = 120;
const ROWS_HEAD: usize = 80;
const ROWS_TAIL: usize = 30;

/// The rows of a JSON text, whole or only its beginning: a row a member, and one for each line of a string.
pub fn rows(json: &str) -> Vec<Row> {
    let mut layout = Layout::default();
    let mut rest = json.chars().peekable();
    while let Some(c) = rest.next() {
        layout.take(c, rest.peek().copied());
    }
    layout.end_row(false);
    layout.rows
}

#[derive(Default)]
struct Layout {
    rows: Vec<Row>,
    text: String,
    depth: usize,
    /// Of the row that is being filled.
    row_depth: usize,
    continued: bool,
    in_string: bool,
    escaped: bool,
}

impl Layout {
    fn take(&mut self, c: char, next: Option<char>) {
        if self.in_string {
            return self.take_in_string(c, next);
        }
        match c {
            '{' | '[' => {
                self.text.push(c);
                self.depth += 1;
                if !next.is_some_and(closes) {
                    self.end_row(false);
                }
            }
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                if !self.text.ends_with(['{', '[']) {
                    self.end_row(false);
                }
                self.text.push(c);
            }
            ',' => {
                self.text.push(c);
                self.end_row(false);
            }
            _ => {
                self.in_string = c == '"';
                self.text.push(c);
            }
        }
    }

    fn take_in_string(&mut self, c: char, next: Option<char>) {
        self.text.push(c);
        let breaks = self.escaped && c == 'n' && next.is_some_and(|next| next != '"');
        self.in_string = self.escaped || c != '"';
        self.escaped = !self.escaped && c == '\\';
        if breaks {
            self.end_row(true);
        }
    }

    fn end_row(&mut self, continues: bool) {
        if !self.text.is_empty() {
            let text = std::mem::take(&mut self.text);
            self.rows.push(Row { depth: self.row_depth, continued: self.continued, text });
        }
        self.continued = continues;
        self.row_depth = self.depth;
    }
}

fn closes(c: char) -> bool {
    c == '}' || c == ']'
}

/// What is printed, and how many bytes of the arguments are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub lines: Vec<String>,
    pub folded_bytes: usize,
}

pub fn shown(rows: &[Row], detail: Detail) -> Shown {
    let mut shown = Shown { lines: Vec::new(), folded_bytes: 0 };
    let (head, folded, tail) = match detail {
        Detail::Folded => cut_in_three(rows, ROWS_MAX, ROWS_HEAD, ROWS_TAIL),
        Detail::Full => (rows, &[][..], &[][..]),
    };
    for row in head {
        shown.add(row, detail);
    }
    if !folded.is_empty() {
        let bytes: usize = folded.iter().map(|row| row.text.len()).sum();
        shown.lines.push(format!("[.. {} rows, {bytes} bytes, folded: --full shows them ..]", folded.len()));
        shown.folded_bytes += bytes;
    }
    for row in tail {
        shown.add(row, detail);
    }
    shown
}

impl Shown {
    fn add(&mut self, row: &Row, detail: Detail) {
        let (line, folded) = row.shown(detail);
        self.lines.push(line);
        self.folded_bytes += folded;
    }
}

impl Row {
    /// The line, and how many bytes of it are folded.
    pub fn shown(&self, detail: Detail) -> (String, usize) {
        let (text, folded) = match detail {
            Detail::Folded => folded_text(&self.text),
            Detail::Full => (visible(&self.text), 0),
        };
        let lead = if self.continued { "| " } else { "" };
        (format!("{:indent$}{lead}{text}", "", indent = INDENT * self.depth.min(DEPTH_MAX)), folded)
    }
}

fn folded_text(text: &str) -> (String, usize) {
    let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    let (head, folded, tail) = cut_in_three(&ends, ROW_CHARACTERS_MAX, ROW_HEAD, ROW_TAIL);
    let (Some(start), Some(end)) = (folded.first(), tail.first()) else { return (visible(text), 0) };
    debug_assert_eq!(head.len(), ROW_HEAD);
    let part = |range: std::ops::Range<usize>| visible(text.get(range).unwrap_or_default());
    let bytes = end - start;
    (format!("{} [.. {bytes} bytes folded ..] {}", part(0..*start), part(*end..text.len())), bytes)
}

/// All of `items` first, or, where they are more than `max`, the first `head`, the middle and the last `tail`.
fn cut_in_three<T>(items: &[T], max: usize, head: usize, tail: usize) -> (&[T], &[T], &[T]) {
    if items.len() <= max {
        return (items, &[], &[]);
    }
    let (head, rest) = items.split_at(head);
    let (middle, tail) = rest.split_at(rest.len() - tail);
    (head, middle, tail)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]
    use super::*;

    fn lines(json: &str, detail: Detail) -> Vec<String> {
        shown(&rows(json), detail).lines
    }

    fn joined(json: &str) -> String {
        rows(json).into_iter().map(|row| row.text).collect()
    }

    #[test]
    fn a_member_has_a_row_and_every_byte_is_one_that_would_be_sent() {
        let json = r#"{"a":[],"b":[1,{"c":"x,{}[]:\""}],"d":{},"n":1e+21}"#;
        let expected = [
            "{",
            r#"  "a":[],"#,
            r#"  "b":["#,
            "    1,",
            "    {",
            r#"      "c":"x,{}[]:\"""#,
            "    }",
            "  ],",
            r#"  "d":{},"#,
            r#"  "n":1e+21"#,
            "}",
        ];
        assert_eq!(lines(json, Detail::Full), expected);
        assert_eq!(joined(json), json);
    }

    #[test]
    fn lines_of_a_string_are_rows_that_cannot_pass_for_members() {
        let json = r#"{"script":"set -e\n\"force\":true,\nend\\n","x":"end\n"}"#;
        let expected =
            ["{", r#"  "script":"set -e\n"#, r#"  | \"force\":true,\n"#, r#"  | end\\n","#, r#"  "x":"end\n""#, "}"];
        assert_eq!(lines(json, Detail::Full), expected);
        assert_eq!(joined(json), json);
    }

    #[test]
    fn a_beginning_and_what_is_no_json_are_shown_as_they_are() {
        for text in [r#"{"a":"cut he"#, "]]}} not json \"", "", "\u{1b}[2J", "null"] {
            assert_eq!(joined(text), text);
        }
        assert_eq!(lines("]\u{1b}[", Detail::Full), ["]\\u{1b}["]);
    }

    #[test]
    fn what_is_long_is_folded_and_says_by_how_many_bytes() {
        let long = format!(r#"{{"a":"{}é{}"}}"#, "x".repeat(5000), "y".repeat(300));
        let folded = shown(&rows(&long), Detail::Folded);
        let row = &folded.lines[1];
        assert_eq!(folded.folded_bytes, 5307 + 2 - 1 - 220, "{row}");
        assert!(row.contains(&format!("[.. {} bytes folded ..]", folded.folded_bytes)), "{row}");
        assert!(row.ends_with("yyy\""), "{row}");
        let full = shown(&rows(&long), Detail::Full);
        assert_eq!((full.folded_bytes, full.lines[1].len()), (0, 5310));
    }

    #[test]
    fn many_rows_are_folded_and_say_by_how_many_bytes() {
        let many: Vec<String> = (100..400).map(|n| n.to_string()).collect();
        let json = format!("[{}]", many.join(","));
        let folded = shown(&rows(&json), Detail::Folded);
        assert_eq!(folded.lines.len(), ROWS_HEAD + 1 + ROWS_TAIL);
        assert_eq!(folded.lines[ROWS_HEAD], "[.. 192 rows, 768 bytes, folded: --full shows them ..]");
        assert_eq!(folded.folded_bytes, 768);
        assert_eq!(lines(&json, Detail::Full).len(), 302);
    }

    #[test]
    fn deep_nesting_stays_in_proportion() {
        let deep = "[".repeat(50_000);
        let text = lines(&deep, Detail::Full).join("\n");
        assert!(text.len() < 50_000 * (INDENT * DEPTH_MAX + 2), "{}", text.len());
    }
}
