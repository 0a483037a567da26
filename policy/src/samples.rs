//! Arguments made up from an operation's schema, to find rules that real arguments could not be tried against. A schema is a
//! server's word: what is found here warns, and refuses nothing.

use std::collections::BTreeSet;
use std::fmt;

use belay_protocol::plan::Effects;
use serde_json::{Map, Value, json};

use crate::engine::Engine;
use crate::facts::Scene;
use crate::source::on_a_large_stack;
use crate::trial::made_up;

/// Deeper than any rule looks.
const DEPTH_MAX: usize = 6;
/// Properties of one object that are made up.
const PROPERTIES_MAX: usize = 64;
/// What one schema may come to in all: `$ref`s can multiply.
const VALUES_MAX: usize = 1024;

/// An operation as its server describes it.
#[derive(Clone, Copy, Debug)]
pub struct Described<'a> {
    pub tool: &'a str,
    pub operation: &'a str,
    pub effects: Effects,
    /// JSON Schema of the arguments.
    pub schema: &'a Value,
}

/// Rules that could not be evaluated on arguments that the schema describes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Misfit {
    /// `tool/operation`.
    pub call: String,
    /// The rules, each with why.
    pub error: String,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "with {}: {}", self.call, self.error)
    }
}

/// Asks the policy about made-up calls of the operations. Blocks for as long as the rules take.
///
/// # Errors
/// In words, where no thread could be had to evaluate on.
pub fn misfits(engine: &Engine, operations: &[Described<'_>]) -> Result<Vec<Misfit>, String> {
    let found: BTreeSet<Misfit> = on_a_large_stack(|| {
        let tried = operations.iter().flat_map(|operation| {
            samples(operation.schema).into_iter().filter_map(|args| misfit(engine, operation, args))
        });
        tried.collect()
    })?;
    Ok(found.into_iter().collect())
}

fn misfit(engine: &Engine, described: &Described<'_>, args: Value) -> Option<Misfit> {
    let Described { tool, operation, effects, .. } = *described;
    let facts = made_up(tool, operation, args, effects);
    let error = engine.rule_on(&Scene::new(&facts)).error?;
    Some(Misfit { call: format!("{tool}/{operation}"), error })
}

/// Arguments with everything that the schema describes, and with no more than it requires.
fn samples(schema: &Value) -> Vec<Value> {
    let whole = Making { root: schema, optional: true, left: VALUES_MAX }.value(schema, 0);
    let least = Making { root: schema, optional: false, left: VALUES_MAX }.value(schema, 0);
    // Arguments are an object, whatever a schema says.
    let mut all: Vec<Value> = [whole, least].into_iter().filter(Value::is_object).collect();
    all.dedup();
    all
}

struct Making<'a> {
    root: &'a Value,
    /// Whether properties that are not required are there.
    optional: bool,
    left: usize,
}

impl<'a> Making<'a> {
    fn value(&mut self, schema: &'a Value, depth: usize) -> Value {
        self.left = self.left.saturating_sub(1);
        if depth > DEPTH_MAX || self.left == 0 {
            return Value::Null;
        }
        if let Some(target) = self.referred(schema) {
            return self.value(target, depth + 1);
        }
        if let Some(given) = given(schema) {
            return given.clone();
        }
        match kind(schema) {
            Some("object") => self.object(schema, depth),
            Some("array") => {
                let items = schema.get("items").map(|items| self.value(items, depth + 1));
                Value::Array(items.into_iter().collect())
            }
            Some("string") => json!("text"),
            Some("integer") => schema.get("minimum").filter(|it| it.is_i64()).cloned().unwrap_or_else(|| json!(1)),
            Some("number") => json!(1.5),
            Some("boolean") => json!(true),
            Some(_) | None => Value::Null,
        }
    }

    fn object(&mut self, schema: &'a Value, depth: usize) -> Value {
        let required = |name: &str| {
            let list = schema.get("required").and_then(Value::as_array);
            list.is_some_and(|list| list.iter().any(|it| it == name))
        };
        let mut object = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object);
        for (name, property) in properties.into_iter().flatten().take(PROPERTIES_MAX) {
            if self.optional || required(name) {
                object.insert(name.clone(), self.value(property, depth + 1));
            }
        }
        Value::Object(object)
    }

    /// The schema that stands for this one: what `$ref` names within the document, or the first that may apply.
    fn referred(&self, schema: &'a Value) -> Option<&'a Value> {
        let pointer = schema.get("$ref").and_then(Value::as_str).and_then(|target| target.strip_prefix('#'));
        let alternatives = || {
            let list = ["anyOf", "oneOf", "allOf"].iter().find_map(|word| schema.get(word)?.as_array())?;
            list.iter().find(|it| it.get("type").is_none_or(|kind| kind != "null"))
        };
        pointer.map_or_else(alternatives, |pointer| self.root.pointer(pointer))
    }
}

/// A value that the schema itself gives.
fn given(schema: &Value) -> Option<&Value> {
    let listed = |word: &str| schema.get(word).and_then(Value::as_array).and_then(|list| list.first());
    schema.get("const").or_else(|| listed("enum")).or_else(|| listed("examples")).or_else(|| schema.get("default"))
}

/// The type that the schema says, or that its words are about.
fn kind(schema: &Value) -> Option<&str> {
    match schema.get("type") {
        Some(Value::String(kind)) => Some(kind),
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
        _ if schema.get("properties").is_some() => Some("object"),
        _ if schema.get("items").is_some() => Some("array"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use crate::frozen::{Identity, freeze};

    fn engine(rules: &Value) -> Engine {
        let spec = serde_json::from_value(json!({ "rules": rules })).unwrap();
        Engine::compile(&freeze(Identity { name: "p".into(), uid: "u".into(), generation: 1 }, &spec)).unwrap()
    }

    fn found(when: &str, schema: &Value) -> Vec<String> {
        let engine = engine(&json!([{"name": "r", "action": "Deny", "when": when}]));
        let described = Described { tool: "t", operation: "o", effects: Effects::default(), schema };
        misfits(&engine, &[described]).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_rule_that_forgets_an_argument_may_be_absent_is_found_and_one_that_asks_is_not() {
        let schema = json!({"type": "object", "required": ["repo"],
            "properties": {"repo": {"type": "string"}, "force": {"type": "boolean"}}});
        assert_eq!(found("has(args.force) && args.force", &schema), Vec::<String>::new());
        assert_eq!(found("args.repo == 'prod'", &schema), Vec::<String>::new());
        let said = found("args.force", &schema);
        assert!(said.len() == 1 && said[0].starts_with("with t/o: rule r: "), "{said:?}");
        assert!(said[0].contains("force"), "{said:?}");
    }

    #[test]
    fn a_rule_that_takes_an_argument_for_another_type_is_found() {
        let schema = json!({"type": "object", "required": ["names", "count"], "properties": {
            "names": {"type": "array", "items": {"$ref": "#/$defs/name"}},
            "count": {"type": ["null", "integer"]},
            "mode": {"enum": ["soft", "hard"]},
            "where": {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"path": {"const": "/"}}}]},
        }, "$defs": {"name": {"type": "string"}}});
        for fits in [
            "args.names.all(n, n.startsWith('a'))",
            "args.count > 3",
            "has(args.mode) && args.mode in ['soft']",
            "has(args.where) && args.where.path.startsWith('/')",
        ] {
            assert_eq!(found(fits, &schema), Vec::<String>::new(), "{fits}");
        }
        for wrong in ["args.names.startsWith('a')", "args.count.startsWith('3')", "size(args.count) > 3"] {
            assert_eq!(found(wrong, &schema).len(), 1, "{wrong}");
        }
    }

    #[test]
    fn no_schema_takes_more_than_a_moment() {
        let mut deep = json!({"type": "string"});
        for _ in 0..1000 {
            deep = json!({"type": "object", "properties": {"a": deep}, "required": ["a"]});
        }
        let cycle =
            json!({"type": "object", "properties": {"a": {"$ref": "#"}, "b": {"$ref": "#"}, "c": {"$ref": "#"}}});
        let many: Map<String, Value> = (0..5000).map(|n| (format!("p{n}"), json!({"type": "string"}))).collect();
        let wide = json!({"type": "object", "properties": many});
        for schema in [deep, cycle, wide, json!(true), json!([]), json!({"type": "string"}), json!({"$ref": "#/none"})]
        {
            for sample in samples(&schema) {
                assert!(sample.to_string().len() < 100_000);
            }
        }
    }
}
