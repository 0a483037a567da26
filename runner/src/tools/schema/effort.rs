//! How much checking against a schema can take: its references may lead in circles, or multiply with every level. Pure.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::SchemaError;
use crate::percent::percent_decoded;

/// How many schemas may apply one within the other; a chain of references counts as well.
const NESTED_MAX: usize = 512;
/// How many schemas are looked at, each anew for every level at which it may apply.
const PLACES_MAX: usize = 50_000;
/// Other ways to refer than `$ref` by a pointer; nothing here follows them.
const NOT_FOLLOWED: [&str; 6] = ["$id", "id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef"];

/// Keywords whose schemas apply to the value itself, and those that apply to what is within it.
const HERE_ONE: [&str; 4] = ["not", "if", "then", "else"];
const HERE_LIST: [&str; 3] = ["allOf", "anyOf", "oneOf"];
const HERE_NAMED: [&str; 2] = ["dependentSchemas", "dependencies"];
const WITHIN_ONE: [&str; 8] = [
    "items",
    "additionalItems",
    "contains",
    "additionalProperties",
    "unevaluatedItems",
    "unevaluatedProperties",
    "propertyNames",
    "contentSchema",
];
const WITHIN_LIST: [&str; 2] = ["prefixItems", "items"];
const WITHIN_NAMED: [&str; 2] = ["properties", "patternProperties"];

/// What a pattern is counted for, which goes back and forth in a text. Of the order of what makes it give up.
const PATTERN_EFFORT: u64 = 1000;

/// The most schemas that apply to any one value `levels` deep and, of what is within it, to any one way down.
pub fn places(schema: &Value, levels: usize) -> Result<u64, SchemaError> {
    Effort { root: schema, known: HashMap::new(), cost: |_| 1 }.of(schema, levels, 0)
}

/// The same, each counted for what it takes to check a value against it.
pub fn effort(schema: &Value, levels: usize) -> Result<u64, SchemaError> {
    Effort { root: schema, known: HashMap::new(), cost }.of(schema, levels, 0)
}

fn cost(fields: &Map<String, Value>) -> u64 {
    let choices = fields.get("enum").and_then(Value::as_array).map_or(0, Vec::len);
    let named = fields.get("patternProperties").and_then(Value::as_object).map_or(0, Map::len);
    let patterns = named + usize::from(fields.get("pattern").is_some_and(Value::is_string));
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    count(choices).saturating_add(count(patterns).saturating_mul(PATTERN_EFFORT)).saturating_add(1)
}

struct Effort<'a> {
    root: &'a Value,
    cost: fn(&Map<String, Value>) -> u64,
    /// By place and levels. None: it is being looked at, so that whoever comes here again came in a circle.
    known: HashMap<(*const Value, usize), Option<u64>>,
}

impl<'a> Effort<'a> {
    fn of(&mut self, schema: &'a Value, levels: usize, nested: usize) -> Result<u64, SchemaError> {
        let Some(fields) = schema.as_object() else { return Ok(1) };
        if nested > NESTED_MAX {
            return Err(SchemaError::TooDeep);
        }
        let place = (std::ptr::from_ref(schema), levels);
        match self.known.get(&place) {
            Some(Some(known)) => return Ok(*known),
            Some(None) => return Err(SchemaError::Circular),
            None if self.known.len() >= PLACES_MAX => return Err(SchemaError::TooIntricate),
            None => {}
        }
        self.known.insert(place, None);
        let mut sum = (self.cost)(fields);
        for part in self.here(fields, std::ptr::eq(schema, self.root))? {
            sum = sum.saturating_add(self.of(part, levels, nested + 1)?);
        }
        if let Some(below) = levels.checked_sub(1) {
            for part in within(fields) {
                sum = sum.saturating_add(self.of(part, below, nested + 1)?);
            }
        }
        self.known.insert(place, Some(sum));
        Ok(sum)
    }

    fn here(&self, fields: &'a Map<String, Value>, is_root: bool) -> Result<Vec<&'a Value>, SchemaError> {
        let other = NOT_FOLLOWED.iter().find(|word| fields.get(**word).is_some_and(Value::is_string));
        if let Some(other) = other.filter(|word| !(is_root && word.ends_with("id"))) {
            return Err(SchemaError::Wrong(format!(
                "it uses {other}, and only a $ref by a pointer (#/..) is followed"
            )));
        }
        let mut parts: Vec<&Value> = of_one(fields, &HERE_ONE).chain(of_list(fields, &HERE_LIST)).collect();
        parts.extend(of_named(fields, &HERE_NAMED));
        if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
            let target = pointed(self.root, reference);
            parts.push(target.ok_or_else(|| SchemaError::Wrong(format!("$ref {reference} leads to no part of it")))?);
        }
        Ok(parts)
    }
}

fn within(fields: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    of_one(fields, &WITHIN_ONE).chain(of_list(fields, &WITHIN_LIST)).chain(of_named(fields, &WITHIN_NAMED))
}

fn of_one<'a>(fields: &'a Map<String, Value>, words: &'static [&str]) -> impl Iterator<Item = &'a Value> {
    words.iter().filter_map(|word| fields.get(*word)).filter(|value| value.is_object())
}

fn of_list<'a>(fields: &'a Map<String, Value>, words: &'static [&str]) -> impl Iterator<Item = &'a Value> {
    words.iter().filter_map(|word| fields.get(*word)).filter_map(Value::as_array).flatten()
}

fn of_named<'a>(fields: &'a Map<String, Value>, words: &'static [&str]) -> impl Iterator<Item = &'a Value> {
    words.iter().filter_map(|word| fields.get(*word)).filter_map(Value::as_object).flat_map(Map::values)
}

/// What `#/a/b` points to.
#[must_use]
pub fn pointed<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    let pointer = percent_decoded(reference.strip_prefix('#')?.as_bytes());
    root.pointer(str::from_utf8(&pointer).ok()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case::nothing(json!({}), 1)]
    #[case::a_flag(json!(true), 1)]
    #[case::properties(json!({"properties": {"a": {}, "b": {"allOf": [{}, {}]}}}), 5)]
    #[case::data_is_no_schema(json!({"const": {"$ref": "#/x"}, "enum": [{"$ref": 1}], "properties": {"$ref": {}}}), 2)]
    #[case::shared(json!({"properties": {"a": {"$ref": "#/$defs/d"}, "b": {"$ref": "#/$defs/d"}}, "$defs": {"d": {}}}), 5)]
    #[case::escaped(json!({"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {}}}), 2)]
    #[case::a_list_of_itself(json!({"properties": {"next": {"$ref": "#"}}}), 7)]
    fn every_schema_that_applies_is_counted(#[case] schema: Value, #[case] expected: u64) {
        assert_eq!(places(&schema, 3).unwrap(), expected);
    }

    #[rstest]
    #[case::choices(json!({"enum": [1, 2, 3]}), 4)]
    #[case::the_same_pattern_again(json!({"allOf": [{"pattern": "a"}, {"pattern": "a"}]}), 2003)]
    #[case::patterns_of_names(json!({"patternProperties": {"a": {}, "b": {}}}), 2003)]
    #[case::a_property_of_that_name(json!({"properties": {"pattern": {}}}), 2)]
    fn what_takes_long_counts_for_more(#[case] schema: Value, #[case] expected: u64) {
        assert_eq!(effort(&schema, 3).unwrap(), expected);
    }

    #[rstest]
    #[case::itself(json!({"$ref": "#"}))]
    #[case::each_other(json!({"properties": {"a": {"$ref": "#/$defs/a"}},
        "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"anyOf": [{}, {"$ref": "#/$defs/a"}]}}}))]
    fn references_that_lead_in_a_circle_are_refused(#[case] schema: Value) {
        assert_eq!(effort(&schema, 3), Err(SchemaError::Circular));
    }

    #[rstest]
    #[case::file(json!({"$ref": "file:///etc/passwd"}), "$ref file:///etc/passwd leads to no part of it")]
    #[case::absent(json!({"$ref": "#/$defs/absent"}), "leads to no part of it")]
    #[case::half_a_digit(json!({"$ref": "#/%2"}), "leads to no part of it")]
    #[case::anchor(json!({"$ref": "#/$defs/a", "$defs": {"a": {"$anchor": "a"}}}), "it uses $anchor")]
    #[case::base(json!({"items": {"$id": "https://example.com/"}}), "it uses $id")]
    #[case::dynamic(json!({"$dynamicRef": "#a"}), "it uses $dynamicRef")]
    fn no_other_reference_is_followed(#[case] schema: Value, #[case] words: &str) {
        let refused = effort(&schema, 3).unwrap_err().to_string();
        assert!(refused.contains(words), "{refused}");
    }

    #[test]
    fn what_applies_at_every_level_in_too_many_places_is_refused() {
        let wide: Map<String, Value> =
            (0..1000).map(|at| (format!("p{at}"), json!({"items": {"$ref": "#"}}))).collect();
        assert!(effort(&json!({"properties": wide}), 3).is_ok());
        assert_eq!(effort(&json!({"properties": wide}), 64), Err(SchemaError::TooIntricate));
    }

    #[test]
    fn what_multiplies_is_counted_without_being_walked_through() {
        let level = |next: usize| {
            let reference = json!({"$ref": format!("#/$defs/l{next}")});
            json!({"allOf": [reference, reference]})
        };
        let mut levels: Map<String, Value> = (0..40).map(|at| (format!("l{at}"), level(at + 1))).collect();
        levels.insert("l40".to_owned(), json!({}));
        assert!(effort(&json!({"$ref": "#/$defs/l0", "$defs": levels}), 3).unwrap() > 1 << 40);
        let chain: Map<String, Value> =
            (0..600).map(|at| (format!("l{at}"), json!({"$ref": format!("#/$defs/l{}", at + 1)}))).collect();
        assert_eq!(effort(&json!({"$ref": "#/$defs/l0", "$defs": chain}), 3), Err(SchemaError::TooDeep));
    }
}
