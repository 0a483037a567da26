//! The tests that a policy carries: calls, and what it has to say of them.

use std::fmt;

use belay_crds::{Expectation, PolicyTest};
use belay_protocol::judgement::OpinionVerdict;
use belay_protocol::plan::Effects;
use serde_json::{Value, json};

use crate::engine::Engine;
use crate::facts::{Facts, Scene, Spend};
use crate::frozen::freeze_effects;
use crate::source::on_a_large_stack;

/// What Agent and run of a test are called.
const TEST: &str = "test";

/// One test and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// Place in `spec.tests`.
    pub index: usize,
    /// `tool/operation`.
    pub call: String,
    pub expected: OpinionVerdict,
    pub found: OpinionVerdict,
    /// The rule that decided.
    pub rule: Option<String>,
    /// Rules that could not be evaluated.
    pub error: Option<String>,
}

impl Trial {
    #[must_use]
    pub fn passed(&self) -> bool {
        self.expected == self.found
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (index, call) = (self.index, &self.call);
        if self.passed() {
            write!(f, "tests[{index}] {call}: {}", word(self.found))?;
        } else {
            write!(f, "tests[{index}] {call}: expected {}, got {}", word(self.expected), word(self.found))?;
        }
        match &self.rule {
            Some(rule) => write!(f, " by {rule}")?,
            None => write!(f, " by otherwise")?,
        }
        self.error.as_ref().map_or(Ok(()), |error| write!(f, " ({error})"))
    }
}

/// As the API spells it.
#[must_use]
pub fn word(verdict: OpinionVerdict) -> &'static str {
    match verdict {
        OpinionVerdict::Allow => "Allow",
        OpinionVerdict::Ask => "Ask",
        OpinionVerdict::Deny => "Deny",
        OpinionVerdict::Abstain => "Abstain",
    }
}

/// Tries every test. Blocks for as long as the rules take.
///
/// # Errors
/// In words, where no thread could be had to evaluate on.
pub fn trials(engine: &Engine, tests: &[PolicyTest]) -> Result<Vec<Trial>, String> {
    on_a_large_stack(|| tests.iter().enumerate().map(|(index, test)| try_one(engine, index, test)).collect())
}

/// A call that no run makes.
pub(crate) fn made_up(tool: &str, operation: &str, args: Value, effects: Effects) -> Facts {
    Facts {
        tool: tool.to_owned(),
        operation: operation.to_owned(),
        args,
        effects,
        namespace: TEST.to_owned(),
        agent: TEST.to_owned(),
        run: TEST.to_owned(),
        requested_by: String::new(),
        spend: Spend { cost_micro_usd: Some(0), ..Spend::default() },
    }
}

fn try_one(engine: &Engine, index: usize, test: &PolicyTest) -> Trial {
    let call = &test.call;
    let args = call.args.clone().unwrap_or_else(|| json!({}));
    let effects = call.effects.map_or_else(Effects::default, freeze_effects);
    let facts = made_up(&call.tool, &call.operation, args, effects);
    let ruling = engine.rule_on(&Scene::new(&facts));
    let expected = match test.expect {
        Expectation::Allow => OpinionVerdict::Allow,
        Expectation::Ask => OpinionVerdict::Ask,
        Expectation::Deny => OpinionVerdict::Deny,
        Expectation::Abstain => OpinionVerdict::Abstain,
    };
    Trial {
        index,
        call: format!("{}/{}", call.tool, call.operation),
        expected,
        found: ruling.verdict,
        rule: ruling.rule,
        error: ruling.error,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rstest::rstest;

    use super::*;
    use crate::engine::tests::policy;

    /// One rule for each field of a call: with another value in it, the test that passed fails.
    #[rstest]
    #[case::tool("{tool: github, operation: o}", "{tool: other, operation: o}", "tools: [github]")]
    #[case::operation("{tool: t, operation: push}", "{tool: t, operation: pull}", "operations: [push]")]
    #[case::args("{tool: t, operation: o, args: {n: 1}}", "{tool: t, operation: o, args: {n: 2}}", "when: args.n == 1")]
    #[case::effects("{tool: t, operation: o, effects: None}", "{tool: t, operation: o}", "effects: [None]")]
    fn every_field_of_a_test_decides_what_comes_of_it(#[case] call: &str, #[case] other: &str, #[case] rule: &str) {
        for (action, wrong) in [("Allow", "Deny"), ("Ask", "Allow"), ("Deny", "Ask")] {
            let rules = format!("{{otherwise: Abstain, rules: [{{name: r, action: {action}, {rule}}}]}}");
            let engine = Engine::compile(&policy(&rules)).unwrap();
            let passed = |call: &str, expect: &str| {
                let test = serde_saphyr::from_str(&format!("{{call: {call}, expect: {expect}}}")).unwrap();
                trials(&engine, &[test]).unwrap().iter().all(Trial::passed)
            };
            assert!(passed(call, action), "{rule}");
            assert!(!passed(call, wrong), "expect is looked at");
            assert!(!passed(other, action) && passed(other, "Abstain"), "{rule}");
        }
    }
}
