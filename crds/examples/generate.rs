//! Writes the CRDs as YAML into the folder named first, one file a kind; with `--check` only compares.

use std::path::Path;
use std::process::ExitCode;

use belay_crds::{Agent, AgentRun, Credential, Model, Tool};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

const HEADER: &str = "# Generated from crds/src by `make generate`: edit there.\n";

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("usage: generate FOLDER [--check]")?;
    let check = arguments.next().as_deref() == Some("--check");
    let mut drifted = false;
    for crd in [Model::crd(), Credential::crd(), Tool::crd(), Agent::crd(), AgentRun::crd()] {
        let file = Path::new(&folder).join(format!("{}.yaml", crd.spec.names.plural));
        let text = render(&crd)?;
        if !check {
            std::fs::write(&file, text)?;
        } else if std::fs::read_to_string(&file).unwrap_or_default() != text {
            eprintln!("{} is not what crds/src says: run `make generate`", file.display());
            drifted = true;
        }
    }
    Ok(if drifted { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn render(crd: &CustomResourceDefinition) -> Result<String, Box<dyn std::error::Error>> {
    // Through a value: maps come out sorted, so that a diff shows what changed and nothing else.
    let mut value = serde_json::to_value(crd)?;
    if let Some(metadata) = value.get_mut("metadata").and_then(|m| m.as_object_mut()) {
        metadata.insert("labels".into(), serde_json::json!({"app.kubernetes.io/part-of": "belay"}));
    }
    // `kubectl explain KIND` opens with the spec's own words.
    let schema = "/spec/versions/0/schema/openAPIV3Schema";
    if let Some(words) = value.pointer(&format!("{schema}/properties/spec/description")).cloned()
        && let Some(top) = value.pointer_mut(&format!("{schema}/description"))
    {
        *top = words;
    }
    Ok(format!("{HEADER}{}", serde_saphyr::to_string(&value)?))
}
