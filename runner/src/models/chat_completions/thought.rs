//! What a server tells of its model's reasoning, put together from its pieces. No part of the standard: a text in a field of
//! one of two names, and details that only the server understands. Pure.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::models::AnswerItem;
use crate::models::codec::{CALLS_MAX, ResponseError};

/// Details between as many calls as are read, and some more.
const DETAILS_MAX: usize = 2 * CALLS_MAX;
/// Of a detail's fields those that come in pieces.
const GROWING: [&str; 3] = ["text", "summary", "data"];

/// A piece of it, or all.
#[derive(Deserialize)]
pub struct ThoughtDelta {
    reasoning_content: Option<Value>,
    reasoning: Option<Value>,
    reasoning_details: Option<Value>,
}

/// As far as it has arrived.
#[derive(Debug, Default)]
pub struct Thought {
    text: String,
    /// The name of the field that the text came in.
    field: Option<&'static str>,
    details: Vec<Map<String, Value>>,
}

impl ThoughtDelta {
    /// Servers that use both names say the same twice.
    fn text(&self) -> Option<(&'static str, &str)> {
        let fields = [("reasoning_content", &self.reasoning_content), ("reasoning", &self.reasoning)];
        let texts = fields.into_iter().filter_map(|(field, value)| Some((field, value.as_ref()?.as_str()?)));
        texts.into_iter().find(|(_, text)| !text.is_empty())
    }

    fn details(&mut self) -> impl Iterator<Item = Map<String, Value>> + use<> {
        let details = match self.reasoning_details.take() {
            Some(Value::Array(details)) => details,
            Some(_) | None => Vec::new(),
        };
        details.into_iter().filter_map(|detail| match detail {
            Value::Object(detail) => Some(detail),
            _ => None,
        })
    }
}

impl Thought {
    /// Takes in what came in one piece.
    pub fn take_whole(&mut self, mut whole: ThoughtDelta) {
        self.take_text(&whole);
        self.details.extend(whole.details());
    }

    /// Takes in a piece of a stream.
    pub fn take_piece(&mut self, mut piece: ThoughtDelta) -> Result<(), ResponseError> {
        self.take_text(&piece);
        piece.details().try_for_each(|detail| self.merge(detail))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.details.is_empty()
    }

    /// The text, for people and for the server; then the details, for the server.
    pub fn items(self) -> impl Iterator<Item = AnswerItem> {
        let text = self.field.map(|field| AnswerItem::Reasoning { text: self.text, field });
        let details = (!self.details.is_empty()).then(|| serde_json::json!({"reasoning_details": self.details}));
        text.into_iter().chain(details.map(|details| AnswerItem::Block(details.to_string())))
    }

    fn take_text(&mut self, delta: &ThoughtDelta) {
        if let Some((field, text)) = delta.text() {
            self.field.get_or_insert(field);
            self.text.push_str(text);
        }
    }

    fn merge(&mut self, piece: Map<String, Value>) -> Result<(), ResponseError> {
        let Some(detail) = self.details.iter_mut().rfind(|detail| is_piece_of(detail, &piece)) else {
            if self.details.len() >= DETAILS_MAX {
                return Err(ResponseError::TooManyCalls);
            }
            self.details.push(piece);
            return Ok(());
        };
        for (name, value) in piece {
            match (detail.get_mut(&name), value) {
                (Some(Value::String(known)), Value::String(more)) if GROWING.contains(&name.as_str()) => {
                    known.push_str(&more);
                }
                (Some(_), Value::Null) => {}
                (_, value) => {
                    detail.insert(name, value);
                }
            }
        }
        Ok(())
    }
}

/// Pieces of one detail have its type, its index and, where they say one, its id.
fn is_piece_of(detail: &Map<String, Value>, piece: &Map<String, Value>) -> bool {
    let id = |of: &Map<String, Value>| of.get("id").and_then(Value::as_str).map(str::to_owned);
    let is_other = id(detail).zip(id(piece)).is_some_and(|(one, other)| one != other);
    !is_other && ["type", "index"].iter().all(|name| detail.get(*name) == piece.get(*name))
}
