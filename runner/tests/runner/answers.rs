//! Answers of each wire format's provider, written as plainly as the format allows.

use belay_protocol::plan::PlanModel;
use serde_json::{Value, json};

use crate::asking::sse;
use crate::http::Answer;
use crate::plans::{chat, messages, responses};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Chat,
    Responses,
    Messages,
}

/// A call that the model asks for: id, name and arguments in its own characters.
pub type Asked<'a> = (&'a str, &'a str, &'a str);

impl Format {
    pub fn model(self, base_url: &str) -> PlanModel {
        match self {
            Self::Chat => chat(base_url),
            Self::Responses => responses(base_url),
            Self::Messages => messages(base_url),
        }
    }

    /// The conversation in a request's body.
    pub fn said(self, body: &Value) -> &Vec<Value> {
        let field = if self == Self::Responses { "input" } else { "messages" };
        body[field].as_array().unwrap()
    }

    pub fn says(self, text: &str) -> Answer {
        match self {
            Self::Chat => chunks(&[json!({"content": text})], "stop"),
            Self::Responses => {
                items(&[json!({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
                "content": [{"type": "output_text", "text": text, "annotations": []}]})])
            }
            Self::Messages => blocks(
                &[(json!({"type": "text", "text": ""}), json!({"type": "text_delta", "text": text}))],
                "end_turn",
            ),
        }
    }

    pub fn asks(self, calls: &[Asked<'_>]) -> Answer {
        let numbered = calls.iter().enumerate();
        match self {
            Self::Chat => {
                let call = |(index, (id, name, arguments)): (usize, &Asked<'_>)| {
                    json!({"tool_calls": [{"index": index, "id": id, "type": "function",
                        "function": {"name": name, "arguments": arguments}}]})
                };
                chunks(&numbered.map(call).collect::<Vec<_>>(), "tool_calls")
            }
            Self::Responses => {
                let call = |(index, (id, name, arguments)): (usize, &Asked<'_>)| {
                    json!({"type": "function_call", "id": format!("fc_{index}"), "call_id": id, "name": name,
                        "arguments": arguments, "status": "completed"})
                };
                items(&numbered.map(call).collect::<Vec<_>>())
            }
            Self::Messages => {
                let call = |(_, (id, name, arguments)): (usize, &Asked<'_>)| {
                    let block = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                    (block, json!({"type": "input_json_delta", "partial_json": arguments}))
                };
                blocks(&numbered.map(call).collect::<Vec<_>>(), "tool_use")
            }
        }
    }
}

fn written(events: &[Value]) -> Answer {
    // Anthropic's own client passes over events without a name.
    let event = |event: &Value| match event["type"].as_str() {
        Some(name) => format!("event: {name}\ndata: {event}\n\n"),
        None => format!("data: {event}\n\n"),
    };
    sse(&events.iter().map(event).collect::<String>())
}

fn chunk(delta: &Value, finish: &Value) -> Value {
    json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_760_000_000, "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
}

fn chunks(deltas: &[Value], finish: &str) -> Answer {
    let mut events: Vec<Value> = deltas.iter().map(|delta| chunk(delta, &Value::Null)).collect();
    events.push(chunk(&json!({}), &json!(finish)));
    written(&events)
}

fn items(items: &[Value]) -> Answer {
    let done = |(index, item): (usize, &Value)| json!({"type": "response.output_item.done", "output_index": index, "item": item});
    let mut events: Vec<Value> = items.iter().enumerate().map(done).collect();
    events
        .push(json!({"type": "response.completed", "response": {"id": "resp_1", "status": "completed", "output": []}}));
    written(&events)
}

fn blocks(blocks: &[(Value, Value)], stop: &str) -> Answer {
    let mut events = vec![
        json!({"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": null, "stop_sequence": null,
        "usage": {"input_tokens": 1, "output_tokens": 1}}}),
    ];
    for (index, (block, delta)) in blocks.iter().enumerate() {
        events.push(json!({"type": "content_block_start", "index": index, "content_block": block}));
        events.push(json!({"type": "content_block_delta", "index": index, "delta": delta}));
        events.push(json!({"type": "content_block_stop", "index": index}));
    }
    events.push(json!({"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {"output_tokens": 2}}));
    events.push(json!({"type": "message_stop"}));
    written(&events)
}
