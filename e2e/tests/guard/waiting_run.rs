//! A run that waits for people before there is any operator: its journal, written by hand up to the verdict that asks.
//! Where no node is, no runner ever comes; what is answered to a question shows all the same.

use std::path::Path;

use belay_e2e::Kubectl;
use belay_e2e::stage::accepted;
use belay_operator::journal::Journal;
use belay_protocol::call::CallBinding;
use belay_protocol::plan::ObjectId;
use belay_protocol::{Digest, Event, Plan};
use serde_json::{Value, json};

pub const RUN: &str = "r";
pub const ASKS: &str = "careful";

/// Creates the AgentRun, and journals what its runner did until people are to be asked about a call. The runner is gone.
pub fn wait_for_people(here: &Kubectl, namespace: &str, data: &Path) {
    let run = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "AgentRun", "metadata": {"name": RUN},
        "spec": {"agentRef": {"name": "a"}, "input": "go"},
    });
    accepted(|| here.output(&["create", "-f", "-"], Some(&run.to_string())).unwrap());
    let uid = here.get("agentrun", RUN).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    let id = ObjectId { namespace: namespace.into(), name: RUN.into(), uid };
    let events = events(&plan(&id));
    let journaled = async {
        let journal = Journal::open(&data.join("journal.sqlite")).await.unwrap();
        journal.append(&id, 0, events).await.unwrap();
        journal.close().await;
    };
    tokio::runtime::Runtime::new().unwrap().block_on(journaled);
}

/// What the journal says by now that became of the questions.
pub fn answers(namespace: &str, data: &Path) -> Vec<Value> {
    let export = belay_operator::journal::export(&data.join("journal.sqlite"), &format!("{namespace}/{RUN}")).unwrap();
    let events = belay_e2e::chaos::effects::events(&String::from_utf8(export).unwrap()).unwrap();
    events.into_iter().filter(|event| event["kind"] == "AskSettled").map(|event| event["answer"].clone()).collect()
}

fn plan(run: &ObjectId) -> Plan {
    let object = |name: &str| json!({"namespace": run.namespace, "name": name, "uid": format!("{name}-uid")});
    let timeouts = json!({"connectSeconds": 1, "firstByteSeconds": 1, "idleSeconds": 1, "totalSeconds": 1});
    let plan = json!({
        "version": belay_protocol::plan::PLAN_VERSION, "run": run, "agent": object("a"), "agentGeneration": 1,
        "requestedBy": "eve", "input": "go",
        "model": {"name": "m", "api": "Scripted", "model": "m", "timeouts": timeouts},
        "tools": [{"name": "github", "uid": "github-uid", "url": "http://github/mcp", "callTimeoutSeconds": 5,
            "operations": [{"name": "delete_repo", "modelName": "github__delete_repo", "definition": Digest::of(b"d")}]}],
        "policies": [{"name": ASKS, "uid": "careful-uid", "generation": 1, "mode": "Enforce", "otherwise": "Ask"}],
        "agentPolicies": [ASKS],
        "limits": {"steps": 5, "activeSeconds": 600, "waitSeconds": 600_000},
    });
    serde_json::from_value(plan).unwrap()
}

fn events(plan: &Plan) -> Vec<Event> {
    let (definition, args) = (Digest::of(b"d"), json!({"name": "prod"}));
    let binding = CallBinding::new(plan, plan.tool("github").unwrap(), definition, "delete_repo", &args);
    let call = json!({"tool": "github", "operation": "delete_repo", "args": args, "definition": definition,
        "digest": binding.digest().unwrap()});
    let asked = json!({"asked": {"requirements": [{"policy": ASKS, "generation": 1, "quorum": 2,
        "separationOfDuty": true, "expiresAfterSeconds": 86_400}]}});
    let wanted = json!({"kind": "ToolCall", "callId": "c1", "providerId": "p", "name": "github__delete_repo",
        "arguments": "{\"name\":\"prod\"}"});
    let events = [
        json!({"kind": "RunAccepted", "planDigest": plan.digest().unwrap(), "plan": plan}),
        json!({"kind": "EpochOpened", "epoch": 1, "podName": "belay-run-a"}),
        json!({"kind": "InstanceClaimed", "epoch": 1, "instance": "i", "podUid": "u"}),
        json!({"kind": "ToolsListed", "tool": "github",
            "listing": {"listed": [{"name": "delete_repo", "definition": definition}]}}),
        json!({"kind": "ModelRequested", "step": 1, "attempt": 1, "request": Digest::of(b"r"), "reservedTokens": 0}),
        json!({"kind": "ModelResponded", "step": 1, "attempt": 1,
            "response": {"items": [wanted], "finish": "ToolCalls", "milliseconds": 1}}),
        json!({"kind": "CallProposed", "callId": "c1", "attempt": 1, "call": call}),
        json!({"kind": "CallDecided", "callId": "c1", "attempt": 1, "verdict": asked}),
        json!({"kind": "EpochEnded", "epoch": 1, "cause": "Released", "activeMilliseconds": 1}),
        json!({"kind": "EpochDead", "epoch": 1, "proof": "Reported"}),
    ];
    events.into_iter().map(|event| serde_json::from_value(event).unwrap()).collect()
}
