//! Judges proposed calls by the policies of a run's plan, and by what those policies say now. The rules themselves are
//! belay-policy's business; here is what a long-lived process adds: engines kept ready, a deadline, one evaluation at
//! a time in each namespace. Knows no Kubernetes.

mod current;
mod engines;
mod lanes;
mod law;
mod patterns;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use belay_policy::{Facts, Scene, Spend, Voice, combine};
use belay_protocol::Digest;
use belay_protocol::event::ProposedCall;
use belay_protocol::judgement::Judged;
use belay_protocol::plan::{Plan, PlanPolicy};
use parking_lot::Mutex;
use tokio::sync::broadcast;

pub use self::current::Current;
use self::engines::Engines;
use self::lanes::{Lanes, Late};

/// How long the policies of one call may take together. The dearest policy that is accepted takes a fraction of it.
pub const DEADLINE: Duration = Duration::from_millis(250);
/// Overruns that whoever follows them may be behind by.
const OVERRUNS_MAX: usize = 64;

/// Why a call cannot be judged now. It is neither allowed nor denied: it is held, and judged again later.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Held {
    /// Judging again would take as long: until its policy changes, and the run is planned anew, the call waits.
    #[error(
        "ApprovalPolicy {policy} took longer than {} ms to evaluate: calls that it judges are held until it is changed; \
         a run that goes by the old generation has to be cancelled",
        DEADLINE.as_millis()
    )]
    Overran { policy: String },
    /// The evaluation came to no end in time, for want of a processor or behind another one: try again in a second.
    #[error("the policies of namespace {namespace} are still being evaluated: the call is judged again")]
    Busy { namespace: String },
}

/// Judges calls. Cheap to clone; every clone shares engines, lanes and what overran.
#[derive(Clone)]
pub struct Judge(Arc<Inner>);

struct Inner {
    current: Current,
    engines: Engines,
    lanes: Lanes,
    deadline: Duration,
    overran: Mutex<BTreeSet<Digest>>,
    overruns: broadcast::Sender<Overrun>,
}

/// A policy whose evaluation took too long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overrun {
    pub namespace: String,
    pub policy: String,
}

impl Judge {
    #[must_use]
    pub fn new(current: Current) -> Self {
        Self::with_deadline(current, DEADLINE)
    }

    fn with_deadline(current: Current, deadline: Duration) -> Self {
        let (overruns, _) = broadcast::channel(OVERRUNS_MAX);
        let (engines, lanes, overran) = (Engines::default(), Lanes::default(), Mutex::default());
        Self(Arc::new(Inner { current, engines, lanes, deadline, overran, overruns }))
    }

    /// What the policies say of `call`: those that the Agent, the tool and its credential name in `plan`, each as it
    /// was when the plan was made, those of the runs above likewise, which allow nothing, and each as it is now, which can
    /// only deny.
    ///
    /// # Errors
    /// [`Held`] where they came to no end in time. The caller holds the call; it neither sends nor refuses it.
    pub async fn judge(&self, plan: &Plan, call: &ProposedCall, spend: Spend) -> Result<Judged, Held> {
        let facts = Facts::of(plan, call, spend);
        let policies = self.policies(plan, &call.tool);
        self.refuse_overrun(&policies)?;
        if policies.iter().all(Sought::is_quick) {
            let voices: Vec<Voice> = policies.iter().map(|sought| self.0.engines.voice(sought)).collect();
            return Ok(combine(&voices, &Scene::new(&facts)));
        }
        let voices = self.voices(policies).await.ok_or_else(|| busy(&facts))?;
        let inner = Arc::clone(&self.0);
        let (namespace, deadline) = (facts.namespace.clone(), self.0.deadline);
        let evaluation = move || inner.evaluate(&voices, &facts);
        self.0.lanes.run(&namespace, deadline, evaluation).await.map_err(|Late| Held::Busy { namespace })?
    }

    /// Whether evaluating this generation of the policy took too long in this process.
    #[must_use]
    pub fn has_overrun(&self, policy: &PlanPolicy) -> bool {
        belay_policy::policy_digest(policy).is_ok_and(|digest| self.0.overran.lock().contains(&digest))
    }

    /// Policies whose evaluation took too long, as it happens.
    #[must_use]
    pub fn overruns(&self) -> broadcast::Receiver<Overrun> {
        self.0.overruns.subscribe()
    }

    /// Everything that has a say: first of the plan, then as it is now, where that is another generation.
    fn policies(&self, plan: &Plan, tool: &str) -> Vec<Sought> {
        let mut sought = Vec::new();
        let own = plan.own_policies_of(tool);
        for name in plan.policies_of(tool) {
            let frozen = plan.policy(name);
            match frozen {
                Some(policy) if own.contains(name) => sought.push(Sought::Plan(Arc::new(policy.clone()))),
                Some(policy) => sought.push(Sought::Above(Arc::new(policy.clone()))),
                None => sought.push(Sought::Absent(name.to_owned())),
            }
            let now = self.0.current.get(&plan.run.namespace, name);
            sought.extend(now.filter(|now| frozen != Some(&**now)).map(Sought::Current));
        }
        sought
    }

    fn refuse_overrun(&self, policies: &[Sought]) -> Result<(), Held> {
        let overran = self.0.overran.lock();
        if overran.is_empty() {
            return Ok(());
        }
        let slow = policies
            .iter()
            .filter_map(Sought::policy)
            .find(|policy| belay_policy::policy_digest(policy).is_ok_and(|digest| overran.contains(&digest)));
        slow.map_or(Ok(()), |policy| Err(Held::Overran { policy: policy.name.clone() }))
    }

    /// Parsing takes longer than evaluating, and happens once a policy: it is not what the deadline is for.
    async fn voices(&self, policies: Vec<Sought>) -> Option<Vec<Voice>> {
        let inner = Arc::clone(&self.0);
        let made = move || policies.iter().map(|sought| inner.engines.voice(sought)).collect();
        tokio::task::spawn_blocking(made).await.ok()
    }
}

impl Inner {
    /// Blocks. Notes each policy that took the processor for longer than the deadline.
    fn evaluate(&self, voices: &[Voice], facts: &Facts) -> Result<Judged, Held> {
        let mut slow = None;
        let scene = Scene::new(facts);
        let judged = belay_policy::combine_by(voices, &scene, |engine| {
            let before = lanes::processor_time();
            let ruling = engine.rule_on(&scene);
            if lanes::processor_time().saturating_sub(before) > self.deadline {
                self.note_overrun(engine, &facts.namespace);
                slow.get_or_insert_with(|| engine.name().to_owned());
            }
            ruling
        });
        slow.map_or(Ok(judged), |policy| Err(Held::Overran { policy }))
    }

    fn note_overrun(&self, engine: &belay_policy::Engine, namespace: &str) {
        let (policy, namespace) = (engine.name().to_owned(), namespace.to_owned());
        tracing::warn!(namespace, policy, generation = engine.generation(), "policy overran");
        self.overran.lock().insert(engine.digest());
        // Nobody listens while the operator starts or ends: then the next pass over the policy finds it.
        let _ = self.overruns.send(Overrun { namespace, policy });
    }
}

fn busy(facts: &Facts) -> Held {
    Held::Busy { namespace: facts.namespace.clone() }
}

/// A policy that has a say in a call.
enum Sought {
    Plan(Arc<PlanPolicy>),
    /// Of a run above: it allows nothing.
    Above(Arc<PlanPolicy>),
    Current(Arc<PlanPolicy>),
    /// The plan names it and does not hold it.
    Absent(String),
}

impl Sought {
    fn policy(&self) -> Option<&PlanPolicy> {
        match self {
            Self::Plan(policy) | Self::Above(policy) | Self::Current(policy) => Some(policy),
            Self::Absent(_) => None,
        }
    }

    /// Whether nothing of it has to be parsed or evaluated.
    fn is_quick(&self) -> bool {
        self.policy().is_none_or(|policy| policy.rules.iter().all(|rule| rule.when.is_none()))
    }
}
