//! The schema of a kind, asked without an API server: unknown fields, bounds, and the few rules in CEL that
//! ApprovalPolicy has.

use std::collections::BTreeSet;

use belay_crds::definitions;
use belay_protocol::judgement::DEFAULT_POLICY;
use regex::Regex;
use serde_json::Value;

/// Everything in `document` that the API server would refuse, in words that name the field. Empty for a kind of others.
pub fn complaints(kind: &str, document: &Value) -> Vec<String> {
    let Ok(definitions) = definitions() else { return vec!["this build holds no schema".to_owned()] };
    let definition = definitions.iter().find(|it| it.pointer("/spec/names/kind").and_then(Value::as_str) == Some(kind));
    let schema = definition.and_then(|it| it.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec"));
    let (Some(schema), Some(spec)) = (schema, document.get("spec")) else {
        return vec!["spec: it is missing".to_owned()];
    };
    let mut found = Vec::new();
    look("spec", schema, spec, &mut found);
    if kind == "ApprovalPolicy" {
        rules_in_cel(document, &mut found);
    }
    found
}

fn look(path: &str, schema: &Value, value: &Value, found: &mut Vec<String>) {
    let allowed = schema.get("enum").and_then(Value::as_array);
    if let Some(allowed) = allowed.filter(|allowed| !allowed.contains(value)) {
        let words: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
        found.push(format!("{path}: {} is none of {}", shown(value), words.join(", ")));
        return;
    }
    match (schema.get("type").and_then(Value::as_str), value) {
        (Some("object"), Value::Object(_)) => look_into_object(path, schema, value, found),
        (Some("array"), Value::Array(items)) => {
            bound(path, schema, ["minItems", "maxItems"], items.len(), "entries", found);
            let Some(schema) = schema.get("items") else { return };
            for (index, item) in items.iter().enumerate() {
                look(&format!("{path}[{index}]"), schema, item, found);
            }
        }
        (Some("string"), Value::String(text)) => {
            bound(path, schema, ["minLength", "maxLength"], text.chars().count(), "characters", found);
            let pattern = schema.get("pattern").and_then(Value::as_str);
            let fits = |pattern: &str| Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(text));
            if let Some(pattern) = pattern.filter(|pattern| !fits(pattern)) {
                found.push(format!("{path}: '{text}' is not like {pattern}"));
            }
        }
        (Some("integer"), Value::Number(number)) if number.is_i64() || number.is_u64() => {
            range(path, schema, value, found);
        }
        (Some("number"), Value::Number(_)) => range(path, schema, value, found),
        (Some("boolean"), Value::Bool(_)) | (None, _) => {}
        (Some(wanted), other) => found.push(format!("{path}: {} is not a {wanted}", shown(other))),
    }
}

fn look_into_object(path: &str, schema: &Value, value: &Value, found: &mut Vec<String>) {
    let keeps_all = schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
    let known = schema.get("properties");
    let extra = schema.get("additionalProperties").filter(|extra| extra.is_object());
    for (name, field) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        match known.and_then(|known| known.get(name)).or(extra) {
            Some(schema) => look(&path, schema, field, found),
            None if keeps_all => {}
            None => found.push(format!("{path}: there is no such field")),
        }
    }
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    found.extend(required.filter(|name| value.get(name).is_none()).map(|name| format!("{path}.{name}: it is missing")));
}

fn bound(path: &str, schema: &Value, keys: [&str; 2], length: usize, what: &str, found: &mut Vec<String>) {
    let [least, most] = keys.map(|key| schema.get(key).and_then(Value::as_u64));
    let length = u64::try_from(length).unwrap_or(u64::MAX);
    if let Some(least) = least.filter(|least| length < *least) {
        found.push(format!("{path}: {length} {what} are less than {least}"));
    }
    if let Some(most) = most.filter(|most| length > *most) {
        found.push(format!("{path}: {length} {what} are more than {most}"));
    }
}

fn range(path: &str, schema: &Value, value: &Value, found: &mut Vec<String>) {
    let Some(number) = value.as_f64() else { return };
    let limit = |key: &str| schema.get(key).and_then(Value::as_f64);
    if let Some(least) = limit("minimum").filter(|least| number < *least) {
        found.push(format!("{path}: {value} is less than {least}"));
    }
    if let Some(most) = limit("maximum").filter(|most| number > *most) {
        found.push(format!("{path}: {value} is more than {most}"));
    }
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), |text| format!("'{text}'"))
}

/// Those of `crds/src/approval_policy.rs`, where the API server runs them.
fn rules_in_cel(document: &Value, found: &mut Vec<String>) {
    if document.pointer("/metadata/name").and_then(Value::as_str) == Some(DEFAULT_POLICY) {
        found.push(format!("metadata.name: the name {DEFAULT_POLICY} belongs to the built-in policy: choose another"));
    }
    let mut names = BTreeSet::new();
    let rules = document.pointer("/spec/rules").and_then(Value::as_array);
    for (index, rule) in rules.into_iter().flatten().enumerate() {
        let text = |field: &str| rule.get(field).and_then(Value::as_str).unwrap_or_default();
        if !names.insert(text("name")) {
            found.push(format!("spec.rules: the name {} stands twice", text("name")));
        }
        for (field, action) in [("ask", "Ask"), ("reason", "Deny")] {
            if rule.get(field).is_some() && text("action") != action {
                found.push(format!("spec.rules[{index}]: {field} is for action {action}"));
            }
        }
    }
}
