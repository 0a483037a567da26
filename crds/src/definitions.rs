//! The CRDs as they are applied: what the derives make of the types, made strict and plain.

use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use crate::{Agent, AgentRun, Approval, ApprovalGrant, ApprovalPolicy, Credential, Model, ReadGrant, Tool};

/// One definition a kind, in the order in which kinds name each other.
pub fn definitions() -> Result<Vec<Value>, serde_json::Error> {
    let crds = [
        Model::crd(),
        Credential::crd(),
        Tool::crd(),
        ApprovalPolicy::crd(),
        Agent::crd(),
        AgentRun::crd(),
        Approval::crd(),
        ApprovalGrant::crd(),
        ReadGrant::crd(),
    ];
    crds.iter()
        .map(|crd| {
            let mut definition = serde_json::to_value(crd)?;
            if let Some(Value::Object(metadata)) = definition.get_mut("metadata") {
                metadata.insert("labels".to_owned(), json!({"app.kubernetes.io/part-of": "belay"}));
            }
            hoist_description(&mut definition);
            tidy(&mut definition);
            Ok(definition)
        })
        .collect()
}

/// `kubectl explain KIND` opens with the spec's own words.
fn hoist_description(definition: &mut Value) {
    const SCHEMA: &str = "/spec/versions/0/schema/openAPIV3Schema";
    if let Some(words) = definition.pointer(&format!("{SCHEMA}/properties/spec/description")).cloned()
        && let Some(top) = definition.pointer_mut(&format!("{SCHEMA}/description"))
    {
        *top = words;
    }
}

fn tidy(value: &mut Value) {
    match value {
        Value::Object(object) => {
            tidy_object(object);
            object.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn tidy_object(object: &mut Map<String, Value>) {
    // An absent field is left out, never null: `has()` is true of a null, so every rule would have to ask twice.
    object.remove("nullable");
    for bound in ["minimum", "maximum"] {
        if let Some(number) = object.get_mut(bound) {
            // The Rust type of a bound is a float; 600 reads better than 600.0.
            #[allow(clippy::cast_possible_truncation)] // whole and below 2^53, so exact
            if let Some(float) = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < 9e15) {
                *number = json!(float as i64);
            }
        }
    }
}
