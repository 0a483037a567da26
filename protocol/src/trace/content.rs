//! What was said, where somebody asked for it: as OpenTelemetry's JSON messages, bounded.

use serde_json::{Value, json};

use crate::event::{Finish, Item};

/// Whether spans hold what prompts, answers, arguments and results say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Content {
    #[default]
    Left,
    Kept,
}

/// The most of each prompt, answer, argument or result, in bytes.
const CONTENT_BYTES_MAX: usize = 16 * 1024;
const CUT: &str = " [cut]";
/// The most of a name or an id that somebody else chose.
const WORD_BYTES_MAX: usize = 128;

impl Content {
    pub(super) fn keep(self, make: impl FnOnce() -> String) -> Option<String> {
        match self {
            Self::Left => None,
            Self::Kept => Some(make()),
        }
    }

    /// A name or an id that somebody else chose, as far as it is made like one: otherwise it may say anything.
    pub(super) fn name(self, text: &str) -> Option<String> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "._:/@-".contains(c);
        (self == Self::Kept || text.chars().all(fits)).then(|| word(text))
    }
}

pub(super) fn cut(text: &str) -> String {
    let mut room = CONTENT_BYTES_MAX;
    take(text, &mut room)
}

/// A name or an id that somebody else chose, bounded.
pub(super) fn word(text: &str) -> String {
    let mut room = WORD_BYTES_MAX;
    take(text, &mut room)
}

/// As much of it as there is room for.
fn take(text: &str, room: &mut usize) -> String {
    let (kept, rest) = text.split_at(text.floor_char_boundary(*room));
    *room -= kept.len();
    if rest.is_empty() { kept.to_owned() } else { format!("{kept}{CUT}") }
}

/// One message in plain text.
pub(super) fn message(role: &str, text: &str) -> String {
    json!([{"role": role, "parts": [{"type": "text", "content": cut(text)}]}]).to_string()
}

/// A model's answer. Blocks that only the provider can read are left out.
pub(super) fn answer(items: &[Item], finish: Finish) -> String {
    let mut room = CONTENT_BYTES_MAX;
    let parts: Vec<Value> = items.iter().filter_map(|item| part(item, &mut room)).collect();
    json!([{"role": "assistant", "parts": parts, "finish_reason": finish_word(finish)}]).to_string()
}

fn part(item: &Item, room: &mut usize) -> Option<Value> {
    Some(match item {
        Item::Text { text } => json!({"type": "text", "content": take(text, room)}),
        Item::Reasoning { text, .. } => json!({"type": "reasoning", "content": take(text, room)}),
        Item::ToolCall { call_id, name, arguments, .. } => {
            json!({"type": "tool_call", "id": call_id, "name": name, "arguments": take(arguments, room)})
        }
        Item::Block { .. } => return None,
    })
}

/// As OpenTelemetry spells it.
pub(super) fn finish_word(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::ToolCalls => "tool_call",
        Finish::Length => "length",
        Finish::ContentFilter => "content_filter",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_bounded_whatever_was_said() {
        let long = "ü".repeat(CONTENT_BYTES_MAX);
        assert_eq!(cut(&long).len(), CONTENT_BYTES_MAX + CUT.len());
        let items = [Item::Text { text: long.clone() }, Item::Reasoning { text: long, field: None }];
        assert!(answer(&items, Finish::Stop).len() < CONTENT_BYTES_MAX + 400);
        assert_eq!(cut("short"), "short");
        assert_eq!(word(&"x".repeat(200)).len(), WORD_BYTES_MAX + CUT.len());
    }
}
