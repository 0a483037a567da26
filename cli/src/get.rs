//! `belay get`: runs as a table, or one run with everything that its status says.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use belay_crds::{AgentRun, Phase};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Api, ListParams};

use crate::exit::CliError;
use crate::{Target, exit, table};

pub async fn fetch(target: &Target, name: &str) -> Result<AgentRun, CliError> {
    let runs: Api<AgentRun> = Api::namespaced(target.client.clone(), &target.namespace);
    runs.get_opt(name).await.map_err(|e| CliError::api(format!("reading AgentRun {name}"), e))?.ok_or_else(|| {
        CliError::NotFound { kind: "AgentRun", name: name.to_owned(), namespace: target.namespace.clone() }
    })
}

pub async fn list(target: &Target) -> Result<ExitCode, CliError> {
    let runs: Api<AgentRun> = Api::namespaced(target.client.clone(), &target.namespace);
    let list = runs.list(&ListParams::default()).await.map_err(|e| CliError::api("listing AgentRuns", e))?;
    if list.items.is_empty() {
        println!("no AgentRuns in namespace {}", target.namespace);
        return Ok(ExitCode::SUCCESS);
    }
    let rows = tree(&list.items).into_iter().map(|Placed { run, depth }| indented(row(run), depth)).collect();
    table::print(&["NAME", "AGENT", "PHASE", "REASON", "WAITING-ON", "STEPS", "TOKENS", "COST-USD"], rows);
    Ok(ExitCode::SUCCESS)
}

/// A run and how many runs above it are listed.
struct Placed<'a> {
    run: &'a AgentRun,
    depth: usize,
}

/// Each run followed by those that carry out its calls. One whose parent is not there stands by itself.
fn tree(runs: &[AgentRun]) -> Vec<Placed<'_>> {
    let uid = |run: &AgentRun| run.metadata.uid.clone().unwrap_or_default();
    let uids: BTreeSet<String> = runs.iter().map(uid).collect();
    let parent = |run: &AgentRun| run.spec.parent.as_ref().map(|it| it.uid.clone()).filter(|uid| uids.contains(uid));
    let mut below: BTreeMap<Option<String>, Vec<&AgentRun>> = BTreeMap::new();
    for run in runs {
        below.entry(parent(run)).or_default().push(run);
    }
    let roots = below.remove(&None).unwrap_or_default();
    let mut due: Vec<Placed<'_>> = roots.into_iter().rev().map(|run| Placed { run, depth: 0 }).collect();
    let mut placed = Vec::with_capacity(runs.len());
    while let Some(next) = due.pop() {
        let children = below.remove(&Some(uid(next.run))).unwrap_or_default();
        due.extend(children.into_iter().rev().map(|run| Placed { run, depth: next.depth + 1 }));
        placed.push(next);
    }
    placed
}

fn indented(mut row: Vec<String>, depth: usize) -> Vec<String> {
    if let Some(name) = row.first_mut() {
        *name = format!("{}{name}", "  ".repeat(depth));
    }
    row
}

pub async fn one(target: &Target, name: &str) -> Result<ExitCode, CliError> {
    let run = fetch(target, name).await?;
    print_end(&run);
    Ok(if is_ended(&run) { exit::of_phase(phase(&run)) } else { ExitCode::SUCCESS })
}

/// What a person wants to know of a run: how it stands, why, what it used and what came out.
pub fn print_end(run: &AgentRun) {
    table::print(&["NAME", "AGENT", "PHASE", "REASON", "WAITING-ON", "STEPS", "TOKENS", "COST-USD"], vec![row(run)]);
    if let Some(message) = ready(run).map(|condition| condition.message.as_str()).filter(|m| !m.is_empty()) {
        println!("\n{message}");
    }
    let Some(status) = &run.status else { return };
    if let Some(output) = &status.output {
        let cut = if status.output_truncated.unwrap_or(false) { " (cut; the journal holds all of it)" } else { "" };
        println!("\noutput{cut}:\n{output}");
    }
}

pub fn phase(run: &AgentRun) -> Phase {
    run.status.as_ref().and_then(|status| status.phase).unwrap_or(Phase::Pending)
}

pub fn is_ended(run: &AgentRun) -> bool {
    match phase(run) {
        Phase::Succeeded | Phase::Failed | Phase::Cancelled => true,
        Phase::Pending | Phase::Running | Phase::Waiting => false,
    }
}

pub fn pod_name(run: &AgentRun) -> Option<String> {
    Some(run.status.as_ref()?.pod_ref.as_ref()?.name.clone())
}

/// One line: the run, its phase, and what it waits for.
pub fn standing(run: &AgentRun) -> String {
    let name = run.metadata.name.as_deref().unwrap_or_default();
    let reason = ready(run).map(|condition| condition.reason.clone()).unwrap_or_default();
    match waiting_on(run) {
        waiting if waiting.is_empty() => format!("{name}  {:?}", phase(run)),
        waiting => format!("{name}  {:?}  {reason}, waiting on {waiting}", phase(run)),
    }
}

fn ready(run: &AgentRun) -> Option<&Condition> {
    run.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == "Ready")
}

fn waiting_on(run: &AgentRun) -> String {
    let waiting = run.status.as_ref().and_then(|status| status.waiting_on.as_ref());
    waiting.map(|w| w.display.clone()).unwrap_or_default()
}

fn row(run: &AgentRun) -> Vec<String> {
    let usage = run.status.as_ref().and_then(|status| status.usage.as_ref());
    vec![
        run.metadata.name.clone().unwrap_or_default(),
        run.spec.agent_ref.name.clone(),
        format!("{:?}", phase(run)),
        ready(run).map(|condition| condition.reason.clone()).unwrap_or_default(),
        waiting_on(run),
        usage.map(|u| u.steps.to_string()).unwrap_or_default(),
        usage.and_then(|u| u.total_tokens).map(|t| t.to_string()).unwrap_or_default(),
        usage.and_then(|u| u.cost_usd).map(|c| c.to_string()).unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use belay_crds::{AgentRunSpec, ParentRun};

    use super::*;

    fn run(name: &str, parent: Option<&str>) -> AgentRun {
        let mut run = AgentRun::new(name, AgentRunSpec::default());
        run.metadata.uid = Some(format!("uid-{name}"));
        let above =
            |parent: &str| ParentRun { name: parent.into(), uid: format!("uid-{parent}"), call_id: "c1".into() };
        run.spec.parent = parent.map(above);
        run
    }

    #[test]
    fn runs_are_listed_below_those_whose_calls_they_carry_out() {
        let runs = [
            run("a-c1-x", Some("a")),
            run("z", None),
            run("a-c1-x-c2-y", Some("a-c1-x")),
            run("a", None),
            run("left", Some("gone")),
        ];
        let listed: Vec<String> = tree(&runs)
            .into_iter()
            .map(|it| indented(vec![it.run.metadata.name.clone().unwrap_or_default()], it.depth).concat())
            .collect();
        assert_eq!(listed, ["z", "a", "  a-c1-x", "    a-c1-x-c2-y", "left"]);
    }
}
