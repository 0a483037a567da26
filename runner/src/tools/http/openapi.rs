//! The operations of an OpenAPI 3.0 or 3.1 document: each by its operationId, its parameters and JSON body as one JSON
//! Schema. References are followed within the document alone. Pure.

mod parameters;
mod schemas;

use std::collections::{BTreeMap, BTreeSet};

use http::Method;
use serde_json::{Map, Value};

use self::parameters::{body_of, parameters_of};
use self::schemas::{Dialect, Schemas};
use super::operation::{Carrier, Draft, Operation, Path, Template};
use crate::tools::schema::pointed;
use crate::tools::{LISTING_BYTES_MAX, LeftOut, OPERATIONS_MAX, unnameable};

/// The most bytes of a document: what a ConfigMap holds.
pub const DOCUMENT_BYTES_MAX: usize = 1024 * 1024;
/// A reference may lead to a reference.
const CHAIN_MAX: usize = 8;
/// What a document's aliases may make of it.
const NODES_MAX: usize = 100_000;
const ALIASES_MAX: usize = 1000;

const METHODS: [(&str, Method); 6] = [
    ("get", Method::GET),
    ("head", Method::HEAD),
    ("post", Method::POST),
    ("put", Method::PUT),
    ("patch", Method::PATCH),
    ("delete", Method::DELETE),
];

/// Methods that OpenAPI has beside these. Nobody calls them to get something done.
const NOT_OFFERED: [&str; 2] = ["options", "trace"];

/// What a document offers, and what of it cannot be offered.
#[derive(Debug, Default, PartialEq)]
pub struct Offered {
    pub operations: Vec<Operation>,
    pub left_out: Vec<LeftOut>,
}

/// How operations are read.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    pub base_url: &'a str,
    /// What the Tool's Credential goes into.
    pub carrier: Option<Carrier<'a>>,
    /// The operationIds that count; empty: all.
    pub only: &'a [String],
}

/// Reads a document, or says what is wrong with all of it. Its text is shown to nobody: it may be no document at all.
pub fn read(text: &str, terms: &Terms<'_>) -> Result<Offered, String> {
    let document = parse(text)?;
    let dialect = dialect(&document)?;
    let paths = document.get("paths").and_then(Value::as_object).ok_or("has no paths")?;
    let mut found: BTreeMap<&str, Vec<Found<'_>>> = BTreeMap::new();
    let mut not_offered: BTreeMap<&str, &str> = BTreeMap::new();
    let mut offered = Offered::default();
    for (path, item) in paths.iter().filter(|(path, _)| path.starts_with('/')) {
        let item = resolved(&document, item).and_then(|item| item.as_object().ok_or("is no object".to_owned()));
        let Ok(item) = item else {
            offered.left_out.push(LeftOut::new(path, "its path item leads to no part of the document"));
            continue;
        };
        for word in NOT_OFFERED {
            let id = item.get(word).and_then(|operation| operation.get("operationId")).and_then(Value::as_str);
            not_offered.extend(id.map(|id| (id, word)));
        }
        for (word, method) in &METHODS {
            let Some(operation) = item.get(*word).and_then(Value::as_object) else { continue };
            let found_here = Found { method, path, item, operation };
            match operation.get("operationId").and_then(Value::as_str) {
                Some(id) => found.entry(id).or_default().push(found_here),
                None if terms.only.is_empty() => {
                    offered.left_out.push(LeftOut::new(&format!("{method} {path}"), "it has no operationId"));
                }
                None => {}
            }
        }
    }
    let picked: BTreeSet<&str> = if terms.only.is_empty() {
        found.keys().chain(not_offered.keys()).copied().collect()
    } else {
        terms.only.iter().map(String::as_str).collect()
    };
    let mut bytes = 0;
    for id in picked {
        let converted = match (found.get(id), not_offered.get(id)) {
            (Some(found), None) => convert(&document, dialect, id, found, terms),
            (None, Some(method)) => Err(format!("its method is {method}, which is not offered")),
            (Some(_), Some(_)) => Err("several operations have this operationId".to_owned()),
            (None, None) => Err("the document has no operation with this operationId".to_owned()),
        };
        match converted {
            Ok(operation) => {
                bytes += operation.definition.input_schema.to_string().len() + operation.definition.description.len();
                offered.operations.push(operation);
            }
            Err(why) => offered.left_out.push(LeftOut::new(id, &why)),
        }
        if offered.operations.len() > OPERATIONS_MAX || bytes > LISTING_BYTES_MAX {
            return Err(format!(
                "defines more than {OPERATIONS_MAX} operations or {LISTING_BYTES_MAX} bytes of schemas: pick some in \
                 spec.http.openAPI.operations"
            ));
        }
    }
    Ok(offered)
}

/// JSON, or YAML without what makes a small text a large value.
fn parse(text: &str) -> Result<Value, String> {
    if text.len() > DOCUMENT_BYTES_MAX {
        return Err(format!("is longer than {DOCUMENT_BYTES_MAX} bytes"));
    }
    if text.trim_start().starts_with('{') {
        let place =
            |error: serde_json::Error| format!("is no JSON from line {} column {} on", error.line(), error.column());
        return serde_json::from_str(text).map_err(place);
    }
    let budget = serde_saphyr::budget! { max_nodes: NODES_MAX, max_aliases: ALIASES_MAX };
    // OpenAPI is YAML 1.2, in which `no` and `n` are words.
    let options = serde_saphyr::options! { budget: budget, strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| match error.location() {
        Some(place) => format!("is no YAML that can be read from line {} column {} on", place.line(), place.column()),
        None => "is no YAML that can be read".to_owned(),
    })
}

fn dialect(document: &Value) -> Result<Dialect, String> {
    let version = document.get("openapi").and_then(Value::as_str).unwrap_or_default();
    match version.split('.').take(2).collect::<Vec<_>>()[..] {
        ["3", "0"] => Ok(Dialect::V30),
        ["3", "1"] => Ok(Dialect::V31),
        _ if document.get("swagger").is_some() => Err("is Swagger 2.0: convert it to OpenAPI 3".to_owned()),
        _ => Err("says no version of OpenAPI that is read here (3.0 and 3.1)".to_owned()),
    }
}

/// An operation where it stands.
#[derive(Clone, Copy)]
struct Found<'a> {
    method: &'a Method,
    path: &'a str,
    item: &'a Map<String, Value>,
    operation: &'a Map<String, Value>,
}

fn convert(
    document: &Value,
    dialect: Dialect,
    id: &str,
    found: &[Found<'_>],
    terms: &Terms<'_>,
) -> Result<Operation, String> {
    let [found] = found else { return Err("several operations have this operationId".to_owned()) };
    if let Some(why) = unnameable(id) {
        return Err(why);
    }
    let mut schemas = Schemas::new(document, dialect);
    let path = Path::parse(found.path)?;
    let mut read = parameters_of(&mut schemas, [found.item, found.operation], &path, terms)?;
    let body = body_of(&mut schemas, found, &mut read)?;
    let text = |field: &str| found.operation.get(field).and_then(Value::as_str).unwrap_or_default().trim();
    let description = [text("summary"), text("description")].join("\n").trim().to_owned();
    let draft = Draft {
        name: id.to_owned(),
        description,
        template: Template { method: found.method.clone(), path, parameters: read.parameters, body },
        properties: read.properties,
        required: read.required,
        definitions: schemas.definitions(),
    };
    draft.finish(terms.base_url)
}

/// What a value stands for that may be a reference. Where it leads nowhere: in which words to say so.
fn resolved<'a>(document: &'a Value, value: &'a Value) -> Result<&'a Value, String> {
    let mut value = value;
    for _step in 0..CHAIN_MAX {
        let Some(reference) = value.get("$ref").and_then(Value::as_str) else { return Ok(value) };
        value =
            pointed(document, reference).ok_or_else(|| format!("$ref {reference} leads to no part of the document"))?;
    }
    Err(format!("a $ref leads on to more than {CHAIN_MAX} others"))
}

#[cfg(test)]
mod tests;
