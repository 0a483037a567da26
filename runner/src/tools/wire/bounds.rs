//! How much one stream of a server's events may hold: each request in it costs a task and an answer, each event memory.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

/// People are asked far less in one call.
const REQUESTS_MAX: u32 = 64;
const ID_BYTES_MAX: usize = 256;
const STREAM_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What one stream has come to.
#[derive(Debug, Default)]
pub(super) struct Bounds {
    bytes: usize,
    requests: u32,
}

/// Why it is not read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Excess {
    #[error("the server sent more than {STREAM_BYTES_MAX} bytes of events")]
    Bytes,
    #[error("the server asked more than {REQUESTS_MAX} times")]
    Requests,
    #[error("the server asked under an id of more than {ID_BYTES_MAX} bytes")]
    Id,
}

impl Bounds {
    /// Counts one event.
    pub fn admit(&mut self, data: &str) -> Result<(), Excess> {
        self.bytes = self.bytes.saturating_add(data.len());
        if self.bytes > STREAM_BYTES_MAX {
            return Err(Excess::Bytes);
        }
        match Asked::by(data) {
            Asked::Nothing => return Ok(()),
            Asked::Under(id) if id.to_string().len() > ID_BYTES_MAX => return Err(Excess::Id),
            Asked::Under(_) | Asked::Unclear => {}
        }
        self.requests += 1;
        if self.requests > REQUESTS_MAX { Err(Excess::Requests) } else { Ok(()) }
    }
}

/// Whether an event is a request of the server.
enum Asked {
    Nothing,
    Under(Value),
    /// Others may read it as one.
    Unclear,
}

impl Asked {
    fn by(data: &str) -> Self {
        #[derive(Deserialize)]
        struct Shape {
            method: Option<IgnoredAny>,
            id: Option<Value>,
        }
        if data.is_empty() {
            return Self::Nothing;
        }
        match serde_json::from_str::<Shape>(data) {
            Ok(Shape { method: Some(_), id: Some(id) }) => Self::Under(id),
            // A key that occurs twice, say. What is no JSON at all is nobody's request.
            Err(_) if data.trim_start().starts_with('{') => Self::Unclear,
            Ok(Shape { .. }) | Err(_) => Self::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn request(id: &Value) -> String {
        json!({"jsonrpc": "2.0", "id": id, "method": "ping"}).to_string()
    }

    #[test]
    fn requests_are_counted_and_nothing_else_is() {
        let mut bounds = Bounds::default();
        let progress = json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {}}).to_string();
        let response = json!({"jsonrpc": "2.0", "id": 1, "result": {}}).to_string();
        for _ in 0..1000 {
            bounds.admit(&progress).unwrap();
            bounds.admit(&response).unwrap();
            bounds.admit("").unwrap();
            bounds.admit("still here").unwrap();
        }
        for id in 1..=REQUESTS_MAX {
            bounds.admit(&request(&json!(id))).unwrap();
        }
        assert_eq!(bounds.admit(&request(&json!("one more"))), Err(Excess::Requests));
    }

    #[test]
    fn what_may_be_read_in_two_ways_counts_as_a_request() {
        let twice = r#"{"jsonrpc": "2.0", "id": 1, "method": "ping", "method": "ping"}"#;
        let mut bounds = Bounds { requests: REQUESTS_MAX, ..Bounds::default() };
        assert_eq!(bounds.admit(twice), Err(Excess::Requests));
    }

    #[test]
    fn long_ids_and_endless_streams_are_not_read_any_further() {
        let mut bounds = Bounds::default();
        assert_eq!(bounds.admit(&request(&json!("x".repeat(ID_BYTES_MAX)))), Err(Excess::Id));
        let event = " ".repeat(STREAM_BYTES_MAX / 2);
        let mut bounds = Bounds::default();
        assert_eq!([0; 3].map(|_| bounds.admit(&event)), [Ok(()), Ok(()), Err(Excess::Bytes)]);
    }
}
