//! One policy made ready: every rule checked and parsed once, then asked about call after call.
//!
//! Within a policy deny beats ask beats allow, and the order of rules never matters. A rule that cannot be evaluated
//! counts against the call: of two evils the stricter one.

use belay_protocol::Digest;
use belay_protocol::digest::{DigestError, digest_of};
use belay_protocol::grant::GrantTerms;
use belay_protocol::judgement::OpinionVerdict;
use belay_protocol::plan::{AskTerms, Otherwise, PlanPolicy, PlanRule, PolicyMode, RuleAction};
use cel::{Program, Value};

use crate::Fault;
use crate::check::check;
use crate::cost::{POLICY_COST_MAX, cost};
use crate::facts::Scene;
use crate::source::{on_a_large_stack, parse};

/// The digest that opinions carry: the same however the rules are ordered.
pub fn policy_digest(policy: &PlanPolicy) -> Result<Digest, DigestError> {
    let mut sorted = policy.clone();
    sorted.rules.sort_by(|a, b| a.name.cmp(&b.name));
    digest_of(&sorted)
}

/// A policy that can be asked. Cheap to ask from any thread; evaluation itself blocks.
#[derive(Debug)]
pub struct Engine {
    name: String,
    generation: i64,
    digest: Digest,
    mode: PolicyMode,
    otherwise: Otherwise,
    /// Sorted by name, so that what is said of a call does not depend on the order either.
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    rule: PlanRule,
    when: Option<Program>,
}

/// What one policy says of one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    pub verdict: OpinionVerdict,
    /// The rule that decided, or, where several ask together, all of them; absent where `otherwise` did.
    pub rule: Option<String>,
    /// Rules that could not be evaluated, and why.
    pub error: Option<String>,
    /// Of an Ask: the strictest of all that ask.
    pub terms: Option<AskTerms>,
    /// Of a Deny: what the model is told.
    pub reason: Option<String>,
}

impl Engine {
    /// Checks every rule and makes it ready.
    ///
    /// # Errors
    /// Everything that is wrong, rule by rule in their order.
    pub fn compile(policy: &PlanPolicy) -> Result<Self, Vec<Fault>> {
        let whole = |message: String| vec![Fault { index: 0, rule: String::new(), message }];
        let mut rules = if policy.rules.iter().any(|rule| rule.when.is_some()) {
            on_a_large_stack(|| compile_rules(&policy.rules)).map_err(whole)??
        } else {
            compile_rules(&policy.rules)?
        };
        rules.sort_by(|a, b| a.rule.name.cmp(&b.rule.name));
        Ok(Self {
            name: policy.name.clone(),
            generation: policy.generation,
            digest: policy_digest(policy).map_err(|error| whole(error.to_string()))?,
            mode: policy.mode,
            otherwise: policy.otherwise,
            rules,
        })
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn generation(&self) -> i64 {
        self.generation
    }

    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    #[must_use]
    pub fn mode(&self) -> PolicyMode {
        self.mode
    }

    /// What this policy, alone, says of the call, as if it were in `Enforce`.
    #[must_use]
    pub fn rule_on(&self, scene: &Scene<'_>) -> Ruling {
        let mut tally = Tally::default();
        for rule in &self.rules {
            let outcome = rule.outcome(scene);
            tally.take(&rule.rule, outcome, self.otherwise);
        }
        tally.close(&self.name, self.otherwise)
    }
}

fn compile_rules(rules: &[PlanRule]) -> Result<Vec<Rule>, Vec<Fault>> {
    let (mut ready, mut faults, mut total) = (Vec::with_capacity(rules.len()), Vec::new(), 0_u64);
    for (index, rule) in rules.iter().enumerate() {
        let fault = |message| Fault { index, rule: rule.name.clone(), message };
        match compile_rule(rule) {
            Ok((when, cost)) => {
                total = total.saturating_add(cost);
                if cost > POLICY_COST_MAX {
                    faults.push(fault(format!(
                        "spec.rules[{index}].when could take {cost} steps over the largest arguments, more than \
                         {POLICY_COST_MAX}: look through one list once, and through nothing else on the way"
                    )));
                }
                ready.push(Rule { rule: rule.clone(), when });
            }
            Err(message) => faults.push(fault(format!("when: {message}"))),
        }
    }
    if faults.is_empty() && total > POLICY_COST_MAX {
        let index = rules.len().saturating_sub(1);
        let message = format!("all rules together could take {total} steps, more than {POLICY_COST_MAX}");
        faults.push(Fault { index, rule: rules.last().map(|rule| rule.name.clone()).unwrap_or_default(), message });
    }
    if faults.is_empty() { Ok(ready) } else { Err(faults) }
}

fn compile_rule(rule: &PlanRule) -> Result<(Option<Program>, u64), String> {
    let Some(when) = &rule.when else { return Ok((None, 0)) };
    let program = parse(when)?;
    check(program.expression())?;
    let cost = cost(program.expression())?;
    Ok((Some(program), cost))
}

/// What a rule comes to for one call.
enum Met {
    No,
    Yes,
    /// It could not be found out.
    Error(String),
}

impl Rule {
    fn outcome(&self, scene: &Scene<'_>) -> Met {
        if !self.concerns(scene) {
            return Met::No;
        }
        // Arguments that no rule can look at are never allowed by one, not even by a rule that does not look.
        let looks = self.when.is_some() || self.rule.action == RuleAction::Allow;
        if let Some(fault) = scene.fault.as_ref().filter(|_| looks) {
            return Met::Error(fault.to_string());
        }
        let Some(when) = &self.when else { return Met::Yes };
        match when.execute(&scene.context) {
            Ok(Value::Bool(true)) => Met::Yes,
            Ok(Value::Bool(false)) => Met::No,
            Ok(other) => Met::Error(format!("gives {}, not true or false", other.type_of())),
            Err(error) => Met::Error(short(&error.to_string())),
        }
    }

    fn concerns(&self, scene: &Scene<'_>) -> bool {
        let rule = &self.rule;
        let names = |list: &[String], name: &str| list.is_empty() || list.iter().any(|it| it == name);
        names(&rule.tools, &scene.facts.tool)
            && names(&rule.operations, &scene.facts.operation)
            && (rule.effects.is_empty() || rule.effects.contains(&scene.facts.effects))
    }
}

/// Errors of the library repeat values of the call: a journal wants the beginning of them.
fn short(message: &str) -> String {
    const CHARACTERS_MAX: usize = 200;
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(CHARACTERS_MAX) {
        Some((end, _)) => format!("{}..", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

/// What rules came to so far; they come sorted by name.
#[derive(Default)]
struct Tally {
    allow: Option<String>,
    ask: Vec<String>,
    terms: Option<AskTerms>,
    deny: Option<Denial>,
    errors: Vec<String>,
}

struct Denial {
    rule: String,
    reason: Option<String>,
}

impl Tally {
    fn take(&mut self, rule: &PlanRule, met: Met, otherwise: Otherwise) {
        let failed = match met {
            Met::No => return,
            Met::Yes => None,
            Met::Error(message) => Some(message),
        };
        if let Some(message) = &failed {
            self.errors.push(format!("rule {}: {message}", rule.name));
        }
        match (rule.action, failed) {
            (RuleAction::Allow, None) => {
                self.allow.get_or_insert_with(|| rule.name.clone());
            }
            // It does not allow, and what it might have allowed is not left to another rule either.
            (RuleAction::Allow, Some(message)) => match otherwise {
                Otherwise::Deny => self.deny(rule, Some(message)),
                Otherwise::Ask | Otherwise::Abstain => self.asks(rule, AskTerms::default()),
            },
            (RuleAction::Ask, None | Some(_)) => self.asks(rule, rule.ask.unwrap_or_default()),
            (RuleAction::Deny, failed) => self.deny(rule, failed),
        }
    }

    fn asks(&mut self, rule: &PlanRule, terms: AskTerms) {
        self.ask.push(rule.name.clone());
        self.terms = Some(self.terms.map_or(terms, |before| stricter(before, terms)));
    }

    fn deny(&mut self, rule: &PlanRule, failed: Option<String>) {
        let reason = match failed {
            Some(message) => Some(format!("rule {} could not be evaluated: {message}", rule.name)),
            None => rule.reason.clone(),
        };
        self.deny.get_or_insert_with(|| Denial { rule: rule.name.clone(), reason });
    }

    fn close(self, policy: &str, otherwise: Otherwise) -> Ruling {
        let error = (!self.errors.is_empty()).then(|| self.errors.join("; "));
        let quiet = Ruling { verdict: OpinionVerdict::Abstain, rule: None, error, terms: None, reason: None };
        if let Some(denial) = self.deny {
            let reason = denial.reason.unwrap_or_else(|| format!("rule {} of policy {policy} denies it", denial.rule));
            return Ruling { verdict: OpinionVerdict::Deny, rule: Some(denial.rule), reason: Some(reason), ..quiet };
        }
        if !self.ask.is_empty() {
            return Ruling {
                verdict: OpinionVerdict::Ask,
                rule: Some(self.ask.join(", ")),
                terms: self.terms,
                ..quiet
            };
        }
        if self.allow.is_some() {
            return Ruling { verdict: OpinionVerdict::Allow, rule: self.allow, ..quiet };
        }
        match otherwise {
            Otherwise::Abstain => quiet,
            Otherwise::Ask => Ruling { verdict: OpinionVerdict::Ask, terms: Some(AskTerms::default()), ..quiet },
            Otherwise::Deny => {
                let reason = Some(format!("no rule of policy {policy} allows it"));
                Ruling { verdict: OpinionVerdict::Deny, reason, ..quiet }
            }
        }
    }
}

/// More people, the requester out if either says so, the shorter time, and grants only if both let people give them.
fn stricter(a: AskTerms, b: AskTerms) -> AskTerms {
    AskTerms {
        quorum: a.quorum.max(b.quorum),
        separation_of_duty: a.separation_of_duty || b.separation_of_duty,
        expires_after_seconds: a.expires_after_seconds.min(b.expires_after_seconds),
        grants: GrantTerms::stricter(a.grants, b.grants),
    }
}

#[cfg(test)]
pub(crate) mod tests;
