//! Whether rules can be evaluated on what operations take, as their servers describe it. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use belay_crds::conditions::{ARGUMENTS_FIT, Statement, Truth};
use belay_crds::{ApprovalPolicy, Tool};
use belay_policy::{Described, Engine, misfits};
use kube::ResourceExt;
use serde_json::Value;

use super::usable::as_it_is;
use super::verdict::listed;
use crate::agent_run::resolve::effects;

/// Operations of all Tools that the rules name; each is tried with at most two sets of arguments.
const OPERATIONS_MAX: usize = 256;

/// What came of trying the rules on arguments made up from schemas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fits {
    /// Nothing is known: the rules cannot be used, or nobody could try them.
    NotTried,
    Fit,
    /// Rules that could not be evaluated, in words.
    Misfit(String),
}

/// Tries the rules on made-up calls of the operations that `tools` accepted. Blocks.
pub fn fits(policy: &ApprovalPolicy, tools: &[Arc<Tool>]) -> Fits {
    // What is wrong with the rules themselves is said elsewhere.
    let Ok(engine) = Engine::compile(&as_it_is(policy)) else { return Fits::NotTried };
    let by_name: BTreeMap<String, &Tool> = tools.iter().map(|tool| (tool.name_any(), tool.as_ref())).collect();
    let operations = by_name.iter().flat_map(|(name, tool)| {
        let accepted = tool.status.iter().flat_map(|status| &status.operations);
        accepted.filter_map(move |operation| {
            let schema: Value = serde_json::from_str(operation.input_schema.as_deref()?).ok()?;
            Some((name, operation.name.as_str(), effects(tool, &operation.name), schema))
        })
    });
    let operations: Vec<_> = operations.take(OPERATIONS_MAX).collect();
    let described: Vec<Described<'_>> = operations
        .iter()
        .map(|(tool, operation, effects, schema)| Described { tool, operation, effects: *effects, schema })
        .collect();
    match misfits(&engine, &described) {
        Ok(found) if found.is_empty() => Fits::Fit,
        Ok(found) => Fits::Misfit(listed(&found)),
        Err(_) => Fits::NotTried,
    }
}

impl Fits {
    /// It warns and changes nothing: a schema is a server's word, and no server decides which policies are good.
    pub fn statement(&self) -> Statement<'_> {
        let (truth, reason, message) = match self {
            Self::NotTried => (Truth::Unknown, "NotTried", "the rules cannot be tried as they are: Ready says why"),
            Self::Fit => (Truth::True, "Fit", "no rule fails on the arguments that the Tools it names describe"),
            Self::Misfit(message) => (Truth::False, "CannotBeEvaluated", message.as_str()),
        };
        Statement { type_: ARGUMENTS_FIT, truth, reason, message }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use crate::fixtures::{policy, tool};

    #[test]
    fn a_rule_that_fails_on_what_the_server_describes_is_a_warning_that_names_it() {
        let mut git = tool("git", &["push"]);
        let schema = r#"{"type":"object","required":["branch"],"properties":{"branch":{"type":"string"},"force":{"type":"boolean"}}}"#;
        git.status.as_mut().unwrap().operations[0].input_schema = Some(schema.to_owned());
        let git = [Arc::new(git)];
        let said = |when: &str| {
            let rules = format!("{{rules: [{{name: r, tools: [git], when: \"{when}\", action: Deny}}]}}");
            let found = fits(&policy("careful", &rules), &git);
            let statement = found.statement();
            (statement.truth, statement.message.to_owned())
        };
        assert_eq!(said("has(args.force) && args.force").0, Truth::True);
        let (truth, message) = said("args.force");
        assert_eq!(truth, Truth::False);
        assert!(message.starts_with("with git/push: rule r: ") && message.contains("force"), "{message}");
        assert_eq!(said("arg.force").0, Truth::Unknown, "a rule that cannot be used was tried on nothing");
        // A schema that is none is not this condition's business.
        let mut odd = tool("git", &["push"]);
        odd.status.as_mut().unwrap().operations[0].input_schema = Some("{".to_owned());
        assert_eq!(fits(&policy("careful", "{}"), &[Arc::new(odd)]).statement().truth, Truth::True);
    }
}
