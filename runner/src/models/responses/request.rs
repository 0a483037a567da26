//! The body of a Responses request, built from plan, transcript and offered tools. Pure.

use belay_protocol::event::Item;
use belay_protocol::plan::PlanModel;
use belay_protocol::transcript::Turn;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::models::codec::{OutputFormat, effort_word, error_text, sendable};
use crate::models::{Context, OfferedTool, call_name};

/// What ids of OpenAI's models without reasoning begin with: asked for reasoning they refuse the request.
const WITHOUT_REASONING: [&str; 4] = ["gpt-3", "gpt-4", "chatgpt-", "gpt-5-chat"];
const ENCRYPTED_REASONING: &str = "reasoning.encrypted_content";

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    instructions: &'a str,
    input: Vec<Input<'a>>,
    // Some servers refuse an empty list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Tool<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_output_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<Reasoning>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    include: Vec<&'static str>,
    store: bool,
    stream: bool,
}

#[derive(Serialize)]
struct Reasoning {
    effort: &'static str,
}

#[derive(Serialize)]
struct Text<'a> {
    format: Format<'a>,
}

#[derive(Serialize)]
struct Format<'a> {
    r#type: &'static str,
    #[serde(flatten)]
    output: OutputFormat<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Input<'a> {
    Written(Written<'a>),
    /// An item of the provider's, as it came.
    Kept(Box<RawValue>),
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Written<'a> {
    Message { role: &'static str, content: &'a str },
    FunctionCall { call_id: &'a str, name: &'a str, arguments: String },
    FunctionCallOutput { call_id: &'a str, output: String },
}

#[derive(Serialize)]
struct Tool<'a> {
    r#type: &'static str,
    name: &'a str,
    description: &'a str,
    parameters: &'a Value,
    /// Said, since silence means yes here: the provider would then make every argument a required one, and the
    /// model would be shown another definition than the one that was accepted.
    strict: bool,
}

/// The exact bytes of the request.
pub fn body(context: &Context<'_>, model: &PlanModel) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&Body {
        model: &model.model,
        instructions: &context.plan.instructions,
        input: input(context, model)?,
        tools: context.tools.iter().map(tool).collect(),
        temperature: model.temperature,
        max_output_tokens: model.max_output_tokens,
        reasoning: model
            .reasoning
            .and_then(|reasoning| reasoning.effort)
            .map(|it| Reasoning { effort: effort_word(it) }),
        text: OutputFormat::of(context.plan).map(|output| Text { format: Format { r#type: "json_schema", output } }),
        include: if reasons(&model.model) { vec![ENCRYPTED_REASONING] } else { Vec::new() },
        store: false,
        stream: true,
    })
}

/// Whether the model may be one that reasons; fine-tuned ones are named after theirs.
fn reasons(model: &str) -> bool {
    let family = model.strip_prefix("ft:").unwrap_or(model);
    !WITHOUT_REASONING.iter().any(|prefix| family.starts_with(prefix))
}

fn input<'a>(context: &Context<'a>, model: &PlanModel) -> Result<Vec<Input<'a>>, serde_json::Error> {
    let mut input = vec![said("user", &context.plan.input)];
    for turn in context.transcript.turns() {
        let own = context.is_own(turn, model);
        for item in &turn.items {
            input.extend(answered(item, own)?);
        }
        input.extend(turn.items.iter().filter_map(|item| result(turn, item, own)));
        input.extend(turn.misfit.as_deref().map(|misfit| said("user", misfit)));
    }
    Ok(input)
}

/// A piece of an answer, if it can be said again; `own`: to the model that gave it.
fn answered(item: &Item, own: bool) -> Result<Option<Input<'_>>, serde_json::Error> {
    Ok(match item {
        Item::Text { text } => Some(said("assistant", text)),
        Item::Block { json } if own => Some(Input::Kept(RawValue::from_string(json.clone())?)),
        Item::Reasoning { .. } | Item::Block { .. } => None,
        Item::ToolCall { call_id, provider_id, name, arguments } => Some(Input::Written(Written::FunctionCall {
            call_id: call_name(own, call_id, provider_id),
            name,
            arguments: sendable(arguments).into_owned(),
        })),
    })
}

fn result<'a>(turn: &'a Turn, item: &'a Item, own: bool) -> Option<Input<'a>> {
    let Item::ToolCall { call_id, provider_id, .. } = item else { return None };
    let output = turn.results.get(call_id).map_or_else(String::new, error_text);
    Some(Input::Written(Written::FunctionCallOutput { call_id: call_name(own, call_id, provider_id), output }))
}

fn said<'a>(role: &'static str, content: &'a str) -> Input<'a> {
    Input::Written(Written::Message { role, content })
}

fn tool(tool: &OfferedTool) -> Tool<'_> {
    Tool {
        r#type: "function",
        name: &tool.name,
        description: &tool.description,
        parameters: &tool.input_schema,
        strict: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("gpt-5.2-mini", true)]
    #[case("o4-mini", true)]
    #[case("gpt-oss-20b", true)]
    #[case("gpt-4.1", false)]
    #[case("ft:gpt-4o-mini:acme::abc", false)]
    #[case("gpt-5-chat-latest", false)]
    fn models_without_reasoning_are_not_asked_for_it(#[case] model: &str, #[case] expected: bool) {
        assert_eq!(reasons(model), expected);
    }
}
