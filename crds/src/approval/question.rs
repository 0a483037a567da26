//! What a tool's server asks people, and what they answer.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the call's server wants to know: a form to fill in, or a page to open. All of it is the server's own, and no server
/// is trusted: never give it a secret. Exactly one of `schema` and `url` is there.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "has(self.schema) != has(self.url)", "message": "a question has either a schema or a url"}]))]
pub struct ApprovalQuestion {
    /// The server's words. At most 8192 characters.
    #[schemars(length(max = 8192))]
    pub message: String,
    /// The form as canonical JSON: a JSON Schema of one object whose fields are texts, numbers, flags or choices. At
    /// most 16384 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16384))]
    pub schema: Option<String>,
    /// The page that the server wants a person to open. Nothing of Belay opens it. At most 2048 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub url: Option<String>,
}

/// One question that people answered before. `message` and `url` are the server's own and untrusted; `content` is what
/// people wrote.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct EarlierAnswer {
    /// The server's words. At most 8192 characters.
    #[schemars(length(max = 8192))]
    pub message: String,
    /// What people answered, whole, as canonical JSON. Absent where a page was to be opened. At most 16384 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16384))]
    pub content: Option<String>,
    /// The page that people opened. Absent where a form was to be filled in. At most 2048 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub url: Option<String>,
}

/// What the call's server is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct DecisionInput {
    /// The filled-in form: one JSON object as text, such as `{"name":"Ada"}`. Required where `spec.request.question` has a
    /// schema, which it has to fit: one that does not is not sent, and people are asked anew, four times at most. Absent
    /// where it has a url: that page was opened. At most 16384 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 16384))]
    pub content: Option<String>,
}
