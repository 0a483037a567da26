//! The last answer of a run against the schema that its Agent wants it to fit. Pure.

use belay_protocol::Plan;
use belay_protocol::event::{Finish, Item, ModelResponse};
use belay_protocol::output::OutputSchema;

/// Of a schema that the model is reminded of, since some servers never look at it.
const SCHEMA_BYTES_SHOWN: usize = 4096;

/// What a last answer has to be.
#[derive(Debug)]
pub enum Output {
    Any,
    Json {
        schema: Box<OutputSchema>,
        reminder: String,
    },
    /// The operator took a schema that this build does not.
    Unusable(String),
}

impl Output {
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        let Some(schema) = &plan.output_schema else { return Self::Any };
        let text = schema.to_string();
        let reminder = if text.len() <= SCHEMA_BYTES_SHOWN { format!(" The schema: {text}") } else { String::new() };
        match OutputSchema::compile(schema) {
            Ok(schema) => Self::Json { schema: Box::new(schema), reminder },
            Err(error) => Self::Unusable(error.to_string()),
        }
    }

    /// What the model is told of an answer that ends the run and does not fit. One that was cut or filtered is none.
    #[must_use]
    pub fn misfit(&self, response: &ModelResponse) -> Option<String> {
        let calls = response.items.iter().any(|item| matches!(item, Item::ToolCall { .. }));
        let whole = matches!(response.finish, Finish::Stop | Finish::ToolCalls);
        if calls || !whole {
            return None;
        }
        match self {
            Self::Any => None,
            Self::Json { schema, reminder } => {
                let why = schema.check(&response.text().unwrap_or_default()).err()?;
                Some(format!(
                    "Your answer does not fit the output that is wanted: {why}. Answer again, with JSON alone that fits \
                     its schema.{reminder}"
                ))
            }
            Self::Unusable(why) => Some(format!("The schema of the output cannot be used: {why}.")),
        }
    }
}
