//! The JSON Schema that an Agent's last answers have to fit: what of it is taken, and whether an answer fits. Nothing is
//! looked up elsewhere. Pure; operator and runner take and refuse the same.

use jsonschema::{PatternOptions, Validator};
use serde_json::{Map, Value};

use crate::digest::is_within;

/// The longest schema, as JSON, and how deep it may be nested.
pub const OUTPUT_SCHEMA_BYTES_MAX: usize = 16 * 1024;
pub const OUTPUT_SCHEMA_LEVELS_MAX: usize = 32;
/// Parts of a schema, those that it refers to counted at each place.
const PARTS_MAX: usize = 5_000;
/// How deep they may be nested then: whatever refers to itself is deeper.
const DEPTH_MAX: usize = 128;
const PATTERN_BYTES_MAX: usize = 64 * 1024;
/// How many parts a pattern counts as: each becomes an automaton.
const PATTERN_PARTS: usize = 50;
/// How much of what does not fit the model is told.
const MISFIT_BYTES_SHOWN: usize = 300;
/// Keywords that providers take where they hold the model to the schema themselves.
const STRICT_KEYWORDS: [&str; 21] = [
    "$defs",
    "$ref",
    "additionalProperties",
    "anyOf",
    "const",
    "description",
    "enum",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "format",
    "items",
    "maxItems",
    "maximum",
    "minItems",
    "minimum",
    "multipleOf",
    "pattern",
    "properties",
    "required",
    "title",
    "type",
];

/// Why a schema is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutputSchemaError {
    #[error("it is longer than {OUTPUT_SCHEMA_BYTES_MAX} bytes: describe less of the output")]
    TooLong,
    #[error("it is nested deeper than {OUTPUT_SCHEMA_LEVELS_MAX} levels: make it flatter")]
    TooDeep,
    #[error("its type is not \"object\", which providers want: put the output into a property")]
    NoObject,
    #[error(
        "it has more than {PARTS_MAX} parts where every $ref is written out (a pattern counts as {PATTERN_PARTS}), or refers to itself: describe less of the output"
    )]
    TooLarge,
    #[error("$ref {0:?} leads nowhere in it: refer to \"#/$defs/NAME\"")]
    Elsewhere(String),
    #[error("it is no JSON Schema: {0}")]
    Wrong(String),
}

/// A schema that answers can be checked against.
#[derive(Debug)]
pub struct OutputSchema(Validator);

impl OutputSchema {
    /// Takes JSON Schema 2020-12, or the draft that `$schema` names.
    ///
    /// # Errors
    /// What the schema's author has to change.
    pub fn compile(schema: &Value) -> Result<Self, OutputSchemaError> {
        if !is_within(schema, OUTPUT_SCHEMA_LEVELS_MAX) {
            return Err(OutputSchemaError::TooDeep);
        }
        if schema.to_string().len() > OUTPUT_SCHEMA_BYTES_MAX {
            return Err(OutputSchemaError::TooLong);
        }
        if schema.get("type").and_then(Value::as_str) != Some("object") {
            return Err(OutputSchemaError::NoObject);
        }
        count(schema, schema, 0, &mut 0)?;
        let patterns = PatternOptions::regex().size_limit(PATTERN_BYTES_MAX).dfa_size_limit(PATTERN_BYTES_MAX);
        let validator = jsonschema::options().offline().should_validate_formats(false).with_pattern_options(patterns);
        let validator = validator.build(schema).map_err(|error| OutputSchemaError::Wrong(shown(&error.to_string())))?;
        Ok(Self(validator))
    }

    /// Whether an answer is JSON, alone, that fits; otherwise what of it does not.
    ///
    /// # Errors
    /// The misfit, in words for the model.
    pub fn check(&self, answer: &str) -> Result<(), String> {
        let output: Value =
            serde_json::from_str(answer.trim()).map_err(|error| format!("it is not JSON alone: {error}"))?;
        // The first alone: all of them are gathered before one is told, and there can be millions.
        self.0.validate(&output).map_err(|error| {
            let path = error.instance_path().to_string();
            let place = if path.is_empty() { "/" } else { path.as_str() };
            format!("at {}: {}", shown(place), shown(&error.to_string()))
        })
    }
}

/// Whether a provider that holds its model to schemas takes this one: every property is required, and no other allowed.
#[must_use]
pub fn is_strict(schema: &Value) -> bool {
    let Value::Object(fields) = schema else { return false };
    let known = |name: &String| STRICT_KEYWORDS.contains(&name.as_str());
    fields.keys().all(known) && is_closed(fields) && parts(fields).all(is_strict)
}

fn is_closed(fields: &Map<String, Value>) -> bool {
    let Some(properties) = fields.get("properties").and_then(Value::as_object) else {
        return fields.get("type").and_then(Value::as_str) != Some("object");
    };
    let required: Vec<&str> =
        fields.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    fields.get("additionalProperties") == Some(&Value::Bool(false))
        && properties.keys().all(|name| required.contains(&name.as_str()))
}

/// The schemas within a strict schema.
fn parts(fields: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    let named = ["properties", "$defs"].into_iter().filter_map(|name| fields.get(name)?.as_object());
    let listed = fields.get("anyOf").and_then(Value::as_array).into_iter().flatten();
    named.flat_map(Map::values).chain(listed).chain(fields.get("items"))
}

/// Counts every value of a schema as if its `$ref`s were written out.
fn count(root: &Value, part: &Value, depth: usize, parts: &mut usize) -> Result<(), OutputSchemaError> {
    *parts += 1;
    if *parts > PARTS_MAX || depth > DEPTH_MAX {
        return Err(OutputSchemaError::TooLarge);
    }
    match part {
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), value) {
                    ("$ref" | "$dynamicRef" | "$recursiveRef", Value::String(to)) => {
                        count(root, referred(root, to)?, depth + 1, parts)?;
                    }
                    // What is referred to would be looked for in that part.
                    ("$id", _) if depth > 0 => {
                        return Err(OutputSchemaError::Wrong("$id stands in a part of it".into()));
                    }
                    // Counted where they are referred to.
                    ("$defs" | "definitions", _) => {}
                    ("properties" | "patternProperties" | "dependentSchemas", Value::Object(named)) => {
                        *parts += if name == "patternProperties" { named.len() * PATTERN_PARTS } else { 0 };
                        named.values().try_for_each(|value| count(root, value, depth + 1, parts))?;
                    }
                    // Values, in which nothing is a schema.
                    ("const" | "enum" | "default" | "examples", value) => *parts += values(value),
                    ("pattern", Value::String(_)) => *parts += PATTERN_PARTS,
                    (_, value) => count(root, value, depth + 1, parts)?,
                }
            }
            if *parts > PARTS_MAX { Err(OutputSchemaError::TooLarge) } else { Ok(()) }
        }
        Value::Array(items) => items.iter().try_for_each(|item| count(root, item, depth + 1, parts)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

/// How many values there are in one.
fn values(value: &Value) -> usize {
    match value {
        Value::Object(fields) => 1 + fields.values().map(values).sum::<usize>(),
        Value::Array(items) => 1 + items.iter().map(values).sum::<usize>(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 1,
    }
}

fn referred<'a>(root: &'a Value, to: &str) -> Result<&'a Value, OutputSchemaError> {
    let found = to.strip_prefix('#').and_then(|pointer| root.pointer(pointer));
    found.ok_or_else(|| OutputSchemaError::Elsewhere(shown(to)))
}

/// A beginning that is short enough to be told.
fn shown(words: &str) -> String {
    let end = words.floor_char_boundary(MISFIT_BYTES_SHOWN.min(words.len()));
    if end == words.len() { words.to_owned() } else { format!("{}…", words.get(..end).unwrap_or_default()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {"area": {"enum": ["ui", "db"]}, "weight": {"$ref": "#/$defs/weight"}},
            "required": ["area", "weight"],
            "additionalProperties": false,
            "$defs": {"weight": {"type": "integer", "minimum": 1}},
        })
    }

    #[rstest]
    #[case::fits(r#" {"area": "ui", "weight": 3} "#, None)]
    #[case::words(r#"Here you are: {"area": "ui", "weight": 3}"#, Some("it is not JSON alone"))]
    #[case::fenced("```json\n{\"area\": \"ui\", \"weight\": 3}\n```", Some("it is not JSON alone"))]
    #[case::nothing("", Some("it is not JSON alone"))]
    #[case::lacking(r#"{"area": "ui"}"#, Some("at /: \"weight\" is a required property"))]
    #[case::another_value(r#"{"area": "os", "weight": 0}"#, Some("at /area: "))]
    fn an_answer_fits_or_is_told_why_not(#[case] answer: &str, #[case] misfit: Option<&str>) {
        let found = OutputSchema::compile(&schema()).unwrap().check(answer).err();
        match (misfit, &found) {
            (None, None) => {}
            (Some(words), Some(found)) => assert!(found.contains(words), "{found}"),
            _ => panic!("{found:?}"),
        }
    }

    fn doubling() -> Value {
        let level = |next: usize| {
            let next = json!({"$ref": format!("#/$defs/l{next}")});
            json!({"allOf": [next, next]})
        };
        let mut levels: Map<String, Value> = (0..40).map(|at| (format!("l{at}"), level(at + 1))).collect();
        levels.insert("l40".to_owned(), json!({"type": "object"}));
        json!({"type": "object", "$ref": "#/$defs/l0", "$defs": levels})
    }

    fn patterns(many: usize) -> Value {
        let all: Map<String, Value> =
            (0..many).map(|at| (format!("p{at}"), json!({"pattern": format!("^{at}")}))).collect();
        json!({"type": "object", "properties": all})
    }

    #[test]
    fn some_patterns_and_values_that_look_like_references_are_taken() {
        let example = json!({"$ref": "https://example.com/a.json"});
        let with_values = json!({"type": "object", "default": example, "properties": {"a": {"enum": [example]}}});
        assert!(OutputSchema::compile(&patterns(50)).is_ok() && OutputSchema::compile(&with_values).is_ok());
    }

    fn deep() -> Value {
        (0..40).fold(json!({"type": "object"}), |inner, _| json!({"type": "object", "not": inner}))
    }

    #[rstest]
    #[case::no_object(json!({"type": "array"}), "its type is not \"object\"")]
    #[case::no_schema(json!({"type": "object", "properties": {"a": {"type": "text"}}}), "it is no JSON Schema: ")]
    #[case::a_wrong_pattern(json!({"type": "object", "properties": {"a": {"pattern": "("}}}), "it is no JSON Schema: ")]
    #[case::a_huge_pattern(json!({"type": "object", "properties": {"a": {"pattern": "((a{100}){100}){100}"}}}), "it is no JSON Schema: ")]
    #[case::too_deep(deep(), "nested deeper than")]
    #[case::too_long(json!({"type": "object", "description": "x".repeat(20_000)}), "longer than")]
    #[case::doubling(doubling(), "more than 5000 parts")]
    #[case::circular(json!({"type": "object", "properties": {"next": {"$ref": "#"}}}), "refers to itself")]
    #[case::circular_by_a_name(json!({"type": "object", "properties": {"$defs": {"$ref": "#"}}}), "refers to itself")]
    #[case::circular_of_old(json!({"type": "object", "properties": {"next": {"$recursiveRef": "#"}}}), "refers to itself")]
    #[case::another_root(json!({"type": "object", "properties": {"a": {"$id": "x", "$ref": "#"}}}), "$id stands in a part")]
    #[case::patterns(patterns(101), "a pattern counts as 50")]
    #[case::elsewhere(json!({"type": "object", "$ref": "https://127.0.0.1:1/a.json"}), "leads nowhere in it")]
    #[case::a_file(json!({"type": "object", "$ref": "file:///etc/passwd"}), "leads nowhere in it")]
    fn a_schema_that_cannot_be_kept_is_refused(#[case] schema: Value, #[case] words: &str) {
        let refused = OutputSchema::compile(&schema).unwrap_err().to_string();
        assert!(refused.contains(words), "{refused}");
    }

    #[rstest]
    #[case::closed(schema(), true)]
    #[case::open(json!({"type": "object", "properties": {}, "required": []}), false)]
    #[case::optional(json!({"type": "object", "properties": {"a": {}}, "additionalProperties": false}), false)]
    #[case::open_within(json!({"type": "object", "properties": {"a": {"type": "object"}}, "required": ["a"], "additionalProperties": false}), false)]
    #[case::a_keyword_that_providers_refuse(json!({"type": "object", "properties": {}, "additionalProperties": false, "not": {}}), false)]
    fn what_a_provider_holds_its_model_to(#[case] schema: Value, #[case] strict: bool) {
        assert_eq!(is_strict(&schema), strict);
    }
}
