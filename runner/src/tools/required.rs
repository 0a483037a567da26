//! Results by which a server says that it needs input first, as they came: rmcp reads of one no more than it knows.

use std::sync::{Mutex, PoisonError};

use rmcp::model::{ServerJsonRpcMessage, ServerResult};
use serde_json::Value;

const INPUT_REQUIRED: &str = "input_required";

/// Keeps a result that says so.
pub fn note(slot: &Mutex<Option<Value>>, result: Option<Value>) {
    let needs_input = |result: &Value| result.get("resultType").and_then(Value::as_str) == Some(INPUT_REQUIRED);
    if let Some(result) = result.filter(needs_input) {
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
    }
}

/// The result in these words; large ones that say nothing of input are not read.
pub fn streamed(data: &str) -> Option<Value> {
    let message = data.contains(INPUT_REQUIRED).then(|| serde_json::from_str::<Value>(data).ok()).flatten();
    message.and_then(|mut message| message.get_mut("result").map(Value::take))
}

/// The result in a message that rmcp has read: one of a shape that it does not know ends as another.
pub fn whole(message: &ServerJsonRpcMessage) -> Option<Value> {
    let ServerJsonRpcMessage::Response(response) = message else { return None };
    match &response.result {
        result @ (ServerResult::InputRequiredResult(_)
        | ServerResult::TaskAckResult(_)
        | ServerResult::CustomResult(_)) => serde_json::to_value(result).ok(),
        _ => None, // every other one is something else for certain
    }
}
