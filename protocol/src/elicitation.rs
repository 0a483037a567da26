//! What a tool's server asks people in the middle of a call (MCP: elicitation), read within bounds, and what people
//! answered. All of it comes from an untrusted server. Decision 0013 says how a call goes on after an answer.

mod form;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::form::{Choice, Field, FieldKind, Form, Misfit};
use crate::call::CallBinding;
use crate::digest::{Digest, DigestError, canonical, digest_of, is_within};
use crate::event::ProposedCall;
use crate::plan::Plan;

/// The most of a server's words to people, in bytes: what is longer is not shown cut, it is not asked.
pub const INQUIRY_BYTES_MAX: usize = 8192;
/// The most of a form's schema in canonical bytes.
pub const SCHEMA_BYTES_MAX: usize = 16_384;
/// A form is flat: what is nested deeper is none.
const SCHEMA_LEVELS_MAX: usize = 32;
pub const URL_BYTES_MAX: usize = 2048;
/// The most of an answer in canonical bytes.
pub const ANSWER_BYTES_MAX: usize = 16_384;
/// The most of what a server wants back unread with the answers.
pub const STATE_BYTES_MAX: usize = 65_536;
/// The most of the name that a server gives a question of its own.
pub const KEY_BYTES_MAX: usize = 256;
/// What a call may ask people, all its attempts together.
pub const QUESTIONS_PER_CALL_MAX: usize = 8;
/// How often what people answer to one attempt's questions may not be what was asked; then the call is denied.
pub const MISFITS_MAX: u32 = 5;
/// The most of one attempt's questions as JSON: they have to fit a batch, whatever their characters.
pub const REQUIRED_BYTES_MAX: usize = 262_144;
/// The most of what a server said when it heard that nobody answers yet.
pub const SAID_BYTES_MAX: usize = 4096;

/// One question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "camelCase")]
pub enum Inquiry {
    /// Fields to be filled in; `schema` as the server sent it, its numbers as canonical JSON writes them.
    Form { message: String, schema: Value },
    /// A page to be opened by a person. Nothing of Belay ever opens it.
    Url { message: String, url: String },
}

/// Why people cannot be shown what a server asks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("its message is missing, or longer than {INQUIRY_BYTES_MAX} bytes")]
    Message,
    #[error("its schema is longer than {SCHEMA_BYTES_MAX} bytes")]
    SchemaTooLong,
    #[error("its schema is no form: {0}")]
    Schema(&'static str),
    #[error("its schema has no exact canonical form: {0}")]
    Inexact(String),
    #[error("its URL is missing, no http or https URL, or longer than {URL_BYTES_MAX} bytes")]
    Url,
    #[error("it wants neither a form nor a URL")]
    Mode,
    #[error("it asks for {0}, which is not granted to any server")]
    Method(String),
    #[error("it says that it needs input and asks nothing")]
    NothingAsked,
    #[error("one of its questions has a name longer than {KEY_BYTES_MAX} bytes")]
    Key,
    #[error("what it wants back with the answer is longer than {STATE_BYTES_MAX} bytes, or no text")]
    State,
    #[error("it asks more than {QUESTIONS_PER_CALL_MAX} questions")]
    TooMany,
    #[error("its questions are longer than {REQUIRED_BYTES_MAX} bytes together")]
    TooLong,
}

impl Inquiry {
    /// Reads the parameters of an `elicitation/create`.
    pub fn read(params: &Value) -> Result<Self, Unfit> {
        let message = params.get("message").and_then(Value::as_str).filter(|it| it.len() <= INQUIRY_BYTES_MAX);
        let message = message.ok_or(Unfit::Message)?.to_owned();
        match params.get("mode").map_or(Some("form"), Value::as_str) {
            Some("form") => {
                let schema = params.get("requestedSchema").ok_or(Unfit::Schema("there is none"))?;
                let bytes = form_bytes(schema)?;
                // As the journal will give it back: there 1000.0 is 1000, and a question is known by being the same.
                let schema = serde_json::from_slice(&bytes).map_err(|error| Unfit::Inexact(error.to_string()))?;
                Ok(Self::Form { message, schema })
            }
            Some("url") => {
                let url = params.get("url").and_then(Value::as_str).filter(|url| is_page(url));
                Ok(Self::Url { message, url: url.ok_or(Unfit::Url)?.to_owned() })
            }
            Some(_) | None => Err(Unfit::Mode),
        }
    }

    /// Whether it keeps the bounds that [`Self::read`] reads within: a runner's word alone is not enough.
    pub fn check(&self) -> Result<(), Unfit> {
        if self.message().len() > INQUIRY_BYTES_MAX {
            return Err(Unfit::Message);
        }
        match self {
            Self::Form { schema, .. } => form_bytes(schema).map(drop),
            Self::Url { url, .. } => is_page(url).then_some(()).ok_or(Unfit::Url),
        }
    }

    #[must_use]
    pub fn message(&self) -> &str {
        match self {
            Self::Form { message, .. } | Self::Url { message, .. } => message,
        }
    }

    /// The form's schema as canonical JSON. Whatever was read has one.
    #[must_use]
    pub fn schema(&self) -> Option<String> {
        match self {
            Self::Form { schema, .. } => {
                canonical(schema).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            }
            Self::Url { .. } => None,
        }
    }

    #[must_use]
    pub fn url(&self) -> Option<&str> {
        match self {
            Self::Url { url, .. } => Some(url),
            Self::Form { .. } => None,
        }
    }
}

/// The canonical bytes of a schema that is a form.
fn form_bytes(schema: &Value) -> Result<Vec<u8>, Unfit> {
    if !is_within(schema, SCHEMA_LEVELS_MAX) {
        return Err(Unfit::Schema("it is nested too deep"));
    }
    let bytes = canonical(schema).map_err(|error| Unfit::Inexact(error.to_string()))?;
    if bytes.len() > SCHEMA_BYTES_MAX {
        return Err(Unfit::SchemaTooLong);
    }
    Form::read(schema)?;
    Ok(bytes)
}

fn is_page(url: &str) -> bool {
    url.len() <= URL_BYTES_MAX && ["https://", "http://"].iter().any(|scheme| url.starts_with(scheme))
}

/// Whether `content` answers what was asked, as canonical JSON. `schema`: of the form; none where a page was to be opened,
/// which takes no content.
pub fn check_answer(schema: Option<&str>, content: Option<&str>) -> Result<Option<String>, Misfit> {
    let (schema, content) = match (schema, content) {
        (None, None) => return Ok(None),
        (None, Some(_)) => return Err(Misfit::NoForm),
        (Some(_), None) => return Err(Misfit::NoContent),
        (Some(schema), Some(content)) => (schema, content),
    };
    let schema: Value = serde_json::from_str(schema).map_err(|_| Misfit::NoForm)?;
    let form = Form::read(&schema).map_err(|_| Misfit::NoForm)?;
    let answer: Value = serde_json::from_str(content).map_err(|error| Misfit::NotJson(error.to_string()))?;
    form.check(&answer)?;
    let bytes = canonical(&answer).map_err(|error| Misfit::NotJson(error.to_string()))?;
    if bytes.len() > ANSWER_BYTES_MAX {
        return Err(Misfit::TooLong);
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// A question under the name that its server gave it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Asked {
    /// Empty where the server asked in the middle of the call.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key: String,
    pub inquiry: Inquiry,
}

/// A call's complete answer that is no result: its server asks people something first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InputRequired {
    /// At least one.
    pub questions: Vec<Asked>,
    /// What the server wants back with the answers, unread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Where the server asked in the middle of the call: what it said when it heard that nobody answers yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<String>,
}

impl InputRequired {
    /// Reads a result whose `resultType` is `input_required`.
    pub fn read(result: &Value) -> Result<Self, Unfit> {
        let requests = result.get("inputRequests").and_then(Value::as_object).filter(|all| !all.is_empty());
        let mut questions = Vec::new();
        for (key, request) in requests.ok_or(Unfit::NothingAsked)? {
            let method = request.get("method").and_then(Value::as_str).unwrap_or_default();
            if method != "elicitation/create" {
                return Err(Unfit::Method(method.chars().take(KEY_BYTES_MAX).collect()));
            }
            if key.len() > KEY_BYTES_MAX {
                return Err(Unfit::Key);
            }
            let inquiry = Inquiry::read(request.get("params").unwrap_or(&Value::Null))?;
            questions.push(Asked { key: key.clone(), inquiry });
        }
        let state = match result.get("requestState") {
            None | Some(Value::Null) => None,
            Some(Value::String(state)) if state.len() <= STATE_BYTES_MAX => Some(state.clone()),
            Some(_) => return Err(Unfit::State),
        };
        Ok(Self { questions, state, said: None })
    }

    /// Whether it keeps the bounds that [`Self::read`] reads within.
    pub fn check(&self) -> Result<(), Unfit> {
        let too_long = |text: Option<&String>, bytes: usize| text.is_some_and(|text| text.len() > bytes);
        if self.questions.iter().any(|asked| asked.key.len() > KEY_BYTES_MAX) {
            return Err(Unfit::Key);
        }
        if too_long(self.state.as_ref(), STATE_BYTES_MAX) || too_long(self.said.as_ref(), SAID_BYTES_MAX) {
            return Err(Unfit::State);
        }
        self.questions.iter().try_for_each(|asked| asked.inquiry.check())
    }

    /// Whether it can be asked after `before`.
    pub fn fits(&self, before: &Inputs) -> Result<(), Unfit> {
        if before.questions() + self.questions.len() > QUESTIONS_PER_CALL_MAX {
            return Err(Unfit::TooMany);
        }
        let bytes = serde_json::to_vec(self).map_or(usize::MAX, |bytes| bytes.len());
        if bytes > REQUIRED_BYTES_MAX { Err(Unfit::TooLong) } else { Ok(()) }
    }

    /// Asked in the middle of a call, which its server then ended.
    #[must_use]
    pub fn in_call(inquiries: Vec<Inquiry>, said: &str) -> Self {
        let questions = inquiries.into_iter().map(|inquiry| Asked { key: String::new(), inquiry }).collect();
        let end = said.floor_char_boundary(SAID_BYTES_MAX);
        Self { questions, state: None, said: Some(said.get(..end).unwrap_or_default().to_owned()) }
    }
}

/// One attempt's questions, each with what people answered: canonical JSON, or nothing for a page that was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Round {
    pub required: InputRequired,
    pub answers: Vec<Option<String>>,
}

/// Everything that people answered for one call. It goes with the next attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Inputs {
    pub rounds: Vec<Round>,
}

impl Inputs {
    /// How many questions were answered.
    #[must_use]
    pub fn questions(&self) -> usize {
        self.rounds.iter().map(|round| round.answers.len()).sum()
    }

    /// What a permit binds besides the arguments; nothing where nothing was asked.
    pub fn digest(&self) -> Result<Option<Digest>, DigestError> {
        if self.rounds.is_empty() { Ok(None) } else { digest_of(self).map(Some) }
    }

    /// The answer to a question that is asked again in the middle of the call, if it is the very same one.
    #[must_use]
    pub fn answer_to(&self, inquiry: &Inquiry) -> Option<Option<&str>> {
        let all = self.rounds.iter().flat_map(|round| round.required.questions.iter().zip(&round.answers));
        all.filter(|(asked, _)| asked.inquiry == *inquiry).map(|(_, answer)| answer.as_deref()).next()
    }

    /// The newest round, where its answers go with the call itself.
    #[must_use]
    pub fn resent(&self) -> Option<&Round> {
        self.rounds.last().filter(|round| round.required.said.is_none())
    }
}

/// The digest of `call` as it is sent with these answers: what people who answer say yes to, where the call was asked.
#[must_use]
pub fn digest_with(plan: &Plan, call: &ProposedCall, inputs: &Inputs) -> Option<Digest> {
    let tool = plan.tool(&call.tool)?;
    let binding = CallBinding::new(plan, tool, call.definition, &call.operation, &call.args);
    CallBinding { inputs: inputs.digest().ok()?, ..binding }.digest().ok()
}

#[cfg(test)]
mod tests;
