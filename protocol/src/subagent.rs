//! An Agent as a tool: its one operation, as operator, runner and model know it, and the run that a call starts. Pure.

use serde_json::{Value, json};

use crate::call::http_definition_digest;
use crate::digest::{Digest, DigestError};
use crate::plan::{ObjectId, PlanAgent};

/// The one operation of such a tool.
pub const OPERATION: &str = "run";
/// How many runs may be above one: of a run that people start none is.
pub const DEPTH_MAX: u32 = 3;
/// How many runs of its calls one run may have at one time, and altogether.
pub const AT_ONCE_MAX: usize = 8;
pub const TOTAL_MAX: u32 = 32;
/// The longest input, in characters: as much as an AgentRun takes.
pub const INPUT_CHARACTERS_MAX: usize = 65_536;

/// Names with `-` and the call's id after them stay within what a label takes.
const NAME_MAX: usize = 63;
const DIGEST_CHARACTERS: usize = 8;

/// What the model is told where the Tool says nothing else.
#[must_use]
pub fn description(agent: &str) -> String {
    format!(
        "Has the agent {agent} do what `input` says. It knows nothing of this conversation; its answer is the result."
    )
}

/// The JSON Schema of the operation's arguments.
#[must_use]
pub fn input_schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "input": {
                "type": "string",
                "minLength": 1,
                "maxLength": INPUT_CHARACTERS_MAX,
                "description": "What it shall do, with everything that it has to know.",
            },
        },
        "required": ["input"],
        "additionalProperties": false,
    })
}

/// The digest of the operation's definition: another Agent behind the same words is another definition.
///
/// # Errors
/// None in practice: names and descriptions have a canonical form.
pub fn definition(agent: &str, description: &str) -> Result<Digest, DigestError> {
    http_definition_digest(OPERATION, description, &input_schema(), &json!({"agent": agent}))
}

impl PlanAgent {
    /// [`definition`] of the plan's tool.
    ///
    /// # Errors
    /// Likewise.
    pub fn definition(&self) -> Result<Digest, DigestError> {
        definition(&self.name, &self.description)
    }
}

/// What a call is bound to in place of a URL, and what people are shown.
#[must_use]
pub fn destination(agent: &str) -> String {
    format!("agent/{agent}")
}

/// The input of a call whose arguments fit the schema.
#[must_use]
pub fn input_of(args: &Value) -> Option<&str> {
    let input = args.get("input")?.as_str()?;
    (!input.is_empty() && input.chars().count() <= INPUT_CHARACTERS_MAX).then_some(input)
}

/// The AgentRun that carries out that attempt of a call: begins with the name of the run that calls, so that lists in
/// alphabetical order show the tree. Another run of the same name has other children.
#[must_use]
pub fn child_name(run: &ObjectId, call_id: &str, attempt: u32) -> String {
    let digest = Digest::of(format!("{}/{call_id}/{attempt}", run.uid).as_bytes()).short(DIGEST_CHARACTERS);
    let end = format!("-{call_id}-{digest}");
    let start: String = run.name.chars().take(NAME_MAX.saturating_sub(end.len())).collect();
    format!("{}{end}", start.trim_end_matches(['.', '-']))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn run(name: &str, uid: &str) -> ObjectId {
        ObjectId { namespace: "n".to_owned(), name: name.to_owned(), uid: uid.to_owned() }
    }

    #[test]
    fn a_child_is_named_after_its_parent_and_the_call_and_never_like_another() {
        let name = child_name(&run("nightly", "u1"), "c4", 1);
        assert!(name.starts_with("nightly-c4-") && name.len() == "nightly-c4-".len() + 8, "{name}");
        assert_eq!(name, child_name(&run("nightly", "u1"), "c4", 1), "however often it is asked for");
        let others = [("u2", "c4", 1), ("u1", "c4", 2), ("u1", "c5", 1)];
        assert!(others.iter().all(|(uid, call, attempt)| child_name(&run("nightly", uid), call, *attempt) != name));
        let long = child_name(&run(&"a".repeat(253), "u1"), "c4", 1);
        assert_eq!(long.len(), 63);
        let dotted = child_name(&run(&format!("{}.{}", "a".repeat(50), "b".repeat(9)), "u1"), "c4", 1);
        assert!(dotted.starts_with(&format!("{}-c4-", "a".repeat(50))), "no part of a name ends with a dot: {dotted}");
    }

    #[test]
    fn another_agent_or_other_words_are_another_definition() {
        let of = |agent: &str, words: &str| definition(agent, words).unwrap();
        assert_eq!(of("a", "Reads."), of("a", "Reads."));
        assert_ne!(of("a", "Reads."), of("b", "Reads."));
        assert_ne!(of("a", "Reads."), of("a", "Writes."));
    }

    #[test]
    fn an_input_is_what_an_agent_run_takes() {
        let of = |args: Value| input_of(&args).map(str::to_owned);
        assert_eq!(of(json!({"input": "go"})).as_deref(), Some("go"));
        assert_eq!(of(json!({"input": ""})), None);
        assert_eq!(of(json!({"input": 7})), None);
        assert_eq!(of(json!({})), None);
        assert!(of(json!({"input": "é".repeat(INPUT_CHARACTERS_MAX)})).is_some());
        assert_eq!(of(json!({"input": "a".repeat(INPUT_CHARACTERS_MAX + 1)})), None);
    }
}
