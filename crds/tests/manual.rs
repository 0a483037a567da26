//! Properties of every schema at once: documented as a manual, bounded as the API server wants it for CEL, and in
//! step with the files that depend on it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::path::{Path, PathBuf};

use belay_crds::definitions;
use serde_json::Value;

fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

/// Visits every field of every kind's spec and status, except inside metav1 conditions, which are not ours.
fn each_field(visit: &mut dyn FnMut(&str, &Value)) {
    for definition in definitions().unwrap() {
        let kind = definition["spec"]["names"]["kind"].as_str().unwrap().to_owned();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        for part in ["spec", "status"] {
            descend(&format!("{kind}.{part}"), &schema["properties"][part], visit);
        }
    }
}

fn descend(path: &str, schema: &Value, visit: &mut dyn FnMut(&str, &Value)) {
    visit(path, schema);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        if name == "conditions" {
            visit(&path, field);
        } else {
            descend(&path, field, visit);
        }
    }
    if schema["items"].is_object() && schema["items"]["type"] == "object" {
        for (name, field) in schema["items"]["properties"].as_object().into_iter().flatten() {
            descend(&format!("{path}[].{name}"), field, visit);
        }
    }
}

#[test]
fn every_field_is_documented() {
    let mut silent = Vec::new();
    each_field(&mut |path, field| {
        if field["description"].as_str().unwrap_or_default().len() < 10 {
            silent.push(path.to_owned());
        }
    });
    assert_eq!(silent, Vec::<String>::new());
}

#[test]
fn every_string_and_list_is_bounded() {
    let bounded = |field: &Value| match field["type"].as_str() {
        Some("string") => field["maxLength"].is_u64() || field["enum"].is_array() || field["format"] == "date-time",
        Some("array") => field["maxItems"].is_u64(),
        _ => true,
    };
    let mut boundless = Vec::new();
    each_field(&mut |path, field| {
        let items = if field["items"]["type"] == "string" { &field["items"] } else { &Value::Null };
        let extra = &field["additionalProperties"];
        if !bounded(field) || !bounded(items) || (extra.is_object() && !bounded(extra)) {
            boundless.push(path.to_owned());
        }
    });
    assert_eq!(boundless, Vec::<String>::new());
}

#[test]
fn every_number_of_a_spec_is_bounded_both_ways() {
    let mut boundless = Vec::new();
    each_field(&mut |path, field| {
        let number = field["type"] == "integer" || field["type"] == "number";
        if number && path.contains(".spec.") && !(field["minimum"].is_number() && field["maximum"].is_number()) {
            boundless.push(path.to_owned());
        }
    });
    assert_eq!(boundless, Vec::<String>::new());
}

#[test]
fn no_field_takes_null_and_no_reference_leaves_its_namespace() {
    let mut wrong = Vec::new();
    each_field(&mut |path, field| {
        if field.get("nullable").is_some() || (path.ends_with(".namespace") && path.contains(".spec.")) {
            wrong.push(path.to_owned());
        }
    });
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn the_columns_are_those_that_the_api_promises() {
    let expected = [
        ("Model", "API MODEL READY REASON AGE"),
        ("Credential", "SECRET HOSTS READY REASON AGE"),
        ("Tool", "URL OPERATIONS READY REASON AGE"),
        ("Agent", "MODEL READY REASON AGE"),
        ("AgentRun", "AGENT PHASE REASON WAITING-ON STEPS TOKENS COST-USD AGE MODEL+ POD+ REQUESTED-BY+"),
        ("Approval", "RUN PURPOSE TOOL OPERATION NEEDS GIVEN EXPIRES AGE"),
    ];
    let found: Vec<(String, String)> = definitions()
        .unwrap()
        .iter()
        .map(|definition| {
            let columns = definition["spec"]["versions"][0]["additionalPrinterColumns"].as_array().unwrap();
            let wide = |column: &Value| if column["priority"] == 1 { "+" } else { "" };
            let names = columns.iter().map(|it| format!("{}{}", it["name"].as_str().unwrap(), wide(it)));
            let kind = definition["spec"]["names"]["kind"].as_str().unwrap();
            (kind.to_owned(), names.collect::<Vec<_>>().join(" "))
        })
        .collect();
    assert_eq!(found, expected.map(|(kind, columns)| (kind.to_owned(), columns.to_owned())));
}

#[test]
fn short_names_and_the_category_are_ours() {
    let mut names: Vec<String> = Vec::new();
    for definition in definitions().unwrap() {
        assert_eq!(definition["spec"]["names"]["categories"], serde_json::json!(["belay"]));
        names.extend(definition["spec"]["names"]["shortNames"].as_array().unwrap().iter().map(Value::to_string));
    }
    assert_eq!(names, [r#""bm""#, r#""bcred""#, r#""bt""#, r#""bagent""#, r#""ar""#, r#""apv""#]);
}

/// Admission asks for `use` place by place: a longer list in the schema would leave places unasked.
#[test]
fn admission_asks_about_every_place_of_an_agents_tools() {
    let agent = definitions().unwrap().into_iter().find(|it| it["spec"]["names"]["kind"] == "Agent").unwrap();
    let schema = &agent["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let places = usize::try_from(schema["properties"]["tools"]["maxItems"].as_u64().unwrap()).unwrap();
    let text = fs::read_to_string(manifests().join("admission/agent-tools.yaml")).unwrap();
    for place in 0..places {
        let asked = format!(
            "- expression: variables.names.size() <= {place} || \
             variables.ask.name(variables.names[{place}]).check('use').allowed()\n    \
             messageExpression: \"'spec.tools[{place}] names the Tool ' + variables.names[{place}]"
        );
        assert!(text.contains(&asked), "nothing asks about spec.tools[{place}]");
    }
    assert_eq!(text.matches(".check('use')").count(), places);
}

/// The API server ends a policy at a cost of 10,000,000; asking the authorizer costs 350,000.
#[test]
fn no_admission_policy_asks_more_than_the_api_server_answers() {
    for entry in fs::read_dir(manifests().join("admission")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        for document in fs::read_to_string(&path).unwrap().split("\n---\n") {
            assert!(document.matches(".check('").count() <= 28, "{}", path.display());
            for expression in document.split("expression:") {
                assert!(expression.matches(".check('").count() <= 2, "{}: {expression}", path.display());
            }
        }
    }
}
