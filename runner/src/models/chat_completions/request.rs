//! The body of a Chat Completions request, built from plan, transcript and offered tools. Pure.

use belay_protocol::event::Item;
use belay_protocol::plan::PlanModel;
use belay_protocol::transcript::Turn;
use reqwest::Url;
use serde::Serialize;
use serde_json::Value;

use crate::models::codec::{OutputFormat, effort_word, error_text, sendable};
use crate::models::{Context, OfferedTool, call_name};

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    messages: Vec<Message<'a>>,
    // Some servers refuse an empty list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Tool<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_effort: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_format: Option<ResponseFormat<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u64>,
    stream: bool,
    stream_options: StreamOptions,
}

#[derive(Serialize)]
struct ResponseFormat<'a> {
    r#type: &'static str,
    json_schema: OutputFormat<'a>,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Serialize)]
#[serde(tag = "role", rename_all = "lowercase")]
enum Message<'a> {
    System {
        content: &'a str,
    },
    User {
        content: &'a str,
    },
    Assistant {
        // Said of every step again, silence is what keeps requests no larger than a bare loop's.
        #[serde(skip_serializing_if = "Option::is_none")]
        content: Option<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        tool_calls: Vec<Call<'a>>,
    },
    Tool {
        tool_call_id: &'a str,
        content: String,
    },
}

#[derive(Serialize)]
struct Call<'a> {
    id: &'a str,
    r#type: &'static str,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    name: &'a str,
    arguments: String,
}

#[derive(Serialize)]
struct Tool<'a> {
    r#type: &'static str,
    function: Definition<'a>,
}

#[derive(Serialize)]
struct Definition<'a> {
    name: &'a str,
    description: &'a str,
    parameters: &'a Value,
}

/// The exact bytes of the request.
pub fn body(context: &Context<'_>, model: &PlanModel, url: &str) -> Result<Vec<u8>, serde_json::Error> {
    // Only OpenAI's own API insists on the newer name; many local servers know only the older one.
    let (max_tokens, max_completion_tokens) =
        if is_openai(url) { (None, model.max_output_tokens) } else { (model.max_output_tokens, None) };
    serde_json::to_vec(&Body {
        model: &model.model,
        messages: messages(context, model),
        tools: context.tools.iter().map(tool).collect(),
        temperature: model.temperature,
        reasoning_effort: model.reasoning.and_then(|reasoning| reasoning.effort).map(effort_word),
        response_format: OutputFormat::of(context.plan)
            .map(|json_schema| ResponseFormat { r#type: "json_schema", json_schema }),
        max_tokens,
        max_completion_tokens,
        stream: true,
        stream_options: StreamOptions { include_usage: true },
    })
}

fn is_openai(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| {
        url.host_str().is_some_and(|host| host == "api.openai.com" || host.ends_with(".openai.azure.com"))
    })
}

fn messages<'a>(context: &Context<'a>, model: &PlanModel) -> Vec<Message<'a>> {
    let plan = context.plan;
    let system = Some(plan.instructions.as_str()).filter(|text| !text.is_empty());
    system
        .map(|content| Message::System { content })
        .into_iter()
        .chain([Message::User { content: &plan.input }])
        .chain(context.transcript.turns().iter().flat_map(|said| turn(said, context.is_own(said, model))))
        .collect()
}

/// `own`: the model that is asked gave this answer.
fn turn(turn: &Turn, own: bool) -> Vec<Message<'_>> {
    let texts: Vec<&str> = turn.items.iter().filter_map(text).collect();
    let tool_calls: Vec<Call<'_>> = turn.items.iter().filter_map(|item| call(item, own)).collect();
    // One that says and asks nothing is refused.
    let said = !texts.is_empty() || !tool_calls.is_empty();
    let content = (!texts.is_empty()).then(|| texts.join("\n"));
    let assistant = said.then_some(Message::Assistant { content, tool_calls });
    let results = turn.items.iter().filter_map(|item| match item {
        Item::ToolCall { call_id, provider_id, .. } => {
            let content = turn.results.get(call_id).map_or_else(String::new, error_text);
            Some(Message::Tool { tool_call_id: call_name(own, call_id, provider_id), content })
        }
        Item::Text { .. } | Item::Reasoning { .. } | Item::Block { .. } => None,
    });
    let misfit = turn.misfit.as_deref().map(|content| Message::User { content });
    assistant.into_iter().chain(results).chain(misfit).collect()
}

fn text(item: &Item) -> Option<&str> {
    match item {
        Item::Text { text } => Some(text),
        Item::ToolCall { .. } | Item::Reasoning { .. } | Item::Block { .. } => None,
    }
}

fn call(item: &Item, own: bool) -> Option<Call<'_>> {
    match item {
        Item::ToolCall { call_id, provider_id, name, arguments } => Some(Call {
            id: call_name(own, call_id, provider_id),
            r#type: "function",
            function: Function { name, arguments: sendable(arguments).into_owned() },
        }),
        Item::Text { .. } | Item::Reasoning { .. } | Item::Block { .. } => None,
    }
}

fn tool(tool: &OfferedTool) -> Tool<'_> {
    Tool {
        r#type: "function",
        function: Definition { name: &tool.name, description: &tool.description, parameters: &tool.input_schema },
    }
}
