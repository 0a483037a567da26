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

/// Visits every field of every kind's spec and, where it has one, status, except inside metav1 conditions, which are not ours.
fn each_field(visit: &mut dyn FnMut(&str, &Value)) {
    for definition in definitions().unwrap() {
        let kind = definition["spec"]["names"]["kind"].as_str().unwrap().to_owned();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        for part in ["spec", "status"] {
            // A kind that nobody reports on has no status.
            if schema["properties"][part].is_object() {
                descend(&format!("{kind}.{part}"), &schema["properties"][part], visit);
            }
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
        ("ApprovalPolicy", "MODE RULES TESTS READY AGE"),
        ("Agent", "MODEL READY REASON AGE"),
        ("AgentRun", "AGENT PHASE REASON WAITING-ON STEPS TOKENS COST-USD AGE MODEL+ POD+ REQUESTED-BY+ PARENT+"),
        ("Approval", "RUN PURPOSE TOOL OPERATION NEEDS GIVEN EXPIRES AGE OUTCOME+"),
        ("ApprovalGrant", "RUN POLICY TOOL OPERATION LEFT EXPIRES OVER AGE"),
        ("ReadGrant", "RUN PURPOSE BY SECONDS AGE"),
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
    let expected =
        [r#""bm""#, r#""bcred""#, r#""bt""#, r#""apol""#, r#""bagent""#, r#""ar""#, r#""apv""#, r#""apg""#, r#""brg""#];
    assert_eq!(names, expected);
}

/// Admission asks for `use` place by place: a longer list in the schema would leave places unasked.
#[test]
fn admission_asks_about_every_place_of_an_agents_tools_and_a_models_fallbacks() {
    for (kind, list, named, file) in [
        ("Agent", "tools", "Tool", "admission/agent-tools.yaml"),
        ("Model", "fallbackRefs", "Model", "admission/references.yaml"),
    ] {
        let definition = definitions().unwrap().into_iter().find(|it| it["spec"]["names"]["kind"] == kind).unwrap();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let places = usize::try_from(schema["properties"][list]["maxItems"].as_u64().unwrap()).unwrap();
        let text = fs::read_to_string(manifests().join(file)).unwrap();
        for place in 0..places {
            let asked = format!(
                "- expression: variables.names.size() <= {place} || \
                 variables.ask.name(variables.names[{place}]).check('use').allowed()\n    \
                 messageExpression: \"'spec.{list}[{place}] names the {named} ' + variables.names[{place}]"
            );
            assert!(text.contains(&asked), "nothing asks about spec.{list}[{place}]");
        }
        assert_eq!(text.matches("variables.ask.name(").count(), places);
    }
}

/// A Tool has exactly one of its kinds: the rule looks for the Credential in each that may name one.
#[test]
fn admission_asks_about_the_credential_of_every_kind_of_tool() {
    let tool = definitions().unwrap().into_iter().find(|it| it["spec"]["names"]["kind"] == "Tool").unwrap();
    let spec = &tool["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    let naming = |field: &Value| field["properties"]["credentialRef"].is_object();
    let kinds: Vec<&String> =
        spec.as_object().unwrap().iter().filter(|(_, it)| naming(it)).map(|(name, _)| name).collect();
    assert_eq!(kinds, ["http", "mcp"]);
    let text = fs::read_to_string(manifests().join("admission/references.yaml")).unwrap();
    for kind in kinds {
        let asked = format!("has(object.spec.{kind}.credentialRef) ? object.spec.{kind}.credentialRef.name");
        assert!(text.contains(&asked), "nothing asks about spec.{kind}.credentialRef");
    }
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

/// One apply may add a decision for each policy that asks: a longer list would leave decisions whose verb nobody asks for.
#[test]
fn admission_asks_about_every_decision_that_is_added() {
    let approval = definitions().unwrap().into_iter().find(|it| it["spec"]["names"]["kind"] == "Approval").unwrap();
    let spec = &approval["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    let policies = spec["request"]["properties"]["requirements"]["maxItems"].as_u64().unwrap();
    let text = fs::read_to_string(manifests().join("admission/approvals.yaml")).unwrap();
    let places = text.matches(".check('approve')").count();
    assert!(
        policies <= u64::try_from(places).unwrap(),
        "{policies} policies may ask, {places} decisions are looked at"
    );
    assert!(text.contains(&format!("variables.added.size() <= {places}\"\n    message: \"at most {places} decisions")));
    for place in 0..places {
        let asked = format!("variables.added.size() <= {place} || variables.ask.name(variables.added[{place}].policy)");
        assert!(text.contains(&asked), "nothing asks about decision {place}");
    }
}

#[test]
fn no_role_that_is_shipped_reaches_admins_or_editors_or_grants_a_verb_that_decides() {
    let mut roles = 0;
    for file in ["operator/roles.yaml", "operator/rbac.yaml", "namespace/binding.yaml"] {
        let text = fs::read_to_string(manifests().join(file)).unwrap();
        for document in text.split("\n---\n") {
            let role: Value = serde_saphyr::from_str(document).unwrap();
            let labels = role["metadata"]["labels"].as_object().cloned().unwrap_or_default();
            for label in ["admin", "edit"] {
                assert!(!labels.contains_key(&format!("rbac.authorization.k8s.io/aggregate-to-{label}")), "{role}");
            }
            for rule in role["rules"].as_array().into_iter().flatten() {
                roles += 1;
                let words = rule.to_string();
                assert!(!words.contains("decide.belay.dev") && !words.contains('*'), "{words}");
                let viewed = labels.contains_key("rbac.authorization.k8s.io/aggregate-to-view");
                let reads = |verb: &Value| ["get", "list", "watch"].contains(&verb.as_str().unwrap());
                assert!(!viewed || rule["verbs"].as_array().unwrap().iter().all(reads), "{words}");
            }
        }
    }
    assert!(roles > 10, "{roles}");
}
