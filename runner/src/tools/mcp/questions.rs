//! Calls that end with questions to people: what is asked, and what is said where people cannot be shown it.

use belay_protocol::elicitation::{InputRequired, Inputs, Inquiry};
use belay_protocol::event::ToolResult;
use rmcp::model::ErrorData;
use serde_json::Value;

use super::McpServer;
use crate::tools::Outcome;
use crate::tools::attachment::Attachments;
use crate::tools::result::{noted, observed_error};

impl McpServer {
    /// Reads a result that says that input is needed.
    pub(super) fn required(&self, result: &Value) -> Result<InputRequired, String> {
        if self.redactor.is_clean(&result.to_string()) {
            InputRequired::read(result).map_err(|unfit| unfit.to_string())
        } else {
            Err("it holds the value of a credential".to_owned())
        }
    }

    /// Reads an error that says which pages a person has to open first (MCP 2025-11-25).
    pub(super) fn pages(&self, error: &ErrorData) -> Result<InputRequired, String> {
        let wanted = error.data.as_ref().and_then(|data| data.get("elicitations")).and_then(Value::as_array);
        let wanted = wanted.filter(|all| !all.is_empty()).ok_or("it names no page")?;
        if !self.redactor.is_clean(&Value::from(wanted.clone()).to_string()) {
            return Err("it holds the value of a credential".to_owned());
        }
        let pages: Result<Vec<Inquiry>, _> = wanted.iter().map(Inquiry::read).collect();
        let pages = pages.map_err(|unfit| unfit.to_string())?;
        Ok(InputRequired::in_call(pages, &self.redactor.redact(&error.message)))
    }
}

/// A call that was answered with questions alone.
pub(super) fn questions(
    required: Option<Result<InputRequired, String>>,
    inputs: &Inputs,
    attachments: &mut Attachments<'_>,
) -> Outcome {
    let bounded = |required: InputRequired| match required.fits(inputs) {
        Ok(()) => Ok(required),
        Err(unfit) => Err(unfit.to_string()),
    };
    match required.unwrap_or_else(|| Err("it asks nothing".to_owned())).and_then(bounded) {
        Ok(required) => Outcome::InputRequired(required),
        Err(why) => observed_error(
            &format!("the server asks for input that people cannot be shown ({why}): the call has no result"),
            attachments,
        ),
    }
}

/// A call that ended, with what was asked in the middle of it and not answered. One whose end is not known stays so.
pub(super) fn with_questions(outcome: Outcome, asked: Option<Result<Inquiry, String>>, inputs: &Inputs) -> Outcome {
    let (result, asked) = match (outcome, asked) {
        (Outcome::Observed(result), Some(asked)) => (result, asked),
        (outcome, _) => return outcome,
    };
    let required = asked.map(|inquiry| InputRequired::in_call(vec![inquiry], &result.content));
    match required.map(|required| (required.fits(inputs), required)) {
        Ok((Ok(()), required)) => Outcome::InputRequired(required),
        Ok((Err(unfit), _)) => told_no(result, &unfit.to_string()),
        Err(why) => told_no(result, &why),
    }
}

/// What the server made of a question that nobody was asked, and why nobody was.
fn told_no(result: ToolResult, why: &str) -> Outcome {
    let note = format!("the server asked for input that people cannot be shown ({why}), and was told no");
    Outcome::Observed(noted(result, &note))
}
