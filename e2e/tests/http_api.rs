//! A run that calls an HTTP API of the cluster, as an OpenAPI document describes it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use belay_e2e::namespace::condition;
use belay_e2e::{TempNamespace, counter};
use serde_json::{Value, json};

/// `servers` names nobody: requests go to the Tool's baseURL.
const DOCUMENT: &str = "
openapi: 3.1.0
info: {title: Things, version: '1'}
servers: [{url: 'http://nobody.invalid'}]
paths:
  /things/{id}:
    put:
      operationId: put_thing
      parameters:
      - {name: id, in: path, required: true, schema: {type: string}}
      - {name: tag, in: query, schema: {type: array, items: {type: string}}}
      requestBody: {required: true, content: {application/json: {schema: {$ref: '#/components/schemas/Thing'}}}}
components:
  schemas:
    Thing: {type: object, required: [n], properties: {n: {type: integer}, next: {$ref: '#/components/schemas/Thing'}}}
";

fn put(args: &Value) -> Value {
    json!({"tool": "things", "operation": "put_thing", "args": args})
}

#[test]
fn a_run_calls_an_api_that_a_document_describes_and_the_operator_reads_no_config_map() {
    let namespace = TempNamespace::enabled("http-api").unwrap();
    counter::start(&namespace).unwrap();
    let tool = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "Tool", "metadata": {"name": "things"},
        "spec": {
            "http": {"baseURL": "http://counter:3001", "openAPI": {"configMapKeyRef": {"name": "things", "key": "v1.yaml"}}},
            "effects": {"operations": {"put_thing": "Idempotent"}}, "policyRefs": [{"name": "unattended"}],
        },
    });
    namespace.kubectl.apply(&tool.to_string()).unwrap();
    let missing = namespace.wait_ready("tool", "things", "False", "DocumentMissing").unwrap();
    let words = "Tool things: spec.http.openAPI: ConfigMap things has no key v1.yaml, or is not there";
    assert_eq!(condition(&missing, "Ready").unwrap()["message"], words);

    let document =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "things"}, "data": {"v1.yaml": DOCUMENT}});
    namespace.kubectl.apply(&document.to_string()).unwrap();
    let tool = namespace.wait_ready("tool", "things", "True", "Ready").unwrap();
    assert_eq!(tool["status"]["operations"][0]["description"], "PUT /things/{id}?tag, body body");

    let turns = json!([
        {"toolCalls": [put(&json!({"id": "a/b", "body": {"n": "1"}})), put(&json!({"id": "a/b", "tag": ["x", "y"], "body": {"n": 1, "next": {"n": 2}}}))]},
        {"text": "done"},
    ]);
    counter::agent(&namespace, "agent", &turns).unwrap();
    let patch = json!({"spec": {"tools": [{"name": "things", "operations": ["put_thing"]}]}}).to_string();
    namespace.kubectl.run(&["patch", "agent", "agent", "--type=merge", "--patch", &patch]).unwrap();
    let run = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "AgentRun", "metadata": {"name": "r"},
        "spec": {"agentRef": {"name": "agent"}, "input": "go"}});
    namespace.wait_ready("agent", "agent", "True", "Ready").unwrap();
    namespace.kubectl.apply(&run.to_string()).unwrap();
    let run = namespace.run_to_the_end("r", Duration::from_mins(2)).unwrap();
    assert_eq!(run["status"]["phase"], "Succeeded", "{run:#}");
    let arrived = counter::arrived(&namespace).unwrap();
    let uid = run["metadata"]["uid"].as_str().unwrap();
    let expected = counter::Arrived {
        name: r#"thing x,y {"n":1,"next":{"n":2}}"#.to_owned(),
        id: Some("a/b".to_owned()),
        key: Some(format!("{uid}/c2")),
    };
    assert_eq!(arrived, [expected], "what does not fit the schema did not arrive");
}
