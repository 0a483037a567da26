//! Runs whose tools' servers offer an operation otherwise than it was accepted: what their Tools say of it by now. Pure.

use std::sync::Arc;

use belay_crds::{Change, Tool, ToolStatus};
use belay_protocol::Digest;
use belay_protocol::event::AcceptedDefinition;
use belay_protocol::fold::RunState;
use belay_protocol::plan::PlanTool;
use kube::ResourceExt;

use crate::tool::drift::why_left_out;

/// Where a run stands with definitions that it waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DriftSeen {
    /// It waits for none.
    #[default]
    None,
    /// The server was not asked since the run was.
    Unseen { tool: String },
    /// For people, or for the server.
    Waits { tool: String, why: String },
    /// By now something else is accepted than what the run was planned with.
    Accepted { tool: String, operations: Vec<AcceptedDefinition>, approval: Option<String> },
    /// The server offered since what is accepted: the next epoch lists again.
    Back { tool: String },
}

/// The first tool that the run still waits for; where there is none, the first that it need not wait for any more.
pub fn look(state: &RunState, tool_of: impl Fn(&str) -> Option<Arc<Tool>>) -> DriftSeen {
    let seen: Vec<DriftSeen> = state.drifted().map(|planned| compare(state, planned, tool_of(&planned.name))).collect();
    let waits = |one: &&DriftSeen| matches!(one, DriftSeen::Waits { .. } | DriftSeen::Unseen { .. });
    let accepted = |one: &&DriftSeen| matches!(one, DriftSeen::Accepted { .. });
    let first = seen.iter().find(waits).or_else(|| seen.iter().find(accepted)).or(seen.first());
    first.cloned().unwrap_or_default()
}

fn compare(state: &RunState, planned: &PlanTool, tool: Option<Arc<Tool>>) -> DriftSeen {
    let name = planned.name.clone();
    let Some(tool) = tool.filter(|tool| tool.uid().as_deref() == Some(&planned.uid)) else {
        let why = format!(
            "Tool {name} was deleted or made anew, so that nobody can accept for this run what its server offers: cancel the \
             run"
        );
        return DriftSeen::Waits { tool: name, why };
    };
    if !is_same_server(planned, &tool) {
        let why = format!(
            "Tool {name}: spec.{} names another server now, so that nobody can accept for this run what the one at {} \
             offers: cancel the run",
            tool.spec.kind(),
            planned.url
        );
        return DriftSeen::Waits { tool: name, why };
    }
    let differs = state.differs.get(&name).map_or(&[][..], Vec::as_slice);
    let status = tool.status.as_ref();
    let accepted = |operation: &str| accepted(status, operation);
    if differs.iter().all(|operation| accepted(operation) == state.offered(&name, operation)) {
        return adopt(&tool, differs);
    }
    if let Some(why) = held(&tool, differs) {
        return DriftSeen::Waits { tool: name, why };
    }
    if is_behind(state, planned, &tool) {
        return DriftSeen::Unseen { tool: name };
    }
    let as_planned =
        |operation: &String| accepted(operation) == planned.operation(operation).map(|planned| planned.definition);
    if differs.iter().all(as_planned) { DriftSeen::Back { tool: name } } else { adopt(&tool, differs) }
}

/// Whether the Tool was last asked before the run was.
pub fn is_behind(state: &RunState, planned: &PlanTool, tool: &Tool) -> bool {
    let probed_at = tool.status.as_ref().and_then(|status| status.probed_at.as_ref());
    tool.uid().as_deref() == Some(&planned.uid) && probed_at.map(|at| at.0.as_millisecond()) <= state.listed_at
}

/// Only what people said yes to. What a probe accepted of itself, since the spec was changed in between, may be the very
/// offer that they refused before.
fn adopt(accepting: &Tool, differs: &[String]) -> DriftSeen {
    let (tool, status) = (accepting.name_any(), accepting.status.as_ref());
    let Some(acceptance) = status.and_then(|status| status.acceptance.as_ref()) else {
        let why = format!(
            "Tool {tool}: spec.{} was changed meanwhile, and what its server offers was accepted anew without asking \
             people: cancel the run",
            accepting.spec.kind()
        );
        return DriftSeen::Waits { tool, why };
    };
    let one = |name: &String| AcceptedDefinition { name: name.clone(), definition: accepted(status, name) };
    let approval = Some(acceptance.approval.clone());
    DriftSeen::Accepted { tool, operations: differs.iter().map(one).collect(), approval }
}

/// The accepted definition. None: the operation is not accepted at all.
fn accepted(status: Option<&ToolStatus>, operation: &str) -> Option<Digest> {
    let operation = status?.operations.iter().find(|one| one.name == operation)?;
    operation.digest.parse().ok()
}

/// Whether the Tool speaks of the server that the run was planned with.
fn is_same_server(planned: &PlanTool, tool: &Tool) -> bool {
    let status = tool.status.as_ref();
    let mcp = status.and_then(|status| status.accepted_from.as_ref()).or(tool.spec.mcp.as_ref());
    let mcp = mcp.map(|mcp| (&mcp.url, &mcp.credential_ref));
    let http = status.and_then(|status| status.accepted_from_http.as_ref());
    let http = http.map(|http| (&http.base_url, &http.credential_ref));
    let http = http.or(tool.spec.http.as_ref().map(|http| (&http.base_url, &http.credential_ref)));
    let from = if planned.http.is_some() { http } else { mcp };
    from.is_some_and(|(url, credential)| {
        *url == planned.url && credential.as_ref().map(|reference| &reference.name) == planned.credential.as_ref()
    })
}

/// Why the run waits, if the Tool knows of the drift.
fn held(tool: &Tool, differs: &[String]) -> Option<String> {
    let (name, drift) = (tool.name_any(), tool.status.as_ref()?.drift.as_ref()?);
    let held = drift.operations.iter().find(|one| one.change != Change::Added && differs.contains(&one.name));
    let operation = match (held, drift.more) {
        (Some(held), _) => belay_crds::visible(&held.name),
        (None, Some(_)) => "an operation".to_owned(), // its turn comes after those that are asked about now
        (None, None) => return None,
    };
    let why = held.and_then(|held| why_left_out(tool, &held.name));
    let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
    Some(match &drift.refused {
        Some(no) => format!(
            "{} does not accept how Tool {name} defines {operation} now: the run goes on once the server offers again what was \
             accepted, or people accept; people are asked again when the Tool's spec changes",
            no.by
        ),
        None => format!(
            "Tool {name} does not offer {operation} as it was accepted{why}: belay tool accept {name} shows what differs and \
             accepts it"
        ),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use belay_crds::{Acceptance, DriftRefusal, DriftedOperation, LeftOutOperation, Mcp, ToolDrift};
    use belay_protocol::event::{Event, ListedOperation, Listing};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
    use rstest::rstest;

    use super::*;
    use crate::fixtures::{claimed, opened, state, tool};

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    /// Run `nightly`, planned with `list_issues` as it was accepted, whose runner was offered this.
    fn run(offered: &[(&str, &str)]) -> RunState {
        let one = |(name, definition): &(&str, &str)| ListedOperation {
            name: (*name).to_owned(),
            definition: digest(definition),
        };
        let listing = Listing::Listed(offered.iter().map(one).collect());
        state(vec![opened(), claimed(), Event::ToolsListed { tool: "github".into(), listing }])
    }

    /// The Tool with this accepted definition, if any, and with this change held; probed after the run, or before it.
    fn seen_by_tool(accepted: Option<&str>, held: Option<Change>, probed_after: bool) -> Tool {
        let mut github = tool("github", &["list_issues"]);
        let status = github.status.as_mut().unwrap();
        match accepted {
            Some(definition) => status.operations[0].digest = digest(definition).to_string(),
            None => status.operations.clear(),
        }
        let listed_at = run(&[]).listed_at.unwrap();
        let at = listed_at + i64::from(probed_after);
        status.probed_at = Some(MicroTime(jiff::Timestamp::from_millisecond(at).unwrap()));
        let operation = |change| DriftedOperation {
            name: "list_issues".into(),
            change,
            digest: None,
            description: String::new(),
            input_schema: None,
            diff: String::new(),
        };
        let at = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH);
        status.acceptance = Some(Acceptance { approval: "github-drift".into(), by: vec!["ada".into()], at });
        status.drift = held.map(|change| ToolDrift { operations: vec![operation(change)], ..ToolDrift::default() });
        github
    }

    const OLD: &str = "list_issues";
    const NEW: &[(&str, &str)] = &[("list_issues", "new")];

    fn adopted(definition: Option<&str>) -> DriftSeen {
        let definition = definition.map(digest);
        let operations = vec![AcceptedDefinition { name: "list_issues".into(), definition }];
        DriftSeen::Accepted { tool: "github".into(), operations, approval: Some("github-drift".into()) }
    }

    fn look_at(state: &RunState, tool: Tool) -> DriftSeen {
        let tool = Arc::new(tool);
        look(state, |name| (name == "github").then(|| Arc::clone(&tool)))
    }

    #[rstest]
    #[case::as_planned(&[("list_issues", OLD)], Some(OLD), None, true, DriftSeen::None)]
    #[case::not_probed_since(NEW, Some(OLD), None, false, DriftSeen::Unseen { tool: "github".into() })]
    #[case::accepted_what_the_run_saw(NEW, Some("new"), None, false, adopted(Some("new")))]
    #[case::the_server_is_back(NEW, Some(OLD), None, true, DriftSeen::Back { tool: "github".into() })]
    #[case::something_else_was_accepted(NEW, Some("third"), None, true, adopted(Some("third")))]
    #[case::its_end_was_accepted(&[], None, None, false, adopted(None))]
    fn what_ends_a_wait_for_a_definition(
        #[case] offered: &[(&str, &str)],
        #[case] accepted: Option<&str>,
        #[case] held: Option<Change>,
        #[case] probed_after: bool,
        #[case] expected: DriftSeen,
    ) {
        assert_eq!(look_at(&run(offered), seen_by_tool(accepted, held, probed_after)), expected);
    }

    fn why(tool: Tool) -> String {
        match look_at(&run(NEW), tool) {
            DriftSeen::Waits { tool, why } => {
                assert_eq!(tool, "github");
                why
            }
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn what_is_held_is_waited_for_and_says_what_to_do() {
        for (change, probed_after) in [(Change::Changed, true), (Change::Changed, false), (Change::Removed, true)] {
            let words = why(seen_by_tool(Some(OLD), Some(change), probed_after));
            assert!(words.contains("belay tool accept github"), "{words}");
        }
        let mut leaky = seen_by_tool(Some(OLD), Some(Change::Removed), true);
        let reason = "its definition holds a value of Credential key".to_owned();
        leaky.status.as_mut().unwrap().left_out = vec![LeftOutOperation { name: "list_issues".into(), reason }];
        assert_eq!(
            why(leaky),
            "Tool github does not offer list_issues as it was accepted (its definition holds a value of Credential key): belay \
             tool accept github shows what differs and accepts it"
        );
        let mut refused = seen_by_tool(Some(OLD), Some(Change::Changed), true);
        let drift = refused.status.as_mut().unwrap().drift.as_mut().unwrap();
        drift.refused =
            Some(DriftRefusal { by: "ada".into(), reason: String::new(), approval: "a".into(), generation: 1 });
        assert!(why(refused).starts_with("ada does not accept how Tool github defines list_issues now"));
        let mut many = seen_by_tool(Some(OLD), Some(Change::Added), true);
        assert_eq!(look_at(&run(NEW), many.clone()), DriftSeen::Back { tool: "github".into() }, "others were added");
        many.status.as_mut().unwrap().drift.as_mut().unwrap().more = Some(3);
        assert!(why(many).contains("does not offer an operation"));
    }

    /// A server that is set, taken away and set again is accepted anew by a probe, also what people refused before.
    #[test]
    fn what_no_person_accepted_is_not_what_a_run_goes_by() {
        for accepted in ["new", "third"] {
            let mut put_back = seen_by_tool(Some(accepted), None, true);
            put_back.status.as_mut().unwrap().acceptance = None;
            assert!(why(put_back).contains("accepted anew without asking people"));
        }
    }

    #[test]
    fn a_tool_that_speaks_of_another_server_can_accept_nothing_for_the_run() {
        let mut anew = seen_by_tool(Some("new"), None, true);
        anew.metadata.uid = Some("another".into());
        assert!(why(anew).contains("was deleted or made anew"));
        let mut elsewhere = seen_by_tool(Some("new"), None, true);
        let mcp = Mcp { url: "http://elsewhere/mcp".into(), credential_ref: None, tls: None };
        elsewhere.status.as_mut().unwrap().accepted_from = Some(mcp);
        assert!(why(elsewhere).contains("names another server now"));
        assert!(matches!(look(&run(NEW), |_| None), DriftSeen::Waits { .. }));
    }

    #[test]
    fn a_tool_is_behind_until_it_was_probed_after_the_run_listed() {
        let (state, plan) = (run(NEW), crate::fixtures::plan());
        let behind = |tool: &Tool| is_behind(&state, &plan.tools[0], tool);
        assert!(behind(&seen_by_tool(Some(OLD), None, false)) && !behind(&seen_by_tool(Some(OLD), None, true)));
        assert!(behind(&tool("github", &[])), "one that was never probed");
    }
}
