//! Operations that the Tool itself describes. Pure.

use belay_protocol::plan::{InlineHeader, InlineOperation};
use http::Method;
use serde_json::{Map, Value, json};

use super::openapi::Terms;
use super::operation::{
    Body, Draft, Operation, Parameter, Path, Place, Style, Template, refused_header, refused_query,
};

/// The most bytes of all of them together: they are a part of every plan.
const OPERATIONS_BYTES_MAX: usize = 256 * 1024;
const FIELD: &str = "spec.http.operations";

/// Every operation, or what is wrong with one of them.
pub fn read(described: &[InlineOperation], terms: &Terms<'_>) -> Result<Vec<Operation>, String> {
    let bytes = serde_json::to_vec(described).map_or(usize::MAX, |bytes| bytes.len());
    if bytes > OPERATIONS_BYTES_MAX {
        return Err(format!(
            "{FIELD} comes to {bytes} bytes, and it holds {OPERATIONS_BYTES_MAX}: put them into an OpenAPI document"
        ));
    }
    let one = |operation: &InlineOperation| {
        convert(operation, terms).map_err(|why| format!("{FIELD}, {}: {why}", operation.name))
    };
    described.iter().map(one).collect()
}

fn convert(described: &InlineOperation, terms: &Terms<'_>) -> Result<Operation, String> {
    let path = Path::parse(&described.path)?;
    let method = Method::from_bytes(described.method.as_bytes()).map_err(|error| error.to_string())?;
    let placed = placed(described, &path, terms)?;
    let body = described.body.as_ref();
    let body = body.map(|argument| Body { argument: argument.clone(), media_type: "application/json".to_owned() });
    let mut names: Vec<&str> = placed.iter().map(|parameter| parameter.argument.as_str()).collect();
    names.extend(described.body.as_deref());
    let of_path = |parameter: &&Parameter| parameter.place == Place::Path;
    let mut required: Vec<String> = placed.iter().filter(of_path).map(|parameter| parameter.argument.clone()).collect();
    let mut schema = described.schema.clone().unwrap_or_else(|| generated(&names, described.body.as_deref()));
    let fields = schema.as_object_mut().ok_or("its schema is no object")?;
    let Some(Value::Object(properties)) = fields.remove("properties") else {
        return Err("its schema has no properties".to_owned());
    };
    fits(&names, &properties)?;
    let given = fields.remove("required");
    required.extend(given.iter().filter_map(Value::as_array).flatten().filter_map(Value::as_str).map(str::to_owned));
    let definitions = match fields.remove("$defs") {
        Some(Value::Object(definitions)) => definitions,
        _ => Map::new(),
    };
    fields.retain(|word, _| !["type", "additionalProperties", "$schema"].contains(&word.as_str()));
    if let Some(word) = fields.keys().next() {
        return Err(format!(
            "its schema says {word} of all arguments together: it holds type, properties, required and $defs"
        ));
    }
    let draft = Draft {
        name: described.name.clone(),
        description: described.description.clone(),
        template: Template { method, path, parameters: placed, body },
        properties,
        required,
        definitions,
    };
    draft.finish(terms.base_url)
}

/// Every argument but the body, each once.
fn placed(described: &InlineOperation, path: &Path, terms: &Terms<'_>) -> Result<Vec<Parameter>, String> {
    let parameter = |argument: &str, name: &str, place: Place| {
        let style = if place == Place::Query { Style::Repeated } else { Style::Joined(",") };
        Parameter { argument: argument.to_owned(), name: name.to_owned(), place, style }
    };
    let mut placed: Vec<Parameter> = path.parameters().map(|name| parameter(name, name, Place::Path)).collect();
    if let Some(why) = described.query.iter().find_map(|name| refused_query(name, terms.carrier)) {
        return Err(why);
    }
    placed.extend(described.query.iter().map(|name| parameter(name, name, Place::Query)));
    for InlineHeader { name, argument } in &described.headers {
        if let Some(why) = refused_header(name, terms.carrier) {
            return Err(why);
        }
        placed.push(parameter(argument, name, Place::Header));
    }
    let mut names: Vec<&str> = placed.iter().map(|parameter| parameter.argument.as_str()).collect();
    names.extend(described.body.as_deref());
    names.sort_unstable();
    match names.windows(2).find_map(|pair| match pair {
        [one, other] if one == other => Some(*one),
        _ => None,
    }) {
        Some(twice) => Err(format!("the argument {twice} has two places")),
        None => Ok(placed),
    }
}

/// What is assumed where the author says nothing.
fn generated(names: &[&str], body: Option<&str>) -> Value {
    let one = |name: &&str| {
        let kind = if Some(*name) == body { "object" } else { "string" };
        ((*name).to_owned(), json!({"type": kind}))
    };
    let properties: Map<String, Value> = names.iter().map(one).collect();
    json!({"properties": properties})
}

/// Every argument has a place, and every place an argument.
fn fits(names: &[&str], properties: &Map<String, Value>) -> Result<(), String> {
    if let Some(stray) = properties.keys().find(|name| !names.contains(&name.as_str())) {
        return Err(format!("its schema has the argument {stray}, which neither path, query, headers nor body carry"));
    }
    match names.iter().find(|name| !properties.contains_key(**name)) {
        Some(absent) => Err(format!("its schema lacks the argument {absent}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing, clippy::needless_pass_by_value, clippy::unwrap_used)]
    use rstest::rstest;

    use super::*;
    use crate::tools::http::operation::Carrier;

    fn described(changes: Value) -> InlineOperation {
        let mut whole = json!({"name": "o", "method": "PUT", "path": "/a/{id}", "query": ["q"], "body": "b",
            "headers": [{"name": "If-Match", "argument": "etag"}]});
        whole.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        serde_json::from_value(whole).unwrap()
    }

    fn read_one(changes: Value) -> Result<Vec<Operation>, String> {
        read_with(changes, Carrier { place: Place::Header, name: "x-key" })
    }

    fn read_with(changes: Value, carrier: Carrier<'_>) -> Result<Vec<Operation>, String> {
        read(&[described(changes)], &Terms { base_url: "http://x", carrier: Some(carrier), only: &[] })
    }

    #[test]
    fn an_argument_does_not_go_where_the_credential_goes() {
        let refused = read_with(json!({}), Carrier { place: Place::Query, name: "Q" }).unwrap_err();
        assert!(refused.contains("query parameter q carries the Credential"), "{refused}");
        assert!(read_with(json!({}), Carrier { place: Place::Query, name: "If-Match" }).is_ok());
        assert!(read_with(json!({}), Carrier { place: Place::Header, name: "q" }).is_ok());
    }

    #[test]
    fn an_operation_without_a_schema_takes_strings_and_an_object() {
        let operations = read_one(json!({})).unwrap();
        let expected = json!({
            "type": "object", "additionalProperties": false, "required": ["id"],
            "properties": {"id": {"type": "string"}, "q": {"type": "string"}, "etag": {"type": "string"}, "b": {"type": "object"}},
        });
        assert_eq!(operations[0].definition.input_schema, expected);
        assert_eq!(operations[0].definition.description, "PUT /a/{id}?q, header If-Match, body b");
    }

    #[test]
    fn a_schema_says_what_arguments_are_and_no_others_are_taken() {
        let properties =
            json!({"id": {"type": "integer"}, "q": {"$ref": "#/$defs/q"}, "etag": {}, "b": {"type": "array"}});
        let schema = json!({"type": "object", "properties": properties, "required": ["q"], "additionalProperties": true,
            "$defs": {"q": {"enum": ["x"]}}});
        let operations = read_one(json!({"schema": schema})).unwrap();
        let expected = json!({
            "type": "object", "additionalProperties": false, "required": ["id", "q"], "properties": properties,
            "$defs": {"q": {"enum": ["x"]}},
        });
        assert_eq!(operations[0].definition.input_schema, expected);
    }

    #[rstest]
    #[case(json!({"path": "a"}), "does not begin with /")]
    #[case(json!({"query": ["id"]}), "the argument id has two places")]
    #[case(json!({"body": "q"}), "the argument q has two places")]
    #[case(json!({"headers": [{"name": "Host", "argument": "h"}]}), "frames, routes or authenticates")]
    #[case(json!({"headers": [{"name": "X-Key", "argument": "h"}]}), "carries the Credential")]
    #[case(json!({"schema": {}}), "has no properties")]
    #[case(json!({"schema": {"properties": {"id": {}, "q": {}, "etag": {}, "b": {}, "z": {}}}}), "the argument z, which neither")]
    #[case(json!({"schema": {"properties": {"id": {}, "q": {}, "etag": {}}}}), "lacks the argument b")]
    #[case(json!({"schema": {"properties": {"id": {}, "q": {}, "etag": {}, "b": {}}, "minProperties": 1}}), "says minProperties")]
    #[case(json!({"description": "x".repeat(OPERATIONS_BYTES_MAX)}), "put them into an OpenAPI document")]
    fn what_is_wrong_is_named_with_its_operation(#[case] changes: Value, #[case] words: &str) {
        let refused = read_one(changes).unwrap_err();
        assert!(refused.contains(words) && refused.starts_with(FIELD), "{refused}");
    }
}
