//! What a tool's server asks people, in lines. All of it is the server's own words.

use belay_crds::{ApprovalQuestion, ApprovalRequest, visible};
use belay_protocol::elicitation::{Field, Form};
use serde_json::Value;

use super::arguments::{Detail, Shown, rows, shown};

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

/// What people told this server before: it all goes with the call, so it is read like arguments are.
pub fn earlier(request: &ApprovalRequest, detail: Detail) -> Shown {
    let mut all = Shown { lines: Vec::new(), folded_bytes: 0 };
    for (number, one) in (1..).zip(&request.answered) {
        all.lines.push(format!("  ANSWERED BEFORE ({number} of {}): it goes with the call", request.answered.len()));
        all.lines.extend(one.message.lines().map(|line| format!("    | {}", visible(line))));
        if let Some(url) = &one.url {
            all.lines.push(format!("    people opened {}", visible(url)));
        }
        if let Some(content) = &one.content {
            let said = shown(&rows(content), detail);
            all.lines.push("    people answered".to_owned());
            all.lines.extend(said.lines.iter().map(|row| format!("      {row}")));
            all.folded_bytes += said.folded_bytes;
        }
    }
    all
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

/// What server and people wrote, for whoever looks out for odd characters.
pub fn written(request: &ApprovalRequest) -> impl Iterator<Item = &str> {
    let asked = request.question.iter().flat_map(|question| {
        [Some(&question.message), question.schema.as_ref(), question.url.as_ref()].into_iter().flatten()
    });
    let answered = request
        .answered
        .iter()
        .flat_map(|one| [Some(&one.message), one.content.as_ref(), one.url.as_ref()].into_iter().flatten());
    asked.chain(answered).map(String::as_str)
}
