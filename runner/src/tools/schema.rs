//! The JSON Schema of an operation's arguments: compiled within bounds and without looking anything up elsewhere, and
//! what does not fit it told in words. Pure.

mod effort;

use std::collections::BTreeSet;

use belay_protocol::call::ARGS_LEVELS_MAX;
use belay_protocol::digest::is_within;
use jsonschema::{PatternOptions, ValidationError, Validator};
use serde_json::Value;

pub use self::effort::pointed;
use self::effort::{effort, places};
use crate::egress::piece;

/// The longest schema that is checked against, as JSON; and how deep it may be nested.
pub const SCHEMA_BYTES_MAX: usize = 256 * 1024;
pub const SCHEMA_LEVELS_MAX: usize = 64;
/// A server's patterns may neither fill the memory nor go on for ever.
const PATTERNS_MAX: usize = 64;
const PATTERN_BYTES_MAX: usize = 512 * 1024;
const BACKTRACKS_MAX: usize = 10_000;
/// How many misfits the model is told at once, in how many bytes each.
const MISFITS_SHOWN: usize = 4;
const MISFIT_BYTES_SHOWN: usize = 300;
/// How much checking may take, and how many times a schema may meet a value up to where all misfits are gathered: each
/// takes memory.
const CHECKED_MAX: u64 = 2_000_000;
const TOLD_MAX: u64 = 20_000;

/// Why nothing can be checked against a schema.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    #[error("its schema is longer than {SCHEMA_BYTES_MAX} bytes")]
    TooLong,
    #[error("its schema is nested deeper than {SCHEMA_LEVELS_MAX} levels")]
    TooDeep,
    #[error("its schema holds more than {PATTERNS_MAX} different patterns")]
    TooManyPatterns,
    #[error("its schema refers to itself in too many places")]
    TooIntricate,
    #[error("its schema refers to itself in a circle")]
    Circular,
    #[error("its schema is no JSON Schema that arguments can be checked against: {0}")]
    Wrong(String),
}

/// A schema that arguments can be checked against.
#[derive(Debug)]
pub struct ArgumentSchema {
    schema: Value,
    validator: Validator,
}

impl ArgumentSchema {
    /// Takes JSON Schema 2020-12, or the draft that `$schema` names. A `$ref` leads to the schema itself and nowhere else.
    pub fn compile(schema: &Value) -> Result<Self, SchemaError> {
        if !is_within(schema, SCHEMA_LEVELS_MAX) {
            return Err(SchemaError::TooDeep);
        }
        if schema.to_string().len() > SCHEMA_BYTES_MAX {
            return Err(SchemaError::TooLong);
        }
        let mut seen = BTreeSet::new();
        collect_patterns(schema, &mut seen);
        if seen.len() > PATTERNS_MAX {
            return Err(SchemaError::TooManyPatterns);
        }
        effort(schema, ARGS_LEVELS_MAX)?;
        let patterns = PatternOptions::fancy_regex()
            .backtrack_limit(BACKTRACKS_MAX)
            .size_limit(PATTERN_BYTES_MAX)
            .dfa_size_limit(PATTERN_BYTES_MAX);
        let validator = jsonschema::options()
            .offline()
            .should_validate_formats(false) // An annotation, in the newest draft: servers and models read them differently.
            .with_pattern_options(patterns)
            .build(schema)
            .map_err(|error| SchemaError::Wrong(shown(&error)))?;
        Ok(Self { schema: schema.clone(), validator })
    }

    /// What of the arguments does not fit, each with its path and the rule that it breaks.
    pub fn check(&self, arguments: &Value) -> Result<(), String> {
        let extent = Extent::of(arguments);
        let of_all = |of_one: Result<u64, SchemaError>| of_one.unwrap_or(u64::MAX).saturating_mul(extent.values);
        if of_all(effort(&self.schema, extent.levels)) > CHECKED_MAX {
            return Err("checking them would take too long: call it with less, or less nested, at a time".to_owned());
        }
        if self.validator.is_valid(arguments) {
            return Ok(());
        }
        // All misfits are gathered before the first is told.
        if of_all(places(&self.schema, extent.levels)) > TOLD_MAX {
            return Err("they are too many to tell which of them".to_owned());
        }
        let misfits = self.validator.iter_errors(arguments).take(MISFITS_SHOWN).map(|error| shown(&error));
        Err(misfits.collect::<Vec<_>>().join("; "))
    }
}

/// How large some arguments are.
#[derive(Clone, Copy)]
struct Extent {
    levels: usize,
    values: u64,
}

impl Extent {
    fn of(value: &Value) -> Self {
        let parts: &mut dyn Iterator<Item = &Value> = match value {
            Value::Array(items) => &mut items.iter(),
            Value::Object(fields) => &mut fields.values(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return Self { levels: 0, values: 1 },
        };
        let empty = Self { levels: 1, values: 1 };
        parts.map(Self::of).fold(empty, |sum, part| Self {
            levels: sum.levels.max(part.levels + 1),
            values: sum.values.saturating_add(part.values),
        })
    }
}

/// Every pattern that a schema may hold; a property of that name may be taken for one.
fn collect_patterns<'a>(schema: &'a Value, seen: &mut BTreeSet<&'a str>) {
    match schema {
        Value::Object(fields) => {
            seen.extend(fields.get("pattern").and_then(Value::as_str));
            let keys = fields.get("patternProperties").and_then(Value::as_object);
            seen.extend(keys.into_iter().flat_map(|keys| keys.keys().map(String::as_str)));
            fields.values().for_each(|value| collect_patterns(value, seen));
        }
        Value::Array(items) => items.iter().for_each(|item| collect_patterns(item, seen)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn shown(error: &ValidationError<'_>) -> String {
    let (path, rule) = (error.instance_path().as_str(), error.schema_path().as_str());
    let place = if path.is_empty() { "/" } else { path };
    let words = piece(&error.to_string(), MISFIT_BYTES_SHOWN);
    format!("at {}: {words} (rule {})", piece(place, MISFIT_BYTES_SHOWN), piece(rule, MISFIT_BYTES_SHOWN))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use std::time::{Duration, Instant};

    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn check(schema: &Value, arguments: &Value) -> Result<(), String> {
        ArgumentSchema::compile(schema).unwrap().check(arguments)
    }

    #[test]
    fn every_misfit_is_told_with_its_path_and_rule() {
        let schema = json!({
            "type": "object",
            "properties": {"a": {"type": "string"}, "b": {"type": "object", "properties": {"c": {"minimum": 3}}}},
            "required": ["a"],
            "additionalProperties": false,
        });
        assert_eq!(check(&schema, &json!({"a": "x", "b": {"c": 3}})), Ok(()));
        let words = check(&schema, &json!({"a": 1, "b": {"c": 2}, "d": null})).unwrap_err();
        for part in ["at /a: 1 is not of type \"string\" (rule /properties/a/type)", "at /b/c: 2", "at /: ", "'d'"] {
            assert!(words.contains(part), "{part}: {words}");
        }
        assert!(check(&schema, &json!({})).unwrap_err().contains("\"a\" is a required property (rule /required)"));
        let many = json!({"type": "object", "additionalProperties": {"type": "string"}});
        let wrong: Value = (0..500).map(|number| (number.to_string(), json!(number))).collect();
        assert_eq!(check(&many, &wrong).unwrap_err().split("; ").count(), MISFITS_SHOWN, "some of them are enough");
    }

    /// `exclusiveMinimum` was a flag in draft 4 and is a bound today.
    #[test]
    fn the_draft_is_the_one_that_the_schema_names_and_else_the_newest() {
        let old = json!({"$schema": "http://json-schema.org/draft-04/schema#",
            "properties": {"n": {"minimum": 3, "exclusiveMinimum": true}}});
        assert!(check(&old, &json!({"n": 3})).is_err() && check(&old, &json!({"n": 4})).is_ok());
        let new = json!({"properties": {"n": {"exclusiveMinimum": 3}}, "$defs": {"unused": true}});
        assert!(check(&new, &json!({"n": 3})).is_err() && check(&new, &json!({"n": 4})).is_ok());
    }

    #[rstest]
    #[case::of_another_file(json!({"$ref": "file:///etc/passwd"}))]
    #[case::of_another_host(json!({"properties": {"a": {"$ref": "https://127.0.0.1:1/a.json"}}}))]
    #[case::of_nothing(json!({"$ref": "#/$defs/absent"}))]
    #[case::of_an_unknown_draft(json!({"$schema": "https://example.com/mine"}))]
    #[case::with_a_wrong_rule(json!({"properties": {"a": {"type": "text"}}}))]
    #[case::with_a_wrong_pattern(json!({"properties": {"a": {"pattern": "("}}}))]
    #[case::with_a_huge_pattern(json!({"properties": {"a": {"pattern": "((((a{100}){100}){100}){100})"}}}))]
    fn a_schema_that_cannot_be_compiled_here_is_refused(#[case] schema: Value) {
        let refused = ArgumentSchema::compile(&schema).unwrap_err();
        assert!(matches!(refused, SchemaError::Wrong(_)), "{refused}");
    }

    #[test]
    fn a_schema_is_bounded_in_length_depth_and_patterns() {
        let nested = (0..1000).fold(json!({}), |inner, _| json!({"items": inner}));
        assert_eq!(ArgumentSchema::compile(&nested).unwrap_err(), SchemaError::TooDeep);
        let long = json!({"description": "x".repeat(SCHEMA_BYTES_MAX)});
        assert_eq!(ArgumentSchema::compile(&long).unwrap_err(), SchemaError::TooLong);
        let patterns = |count: usize| -> Value {
            let one = |number: usize| (format!("p{number}"), json!({"pattern": format!("^{number}")}));
            json!({"properties": (0..count).map(one).collect::<Value>(), "patternProperties": {"^0": {"pattern": "^0"}}})
        };
        assert!(ArgumentSchema::compile(&patterns(PATTERNS_MAX)).is_ok());
        assert_eq!(ArgumentSchema::compile(&patterns(PATTERNS_MAX + 1)).unwrap_err(), SchemaError::TooManyPatterns);
    }

    /// What a hostile server may list neither ends the process nor holds it up.
    #[rstest]
    #[case::doubling(doubling(), json!({}), "would take too long")]
    #[case::doubling_with_every_level(
        json!({"properties": {"next": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}}, "required": ["next"]}),
        (0..60).fold(json!({}), |inner, _| json!({"next": inner})),
        "would take too long"
    )]
    #[case::the_same_pattern_many_times(
        json!({"additionalProperties": {"allOf": vec![json!({"pattern": "^(?=a)(a+)+$"}); 1000]}}),
        (0..100).map(|number| (number.to_string(), json!(format!("{}!", "a".repeat(60))))).collect(),
        "would take too long"
    )]
    #[case::many_choices(
        json!({"additionalProperties": {"enum": (0..20_000).collect::<Vec<_>>()}}),
        (0..200).map(|number| (number.to_string(), json!(-1))).collect(),
        "would take too long"
    )]
    #[case::much_of_much(
        json!({"additionalProperties": {"allOf": vec![json!({"type": "string"}); 100]}}),
        (0..200).map(|number| (number.to_string(), json!(number))).collect(),
        "too many to tell"
    )]
    #[case::backtracking(json!({"properties": {"a": {"pattern": "^(?=a)(a+)+$"}}}), json!({"a": format!("{}!", "a".repeat(60))}), "at /a: ")]
    #[case::tree(json!({"properties": {"next": {"$ref": "#"}}, "additionalProperties": false}), json!({"next": {"nest": {}}}), "at /next: ")]
    fn a_schema_that_multiplies_comes_to_an_end(#[case] schema: Value, #[case] arguments: Value, #[case] words: &str) {
        let start = Instant::now();
        let refused = check(&schema, &arguments).unwrap_err();
        assert!(refused.contains(words), "{refused}");
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }

    #[test]
    fn a_long_chain_of_references_is_followed() {
        let chain: serde_json::Map<String, Value> =
            (0..400).map(|at| (format!("l{at}"), json!({"$ref": format!("#/$defs/l{}", at + 1)}))).collect();
        let mut schema = json!({"$ref": "#/$defs/l0", "$defs": chain});
        schema["$defs"]["l400"] = json!({"required": ["a"]});
        assert!(check(&schema, &json!({"a": 1})).is_ok() && check(&schema, &json!({})).is_err());
    }

    fn doubling() -> Value {
        let level = |next: usize| json!({"allOf": [{"$ref": format!("#/$defs/l{next}")}, {"$ref": format!("#/$defs/l{next}")}]});
        let mut levels: serde_json::Map<String, Value> = (0..40).map(|at| (format!("l{at}"), level(at + 1))).collect();
        levels.insert("l40".to_owned(), json!({"type": "object"}));
        json!({"properties": {}, "$ref": "#/$defs/l0", "$defs": levels})
    }
}
