//! The body of a Chat Completions request, built from plan, transcript and offered tools. Pure.

use belay_protocol::event::Item;
use belay_protocol::plan::PlanModel;
use belay_protocol::transcript::Turn;
use reqwest::Url;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::models::codec::{Destination, OutputFormat, Spelling, effort_word, error_text, sendable};
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
    System { content: &'a str },
    User { content: &'a str },
    Assistant(Assistant<'a>),
    Tool { tool_call_id: &'a str, content: String },
}

#[derive(Default, Serialize)]
struct Assistant<'a> {
    // Said of every step again, silence is what keeps requests no larger than a bare loop's.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call<'a>>,
    // Each only where the server itself said it in its answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_details: Option<&'a RawValue>,
}

/// A block that was kept of an answer: what only its server understands, by the name of its field.
#[derive(Deserialize)]
struct Kept<'a> {
    #[serde(borrow)]
    reasoning_details: Option<&'a RawValue>,
    /// Of the call that follows.
    #[serde(borrow)]
    extra_content: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct Call<'a> {
    id: &'a str,
    r#type: &'static str,
    function: Function<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    extra_content: Option<&'a RawValue>,
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
pub fn body(context: &Context<'_>, model: &PlanModel, to: Destination<'_>) -> Result<Vec<u8>, serde_json::Error> {
    let (max_tokens, max_completion_tokens) =
        if is_newer(to) { (None, model.max_output_tokens) } else { (model.max_output_tokens, None) };
    serde_json::to_vec(&Body {
        model: &model.model,
        messages: messages(context, model)?,
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

/// Whether the output limit goes by its newer name. OpenAI insists on it; many local servers know only the older one, and
/// behind a gateway there may be either.
fn is_newer(to: Destination<'_>) -> bool {
    let host = |url: Url| url.host_str().map(str::to_owned);
    let host = Url::parse(to.url).ok().and_then(host).unwrap_or_default();
    let is_openai = host == "api.openai.com" || host.ends_with(".openai.azure.com");
    match to.spelling {
        Spelling::Expected => is_openai,
        Spelling::Other => !is_openai,
    }
}

/// Whether a refusal asks for the newer name, or does not know it. One of a limit that is too high names what it was sent.
pub fn is_about_spelling(said: &str) -> bool {
    let said = said.to_ascii_lowercase();
    let is_unknown =
        ["unsupported", "not supported", "unknown", "unrecognized", "extra", "unexpected", "not permitted"];
    said.contains("max_completion_tokens") && is_unknown.iter().any(|word| said.contains(word))
}

fn messages<'a>(context: &Context<'a>, model: &PlanModel) -> Result<Vec<Message<'a>>, serde_json::Error> {
    let plan = context.plan;
    let system = Some(plan.instructions.as_str()).filter(|text| !text.is_empty());
    let mut messages: Vec<Message<'a>> = system.map(|content| Message::System { content }).into_iter().collect();
    messages.push(Message::User { content: &plan.input });
    for turn in context.transcript.turns() {
        let own = context.is_own(turn, model);
        messages.extend(assistant(turn, own)?.map(Message::Assistant));
        messages.extend(turn.items.iter().filter_map(|item| result(turn, item, own)));
        messages.extend(turn.misfit.as_deref().map(|content| Message::User { content }));
    }
    Ok(messages)
}

/// What the model answered, if it can be said again; `own`: to the model that gave it.
fn assistant(turn: &Turn, own: bool) -> Result<Option<Assistant<'_>>, serde_json::Error> {
    let (mut said, mut texts, mut extra_content) = (Assistant::default(), Vec::new(), None);
    for item in &turn.items {
        match item {
            Item::Text { text } => texts.push(text.as_str()),
            Item::Reasoning { text, field } if own => match field.as_deref() {
                Some("reasoning_content") => said.reasoning_content = Some(text),
                Some("reasoning") => said.reasoning = Some(text),
                Some(_) | None => {}
            },
            Item::Block { json } if own => {
                let kept: Kept<'_> = serde_json::from_str(json)?;
                said.reasoning_details = said.reasoning_details.or(kept.reasoning_details);
                extra_content = kept.extra_content;
            }
            Item::Reasoning { .. } | Item::Block { .. } => {}
            Item::ToolCall { call_id, provider_id, name, arguments } => said.tool_calls.push(Call {
                id: call_name(own, call_id, provider_id),
                r#type: "function",
                function: Function { name, arguments: sendable(arguments).into_owned() },
                extra_content: extra_content.take(),
            }),
        }
    }
    said.content = (!texts.is_empty()).then(|| texts.join("\n"));
    // One that says and asks nothing is refused.
    Ok((said.content.is_some() || !said.tool_calls.is_empty()).then_some(said))
}

fn result<'a>(turn: &'a Turn, item: &'a Item, own: bool) -> Option<Message<'a>> {
    let Item::ToolCall { call_id, provider_id, .. } = item else { return None };
    let content = turn.results.get(call_id).map_or_else(String::new, error_text);
    Some(Message::Tool { tool_call_id: call_name(own, call_id, provider_id), content })
}

fn tool(tool: &OfferedTool) -> Tool<'_> {
    Tool {
        r#type: "function",
        function: Definition { name: &tool.name, description: &tool.description, parameters: &tool.input_schema },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("https://api.openai.com/v1/chat/completions", true)]
    #[case("https://team.openai.azure.com/openai/v1/chat/completions", true)]
    #[case("https://team.services.ai.azure.com/openai/v1/chat/completions", false)]
    #[case("http://llama.team.svc:8080/v1/chat/completions", false)]
    #[case("https://api.openai.com.example/v1/chat/completions", false)]
    fn the_newer_name_is_for_openai_or_for_whom_refused_the_older_one(#[case] url: &str, #[case] newer: bool) {
        assert_eq!(is_newer(Destination { url, spelling: Spelling::Expected }), newer);
        assert_eq!(is_newer(Destination { url, spelling: Spelling::Other }), !newer);
    }
}
