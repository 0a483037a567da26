//! The body of a Messages request, built from plan, transcript and offered tools. Pure.

use belay_protocol::event::Item;
use belay_protocol::plan::{Effort, Plan, PlanModel, Reasoning};
use belay_protocol::transcript::Turn;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::models::codec::{effort_word, sendable};
use crate::models::{Context, OfferedTool, call_name};

/// User messages that end in a cache breakpoint: what the step before wrote is found even where a turn holds more
/// blocks than the provider looks back over. With tools and instructions that makes four, the most it takes.
const MARKED_MESSAGES: usize = 2;
/// The schema demands the field; this is for plans of other makers.
const OUTPUT_TOKENS: u64 = 4096;

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    max_tokens: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    system: Vec<Content<'a>>,
    messages: Vec<Message<'a>>,
    // Some servers refuse an empty list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Tool<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking: Option<Thinking>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_config: Option<OutputConfig<'a>>,
    stream: bool,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Thinking {
    Disabled,
    /// As much as the effort says.
    Adaptive,
    Enabled {
        budget_tokens: u64,
    },
}

#[derive(Serialize)]
struct OutputConfig<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    effort: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<Format<'a>>,
}

#[derive(Serialize)]
struct Format<'a> {
    r#type: &'static str,
    schema: &'a Value,
}

#[derive(Serialize)]
struct Message<'a> {
    role: Role,
    content: Vec<Content<'a>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    User,
    Assistant,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Content<'a> {
    Written(Written<'a>),
    /// A block of the provider's, as it came.
    Kept(Box<RawValue>),
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Written<'a> {
    Text {
        text: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_control: Option<CacheControl>,
    },
    ToolUse {
        id: &'a str,
        name: &'a str,
        input: Box<RawValue>,
    },
    ToolResult {
        tool_use_id: &'a str,
        content: &'a str,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        is_error: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_control: Option<CacheControl>,
    },
}

#[derive(Serialize)]
struct Tool<'a> {
    name: &'a str,
    description: &'a str,
    input_schema: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_control: Option<CacheControl>,
}

#[derive(Clone, Copy, Serialize)]
struct CacheControl {
    r#type: &'static str,
}

const CACHED: CacheControl = CacheControl { r#type: "ephemeral" };

/// The exact bytes of the request.
pub fn body(context: &Context<'_>, model: &PlanModel) -> Result<Vec<u8>, serde_json::Error> {
    let mut tools: Vec<Tool<'_>> = context.tools.iter().map(tool).collect();
    if let Some(last) = tools.last_mut() {
        last.cache_control = Some(CACHED);
    }
    let instructions = Some(context.plan.instructions.as_str()).filter(|text| is_sayable(text));
    serde_json::to_vec(&Body {
        model: &model.model,
        max_tokens: model.max_output_tokens.unwrap_or(OUTPUT_TOKENS),
        system: instructions.into_iter().map(|text| said(text, Some(CACHED))).collect(),
        messages: messages(context, model)?,
        tools,
        temperature: model.temperature,
        thinking: model.reasoning.and_then(thinking),
        output_config: output_config(context.plan, model),
        stream: true,
    })
}

fn thinking(reasoning: Reasoning) -> Option<Thinking> {
    match (reasoning.effort, reasoning.budget_tokens) {
        (Some(Effort::None), _) => Some(Thinking::Disabled),
        (_, Some(budget_tokens)) => Some(Thinking::Enabled { budget_tokens }),
        (Some(Effort::Minimal | Effort::Low | Effort::Medium | Effort::High), None) => Some(Thinking::Adaptive),
        (None, None) => None,
    }
}

fn output_config<'a>(plan: &'a Plan, model: &PlanModel) -> Option<OutputConfig<'a>> {
    let effort = model.reasoning.and_then(|reasoning| reasoning.effort).and_then(|effort| match effort {
        Effort::None => None,
        Effort::Minimal => Some(effort_word(Effort::Low)),
        Effort::Low | Effort::Medium | Effort::High => Some(effort_word(effort)),
    });
    let format = plan.output_schema.as_ref().map(|schema| Format { r#type: "json_schema", schema });
    (effort.is_some() || format.is_some()).then_some(OutputConfig { effort, format })
}

fn messages<'a>(context: &Context<'a>, model: &PlanModel) -> Result<Vec<Message<'a>>, serde_json::Error> {
    let mut messages = vec![Message { role: Role::User, content: vec![said(&context.plan.input, None)] }];
    for turn in context.transcript.turns() {
        let own = context.is_own(turn, model);
        let assistant = turn.items.iter().map(|item| answered(item, own)).filter_map(Result::transpose);
        let assistant = assistant.collect::<Result<Vec<_>, _>>()?;
        let misfit = turn.misfit.as_deref().map(|misfit| said(misfit, None));
        let results = turn.items.iter().filter_map(|item| result(turn, item, own)).chain(misfit).collect();
        messages.push(Message { role: Role::Assistant, content: assistant });
        messages.push(Message { role: Role::User, content: results });
    }
    // A message without content is refused.
    messages.retain(|message| !message.content.is_empty());
    let users = messages.iter_mut().rev().filter(|message| message.role == Role::User);
    for last in users.take(MARKED_MESSAGES).filter_map(|message| message.content.last_mut()) {
        mark(last);
    }
    Ok(messages)
}

/// A piece of an answer, if it can be said again; `own`: to the model that gave it.
fn answered(item: &Item, own: bool) -> Result<Option<Content<'_>>, serde_json::Error> {
    Ok(match item {
        Item::Text { text } => is_sayable(text).then(|| said(text, None)),
        Item::Block { json } if own => Some(Content::Kept(RawValue::from_string(json.clone())?)),
        Item::Reasoning { .. } | Item::Block { .. } => None,
        Item::ToolCall { call_id, provider_id, name, arguments } => Some(Content::Written(Written::ToolUse {
            id: call_name(own, call_id, provider_id),
            name,
            input: RawValue::from_string(sendable(arguments).into_owned())?,
        })),
    })
}

fn result<'a>(turn: &'a Turn, item: &'a Item, own: bool) -> Option<Content<'a>> {
    let Item::ToolCall { call_id, provider_id, .. } = item else { return None };
    let result = turn.results.get(call_id);
    Some(Content::Written(Written::ToolResult {
        tool_use_id: call_name(own, call_id, provider_id),
        content: result.map_or("", |result| result.content.as_str()),
        is_error: result.is_some_and(|result| result.is_error),
        cache_control: None,
    }))
}

fn said(text: &str, cache_control: Option<CacheControl>) -> Content<'_> {
    Content::Written(Written::Text { text, cache_control })
}

fn mark(content: &mut Content<'_>) {
    match content {
        Content::Written(Written::Text { cache_control, .. } | Written::ToolResult { cache_control, .. }) => {
            *cache_control = Some(CACHED);
        }
        Content::Written(Written::ToolUse { .. }) | Content::Kept(_) => {}
    }
}

/// The API refuses texts of white space alone, though its models write them.
fn is_sayable(text: &str) -> bool {
    !text.trim().is_empty()
}

fn tool(tool: &OfferedTool) -> Tool<'_> {
    Tool { name: &tool.name, description: &tool.description, input_schema: &tool.input_schema, cache_control: None }
}
