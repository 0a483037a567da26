//! What of `spec.http` a plan holds, and what its definitions are accepted from. Pure.

use belay_crds::{Http, HttpOperation, HttpSource};
use belay_protocol::Digest;
use belay_protocol::digest::digest_of;
use belay_protocol::plan::{HttpOperations, InlineHeader, InlineOperation};

/// Where a runner finds the operations. Of those that the Tool itself describes, the `wanted` ones.
#[must_use]
pub fn freeze(http: &Http, wanted: impl Fn(&str) -> bool) -> HttpOperations {
    if let Some(open_api) = &http.open_api {
        return HttpOperations::Document {
            config_map: open_api.config_map_key_ref.name.clone(),
            key: open_api.config_map_key_ref.key.clone(),
            only: open_api.operations.clone(),
        };
    }
    let described = http.operations.iter().filter(|operation| wanted(&operation.name));
    HttpOperations::Inline(described.map(freeze_operation).collect())
}

fn freeze_operation(operation: &HttpOperation) -> InlineOperation {
    let headers = operation.headers.iter();
    InlineOperation {
        name: operation.name.clone(),
        description: operation.description.clone().unwrap_or_default(),
        method: operation.method.as_str().to_owned(),
        path: operation.path.clone(),
        query: operation.query.clone(),
        headers: headers.map(|it| InlineHeader { name: it.name.clone(), argument: it.argument.clone() }).collect(),
        body: operation.body.clone(),
        schema: operation.schema.clone(),
    }
}

/// What status remembers of the spec by which definitions were accepted.
#[must_use]
pub fn source(http: &Http) -> HttpSource {
    let digest = digest_of(http).unwrap_or_else(|_| {
        // A number of a schema without canonical form: its text tells specs apart as well.
        Digest::of(serde_json::to_string(http).unwrap_or_default().as_bytes())
    });
    HttpSource {
        base_url: http.base_url.clone(),
        credential_ref: http.credential_ref.clone(),
        digest: digest.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn http(spec: &str) -> Http {
        serde_saphyr::from_str(spec).unwrap()
    }

    #[test]
    fn a_plan_holds_the_operations_that_are_wanted_or_where_the_document_is() {
        let inline = http(
            "{baseURL: 'http://x', operations: [{name: a, method: GET, path: /a}, {name: b, method: PATCH, path: '/b/{id}', \
             description: Does b., query: [q], headers: [{name: If-Match, argument: etag}], body: change, \
             schema: {properties: {id: {}, q: {}, etag: {}, change: {}}}}]}",
        );
        let frozen = freeze(&inline, |name| name == "b");
        let expected = InlineOperation {
            name: "b".into(),
            description: "Does b.".into(),
            method: "PATCH".into(),
            path: "/b/{id}".into(),
            query: vec!["q".into()],
            headers: vec![InlineHeader { name: "If-Match".into(), argument: "etag".into() }],
            body: Some("change".into()),
            schema: Some(serde_json::json!({"properties": {"id": {}, "q": {}, "etag": {}, "change": {}}})),
        };
        assert_eq!(frozen, HttpOperations::Inline(vec![expected]));
        let document =
            http("{baseURL: 'http://x', openAPI: {configMapKeyRef: {name: pets, key: v1.yaml}, operations: [a]}}");
        let expected =
            HttpOperations::Document { config_map: "pets".into(), key: "v1.yaml".into(), only: vec!["a".into()] };
        assert_eq!(freeze(&document, |_| false), expected);
    }

    #[test]
    fn any_edit_of_the_spec_is_another_source() {
        let whole = http("{baseURL: 'http://x', operations: [{name: a, method: GET, path: /a}]}");
        let edited = http("{baseURL: 'http://x', operations: [{name: a, method: DELETE, path: /a}]}");
        assert_eq!(source(&whole), source(&whole.clone()));
        assert_ne!(source(&whole), source(&edited));
        let inexact = |number: &str| {
            let schema = format!("{{properties: {{a: {{maximum: {number}}}}}}}");
            source(&http(&format!(
                "{{baseURL: 'http://x', operations: [{{name: a, method: GET, path: /a, schema: {schema}}}]}}"
            )))
        };
        assert_ne!(inexact("9007199254740993"), inexact("9007199254740995"), "beyond what is canonical");
    }
}
