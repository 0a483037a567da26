//! Plays the people: answers each Approval, and says of an Unknown what truly happened.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::api::{Api, Key};
use super::tool::{Outside, told};
use super::world::Journaled;

/// When she answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At once, but about one call after the other: so that a run comes the same way each time.
    InTurn,
    /// Once the run waits without a pod.
    Later,
}

pub struct Person {
    pub when: When,
    pub api: Arc<Api>,
    pub outside: Arc<Outside>,
    /// The run's journal, in which she sees how far it has come.
    pub run: Journaled,
}

impl Person {
    /// Answers for good.
    pub async fn work(self) {
        let mut newest = self.api.newest.subscribe();
        loop {
            newest.borrow_and_update();
            let mut held = false;
            for approval in self.api.list("approvals", None).1 {
                let open = approval["spec"]["decisions"].as_array().is_none_or(Vec::is_empty)
                    && approval["status"]["sealed"] != json!(true);
                if open && self.is_time(&approval) {
                    decide(&self.api, &self.outside, &approval);
                } else {
                    held |= open;
                }
            }
            // Of what holds her up the API server tells nothing.
            let pause = if held { Duration::from_millis(20) } else { Duration::from_hours(1) };
            let _ = timeout(pause, newest.changed()).await;
        }
    }

    fn is_time(&self, approval: &Value) -> bool {
        match self.when {
            When::Later => self.api.list("pods", None).1.is_empty(),
            When::InTurn if approval["spec"]["request"]["purpose"] != "Call" => true,
            When::InTurn => {
                let number =
                    approval["spec"]["request"]["callId"].as_str().and_then(|id| id[1..].parse::<usize>().ok());
                let observed = |event: &&Value| event["kind"] == "CallObserved";
                let events = self.run.events().unwrap_or_default();
                events.iter().filter(observed).count() + 1 >= number.unwrap()
            }
        }
    }
}

fn decide(api: &Api, outside: &Outside, approval: &Value) {
    let request = &approval["spec"]["request"];
    let answer = match request["purpose"].as_str() {
        Some("Unknown") => Some(truth(outside, request)),
        Some("Question") => Some(json!({"input": {"content": "{\"many\": 3}"}})),
        _ => None, // a yes to a call carries none
    };
    let decisions: Vec<Value> = request["requirements"]
        .as_array()
        .unwrap()
        .iter()
        .map(|requirement| {
            let mut decision = json!({
                "policy": requirement["policy"], "by": "ada", "digest": request["digest"], "verdict": "Allow",
            });
            if let Some(answer) = &answer {
                decision["answer"] = answer.clone();
            }
            decision
        })
        .collect();
    let text = |at: &str| approval.pointer(at).and_then(Value::as_str).unwrap_or_default();
    let key = Key::new("approvals", text("/metadata/namespace"), text("/metadata/name"));
    api.modify(&key, |object| object["spec"]["decisions"] = json!(decisions));
}

/// She looks at the server: a call that is asked about arrived once or never.
fn truth(outside: &Outside, request: &Value) -> Value {
    let operation = request["operation"].as_str().unwrap();
    let arguments: Value = serde_json::from_str(request["arguments"].as_str().unwrap()).unwrap();
    let id = arguments["id"].as_str().unwrap();
    let arrived = outside.calls().iter().any(|call| call.name == operation && call.id.as_deref() == Some(id));
    if arrived { json!({"happened": {"result": told(operation, id)}}) } else { json!({"retry": {}}) }
}
