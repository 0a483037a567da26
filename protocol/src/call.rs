//! Names and digests of tool calls: what the model may call, and the exact bytes that a permit is for.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

use crate::digest::{Digest, DigestError, digest_of, is_within};
use crate::plan::{Plan, PlanTool};

/// The longest function name that every model API takes.
const MODEL_NAME_MAX: usize = 64;
const DIGEST_CHARACTERS: usize = 6;
/// How deep arguments may be nested.
pub const ARGS_LEVELS_MAX: usize = 64;

/// Everything that a permit is bound to. The digest is taken over its canonical bytes.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CallBinding<'a> {
    pub tool: &'a str,
    pub definition: Digest,
    pub operation: &'a str,
    pub args: &'a Value,
    pub credential: Option<CredentialBinding<'a>>,
    /// The URL that the request goes to.
    pub destination: &'a str,
    /// What people answered to the server's questions ([`crate::elicitation::Inputs::digest`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inputs: Option<Digest>,
}

#[derive(Clone, Debug, Serialize)]
pub struct CredentialBinding<'a> {
    pub name: &'a str,
    pub uid: &'a str,
}

impl<'a> CallBinding<'a> {
    /// What sending this call by this plan would bind.
    #[must_use]
    pub fn new(plan: &'a Plan, tool: &'a PlanTool, definition: Digest, operation: &'a str, args: &'a Value) -> Self {
        let credential = tool.credential.as_deref().and_then(|name| plan.credential(name));
        Self {
            tool: &tool.name,
            definition,
            operation,
            args,
            credential: credential.map(|c| CredentialBinding { name: &c.name, uid: &c.uid }),
            destination: &tool.url,
            inputs: None,
        }
    }

    /// The call digest of protocol section 1. Arguments are refused that are nested deeper than [`ARGS_LEVELS_MAX`]:
    /// with what a record says around them they could not be read again.
    pub fn digest(&self) -> Result<Digest, DigestError> {
        if is_within(self.args, ARGS_LEVELS_MAX) { digest_of(self) } else { Err(DigestError::TooDeep) }
    }
}

/// What people sign: the digest of an Approval's whole request, apart from the digest itself.
pub fn request_digest(request: &Value) -> Result<Digest, DigestError> {
    let mut request = request.clone();
    if let Value::Object(fields) = &mut request {
        fields.remove("digest");
    }
    digest_of(&request)
}

/// The digest of a tool's definition: what the model is told and what arguments it takes.
pub fn definition_digest(name: &str, description: &str, input_schema: &Value) -> Result<Digest, DigestError> {
    digest_of(&serde_json::json!({"name": name, "description": description, "inputSchema": input_schema}))
}

/// The digest of an HTTP API's operation: as [`definition_digest`], and what a call of it sends where.
pub fn http_definition_digest(
    name: &str,
    description: &str,
    input_schema: &Value,
    request: &Value,
) -> Result<Digest, DigestError> {
    digest_of(&serde_json::json!({
        "name": name, "description": description, "inputSchema": input_schema, "request": request,
    }))
}

/// The name under which the model sees an operation: `{tool}__{operation}`, or, where that is too long,
/// holds other characters than `[A-Za-z0-9_-]` or is in `taken`, shortened with six digest characters, or with as many
/// more as it takes to be another than those in `taken`.
#[must_use]
pub fn model_name(tool: &str, operation: &str, taken: &BTreeSet<String>) -> String {
    let plain = format!("{tool}__{operation}");
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if plain.len() <= MODEL_NAME_MAX && plain.chars().all(legal) && !taken.contains(&plain) {
        return plain;
    }
    let digest = Digest::of(format!("{tool}/{operation}").as_bytes());
    let shortened = |characters: usize| {
        let stem = plain.chars().map(|c| if legal(c) { c } else { '_' }).take(MODEL_NAME_MAX - characters - 1);
        format!("{}_{}", stem.collect::<String>(), digest.short(characters))
    };
    // A server may choose names so that six characters are not enough.
    let free = (DIGEST_CHARACTERS..MODEL_NAME_MAX - 1).map(shortened).find(|name| !taken.contains(name));
    free.unwrap_or_else(|| shortened(MODEL_NAME_MAX - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_name_is_tool_and_operation() {
        assert_eq!(model_name("github", "list_issues", &BTreeSet::new()), "github__list_issues");
    }

    #[test]
    fn long_odd_and_taken_names_are_shortened_apart() {
        let none = BTreeSet::new();
        let long = model_name("github", &"x".repeat(80), &none);
        assert_eq!(long.len(), 64);
        let dotted = model_name("files", "read.file", &none);
        assert!(dotted.starts_with("files__read_file_"), "{dotted}");
        let taken = BTreeSet::from(["a__b".to_owned()]);
        assert_ne!(model_name("a", "b", &taken), "a__b");
    }

    #[test]
    fn a_name_that_is_made_to_look_like_a_shortened_one_is_not_given_twice() {
        let odd = "a\u{e9}b";
        let mut taken = BTreeSet::new();
        for _made in 0..3 {
            let shortened = model_name("t", odd, &taken);
            let made = model_name("t", shortened.strip_prefix("t__").unwrap_or_default(), &taken);
            assert_eq!(made, shortened, "a plain name is taken as it is");
            assert!(taken.insert(made));
        }
        let name = model_name("t", odd, &taken);
        assert!(!taken.contains(&name) && name.len() <= MODEL_NAME_MAX, "{name}");
    }
}
