//! `belay policy replay`: what runs proposed, judged by the policies of their plans, and again with one policy changed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use belay_policy::{Engine, Facts, Scene, Spend, Voice, combine, on_a_large_stack};
use belay_protocol::event::{Event, ProposedCall};
use belay_protocol::export::verify;
use belay_protocol::judgement::{Judged, Judgement, PolicyRequirement};
use belay_protocol::plan::{Plan, PlanPolicy};
use belay_protocol::{Record, RunState};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use super::documents::Documents;
use super::frozen;
use crate::exit::{CliError, FAILED};
use crate::table;

#[derive(clap::Args)]
pub struct ReplayArguments {
    /// YAML that holds one ApprovalPolicy
    file: PathBuf,
    /// Files that `belay journal export` wrote
    #[arg(long, required = true, num_args = 1..)]
    journal: Vec<PathBuf>,
    /// Only what was proposed within this time, such as 7d, 12h or 30m
    #[arg(long)]
    since: Option<String>,
}

pub fn replay(arguments: &ReplayArguments) -> Result<ExitCode, CliError> {
    let policy = the_policy(&arguments.file)?;
    let engine = Engine::compile(&policy).map_err(|faults| {
        let fault = faults.first().map_or_else(String::new, ToString::to_string);
        CliError::Failed(format!("{}: ApprovalPolicy {}: spec.{fault}", arguments.file.display(), policy.name))
    })?;
    let engine = Arc::new(engine);
    let from = arguments.since.as_deref().map(|since| start(since, Timestamp::now())).transpose()?;
    let mut proposals = Vec::new();
    for file in &arguments.journal {
        let bytes = std::fs::read(file).map_err(|error| CliError::Usage(format!("{}: {error}", file.display())))?;
        if let Err(fault) = verify(&bytes) {
            eprintln!("BAD   {}: {fault}", file.display());
            return Ok(ExitCode::from(FAILED));
        }
        proposals.extend(read(&bytes).map_err(|why| CliError::Failed(format!("{}: {why}", file.display())))?);
    }
    proposals.retain(|proposal| from.is_none_or(|from| proposal.at >= from));
    let proposals = distinct(proposals);
    let changes = on_a_large_stack(|| proposals.iter().filter_map(|it| change(it, &engine)).collect::<Vec<_>>());
    print(&changes.map_err(CliError::Failed)?, proposals.len(), &policy.name);
    Ok(ExitCode::SUCCESS)
}

fn the_policy(file: &Path) -> Result<PlanPolicy, CliError> {
    let documents = Documents::read(&[file.to_owned()])?;
    if let Some((_, complaint)) = documents.malformed.first() {
        return Err(CliError::Failed(complaint.clone()));
    }
    match documents.policies.as_slice() {
        [policy] => Ok(frozen(policy)),
        policies => Err(CliError::Usage(format!("{} holds {} policies, not one", file.display(), policies.len()))),
    }
}

/// The moment before which nothing counts, in milliseconds since the Unix epoch.
fn start(since: &str, now: Timestamp) -> Result<i64, CliError> {
    let usage = || CliError::Usage(format!("--since {since}: a number and d, h or m, such as 7d"));
    let (count, unit) = since.split_at_checked(since.len().saturating_sub(1)).ok_or_else(usage)?;
    let count: i64 = count.parse().map_err(|_| usage())?;
    let minutes = match unit {
        "d" => count.checked_mul(24 * 60),
        "h" => count.checked_mul(60),
        "m" => Some(count),
        _ => None, // no unit of time
    };
    let minutes = minutes.filter(|minutes| (0..=5_000_000).contains(minutes)).ok_or_else(usage)?;
    Ok(now.saturating_sub(SignedDuration::from_mins(minutes)).map_err(|_| usage())?.as_millisecond())
}

/// A call that a run proposed, and what it had used by then.
struct Proposal {
    plan: Arc<Plan>,
    call_id: String,
    at: i64,
    call: ProposedCall,
    spend: Spend,
}

#[derive(Deserialize)]
struct Line {
    record: Record,
}

/// Every proposal of a file that was verified.
fn read(bytes: &[u8]) -> Result<Vec<Proposal>, String> {
    let (mut state, mut plan, mut proposals) = (RunState::default(), None, Vec::new());
    for line in bytes.split(|byte| *byte == b'\n').skip(1) {
        let Ok(Line { record }) = serde_json::from_slice(line) else { continue }; // the last line holds no record
        if let Event::RunAccepted { plan: accepted, .. } = &record.event {
            plan = Some(Arc::new(accepted.as_ref().clone()));
        }
        if let (Event::CallProposed { call_id, call, .. }, Some(plan)) = (&record.event, &plan) {
            proposals.push(Proposal {
                plan: Arc::clone(plan),
                call_id: call_id.clone(),
                at: record.at,
                call: call.clone(),
                spend: Spend::of(&state),
            });
        }
        state.apply(&record).map_err(|error| error.to_string())?;
    }
    Ok(proposals)
}

/// Each call once: one that was asked about is proposed again after people decided, and a file may be given twice.
fn distinct(mut proposals: Vec<Proposal>) -> Vec<Proposal> {
    let mut seen = BTreeSet::new();
    proposals.retain(|it| seen.insert((it.plan.run.uid.clone(), it.call_id.clone(), it.call.digest)));
    proposals
}

/// A proposal that the policy would change.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    cells: Vec<String>,
    after: &'static str,
}

/// What is allowed by no list stays denied, whatever policies say.
fn change(proposal: &Proposal, policy: &Arc<Engine>) -> Option<Change> {
    let Proposal { plan, call, .. } = proposal;
    plan.tool(&call.tool).and_then(|tool| tool.operation(&call.operation))?;
    let facts = Facts::of(plan, call, proposal.spend);
    let scene = Scene::new(&facts);
    let mut voices = frozen_voices(plan, &call.tool);
    let before = combine(&voices.values().cloned().collect::<Vec<_>>(), &scene);
    voices.insert(policy.name().to_owned(), voice(plan, &call.tool, Arc::clone(policy)));
    let after = combine(&voices.into_values().collect::<Vec<_>>(), &scene);
    if terms(&before) == terms(&after) {
        return None;
    }
    let rule = after.opinions.iter().find(|opinion| opinion.policy == policy.name()).map(|opinion| {
        let rule = opinion.rule.clone().unwrap_or_else(|| "otherwise".to_owned());
        opinion.error.as_ref().map_or_else(|| rule.clone(), |error| format!("{rule} ({error})"))
    });
    let cells = vec![
        format!("{}/{}", plan.run.namespace, plan.run.name),
        proposal.call_id.clone(),
        format!("{}/{}", call.tool, call.operation),
        told(&before, &after),
        told(&after, &before),
        rule.unwrap_or_default(),
    ];
    Some(Change { cells, after: word(&after) })
}

/// The policies that judge calls of the tool, as the plan holds them.
fn frozen_voices(plan: &Plan, tool: &str) -> BTreeMap<String, Voice> {
    let frozen = |name| {
        let Some(policy) = plan.policy(name) else { return Voice::absent(name) };
        match Engine::compile(policy) {
            Ok(engine) => voice(plan, tool, Arc::new(engine)),
            Err(faults) => Voice::unusable(policy, faults.first().map_or_else(String::new, ToString::to_string)),
        }
    };
    plan.policies_of(tool).into_iter().map(|name| (name.to_owned(), frozen(name))).collect()
}

/// One that only the runs above name allows nothing.
fn voice(plan: &Plan, tool: &str, engine: Arc<Engine>) -> Voice {
    let above = plan.inherited_policies.iter().any(|name| name == engine.name());
    let own = plan.own_policies_of(tool).contains(engine.name());
    if above && !own { Voice::Above(engine) } else { Voice::Plan(engine) }
}

/// Equal terms mean that nothing changes for anybody: generations and digests are no terms.
fn terms(judged: &Judged) -> (&'static str, Vec<PolicyRequirement>) {
    let requirements = match &judged.judgement {
        Judgement::Ask { requirements } => requirements.as_slice(),
        Judgement::Allow | Judgement::Deny { .. } => &[],
    };
    let each = requirements.iter().map(|it| PolicyRequirement { generation: 0, ..it.clone() });
    (word(judged), each.collect())
}

/// The verdict; where both ask, of whom what, since that is what differs.
fn told(judged: &Judged, beside: &Judged) -> String {
    let (Judgement::Ask { requirements }, Judgement::Ask { .. }) = (&judged.judgement, &beside.judgement) else {
        return word(judged).to_owned();
    };
    let each = requirements.iter().map(|it| {
        let apart = if it.separation_of_duty { ", not the requester" } else { "" };
        let grants =
            it.grants.map_or_else(String::new, |most| format!(", grants {} in {} s", most.max_count, most.max_seconds));
        format!("{}({}, {} s{apart}{grants})", it.policy, it.quorum, it.expires_after_seconds)
    });
    format!("asked: {}", each.collect::<Vec<_>>().join(" "))
}

fn word(judged: &Judged) -> &'static str {
    match judged.judgement {
        Judgement::Allow => "allowed",
        Judgement::Ask { .. } => "asked",
        Judgement::Deny { .. } => "denied",
    }
}

fn print(changes: &[Change], proposals: usize, policy: &str) {
    if !changes.is_empty() {
        let header = ["RUN", "CALL", "OPERATION", "BEFORE", "AFTER", "RULE"];
        table::print(&header, changes.iter().map(|change| change.cells.clone()).collect());
        println!();
    }
    println!("{}", summary(changes, proposals, policy));
}

fn summary(changes: &[Change], proposals: usize, policy: &str) -> String {
    let count = |after: &str| changes.iter().filter(|change| change.after == after).count();
    format!(
        "{proposals} proposals: with {policy}, {} more or otherwise allowed, {} asked, {} denied; {} as before",
        count("allowed"),
        count("asked"),
        count("denied"),
        proposals - changes.len()
    )
}

#[cfg(test)]
mod tests;
