//! Schemas of a document as JSON Schema 2020-12: what they refer to becomes `$defs` of the operation. Pure.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::tools::http::operation::argument_name;
use crate::tools::schema::pointed;

use super::resolved;

/// How deep schemas and the references in them may be nested, and how many there may be in one operation.
const NESTED_MAX: usize = 128;
const SCHEMAS_MAX: usize = 20_000;

/// Keywords that hold one schema, a list of them, or some by name.
const ONE: [&str; 12] = [
    "not",
    "if",
    "then",
    "else",
    "items",
    "contains",
    "additionalItems",
    "additionalProperties",
    "unevaluatedItems",
    "unevaluatedProperties",
    "propertyNames",
    "contentSchema",
];
const LIST: [&str; 4] = ["allOf", "anyOf", "oneOf", "prefixItems"];
const NAMED: [&str; 3] = ["properties", "patternProperties", "dependentSchemas"];
/// Words for readers of a document that say nothing about a value, and definitions: they are taken from the document.
const LEFT_OUT: [&str; 11] = [
    "example",
    "examples",
    "xml",
    "externalDocs",
    "discriminator",
    "readOnly",
    "writeOnly",
    "nullable",
    "$comment",
    "$defs",
    "definitions",
];
/// Other ways to refer than `$ref`.
const NOT_FOLLOWED: [&str; 6] = ["$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$schema"];

/// Which version of OpenAPI the document speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    V30,
    V31,
}

/// The schemas of one operation.
pub struct Schemas<'a> {
    pub document: &'a Value,
    dialect: Dialect,
    /// By pointer: the name among the definitions.
    names: BTreeMap<String, String>,
    definitions: Map<String, Value>,
    count: usize,
}

impl<'a> Schemas<'a> {
    pub fn new(document: &'a Value, dialect: Dialect) -> Self {
        Self { document, dialect, names: BTreeMap::new(), definitions: Map::new(), count: 0 }
    }

    /// What the schemas converted so far refer to.
    pub fn definitions(self) -> Map<String, Value> {
        self.definitions
    }

    pub fn convert(&mut self, schema: &Value) -> Result<Value, String> {
        self.nested(schema, 0)
    }

    fn nested(&mut self, schema: &Value, nested: usize) -> Result<Value, String> {
        self.count += 1;
        if nested > NESTED_MAX || self.count > SCHEMAS_MAX {
            return Err(format!("its schemas are more than {SCHEMAS_MAX}, or nested deeper than {NESTED_MAX} levels"));
        }
        let fields = match schema {
            Value::Object(fields) => fields,
            Value::Bool(_) => return Ok(schema.clone()),
            _ => return Err("a schema of it is no object".to_owned()),
        };
        if let Some(other) = NOT_FOLLOWED.iter().find(|word| fields.contains_key(**word)) {
            return Err(format!("a schema of it uses {other}: only $ref within the document is followed"));
        }
        let mut converted = Map::new();
        if let Some(reference) = fields.get("$ref") {
            let name = self.define(reference.as_str().unwrap_or_default(), nested)?;
            converted.insert("$ref".to_owned(), json!(format!("#/$defs/{name}")));
            // What stands beside a reference says nothing in 3.0.
            if self.dialect == Dialect::V30 {
                return Ok(converted.into());
            }
        }
        for (word, value) in fields {
            if word == "$ref" || LEFT_OUT.contains(&word.as_str()) || word.starts_with("x-") {
                continue;
            }
            converted.insert(word.clone(), self.keyword(word, value, nested)?);
        }
        optional_where_read_only(self.document, fields, &mut converted);
        match self.dialect {
            Dialect::V30 => Ok(modern(fields, converted)),
            Dialect::V31 => Ok(converted.into()),
        }
    }

    fn keyword(&mut self, word: &str, value: &Value, nested: usize) -> Result<Value, String> {
        match value {
            Value::Object(_) if ONE.contains(&word) => self.nested(value, nested + 1),
            Value::Array(items) if LIST.contains(&word) => {
                items.iter().map(|item| self.nested(item, nested + 1)).collect::<Result<Vec<_>, _>>().map(Value::from)
            }
            Value::Object(named) if NAMED.contains(&word) => {
                let one = |(name, schema): (&String, &Value)| Ok((name.clone(), self.nested(schema, nested + 1)?));
                named.iter().map(one).collect::<Result<Map<_, _>, String>>().map(Value::from)
            }
            _ => Ok(value.clone()),
        }
    }

    /// The name of the definition that the reference leads to. One that is under way is only named: schemas may refer to
    /// themselves.
    fn define(&mut self, reference: &str, nested: usize) -> Result<String, String> {
        if let Some(name) = self.names.get(reference) {
            return Ok(name.clone());
        }
        let target = pointed(self.document, reference)
            .ok_or_else(|| format!("$ref {reference} leads to no part of the document"))?;
        let last = reference.rsplit('/').next().unwrap_or_default();
        let name = argument_name(if last.is_empty() { "schema" } else { last }, &self.definitions);
        self.names.insert(reference.to_owned(), name.clone());
        self.definitions.insert(name.clone(), Value::Null);
        let converted = self.nested(target, nested + 1)?;
        self.definitions.insert(name.clone(), converted);
        Ok(name)
    }
}

/// What only a server sets is not asked of whoever calls it.
fn optional_where_read_only(document: &Value, fields: &Map<String, Value>, converted: &mut Map<String, Value>) {
    let properties = fields.get("properties").and_then(Value::as_object);
    let property = |name: &Value| name.as_str().and_then(|name| properties?.get(name));
    if let Some(Value::Array(required)) = converted.get_mut("required") {
        required.retain(|name| !property(name).is_some_and(|property| is_read_only(document, property)));
    }
}

/// Whether it says so itself, where it refers to, or in a part of what it is made of.
fn is_read_only(document: &Value, property: &Value) -> bool {
    let says_so = |schema: &Value| schema.get("readOnly") == Some(&Value::Bool(true));
    let led_to = |schema: &Value| resolved(document, schema).is_ok_and(says_so);
    let parts = property.get("allOf").and_then(Value::as_array);
    says_so(property) || led_to(property) || parts.into_iter().flatten().any(|part| says_so(part) || led_to(part))
}

/// What 3.0 says in its own way: `nullable`, and bounds that are exclusive by a flag.
fn modern(fields: &Map<String, Value>, mut converted: Map<String, Value>) -> Value {
    for (flag, bound) in [("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")] {
        if let Some(Value::Bool(exclusive)) = converted.get(flag) {
            let exclusive = *exclusive;
            converted.remove(flag);
            if let Some(value) = converted.get(bound).cloned().filter(|_| exclusive) {
                converted.remove(bound);
                converted.insert(flag.to_owned(), value);
            }
        }
    }
    if fields.get("nullable") == Some(&Value::Bool(true)) {
        return json!({"anyOf": [converted, {"type": "null"}]});
    }
    converted.into()
}
