//! What a tool's server asks people, in lines. All of it is the server's own words.

use belay_crds::{ApprovalQuestion, ApprovalRequest, visible};
use belay_protocol::elicitation::{Field, Form};
use serde_json::Value;

/// The question, each of the server's own lines behind a bar, so that none can pass for one of ours.
pub fn lines(request: &ApprovalRequest) -> Vec<String> {
    let Some(question) = &request.question else { return Vec::new() };
    let mut lines = vec!["  THE SERVER ASKS. It is not trusted: give it no password, key or token".to_owned()];
    lines.extend(question.message.lines().map(|line| format!("    | {}", visible(line))));
    if let Some(url) = &question.url {
        lines.push(format!("  page to open: {}", visible(url)));
        lines.push("    nothing opens it for you; look at its host before you do".to_owned());
    }
    match form(question) {
        Some(Ok(form)) => lines.extend(form.fields.iter().flat_map(field)),
        Some(Err(why)) => lines.push(format!("  its form cannot be read: {}", visible(&why))),
        None => {}
    }
    lines
}

/// The form of a question that has one.
pub fn form(question: &ApprovalQuestion) -> Option<Result<Form, String>> {
    let schema = question.schema.as_ref()?;
    let parsed: Result<Value, _> = serde_json::from_str(schema);
    Some(match parsed {
        Ok(schema) => Form::read(&schema).map_err(|unfit| unfit.to_string()),
        Err(error) => Err(error.to_string()),
    })
}

fn field(field: &Field) -> Vec<String> {
    let required = if field.required { "required" } else { "optional" };
    let mut lines =
        vec![format!("  field {} ({required}): {}", visible(&field.name), visible(&field.kind.to_string()))];
    let said = [&field.title, &field.description].into_iter().flatten();
    lines.extend(said.flat_map(|text| text.lines()).map(|line| format!("    | {}", visible(line))));
    if let Some(default) = &field.default {
        lines.push(format!("    | proposed: {}", visible(&default.to_string())));
    }
    lines
}

/// What the server wrote, for whoever looks out for odd characters.
pub fn written(request: &ApprovalRequest) -> [&str; 3] {
    let of = |part: fn(&ApprovalQuestion) -> Option<&String>| {
        request.question.as_ref().and_then(part).map(String::as_str).unwrap_or_default()
    };
    [
        of(|question| Some(&question.message)),
        of(|question| question.schema.as_ref()),
        of(|question| question.url.as_ref()),
    ]
}
