//! Schema fragments that no Rust type says by itself.

use schemars::{Schema, SchemaGenerator, json_schema};

/// A JSON object with whatever fields; the API server keeps them all.
pub fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// Quantities of cpu and memory by name.
pub fn quantities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 2,
        "additionalProperties": {"type": "string", "maxLength": 32, "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"},
        "x-kubernetes-validations": [
            {"rule": "self.all(k, k in ['cpu', 'memory'])", "message": "only cpu and memory can be set"},
            {"rule": "self.all(k, quantity(self[k]).isGreaterThan(quantity('0')))", "message": "a quantity is more than zero"},
        ],
    })
}
