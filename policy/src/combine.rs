//! Several policies over one call: each is asked alone, the strictest wins, and each that asks adds a requirement. Where
//! none of the run's own has a say the built-in `default` has: those of runs above can only make it stricter.

use std::sync::{Arc, LazyLock};

use belay_protocol::grant::GrantTerms;
use belay_protocol::judgement::{
    DEFAULT_POLICY, Judged, Judgement, Opinion, OpinionVerdict, PolicyRequirement, PolicySource,
};
use belay_protocol::plan::{AskTerms, Effects, Otherwise, PlanPolicy, PlanRule, PolicyMode, RuleAction};

use crate::engine::{Engine, Ruling};
use crate::facts::Scene;

/// The policy that judges where no other has a say: what only reads is allowed, everything else asked.
#[must_use]
pub fn built_in_default() -> PlanPolicy {
    PlanPolicy {
        name: DEFAULT_POLICY.to_owned(),
        uid: String::new(),
        generation: 0,
        mode: PolicyMode::Enforce,
        otherwise: Otherwise::Ask,
        rules: vec![PlanRule {
            name: "reads".to_owned(),
            tools: vec![],
            operations: vec![],
            effects: vec![Effects::None],
            when: None,
            action: RuleAction::Allow,
            ask: None,
            reason: None,
        }],
    }
}

static DEFAULT: LazyLock<Option<Engine>> = LazyLock::new(|| Engine::compile(&built_in_default()).ok());

/// A policy that is asked about a call, and in which capacity.
#[derive(Clone, Debug)]
pub enum Voice {
    /// As it was when the run was planned.
    Plan(Arc<Engine>),
    /// Likewise, of a run above: it denies and asks. What it allows is allowed to that one, not to this.
    Above(Arc<Engine>),
    /// As it is now: it can only deny, and let people give less for the rest of a run.
    Current(Arc<Engine>),
    /// The plan names it and it cannot be asked: that denies.
    Broken { policy: String, why: String },
    /// In `Audit`, and it cannot be asked: there is nothing to record.
    Silent,
}

impl Voice {
    /// Of a policy whose rules cannot be asked.
    #[must_use]
    pub fn unusable(policy: &PlanPolicy, why: String) -> Self {
        match policy.mode {
            PolicyMode::Enforce => Self::Broken { policy: policy.name.clone(), why },
            PolicyMode::Audit => Self::Silent,
        }
    }

    /// Of a policy that the plan names and does not hold.
    #[must_use]
    pub fn absent(name: &str) -> Self {
        Self::Broken { policy: name.to_owned(), why: "the run's plan does not hold it".to_owned() }
    }
}

/// What all of them come to.
#[must_use]
pub fn combine(voices: &[Voice], scene: &Scene<'_>) -> Judged {
    combine_by(voices, scene, |engine| engine.rule_on(scene))
}

/// Likewise, with `ask` between each policy and the answer: whoever has to know how long one takes.
pub fn combine_by(voices: &[Voice], scene: &Scene<'_>, mut ask: impl FnMut(&Engine) -> Ruling) -> Judged {
    let mut sum = Sum::default();
    for voice in voices {
        match voice {
            Voice::Plan(engine) => sum.plan(engine, ask(engine)),
            Voice::Above(engine) => sum.above(engine, ask(engine)),
            Voice::Current(engine) => sum.current(engine, ask(engine)),
            Voice::Silent => {}
            Voice::Broken { policy, why } => sum.denials.push(Denial {
                policy: policy.clone(),
                rule: None,
                reason: format!("policy {policy} cannot be asked: {why}"),
            }),
        }
    }
    sum.close(scene)
}

#[derive(Default)]
struct Sum {
    opinions: Vec<Opinion>,
    denials: Vec<Denial>,
    requirements: Vec<PolicyRequirement>,
    /// What policies that ask let people give now, by name.
    now: Vec<(String, Option<GrantTerms>)>,
    /// Whether any policy of the run's own that is in force allowed it or asks.
    decided: bool,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Denial {
    policy: String,
    rule: Option<String>,
    reason: String,
}

impl Sum {
    fn plan(&mut self, engine: &Engine, ruling: Ruling) {
        match engine.mode() {
            PolicyMode::Audit => self.note(engine, PolicySource::Audit, ruling),
            PolicyMode::Enforce => {
                self.decided |= matches!(ruling.verdict, OpinionVerdict::Allow | OpinionVerdict::Ask);
                self.count(engine, &ruling);
                self.note(engine, PolicySource::Plan, ruling);
            }
        }
    }

    fn above(&mut self, engine: &Engine, ruling: Ruling) {
        match engine.mode() {
            PolicyMode::Audit => self.note(engine, PolicySource::Audit, ruling),
            PolicyMode::Enforce => {
                self.count(engine, &ruling);
                self.note(engine, PolicySource::Plan, ruling);
            }
        }
    }

    fn current(&mut self, engine: &Engine, ruling: Ruling) {
        match (engine.mode(), ruling.verdict) {
            (PolicyMode::Enforce, OpinionVerdict::Deny) => self.count(engine, &ruling),
            (PolicyMode::Enforce, OpinionVerdict::Ask) => {
                self.now.push((engine.name().to_owned(), ruling.terms.unwrap_or_default().grants));
            }
            (PolicyMode::Enforce, OpinionVerdict::Allow | OpinionVerdict::Abstain) | (PolicyMode::Audit, _) => {}
        }
        self.note(engine, PolicySource::Current, ruling);
    }

    fn count(&mut self, engine: &Engine, ruling: &Ruling) {
        let policy = || engine.name().to_owned();
        match ruling.verdict {
            OpinionVerdict::Deny => self.denials.push(Denial {
                policy: policy(),
                rule: ruling.rule.clone(),
                reason: ruling.reason.clone().unwrap_or_else(|| format!("policy {} denies it", engine.name())),
            }),
            OpinionVerdict::Ask => {
                let terms = ruling.terms.unwrap_or_default();
                self.requirements.push(requirement(policy(), engine.generation(), terms));
            }
            OpinionVerdict::Allow | OpinionVerdict::Abstain => {}
        }
    }

    fn note(&mut self, engine: &Engine, source: PolicySource, ruling: Ruling) {
        self.opinions.push(Opinion {
            policy: engine.name().to_owned(),
            generation: engine.generation(),
            digest: engine.digest(),
            source,
            verdict: ruling.verdict,
            rule: ruling.rule,
            error: ruling.error,
        });
    }

    fn close(mut self, scene: &Scene<'_>) -> Judged {
        // What the runs above allow or ask is no answer of this run's: its default stands beside it.
        if !self.decided && self.denials.is_empty() {
            match &*DEFAULT {
                Some(engine) => {
                    let ruling = engine.rule_on(scene);
                    self.count(engine, &ruling);
                    self.note(engine, PolicySource::Default, ruling);
                }
                // It has no condition that could fail to compile; were it so, people are asked.
                None => self.requirements.push(requirement(DEFAULT_POLICY.to_owned(), 0, AskTerms::default())),
            }
        }
        for one in &mut self.requirements {
            let now = self.now.iter().filter(|(policy, _)| *policy == one.policy);
            one.grants = now.fold(one.grants, |terms, (_, now)| GrantTerms::stricter(terms, *now));
        }
        // Names and not places: whoever lists policies in another order hears the same.
        self.denials.sort();
        self.requirements.sort_by(|a, b| a.policy.cmp(&b.policy));
        self.opinions.sort_by(|a, b| (&a.policy, a.source as u8).cmp(&(&b.policy, b.source as u8)));
        let judgement = match self.denials.into_iter().next() {
            Some(Denial { policy, rule, reason }) => Judgement::Deny { policy, rule, reason },
            None if self.requirements.is_empty() => Judgement::Allow,
            None => Judgement::Ask { requirements: self.requirements },
        };
        Judged { judgement, opinions: self.opinions, grants: Vec::new() }
    }
}

fn requirement(policy: String, generation: i64, terms: AskTerms) -> PolicyRequirement {
    PolicyRequirement {
        policy,
        generation,
        quorum: terms.quorum,
        separation_of_duty: terms.separation_of_duty,
        expires_after_seconds: terms.expires_after_seconds,
        grants: terms.grants,
    }
}

#[cfg(test)]
mod tests;
