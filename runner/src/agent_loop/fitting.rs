//! Whether arguments are what an operation's definition takes: looked at before anything is proposed.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::models::OfferedTool;
use crate::tools::schema::{ArgumentSchema, SchemaError};

/// The schemas of the operations that were called, by the name under which the model sees each. One is compiled when it
/// is first needed: most of what is offered is never called.
#[derive(Debug, Default)]
pub struct Schemas(BTreeMap<String, Result<ArgumentSchema, SchemaError>>);

impl Schemas {
    /// Where the arguments do not fit what the model was shown, or where that cannot be known: why, in words.
    pub fn check(&mut self, offered: &OfferedTool, arguments: &Value) -> Result<(), String> {
        let name = &offered.name;
        let compiled = self.0.entry(name.clone()).or_insert_with(|| ArgumentSchema::compile(&offered.input_schema));
        let schema = compiled.as_ref().map_err(|error| format!("{name} cannot be called: {error}"))?;
        let unfit = |misfits: String| format!("the arguments do not fit the schema of {name}: {misfits}");
        schema.check(arguments).map_err(unfit)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn an_operation_whose_schema_cannot_be_checked_is_not_called() {
        let mut schemas = Schemas::default();
        let offered =
            |input_schema| OfferedTool { name: "files__read".to_owned(), description: String::new(), input_schema };
        let elsewhere = offered(json!({"$ref": "https://example.com/schema.json"}));
        let refused = schemas.check(&elsewhere, &json!({})).unwrap_err();
        assert!(refused.starts_with("files__read cannot be called: its schema is no JSON Schema"), "{refused}");
    }
}
