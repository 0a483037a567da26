//! Runs against models that others wrote: aimock for what a script must decide, a real language model for what
//! only a real one shows. Model and tools are pods with Services.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use belay_e2e::TempNamespace;
use belay_e2e::kubectl::belay;
use belay_e2e::namespace::condition;
use belay_e2e::peer::{self, SECURE_CONTAINER, SECURE_POD, aimock};
use serde_json::{Value, json};

const TWO_MINUTES: Duration = Duration::from_mins(2);
fn chat_agent(namespace: &TempNamespace, model_spec: &str, tools: &str) {
    agent(namespace, "ChatCompletions", model_spec, tools);
}

fn agent(namespace: &TempNamespace, api: &str, model_spec: &str, tools: &str) {
    namespace
        .kubectl
        .apply(&format!(
            "{{apiVersion: belay.dev/v1alpha1, kind: Model, metadata: {{name: m}}, spec: {{api: {api}, {model_spec}}}}}\n---\n\
             {{apiVersion: belay.dev/v1alpha1, kind: Agent, metadata: {{name: a}}, spec: {{modelRef: {{name: m}}, tools: [{tools}], limits: {{steps: 8, activeSeconds: 100}}}}}}\n"
        ))
        .unwrap();
}

fn run(namespace: &TempNamespace, input: &str) -> Value {
    run_as(namespace, "r", input)
}

fn run_as(namespace: &TempNamespace, name: &str, input: &str) -> Value {
    let output = belay(&["-n", &namespace.name, "run", "a", "--name", name, "--input", input]).unwrap();
    assert!(output.success, "{}", output.stderr);
    namespace.run_to_the_end(name, TWO_MINUTES).unwrap()
}

fn message(run: &Value) -> &str {
    condition(run, "Ready").unwrap()["message"].as_str().unwrap_or_default()
}

/// The wire formats, each with what else a Model of it must say.
const APIS: [(&str, &str); 3] = [("ChatCompletions", ""), ("Responses", ""), ("Messages", "maxOutputTokens: 900, ")];

#[test]
fn three_calls_of_which_one_fails_and_two_come_in_one_response_in_every_format() {
    let namespace = TempNamespace::enabled("model-calls").unwrap();
    namespace.apply_manifest("demo/server.yaml").unwrap();
    namespace
        .kubectl
        .apply("{apiVersion: belay.dev/v1alpha1, kind: Tool, metadata: {name: everything}, spec: {mcp: {url: 'http://everything:3001/mcp'}, effects: {default: None}}}")
        .unwrap();
    let call = |id: &str, name: &str, arguments: Value| json!({"id": id, "name": name, "arguments": arguments});
    aimock(
        &namespace.kubectl,
        &json!([
            {"match": {"turnIndex": 0}, "response": {"toolCalls": [
                call("call_a", "everything__get-sum", json!({"a": 2, "b": 3})),
                call("call_b", "everything__echo", json!({"message": "grüße"}))]}},
            // No `b`: the server refuses the arguments, and the model is told.
            {"match": {"turnIndex": 1}, "response": {"toolCalls": [call("call_c", "everything__get-sum", json!({"a": 2}))]}},
            {"match": {"turnIndex": 2, "toolCallId": "call_c"}, "response": {"content": "The sum is 5."}}
        ]),
    ).unwrap();
    namespace.kubectl.run(&["rollout", "status", "deployment/everything", "--timeout=120s"]).unwrap();
    for (api, more) in APIS {
        agent(
            &namespace,
            api,
            &format!(
                "{more}model: gpt-test, baseURL: 'http://aimock:4010/v1', pricesUSD: {{input: '3.00', output: '15.00'}}"
            ),
            "{name: everything, operations: [get-sum, echo]}",
        );
        namespace.kubectl.run(&["wait", "--for=condition=Ready", "agent/a", "--timeout=60s"]).unwrap();
        let ended = run_as(&namespace, &format!("r-{}", api.to_lowercase()), "Add.");
        assert_eq!(ended["status"]["phase"], "Succeeded", "{api}: {ended:#}");
        assert_eq!(ended["status"]["output"], "The sum is 5.", "{api}");
        assert_eq!(ended["status"]["usage"]["steps"], 3, "{api}");
        // In the other formats this mock counts nothing.
        let counted = api == "ChatCompletions";
        assert_eq!(ended["status"]["usage"]["totalTokens"].as_i64().unwrap() > 0, counted, "{api}: {ended:#}");
        assert!(ended["status"]["usage"]["costUSD"].is_string(), "{api}: {ended:#}");
    }
}

#[test]
fn a_real_language_model_answers_in_every_format_and_its_tokens_are_the_servers_own() {
    let namespace = TempNamespace::enabled("model-real").unwrap();
    peer::start(&namespace.kubectl, "llm", "localhost/belay-peer-llm:0.1.2", 8080, "", "").unwrap();
    for (api, _) in APIS {
        agent(
            &namespace,
            api,
            "model: smollm2, baseURL: 'http://llm:8080/v1', maxOutputTokens: 24, temperature: 0",
            "",
        );
        namespace.kubectl.run(&["wait", "--for=condition=Ready", "agent/a", "--timeout=60s"]).unwrap();
        let ended = run_as(&namespace, &format!("r-{}", api.to_lowercase()), "Say hello in one word.");
        // A small model may stop by itself or be cut at 24 tokens: both are told truly.
        let reason = condition(&ended, "Ready").unwrap()["reason"].as_str().unwrap();
        assert!(["Completed", "ModelIncomplete"].contains(&reason), "{api}: {ended:#}");
        // The same request, asked of the server directly: at temperature 0 it counts the same.
        let body = json!({"model": "smollm2", "max_tokens": 24, "temperature": 0,
            "messages": [{"role": "user", "content": "Say hello in one word."}]});
        let path = format!("/api/v1/namespaces/{}/services/llm:8080/proxy/v1/chat/completions", namespace.name);
        let answer = namespace.kubectl.output(&["create", "--raw", &path, "-f", "-"], Some(&body.to_string())).unwrap();
        assert!(answer.success, "{}", answer.stderr);
        let reported = &serde_json::from_str::<Value>(&answer.stdout).unwrap()["usage"];
        let usage = &ended["status"]["usage"];
        assert_eq!(usage["inputTokens"], reported["prompt_tokens"], "{api}: {usage:#} {reported:#}");
        assert_eq!(usage["outputTokens"], reported["completion_tokens"], "{api}: {usage:#} {reported:#}");
        assert!(!ended["status"]["output"].as_str().unwrap_or_default().is_empty(), "{api}: {ended:#}");
    }
}

/// A small model calls nothing when it should: another one asks for the call, and then has no key, so that the real one is
/// sent the definition, the call and its result.
#[test]
fn a_real_language_model_takes_definitions_calls_results_and_a_schema_in_every_format() {
    let namespace = TempNamespace::enabled("model-taken").unwrap();
    namespace.apply_manifest("demo/server.yaml").unwrap();
    namespace
        .kubectl
        .apply("{apiVersion: belay.dev/v1alpha1, kind: Tool, metadata: {name: everything}, spec: {mcp: {url: 'http://everything:3001/mcp'}, effects: {default: None}}}")
        .unwrap();
    let call = json!({"id": "call_a", "name": "everything__get-sum", "arguments": {"a": 2, "b": 3}});
    aimock(
        &namespace.kubectl,
        &json!([{"match": {"turnIndex": 0}, "response": {"toolCalls": [call]}},
        {"match": {"turnIndex": 1}, "response": {"error": {"message": "Incorrect API key", "type": "invalid_request_error"}, "status": 401}}]),
    )
    .unwrap();
    peer::start(&namespace.kubectl, "llm", "localhost/belay-peer-llm:0.1.2", 8080, "", "").unwrap();
    namespace.kubectl.run(&["rollout", "status", "deployment/everything", "--timeout=120s"]).unwrap();
    for (api, more) in APIS {
        let real = "model: smollm2, baseURL: 'http://llm:8080/v1', maxOutputTokens: 48, temperature: 0";
        namespace
            .kubectl
            .apply(&format!(
                "{{apiVersion: belay.dev/v1alpha1, kind: Model, metadata: {{name: real}}, spec: {{api: {api}, {real}}}}}"
            ))
            .unwrap();
        let first = format!("{more}model: gpt-test, baseURL: 'http://aimock:4010/v1', fallbackRefs: [{{name: real}}]");
        agent(&namespace, api, &first, "{name: everything, operations: [get-sum, echo]}");
        namespace.kubectl.run(&["wait", "--for=condition=Ready", "agent/a", "--timeout=60s"]).unwrap();
        let ended = run_as(&namespace, &format!("r-{}", api.to_lowercase()), "What is 2 and 3?");
        let reason = condition(&ended, "Ready").unwrap()["reason"].as_str().unwrap();
        assert!(["Completed", "ModelIncomplete"].contains(&reason), "{api}: {ended:#}");
        assert_eq!(
            (&ended["status"]["model"], &ended["status"]["usage"]["steps"]),
            (&json!("smollm2"), &json!(2)),
            "{api}"
        );

        // In the other formats this server passes over the schema.
        if api == "ChatCompletions" {
            let schema = json!({"type": "object", "required": ["word"], "additionalProperties": false,
                "properties": {"word": {"type": "string", "enum": ["hello", "goodbye"]}}});
            let patch =
                json!({"spec": {"modelRef": {"name": "real"}, "tools": [], "outputSchema": schema}}).to_string();
            namespace.kubectl.run(&["patch", "agent", "a", "--type=merge", "--patch", &patch]).unwrap();
            namespace.kubectl.run(&["wait", "--for=condition=Ready", "agent/a", "--timeout=60s"]).unwrap();
            let ended = run_as(&namespace, &format!("s-{}", api.to_lowercase()), "Say hello.");
            let output = ended["status"]["output"].as_str().unwrap_or_default();
            assert!(output.contains("hello") || output.contains("goodbye"), "{api}: {ended:#}");
        }
        namespace.kubectl.run(&["delete", "agent/a", "model/m", "model/real"]).unwrap();
    }
}

#[test]
fn a_model_with_a_wrong_key_is_replaced_by_its_fallback() {
    let namespace = TempNamespace::enabled("model-spare").unwrap();
    aimock(
        &namespace.kubectl,
        &json!([{"match": {"model": "spare"}, "response": {"content": "Here I am."}},
        {"match": {}, "response": {"error": {"message": "Incorrect API key", "type": "invalid_request_error"}, "status": 401}}]),
    ).unwrap();
    namespace
        .kubectl
        .apply("{apiVersion: belay.dev/v1alpha1, kind: Model, metadata: {name: spare}, spec: {api: Messages, maxOutputTokens: 90, model: spare, baseURL: 'http://aimock:4010/v1'}}")
        .unwrap();
    chat_agent(&namespace, "model: first, baseURL: 'http://aimock:4010/v1', fallbackRefs: [{name: spare}]", "");
    namespace.kubectl.run(&["wait", "--for=condition=Ready", "agent/a", "--timeout=60s"]).unwrap();
    let ended = run(&namespace, "Hello.");
    assert_eq!(ended["status"]["output"], "Here I am.", "{ended:#}");
    assert_eq!(ended["status"]["model"], "spare", "{ended:#}");
}

#[test]
fn a_wrong_key_names_the_model_the_credential_and_what_to_do() {
    let namespace = TempNamespace::enabled("model-key").unwrap();
    aimock(
        &namespace.kubectl,
        &json!([{"match": {}, "response": {"error": {"message": "Incorrect API key", "type": "invalid_request_error"}, "status": 401}}]),
    ).unwrap();
    namespace.kubectl.run(&["create", "secret", "generic", "key", "--from-literal=key=canary-77ab"]).unwrap();
    namespace
        .kubectl
        .apply("{apiVersion: belay.dev/v1alpha1, kind: Credential, metadata: {name: key}, spec: {secretKeyRef: {name: key, key: key}, inject: {bearer: {}}, hosts: [aimock]}}")
        .unwrap();
    chat_agent(&namespace, "model: gpt-test, baseURL: 'http://aimock:4010/v1', credentialRef: {name: key}", "");
    let ended = run(&namespace, "Hello.");
    assert_eq!(condition(&ended, "Ready").unwrap()["reason"], "ModelFailed", "{ended:#}");
    let words = message(&ended);
    assert!(words.contains("Model m") && words.contains("401") && words.contains("Credential key"), "{words}");
    assert!(!ended.to_string().contains("canary"), "{ended:#}");
}

#[test]
fn an_unreachable_model_is_named_with_its_address() {
    let namespace = TempNamespace::enabled("model-gone").unwrap();
    chat_agent(&namespace, "model: gpt-test, baseURL: 'http://nobody:4010/v1'", "");
    let ended = run(&namespace, "Hello.");
    assert_eq!(condition(&ended, "Ready").unwrap()["reason"], "ModelFailed", "{ended:#}");
    let words = message(&ended);
    assert!(words.contains("Model m") && words.contains("nobody:4010") && words.contains("baseURL"), "{words}");
}

#[test]
fn a_model_that_answers_garbage_ends_the_run_in_words() {
    let namespace = TempNamespace::enabled("model-garbage").unwrap();
    // The MCP server is no model: what it answers is not Chat Completions.
    aimock(&namespace.kubectl, &json!([{"match": {}, "response": {"content": "x"}, "chaos": {"malformedRate": 1.0}}]))
        .unwrap();
    chat_agent(&namespace, "model: gpt-test, baseURL: 'http://aimock:4010/v1'", "");
    let ended = run(&namespace, "Hello.");
    assert_eq!(condition(&ended, "Ready").unwrap()["reason"], "ModelFailed", "{ended:#}");
    assert!(message(&ended).contains("Model m"), "{}", message(&ended));
}

#[test]
fn a_server_that_hangs_makes_the_tool_unreachable_in_words() {
    let namespace = TempNamespace::enabled("tool-hang").unwrap();
    // Accepts, one connection beside another, and never answers.
    namespace
        .kubectl
        .apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: hang, labels: {{app: hang}}}}, spec: {{terminationGracePeriodSeconds: 0, securityContext: {{{SECURE_POD}}}, \
             containers: [{{name: c, image: 'localhost/belay-peer-busybox:1', imagePullPolicy: Never, \
             command: [/bin/busybox, nc, -ll, -p, '9000', -e, /bin/busybox, sleep, '600'], \
             readinessProbe: {{tcpSocket: {{port: 9000}}, periodSeconds: 1}}, securityContext: {{{SECURE_CONTAINER}}}}}]}}}}\n---\n\
             {{apiVersion: v1, kind: Service, metadata: {{name: hang}}, spec: {{selector: {{app: hang}}, ports: [{{port: 9000}}]}}}}\n"
        ))
        .unwrap();
    namespace.kubectl.run(&["wait", "--for=condition=Ready", "pod/hang", "--timeout=60s"]).unwrap();
    namespace
        .kubectl
        .apply("{apiVersion: belay.dev/v1alpha1, kind: Tool, metadata: {name: t}, spec: {mcp: {url: 'http://hang:9000/mcp'}, effects: {default: None}}}")
        .unwrap();
    let tool = namespace.wait_ready("tool", "t", "False", "Unreachable").unwrap();
    let expected = "Tool t: the MCP server at http://hang:9000/mcp did not list its operations within 30 s";
    assert!(message(&tool).starts_with(expected), "{}", message(&tool));
}

#[test]
fn runs_of_a_limited_model_take_turns_and_say_so_and_the_output_fits() {
    let namespace = TempNamespace::enabled("models-limited").unwrap();
    let turns = json!([{"text": "no JSON"}, {"text": "{\"ok\": true}", "delayMilliseconds": 50000}]);
    let model = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Model", "metadata": {"name": "m"},
        "spec": {"api": "Scripted", "model": "s", "scripted": {"turns": turns}, "rateLimits": {"concurrentRequests": 1}}});
    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]});
    let agent = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "a"},
        "spec": {"modelRef": {"name": "m"}, "outputSchema": schema}});
    namespace.kubectl.apply(&format!("{model}\n---\n{agent}\n")).unwrap();
    for name in ["first", "second"] {
        let begun = belay(&["-n", &namespace.name, "run", "a", "--name", name, "--input", "go"]).unwrap();
        assert!(begun.success, "{}", begun.stderr);
    }
    // Whichever came later waits while the other one's model thinks, and says so when progress is written next.
    let waits = |name| {
        let run = namespace.kubectl.get("agentrun", name).unwrap();
        let ready = condition(&run, "Ready")?.clone();
        (ready["reason"] == "RateLimited").then(|| ready["message"].as_str().unwrap().to_owned())
    };
    let deadline = std::time::Instant::now() + TWO_MINUTES;
    let (waiting, message) = loop {
        if let Some(found) = ["first", "second"].into_iter().find_map(|name| Some((name, waits(name)?))) {
            break found;
        }
        assert!(std::time::Instant::now() < deadline, "no run says what it waits for");
        std::thread::sleep(Duration::from_millis(200));
    };
    assert!(message.starts_with("Model m: spec.rateLimits.concurrentRequests is reached"), "{message}");
    let cancelled = belay(&["-n", &namespace.name, "cancel", waiting]).unwrap();
    assert!(cancelled.success, "{}", cancelled.stderr);
    let ended = namespace.run_to_the_end(waiting, TWO_MINUTES).unwrap();
    assert_eq!(ended["status"]["phase"], "Cancelled", "{ended:#}");
    let other = if waiting == "first" { "second" } else { "first" };
    let ended = namespace.run_to_the_end(other, TWO_MINUTES).unwrap();
    assert_eq!(
        (&ended["status"]["phase"], &ended["status"]["output"]),
        (&json!("Succeeded"), &json!("{\"ok\": true}"))
    );
}
