//! `belay answer NAME`: a person tells a tool's server what it wants to know, or that it will not be told.

use std::process::ExitCode;

use belay_crds::{ApprovalPurpose, ApprovalQuestion, DecisionAnswer, DecisionInput, DecisionVerdict};
use belay_protocol::elicitation::{Field, FieldKind, check_answer};
use clap::Args;
use serde_json::{Map, Number, Value};

use super::deciding::{Answers, Manner, Wish, decide};
use super::fetch;
use super::inquiry::form;
use crate::Target;
use crate::exit::CliError;

#[derive(Args)]
#[group(skip)]
pub struct AnswerArguments {
    /// Name of the Approval, as `belay approvals` shows it
    name: String,
    #[command(flatten)]
    answer: Answer,
    /// Why, for the record; with --decline the agent is told
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    manner: Manner,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Answer {
    /// A field of the form, repeated for each; of a list, values are separated by commas
    #[arg(long, value_name = "NAME=VALUE")]
    field: Vec<String>,
    /// The whole form as a JSON object
    #[arg(long, value_name = "OBJECT")]
    json: Option<String>,
    /// The page was opened, and done there what it asks
    #[arg(long)]
    opened: bool,
    /// The server is told nothing, and the agent that people declined
    #[arg(long)]
    decline: bool,
}

pub async fn answer(target: &Target, arguments: AnswerArguments) -> Result<ExitCode, CliError> {
    let AnswerArguments { name, answer, reason, manner } = arguments;
    let approval = fetch(target, &name).await?;
    // Without a question the wish is refused for its purpose, in words that say what to use.
    let said = approval.spec.request.question.as_ref().map(|question| said(question, &answer)).transpose();
    let show = format!("{} show {name}", target.place.belay());
    let said = said.map_err(|why| CliError::Usage(format!("Approval {name}: {why}; see {show}")))?;
    let wish = match said.flatten() {
        None if answer.decline => Wish {
            answers: Answers::Only { purpose: ApprovalPurpose::Question, words: "Decline to answer" },
            verdict: DecisionVerdict::Deny,
            answer: None,
            reason,
        },
        content => Wish {
            answers: Answers::Only {
                purpose: ApprovalPurpose::Question,
                words: "Send the call again with that answer",
            },
            verdict: DecisionVerdict::Allow,
            answer: Some(DecisionAnswer { input: Some(DecisionInput { content }), ..DecisionAnswer::default() }),
            reason,
        },
    };
    decide(target, &name, &wish, &manner).await
}

/// The answer as it is sent; nothing for a page, or where it is declined.
fn said(question: &ApprovalQuestion, answer: &Answer) -> Result<Option<String>, String> {
    let content = match answer {
        Answer { decline: true, .. } => return Ok(None),
        Answer { opened: true, .. } => None,
        Answer { json: Some(json), .. } => Some(json.clone()),
        Answer { field, .. } => Some(filled_in(question, field)?),
    };
    if content.is_none() && question.schema.is_some() {
        return Err("it wants a form: use --field NAME=VALUE, --json or --decline".to_owned());
    }
    if content.is_some() && question.schema.is_none() {
        return Err("it wants a page to be opened: use --opened or --decline".to_owned());
    }
    check_answer(question.schema.as_deref(), content.as_deref()).map_err(|misfit| misfit.to_string())
}

/// The form with these fields. Which kind each value is, the form says.
fn filled_in(question: &ApprovalQuestion, given: &[String]) -> Result<String, String> {
    let Some(form) = form(question) else { return Ok("{}".to_owned()) };
    let form = form?;
    let mut object = Map::new();
    for one in given {
        let (name, text) = one.split_once('=').ok_or_else(|| format!("--field {one} is not NAME=VALUE"))?;
        let field = form.fields.iter().find(|field| field.name == name);
        let field = field.ok_or_else(|| format!("there is no field {name:?}"))?;
        if object.insert(name.to_owned(), value(field, text)?).is_some() {
            return Err(format!("--field {name} is given twice"));
        }
    }
    Ok(Value::Object(object).to_string())
}

fn value(field: &Field, text: &str) -> Result<Value, String> {
    let wants = || format!("field {:?} wants {}", field.name, field.kind);
    match &field.kind {
        FieldKind::Text { .. } | FieldKind::One { .. } => Ok(Value::from(text)),
        FieldKind::Number { .. } => text.parse::<Number>().map(Value::Number).map_err(|_| wants()),
        FieldKind::Flag => text.parse::<bool>().map(Value::Bool).map_err(|_| wants()),
        FieldKind::Many { .. } if text.is_empty() => Ok(Value::Array(Vec::new())),
        FieldKind::Many { .. } => Ok(text.split(',').map(Value::from).collect()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn question() -> ApprovalQuestion {
        let schema = json!({"type": "object", "required": ["name"], "properties": {
            "name": {"type": "string"}, "count": {"type": "integer"}, "sure": {"type": "boolean"},
            "fish": {"type": "array", "items": {"enum": ["tuna", "cod"]}},
        }});
        ApprovalQuestion { message: "?".to_owned(), schema: Some(schema.to_string()), url: None }
    }

    fn page() -> ApprovalQuestion {
        ApprovalQuestion { message: "?".to_owned(), schema: None, url: Some("https://x.example".to_owned()) }
    }

    fn fields(given: &[&str]) -> Answer {
        let field = given.iter().map(|it| (*it).to_owned()).collect();
        Answer { field, json: None, opened: false, decline: false }
    }

    #[test]
    fn fields_become_what_the_form_says_they_are() {
        let answer = fields(&["name=1", "count=2", "sure=true", "fish=tuna,cod"]);
        let expected = r#"{"count":2,"fish":["tuna","cod"],"name":"1","sure":true}"#;
        assert_eq!(said(&question(), &answer), Ok(Some(expected.to_owned())));
        let equals = said(&question(), &fields(&["name=a=b", "fish="]));
        assert_eq!(equals, Ok(Some(r#"{"fish":[],"name":"a=b"}"#.to_owned())));
        let json = Answer { json: Some(r#"{"name": "x"}"#.to_owned()), ..fields(&[]) };
        assert_eq!(said(&question(), &json), Ok(Some(r#"{"name":"x"}"#.to_owned())));
    }

    #[rstest]
    #[case::no_value(&["name"], "is not NAME=VALUE")]
    #[case::unknown(&["nmae=x"], "there is no field \"nmae\"")]
    #[case::twice(&["name=x", "name=y"], "given twice")]
    #[case::number(&["name=x", "count=two"], "field \"count\" wants a whole number")]
    #[case::flag(&["name=x", "sure=yes"], "field \"sure\" wants true or false")]
    #[case::choice(&["name=x", "fish=eel"], "field \"fish\" wants a list of")]
    #[case::missing(&["count=2"], "field \"name\" is missing")]
    fn what_does_not_fit_is_refused_before_anything_is_written(#[case] given: &[&str], #[case] why: &str) {
        let refused = said(&question(), &fields(given)).unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }

    #[test]
    fn a_page_is_opened_and_a_form_filled_in_and_both_can_be_declined() {
        let opened = || Answer { opened: true, ..fields(&[]) };
        assert_eq!(said(&page(), &opened()), Ok(None));
        assert!(said(&question(), &opened()).unwrap_err().contains("it wants a form"));
        assert!(said(&page(), &fields(&["a=b"])).unwrap_err().contains("it wants a page"));
        for question in [question(), page()] {
            assert_eq!(said(&question, &Answer { decline: true, ..fields(&[]) }), Ok(None));
        }
    }
}
