//! Watches that the rules which make a decision trustworthy are in force: admission policies and bindings live in
//! objects that a cluster's administrator can take away, and what is forged meanwhile stays when they are back.
//! While the guard is down no decision counts. Knows no run and no journal.
//!
//! # What a good look proves
//! That the API server which answered applies `belay-approvals` to changes of Approvals in that namespace by the
//! operator's account, and that policy and binding are, by their spec, those that this build ships. Together with a
//! stamp from before the Approval was made: that they were the same objects, unchanged, all the while between.
//!
//! # What it does not prove
//! That every other replica of the API server has loaded them; that RBAC and authentication tell the truth; that the
//! schema of Approval, which keeps decisions as they were written, was never replaced. Whoever can do those things
//! administers the cluster.

mod api;
mod forgery;
mod lane;
mod patrol;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use belay_crds::Approval;
use belay_crds::admission::{APPROVALS, Difference, RESTORE, RuleKind, Rules, STATUS};
use belay_protocol::guard::{GuardStamp, RuleVersion};
use jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::reflector::Store;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

pub use self::api::{ApiServer, Installed, Live, Unread};
pub use self::forgery::{Forgery, Proof};
use self::lane::Lane;
pub use self::patrol::Patrol;
use crate::clock::Clock;
use crate::metrics::Metrics;

/// How the guard stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Up { since: Timestamp, stamp: GuardStamp },
    Down(Why),
}

/// Why no decision counts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    #[error("the operator has not looked at its admission rules yet")]
    NotLooked,
    #[error("{}: {RESTORE}, or helm upgrade; `belay doctor` looks at all of them", words(.0))]
    Rules(Vec<Difference>),
    #[error(
        "a forged decision on Approval {namespace}/{name} was not refused: ValidatingAdmissionPolicy {APPROVALS} is not in force: {RESTORE}"
    )]
    NotRefused { namespace: String, name: String },
    #[error("whether decisions on Approval {namespace}/{name} are checked cannot be seen: {answer}")]
    Unproven { namespace: String, name: String, answer: String },
    #[error("nothing is decided on Approval {namespace}/{name} any more: {answer}")]
    Ending { namespace: String, name: String, answer: String },
    #[error("the admission rules cannot be read: {0}: apply manifests/operator/rbac.yaml of this version")]
    Forbidden(String),
    #[error("the API server does not answer about the admission rules: {0}")]
    Unanswered(String),
    #[error("{} {APPROVALS} was changed or made anew after people were asked", .0.as_str())]
    Changed(RuleKind),
    #[error("a forged decision was not refused after people were asked")]
    Doubtful,
}

impl Why {
    /// Whether what people have decided so far is worth nothing, so that they are asked anew. Otherwise it is worth
    /// waiting for: the next good look may honour it.
    #[must_use]
    pub fn asks_anew(&self) -> bool {
        match self {
            Self::NotRefused { .. } | Self::Changed(_) | Self::Doubtful => true,
            Self::NotLooked
            | Self::Rules(_)
            | Self::Unproven { .. }
            | Self::Ending { .. }
            | Self::Forbidden(_)
            | Self::Unanswered(_) => false,
        }
    }

    /// Whether it says something about the cluster, rather than about one Approval or one moment.
    fn is_standing(&self) -> bool {
        match self {
            Self::Rules(_) | Self::NotRefused { .. } | Self::Unproven { .. } | Self::Forbidden(_) => true,
            Self::NotLooked | Self::Ending { .. } | Self::Unanswered(_) | Self::Changed(_) | Self::Doubtful => false,
        }
    }
}

fn words(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The decisions of one Approval were vouched for. Made here alone.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "sealing wants it"]
pub struct Vouched {
    uid: String,
}

impl Vouched {
    /// Whether it was said of this Approval.
    #[must_use]
    pub fn covers(&self, approval: &Approval) -> bool {
        approval.metadata.uid.as_ref() == Some(&self.uid)
    }
}

/// A namespace and what is forged there: looks of different kinds do not stand in for one another.
type Place = (String, bool);
type Found = Result<GuardStamp, Why>;

/// The guard. Cheap to clone.
#[derive(Clone)]
pub struct Guard(Arc<Inner>);

struct Inner {
    api: Arc<dyn ApiServer>,
    rules: Rules,
    approvals: Store<Approval>,
    metrics: Metrics,
    state: watch::Sender<State>,
    lanes: Mutex<HashMap<Place, Arc<Lane<Found>>>>,
    /// Uids of Approvals that were open when a forged decision was not refused.
    doubtful: Mutex<HashSet<String>>,
    /// What was last not refused as it should be: looked at until it is.
    suspect: Mutex<Option<Forgery>>,
    /// Something was found that the next patrol should not wait for.
    alarm: Notify,
}

impl Guard {
    #[must_use]
    pub fn new(api: Arc<dyn ApiServer>, rules: Rules, approvals: Store<Approval>, metrics: Metrics) -> Self {
        metrics.admission_guard_up.set(0);
        Self(Arc::new(Inner {
            api,
            rules,
            approvals,
            metrics,
            state: watch::Sender::new(State::Down(Why::NotLooked)),
            lanes: Mutex::default(),
            doubtful: Mutex::default(),
            suspect: Mutex::default(),
            alarm: Notify::new(),
        }))
    }

    /// How it stood after the last look.
    #[must_use]
    pub fn state(&self) -> State {
        self.0.state.borrow().clone()
    }

    /// Why nobody can be sure that the operator alone wrote what a status says; none where the rule about that stands.
    #[must_use]
    pub fn doubts_status(&self) -> Option<Why> {
        match self.state() {
            State::Down(Why::Rules(differences)) if differences.iter().all(|one| one.name != STATUS) => None,
            State::Down(why @ (Why::Rules(_) | Why::NotLooked | Why::Forbidden(_) | Why::Unanswered(_))) => Some(why),
            // Every rule was there: at most decisions are doubted.
            State::Up { .. }
            | State::Down(
                Why::NotRefused { .. } | Why::Unproven { .. } | Why::Ending { .. } | Why::Changed(_) | Why::Doubtful,
            ) => None,
        }
    }

    /// Tells when that changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<State> {
        self.0.state.subscribe()
    }

    /// Looks now, before `approval` is made: what is returned belongs into the journal beside the question. Whoever
    /// makes an Approval without a good stamp makes one whose decisions never count.
    ///
    /// # Errors
    /// The guard is down: nobody can be asked yet.
    pub async fn stamp(&self, approval: &Approval) -> Result<GuardStamp, Why> {
        self.look(Forgery::Birth(approval.clone())).await
    }

    /// Looks now, after the decisions of `approval` were read: whether they were made under the rules that were in
    /// force when it was made, and still are. Callers at one time share a look that began after all of them came.
    ///
    /// # Errors
    /// They do not count. [`Why::asks_anew`] says whether they ever will.
    pub async fn vouch(&self, approval: &Approval, stamp: &GuardStamp) -> Result<Vouched, Why> {
        let uid = approval.uid().unwrap_or_default();
        let found = self.look(Forgery::Decision(approval.clone())).await?;
        if self.0.doubtful.lock().contains(&uid) {
            return Err(Why::Doubtful);
        }
        if found.policy != stamp.policy {
            return Err(Why::Changed(RuleKind::Policy));
        }
        if found.binding != stamp.binding {
            return Err(Why::Changed(RuleKind::Binding));
        }
        Ok(Vouched { uid })
    }

    /// One look in one namespace. What it finds wrong about the cluster is everybody's at once.
    async fn look(&self, forgery: Forgery) -> Found {
        // What only the whole patrol sees keeps everything waiting: a rule about something else than Approvals.
        if let State::Down(why) = self.state() {
            return Err(why);
        }
        let namespace = forgery.approval().namespace().unwrap_or_default();
        let place = (namespace, matches!(forgery, Forgery::Birth(_)));
        let lane = Arc::clone(self.0.lanes.lock().entry(place).or_default());
        lane.fresh(|| self.look_now(&forgery)).await
    }

    async fn look_now(&self, forgery: &Forgery) -> Found {
        let (installed, proof) = tokio::join!(self.0.api.rule(APPROVALS), self.0.api.forge(forgery));
        let found = self.0.installed(installed).and_then(|stamp| proves(forgery, proof).map(|()| stamp));
        if let Err(why) = &found
            && why.is_standing()
        {
            *self.0.suspect.lock() = Some(forgery.clone());
            self.set(State::Down(why.clone()));
            self.0.alarm.notify_one();
        }
        found
    }

    /// Every rule, and a forged decision in each namespace that has an open Approval. `None` where the API server did
    /// not answer: what was last known stays.
    async fn look_everywhere(&self) -> Option<State> {
        match self.everything().await {
            Ok(stamp) => Some(State::Up { since: Clock.now(), stamp }),
            Err(Why::Unanswered(words)) => {
                tracing::warn!(words, "the admission rules were not looked at");
                None
            }
            Err(why) => Some(State::Down(why)),
        }
    }

    async fn everything(&self) -> Found {
        let mut differences = Vec::new();
        let mut stamp = None;
        for name in self.0.rules.names() {
            let installed = self.0.api.rule(name).await.map_err(unread)?;
            differences.extend(self.0.rules.policy(name, installed.policy.as_ref()));
            differences.extend(self.0.rules.binding(name, installed.binding.as_ref()));
            if name == APPROVALS {
                stamp = stamp_of(&installed);
            }
        }
        let Some(stamp) = stamp.filter(|_| differences.is_empty()) else { return Err(Why::Rules(differences)) };
        let suspect = self.0.suspect.lock().clone();
        let open = open_ones(&self.0.approvals.state()).into_iter().map(|one| Forgery::Decision((*one).clone()));
        for forgery in suspect.into_iter().chain(open) {
            match self.0.api.forge(&forgery).await {
                // Deleted meanwhile, or with its namespace: there may be no other, and whoever asks next looks for
                // himself. Whoever deletes a namespace stops no other's decisions.
                Proof::Gone | Proof::Ending(_) => {}
                proof => proves(&forgery, proof)?,
            }
        }
        *self.0.suspect.lock() = None;
        Ok(stamp)
    }

    fn set(&self, next: State) {
        let up = matches!(next, State::Up { .. });
        if let State::Down(Why::NotRefused { .. }) = &next {
            let open = self.0.approvals.state();
            self.0.doubtful.lock().extend(open.iter().filter(|one| !one.is_sealed()).filter_map(|one| one.uid()));
        }
        self.0.metrics.admission_guard_up.set(i64::from(up));
        self.0.state.send_if_modified(|state| {
            let same = match (&*state, &next) {
                (State::Up { stamp: old, .. }, State::Up { stamp: new, .. }) => old == new,
                (State::Down(old), State::Down(new)) => old == new,
                (State::Up { .. }, State::Down(_)) | (State::Down(_), State::Up { .. }) => false,
            };
            if !same {
                match &next {
                    State::Up { .. } => tracing::info!("the admission guard is up"),
                    State::Down(why) => tracing::error!(%why, "the admission guard is down: no approval is honoured"),
                }
                *state = next;
            }
            !same
        });
    }

    /// Forgets the doubts about Approvals that are gone.
    fn forget_the_gone(&self) {
        let there: HashSet<String> = self.0.approvals.state().iter().filter_map(|one| one.uid()).collect();
        self.0.doubtful.lock().retain(|uid| there.contains(uid));
        let namespaces: HashSet<String> = self.0.approvals.state().iter().filter_map(|one| one.namespace()).collect();
        self.0
            .lanes
            .lock()
            .retain(|(namespace, _), lane| namespaces.contains(namespace) || Arc::strong_count(lane) > 1);
    }
}

impl Inner {
    fn installed(&self, installed: Result<Installed, Unread>) -> Found {
        let installed = installed.map_err(unread)?;
        let policy = self.rules.policy(APPROVALS, installed.policy.as_ref());
        let differences: Vec<_> =
            policy.into_iter().chain(self.rules.binding(APPROVALS, installed.binding.as_ref())).collect();
        match stamp_of(&installed) {
            Some(stamp) if differences.is_empty() => Ok(stamp),
            Some(_) | None => Err(Why::Rules(differences)),
        }
    }
}

fn unread(unread: Unread) -> Why {
    match unread {
        Unread::Forbidden(words) => Why::Forbidden(words),
        Unread::Unanswered(words) => Why::Unanswered(words),
    }
}

fn stamp_of(installed: &Installed) -> Option<GuardStamp> {
    fn version<K: ResourceExt>(object: &K) -> Option<RuleVersion> {
        Some(RuleVersion { uid: object.uid()?, generation: object.meta().generation? })
    }
    Some(GuardStamp { policy: version(installed.policy.as_ref()?)?, binding: version(installed.binding.as_ref()?)? })
}

fn proves(forgery: &Forgery, proof: Proof) -> Result<(), Why> {
    let approval = forgery.approval();
    let (namespace, name) = (approval.namespace().unwrap_or_default(), approval.name_any());
    match proof {
        Proof::Refused => Ok(()),
        Proof::Accepted => Err(Why::NotRefused { namespace, name }),
        Proof::Nothing(answer) => Err(Why::Unproven { namespace, name, answer }),
        Proof::Ending(answer) => Err(Why::Ending { namespace, name, answer }),
        Proof::Gone => Err(Why::Unanswered(format!("Approval {namespace}/{name} is gone"))),
        Proof::Unanswered(words) => Err(Why::Unanswered(words)),
    }
}

/// The first Approval that is not sealed of each namespace that has any.
fn open_ones(approvals: &[Arc<Approval>]) -> Vec<Arc<Approval>> {
    let mut open: Vec<&Arc<Approval>> = approvals.iter().filter(|approval| !approval.is_sealed()).collect();
    open.sort_by_key(|approval| (approval.namespace(), approval.name_any()));
    open.dedup_by_key(|approval| approval.namespace());
    open.into_iter().cloned().collect()
}
