//! What people allow for the rest of a run: weighed where their answer is taken, journaled before its ApprovalGrant is
//! made, counted on the one uid that the journal holds, and revoked for good once that is gone.

use std::sync::Arc;

use belay_crds::{AgentRun, Approval, ApprovalGrant, ApprovalGrantStatus, GrantOver};
use belay_policy::Pattern;
use belay_protocol::GRANTS_MAX;
use belay_protocol::event::{Ask, Event};
use belay_protocol::fold::{CallState, HeldGrant, RunState};
use belay_protocol::grant::{Grant, GrantPattern};
use belay_protocol::plan::ObjectId;
use kube::api::PostParams;
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use kube::{Api, Resource as _};

use super::AgentRuns;
use super::follow::SOON;
use super::observe::Sight;
use super::plan::{GrantSeen, Granted};
use super::resolve::id_of;
use crate::approval::{self, Given};
use crate::controller::Failure;
use crate::grant::{approval_grant, stands};
use crate::guard::State;
use crate::pod_template::random_suffix;
use crate::writes::Note;

const SUFFIX_LENGTH: usize = 8;
/// Leaves room for call id and suffix in an object's name.
const RUN_NAME_CHARACTERS: usize = 200;

impl AgentRuns {
    /// What the people who allowed the call of `ask` allow besides it: each pattern that counts, and each that does not.
    pub(super) async fn given(&self, sight: &Sight, state: &RunState, ask: &Ask, sealed: &Approval) -> Vec<Event> {
        let mut events = Vec::new();
        let mut room = GRANTS_MAX.saturating_sub(state.grants.len());
        let now = self.clock.milliseconds().max(state.updated_at);
        for given in approval::grants_given(sealed, ask.digest) {
            let unusable = unusable(state, ask, &given.when).await;
            let full = (room == 0).then(|| format!("the run holds {GRANTS_MAX} grants already"));
            let suffix = random_suffix(&mut rand::rng(), SUFFIX_LENGTH);
            let name = name(&sight.id.name, &ask.call_id, &suffix);
            let opened = match given.refused.clone().or(unusable).or(full) {
                Some(why) => Err(why),
                None => open(state, ask, &given, name, now).ok_or_else(|| "it has no digest".to_owned()),
            };
            events.push(match opened {
                Ok(grant) => {
                    room -= 1;
                    Event::GrantOpened { grant }
                }
                Err(why) => refused(ask, given, why),
            });
        }
        events
    }

    /// Tells people what became of what they gave, and makes the ApprovalGrants. What fails here is done in the next pass.
    pub(super) async fn announce_given(&self, run: &AgentRun, sight: &Sight, sealed: &Approval, given: &[Event]) {
        for event in given {
            match event {
                Event::GrantOpened { grant } => {
                    if let Err(failure) = self.make_grant(run, &sight.id, &grant.name).await {
                        tracing::warn!(namespace = sight.id.namespace, grant = grant.name, %failure, "grant not made yet");
                    }
                }
                Event::GrantRefused { policy, by, why, .. } => {
                    let words = format!(
                        "what {} wanted to allow for the rest of the run under ApprovalPolicy {policy} does not count: \
                         {why}. The call itself was allowed; the next one is asked",
                        by.join(", ")
                    );
                    tracing::warn!(namespace = sight.id.namespace, approval = ?sealed.metadata.name, words, "no grant");
                    let note =
                        Note { type_: EventType::Warning, reason: "GrantRefused", action: "Grant", note: &words };
                    self.writes.tell(&sealed.object_ref(&()), note).await;
                }
                _ => {} // nothing else is given
            }
        }
    }

    pub(super) async fn post_grant(&self, run: &AgentRun, sight: &Sight, name: &str) -> Result<Action, Failure> {
        self.make_grant(run, &sight.id, name).await?;
        Ok(Action::requeue(SOON))
    }

    /// One of that name is ours, since nobody else may create any.
    async fn make_grant(&self, run: &AgentRun, id: &ObjectId, name: &str) -> Result<(), Failure> {
        let state = self.journal.state(&id.uid).await.map_err(Failure::journal("reading the journal"))?;
        let held = state.as_ref().and_then(|state| Some((state, state.grants.get(name)?)));
        let Some((state, held)) = held.filter(|(_, held)| held.uid.is_none()) else { return Ok(()) };
        let grants: Api<ApprovalGrant> = Api::namespaced(self.writes.client(), &id.namespace);
        let made = match grants.create(&PostParams::default(), &approval_grant(run, &held.grant)).await {
            Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists" => {
                self.fetch_grant(&id.namespace, name).await?
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404 | 422) => {
                let why = format!("ApprovalGrant {name} cannot be created: {}", status.message);
                return self.append_grant(id, state, revoked(name, &why)).await;
            }
            made => Some(made.map_err(Failure::api("creating the ApprovalGrant"))?),
        };
        let Some((made, uid)) = made.and_then(|made| made.metadata.uid.clone().map(|uid| (made, uid))) else {
            return Ok(()); // gone again: the next pass makes it
        };
        self.append_grant(id, state, Event::GrantPosted { name: name.to_owned(), uid }).await?;
        let pattern = &held.grant.pattern;
        let words = format!(
            "{} allowed {} more calls of {}/{} in run {} where {}, until {}, under ApprovalPolicy {}. belay revoke {name} \
             takes back what is left",
            held.grant.by.join(", "),
            pattern.count,
            pattern.tool,
            pattern.operation,
            id.name,
            pattern.when,
            crate::clock::from_milliseconds(held.grant.expires_at),
            pattern.policy,
        );
        tracing::info!(namespace = id.namespace, run = id.name, grant = name, "granted");
        let note = Note { type_: EventType::Normal, reason: "Granted", action: "Grant", note: &words };
        self.writes.tell(&made.object_ref(&()), note).await;
        Ok(())
    }

    async fn append_grant(&self, id: &ObjectId, state: &Arc<RunState>, event: Event) -> Result<(), Failure> {
        let appended = self.journal.append(id, state.seq, vec![event]).await;
        appended.map(drop).map_err(Failure::journal("writing the journal"))
    }

    pub(super) async fn revoke_grant(
        &self,
        run: &AgentRun,
        sight: &Sight,
        name: &str,
        why: &str,
    ) -> Result<Action, Failure> {
        tracing::info!(namespace = sight.id.namespace, run = sight.id.name, grant = name, why, "grant revoked");
        self.append(sight, vec![revoked(name, why)]).await?;
        // Its object may still be there, of a grant that does not count as the rules are now.
        if let Some(found) = self.world.grant(&sight.id.namespace, name).filter(|it| !is_over(it))
            && let Err(failure) = self.say_over(&found, GrantOver::Revoked).await
        {
            tracing::debug!(namespace = sight.id.namespace, grant = name, %failure, "not said to be revoked");
        }
        let words = format!("what was allowed by ApprovalGrant {name} is asked again: {why}");
        let note = Note { type_: EventType::Normal, reason: "GrantRevoked", action: "Revoke", note: &words };
        self.writes.tell(&run.object_ref(&()), note).await;
        Ok(Action::requeue(SOON))
    }

    /// What is seen of grants that could still be used. A cache that lacks one is believed only after the API server
    /// agreed.
    pub(super) async fn grants(&self, id: &ObjectId, state: &RunState) -> Result<Vec<GrantSeen>, Failure> {
        let now = self.clock.milliseconds().max(state.updated_at);
        let mut seen = Vec::new();
        for held in state.grants.values().filter(|held| held.is_left(now)) {
            let granted = match &held.uid {
                _ if self.is_void(held) => Granted::Void,
                None => Granted::Unposted,
                Some(uid) => self.stands(id, &held.grant.name, uid).await?,
            };
            seen.push(GrantSeen { name: held.grant.name.clone(), seen: granted });
        }
        Ok(seen)
    }

    async fn stands(&self, id: &ObjectId, name: &str, uid: &str) -> Result<Granted, Failure> {
        let ours = |found: &&Arc<ApprovalGrant>| found.metadata.uid.as_deref() == Some(uid);
        let cached = self.world.grant(&id.namespace, name);
        let there = match cached.as_ref().filter(ours) {
            Some(found) => stands(found, uid),
            None => self.fetch_grant(&id.namespace, name).await?.is_some_and(|found| stands(&found, uid)),
        };
        Ok(if there { Granted::Stands } else { Granted::Gone })
    }

    /// Whether people gave it under admission rules that are not those in force.
    fn is_void(&self, held: &HeldGrant) -> bool {
        match self.guard.state() {
            State::Up { stamp, .. } => stamp != held.grant.guard,
            // It is not honoured meanwhile; whether it will be again shows when the guard is up.
            State::Down(_) => false,
        }
    }

    async fn fetch_grant(&self, namespace: &str, name: &str) -> Result<Option<ApprovalGrant>, Failure> {
        let grants: Api<ApprovalGrant> = Api::namespaced(self.writes.client(), namespace);
        grants.get_opt(name).await.map_err(Failure::api("reading the ApprovalGrant"))
    }

    /// LEFT and OVER follow with the run's own status: no call costs a write of its own. They decide nothing, and hold nothing
    /// up.
    pub(super) async fn count_grants(&self, sight: &Sight) {
        let Some(state) = sight.state.as_deref() else { return };
        for held in state.grants.values() {
            let cached = self.world.grant(&sight.id.namespace, &held.grant.name);
            let Some(found) = cached.filter(|found| found.metadata.uid == held.uid) else { continue };
            let left = i32::try_from(held.left()).unwrap_or(i32::MAX);
            let over = state.end.is_some().then_some(GrantOver::RunEnded);
            let status = ApprovalGrantStatus { left: Some(left), over };
            if found.status.as_ref() != Some(&status)
                && let Err(failure) = self.apply_grant(&found, &status).await
            {
                tracing::debug!(namespace = sight.id.namespace, grant = held.grant.name, %failure, "not counted");
            }
        }
    }

    /// Those of a run that has ended say so, also where that failed when it ended: they stay as long as it does.
    pub(super) async fn close_grants(&self, run: &AgentRun) -> Result<(), Failure> {
        let id = id_of(run);
        for found in self.world.grants_of(&id.namespace, &id.uid).iter().filter(|found| !is_over(found)) {
            self.say_over(found, GrantOver::RunEnded).await?;
        }
        Ok(())
    }

    async fn say_over(&self, found: &ApprovalGrant, over: GrantOver) -> Result<(), Failure> {
        let left = found.status.as_ref().and_then(|status| status.left);
        self.apply_grant(found, &ApprovalGrantStatus { left, over: Some(over) }).await
    }

    async fn apply_grant(&self, found: &ApprovalGrant, status: &ApprovalGrantStatus) -> Result<(), Failure> {
        match self.writes.apply_status(found, status).await {
            Ok(_) | Err(Failure::Gone) => Ok(()),
            Err(failure) => Err(failure),
        }
    }
}

/// Whether the object says that it is, or goes in any case.
fn is_over(found: &ApprovalGrant) -> bool {
    found.metadata.deletion_timestamp.is_some() || found.status.as_ref().is_some_and(|status| status.over.is_some())
}

/// Why the pattern cannot be one for the call that was asked about.
async fn unusable(state: &RunState, ask: &Ask, when: &str) -> Option<String> {
    let Some(CallState::Asked { call, .. }) = state.calls.get(&ask.call_id) else {
        return Some("the call is not what was asked about any more".to_owned());
    };
    let (when, args) = (when.to_owned(), call.args.clone());
    let tried = move || Pattern::compile(&when).and_then(|pattern| pattern.fits(&args));
    match tokio::task::spawn_blocking(tried).await {
        Ok(Ok(true)) => None,
        Ok(Ok(false)) => Some("the pattern is not true for the call itself".to_owned()),
        Ok(Err(error)) => Some(format!("the pattern cannot be used: {error}")),
        Err(_) => Some("the pattern could not be tried".to_owned()),
    }
}

/// The grant whole. None where the pattern has no digest, or the question no stamp of the rules that guarded it.
fn open(state: &RunState, ask: &Ask, given: &Given, name: String, now: i64) -> Option<Grant> {
    let Some(CallState::Asked { call, .. }) = state.calls.get(&ask.call_id) else { return None };
    let pattern = GrantPattern {
        policy: given.policy.clone(),
        tool: call.tool.clone(),
        operation: call.operation.clone(),
        definition: call.definition,
        when: given.when.clone(),
        count: given.count,
        seconds: given.seconds,
    };
    // Whole seconds, as the API shows it.
    let expires_at = now.div_euclid(1000).saturating_add(i64::from(given.seconds)).saturating_mul(1000);
    Some(Grant {
        name,
        digest: pattern.digest().ok()?,
        pattern,
        requirement: ask.requirements.iter().find(|one| one.policy == given.policy)?.clone(),
        call_id: ask.call_id.clone(),
        approval: ask.name.clone(),
        by: given.by.clone(),
        expires_at,
        guard: ask.guard.clone()?,
    })
}

fn refused(ask: &Ask, given: Given, why: String) -> Event {
    Event::GrantRefused { approval: ask.name.clone(), policy: given.policy, by: given.by, why }
}

fn revoked(name: &str, why: &str) -> Event {
    Event::GrantRevoked { name: name.to_owned(), why: why.to_owned() }
}

fn name(run: &str, call_id: &str, suffix: &str) -> String {
    let start: String = run.chars().take(RUN_NAME_CHARACTERS).collect();
    format!("{}-{call_id}-g{suffix}", start.trim_end_matches(['.', '-']))
}
