//! The CEL rules of every kind, run as the API server runs them, without one: what they take, what they refuse
//! and in which words. Bounds and patterns are the API server's own: see e2e/tests/schema.rs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use belay_crds::definitions;
use kube_cel::Validator;
use rstest::rstest;
use serde_json::{Value, json};

fn schema_of(kind: &str) -> Value {
    let definitions = definitions().unwrap();
    let definition = definitions.iter().find(|it| it["spec"]["names"]["kind"] == kind).expect("a kind of ours");
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// The words of every rule that refuses the change from `old` to `new`; both are YAML of a spec.
fn refusals(kind: &str, new: &str, old: Option<&str>) -> Vec<String> {
    let object = |spec: &str| {
        let spec: Value = serde_saphyr::from_str(spec).unwrap();
        json!({"apiVersion": "belay.dev/v1alpha1", "kind": kind, "metadata": {"name": "x"}, "spec": spec})
    };
    let result = Validator::new().validate(&schema_of(kind), &object(new), old.map(object).as_ref());
    result.err().map(|errors| errors.into_vec().into_iter().map(|e| e.message).collect()).unwrap_or_default()
}

#[rstest]
#[case("Model", "{api: ChatCompletions, model: m}")]
#[case("Model", "{api: ChatCompletions, model: m, baseURL: 'http://x/v1', credentialRef: {name: c}}")]
#[case("Model", "{api: Scripted, model: m, scripted: {turns: [{text: hi}]}}")]
#[case(
    "Model",
    "{api: Scripted, model: s, scripted: {turns: [{text: a}]}, timeouts: {totalSeconds: 9}, \
     rateLimits: {requestsPerMinute: 9, concurrentRequests: 9}, pricesUSD: {input: '3', output: '15'}}"
)]
#[case("Model", "{api: Responses, model: m, temperature: 2}")]
#[case("Model", "{api: Messages, model: m, maxOutputTokens: 1024, temperature: 1}")]
#[case(
    "Model",
    "{api: Messages, model: m, maxOutputTokens: 1, pricesUSD: {input: '3', cacheWrite: '3.75', output: '15'}}"
)]
#[case("Model", "{api: ChatCompletions, model: m, reasoning: {effort: Minimal}, rateLimits: {requestsPerMinute: 1}}")]
#[case("Model", "{api: Messages, model: m, maxOutputTokens: 4096, reasoning: {effort: High, budgetTokens: 2048}}")]
#[case(
    "Model",
    "{api: Messages, model: m, maxOutputTokens: 9, headers: [{name: Anthropic-Beta, value: b}, {name: x, value: y}]}"
)]
#[case(
    "Model",
    "{api: Responses, model: m, headers: [{name: X-Portkey-Config, value: b}, {name: OpenAI-Project, value: y}]}"
)]
#[case("Agent", "{modelRef: {name: m}, outputSchema: {type: object, properties: {a: {type: string}}}}")]
#[case("Credential", "{secretKeyRef: {name: s, key: k}, inject: {bearer: {}}, hosts: [a.example]}")]
#[case("Credential", "{secretKeyRef: {name: s, key: k}, inject: {header: {name: X-Api-Key}}, hosts: [a.example]}")]
#[case("Credential", "{secretKeyRef: {name: s, key: k}, inject: {basic: {username: ada}}, hosts: [a.example]}")]
#[case("Credential", "{secretKeyRef: {name: s, key: k}, inject: {query: {name: key}}, hosts: [a.example]}")]
#[case(
    "Credential",
    "{secretKeyRef: {name: s, key: k}, hosts: [a.example], methods: [GET, POST], pathPrefixes: [/v1], \
     inject: {oauth2ClientCredentials: {tokenURL: 'https://login.example/token', clientID: belay}}}"
)]
#[case(
    "Credential",
    "{secretKeyRef: {name: s, key: k}, hosts: [a.example], \
     inject: {oauth2ClientCredentials: {tokenURL: 'http://login.team.svc:8080/token', clientID: belay, \
     scopes: [a, b], audience: a, resource: 'https://a.example/mcp', clientAuthentication: Body}}}"
)]
#[case(
    "Credential",
    "{secretKeyRef: {name: s, key: k}, hosts: [a.example], \
     inject: {oauth2ClientCredentials: {tokenURL: 'http://login/token', clientID: belay}}}"
)]
#[case("Tool", "{mcp: {url: 'http://x/mcp'}}")]
#[case("Tool", "{http: {baseURL: 'http://x', openAPI: {configMapKeyRef: {name: c, key: k}}}}")]
#[case("Tool", "{agent: {agentRef: {name: a}}}")]
#[case("Tool", "{agent: {agentRef: {name: a}, description: Finds it., limits: {tokens: 9}}, effects: {default: None}}")]
#[case("Tool", "{http: {baseURL: 'http://x', operations: [{name: o, method: DELETE, path: '/{a}'}]}}")]
#[case(
    "Tool",
    "{http: {baseURL: 'http://x', operations: [{name: o, method: POST, path: /, body: b, headers: [{name: If-Match, argument: a}]}]}}"
)]
#[case("Model", "{api: Responses, model: m, tls: {caConfigMapKeyRef: {name: corp, key: ca.crt}}}")]
#[case(
    "Model",
    "{api: Responses, model: m, baseURL: 'https://x/v1', tls: {caConfigMapKeyRef: {name: corp, key: .ca}}}"
)]
#[case("Tool", "{mcp: {url: 'https://x/mcp', tls: {caConfigMapKeyRef: {name: corp, key: ca.crt}}}}")]
#[case(
    "Tool",
    "{http: {baseURL: 'https://x', tls: {caConfigMapKeyRef: {name: corp, key: ca.crt}}, operations: [{name: o, method: GET, path: /}]}}"
)]
#[case(
    "Credential",
    "{secretKeyRef: {name: s, key: k}, hosts: [a.example], inject: {oauth2ClientCredentials: {tokenURL: 'https://login.example/token',      clientID: belay, tls: {caConfigMapKeyRef: {name: corp, key: ca.crt}}}}}"
)]
#[case("Agent", "{modelRef: {name: m}, tools: [{name: t, operations: ['*']}]}")]
#[case("Agent", "{modelRef: {name: m}, tools: [{name: t, operations: [a, b]}]}")]
#[case("Agent", "{modelRef: {name: m}, pod: {resources: {requests: {cpu: 10m}, limits: {memory: 64Mi}}}}")]
#[case("Agent", "{modelRef: {name: m}, pod: {resources: {requests: {memory: 64Mi}, limits: {memory: 64Mi}}}}")]
#[case("AgentRun", "{agentRef: {name: a}, input: go, limits: {steps: 1}, cancel: true}")]
#[case("Agent", "{modelRef: {name: m}, tools: [{name: t, operations: [a], onDrift: Continue}]}")]
#[case("ApprovalPolicy", "{}")]
#[case("ApprovalPolicy", "{rules: [{name: r, action: Allow}, {name: s, action: Ask}, {name: t, action: Deny}]}")]
#[case("ApprovalPolicy", "{rules: [{name: r, action: Ask, ask: {quorum: 2}}, {name: s, action: Deny, reason: no}]}")]
#[case("ApprovalPolicy", "{rules: [{name: r, action: Ask, ask: {grants: {maxCount: 5, maxSeconds: 60}}}]}")]
fn what_is_right_is_accepted(#[case] kind: &str, #[case] spec: &str) {
    assert_eq!(refusals(kind, spec, None), Vec::<String>::new());
}

const HEADER: &str = "spec.headers may neither frame a request nor say who sends it, and whoever reads the Model sees them: \
                      put a key into a Secret, and name its Credential in spec.credentialRef";
const NO_SERVER: &str = "a Scripted model has neither tokens nor a server: it takes no spec.temperature, \
    contextWindowTokens, maxOutputTokens or rateLimits.tokensPerMinute, and of spec.timeouts totalSeconds alone";
const EXACTLY_ONE: &str = "spec.inject holds exactly one of bearer, header, basic, query and oauth2ClientCredentials";
const IN_PLAIN_TEXT: &str = "spec.inject.oauth2ClientCredentials.tokenURL is https, or http to a Service of this cluster: \
                             the client's secret goes there";

#[rstest]
#[case(
    "Model",
    "{api: Responses, model: m, baseURL: 'http://x/v1', tls: {caConfigMapKeyRef: {name: corp, key: ca.crt}}}",
    "spec.tls is for an https spec.baseURL, and not for api Scripted"
)]
#[case(
    "Model",
    "{api: Scripted, model: m, scripted: {turns: [{text: hi}]}, tls: {caConfigMapKeyRef: {name: corp, key: ca.crt}}}",
    "spec.tls is for an https spec.baseURL, and not for api Scripted"
)]
#[case(
    "Tool",
    "{mcp: {url: 'http://x/mcp', tls: {caConfigMapKeyRef: {name: corp, key: ca.crt}}}}",
    "spec.mcp.tls is for an https url"
)]
#[case(
    "Tool",
    "{mcp: {url: 'https://x/mcp', tls: {caConfigMapKeyRef: {name: corp, key: ..}}}}",
    "no key of a ConfigMap is called like that"
)]
#[case(
    "Tool",
    "{http: {baseURL: 'http://x', tls: {caConfigMapKeyRef: {name: corp, key: ca.crt}}, operations: [{name: o, method: GET, path: /}]}}",
    "spec.http.tls is for an https baseURL"
)]
#[case(
    "Credential",
    "{secretKeyRef: {name: s, key: k}, hosts: [a.example], inject: {oauth2ClientCredentials: {tokenURL: 'http://login/token',      clientID: belay, tls: {caConfigMapKeyRef: {name: corp, key: ca.crt}}}}}",
    "spec.inject.oauth2ClientCredentials.tls is for an https tokenURL"
)]
#[case("Model", "{api: Scripted, model: m}", "spec.scripted is for api Scripted, and api Scripted needs it")]
#[case(
    "Model",
    "{api: ChatCompletions, model: m, scripted: {turns: [{text: hi}]}}",
    "spec.scripted is for api Scripted, and api Scripted needs it"
)]
#[case(
    "Model",
    "{api: Scripted, model: m, baseURL: 'http://x', scripted: {turns: [{text: hi}]}}",
    "a Scripted model is played by the runner: it takes neither spec.baseURL nor spec.credentialRef"
)]
#[case(
    "Model",
    "{api: Scripted, model: m, credentialRef: {name: c}, scripted: {turns: [{text: hi}]}}",
    "a Scripted model is played by the runner: it takes neither spec.baseURL nor spec.credentialRef"
)]
#[case(
    "Model",
    "{api: Scripted, model: m, reasoning: {effort: Low}, scripted: {turns: [{text: hi}]}}",
    "a Scripted model is played by the runner: it takes neither spec.reasoning nor spec.headers"
)]
#[case(
    "Model",
    "{api: Scripted, model: m, headers: [{name: a, value: b}], scripted: {turns: [{text: hi}]}}",
    "a Scripted model is played by the runner: it takes neither spec.reasoning nor spec.headers"
)]
#[case(
    "Model",
    "{api: Responses, model: m, maxOutputTokens: 9000, reasoning: {budgetTokens: 2048}}",
    "spec.reasoning.budgetTokens is for api Messages, and less than spec.maxOutputTokens"
)]
#[case(
    "Model",
    "{api: Messages, model: m, maxOutputTokens: 2048, reasoning: {budgetTokens: 2048}}",
    "spec.reasoning.budgetTokens is for api Messages, and less than spec.maxOutputTokens"
)]
#[case(
    "Model",
    "{api: Messages, model: m, maxOutputTokens: 2048, reasoning: {effort: Minimal}}",
    "api Messages knows no spec.reasoning.effort Minimal: use Low"
)]
#[case(
    "Model",
    "{api: Messages, model: m, maxOutputTokens: 9000, reasoning: {effort: None, budgetTokens: 2048}}",
    "spec.reasoning.budgetTokens is for models that reason: leave it out, or effort None"
)]
#[case("Model", "{api: Responses, model: m, headers: [{name: X-API-Key, value: b}]}", HEADER)]
#[case("Model", "{api: Responses, model: m, headers: [{name: Proxy-Connection, value: b}]}", HEADER)]
#[case("Model", "{api: Responses, model: m, headers: [{name: cf-aig-authorization, value: b}]}", HEADER)]
#[case("Model", "{api: Responses, model: m, headers: [{name: Helicone-Auth, value: b}]}", HEADER)]
#[case("Model", "{api: Responses, model: m, headers: [{name: x-portkey-api-key, value: b}]}", HEADER)]
#[case("Model", "{api: Responses, model: m, headers: [{name: x-goog-api-key, value: b}]}", HEADER)]
#[case("Model", "{api: Responses, model: m, headers: [{name: X-Auth-Token, value: b}]}", HEADER)]
#[case("Model", "{api: Responses, model: m, headers: [{name: Ocp-Apim-Subscription-Key, value: b}]}", HEADER)]
#[case("Model", "{api: Responses, model: m, headers: [{name: Cookie, value: b}]}", HEADER)]
#[case("Model", "{api: Responses, model: m, headers: [{name: X-Session-Id, value: b}]}", HEADER)]
#[case("Model", "{api: Responses, model: m, headers: [{name: x-client-secret, value: b}]}", HEADER)]
#[case("Model", "{api: Responses, model: m, headers: [{name: x-password, value: b}]}", HEADER)]
#[case("Model", "{api: Responses, model: m, headers: [{name: x-credential, value: b}]}", HEADER)]
#[case("Model", "{api: Scripted, model: s, scripted: {turns: [{text: a}]}, temperature: 1}", NO_SERVER)]
#[case("Model", "{api: Scripted, model: s, scripted: {turns: [{text: a}]}, contextWindowTokens: 9}", NO_SERVER)]
#[case("Model", "{api: Scripted, model: s, scripted: {turns: [{text: a}]}, maxOutputTokens: 9}", NO_SERVER)]
#[case(
    "Model",
    "{api: Scripted, model: s, scripted: {turns: [{text: a}]}, rateLimits: {tokensPerMinute: 9}}",
    NO_SERVER
)]
#[case("Model", "{api: Scripted, model: s, scripted: {turns: [{text: a}]}, timeouts: {connectSeconds: 9}}", NO_SERVER)]
#[case(
    "Model",
    "{api: Scripted, model: s, scripted: {turns: [{text: a}]}, timeouts: {firstByteSeconds: 9}}",
    NO_SERVER
)]
#[case(
    "Model",
    "{api: Scripted, model: s, scripted: {turns: [{text: a}]}, timeouts: {idleSeconds: 9, totalSeconds: 9}}",
    NO_SERVER
)]
#[case(
    "Model",
    "{api: Messages, model: m}",
    "api Messages sends the longest answer with every request: set spec.maxOutputTokens"
)]
#[case(
    "Model",
    "{api: Messages, model: m, maxOutputTokens: 9, temperature: 1.5}",
    "spec.temperature is at most 1 for api Messages"
)]
#[case("Credential", "{secretKeyRef: {name: s, key: k}, inject: {}, hosts: [a]}", EXACTLY_ONE)]
#[case(
    "Credential",
    "{secretKeyRef: {name: s, key: k}, inject: {bearer: {}, header: {name: x}}, hosts: [a]}",
    EXACTLY_ONE
)]
#[case(
    "Credential",
    "{secretKeyRef: {name: s, key: k}, inject: {basic: {username: ada}, query: {name: key}}, hosts: [a]}",
    EXACTLY_ONE
)]
#[case(
    "Credential",
    "{secretKeyRef: {name: s, key: k}, hosts: [a], inject: {bearer: {}, \
     oauth2ClientCredentials: {tokenURL: 'https://login.example/token', clientID: belay}}}",
    EXACTLY_ONE
)]
#[case(
    "Credential",
    "{secretKeyRef: {name: s, key: k}, hosts: [a], \
     inject: {oauth2ClientCredentials: {tokenURL: 'http://login.example/token', clientID: belay}}}",
    IN_PLAIN_TEXT
)]
#[case(
    "Credential",
    "{secretKeyRef: {name: s, key: k}, hosts: [a], \
     inject: {oauth2ClientCredentials: {tokenURL: 'http://login.example.svc.evil.example/token', clientID: belay}}}",
    IN_PLAIN_TEXT
)]
#[case(
    "Credential",
    "{secretKeyRef: {name: s, key: k}, inject: {header: {name: HOST}}, hosts: [a]}",
    "this header frames or routes the request: a credential goes into another"
)]
#[case("Tool", "{}", "spec holds exactly one of mcp, http and agent")]
#[case(
    "Tool",
    "{mcp: {url: 'http://x'}, http: {baseURL: 'http://x', openAPI: {configMapKeyRef: {name: c, key: k}}}}",
    "spec holds exactly one of mcp, http and agent"
)]
#[case(
    "Tool",
    "{mcp: {url: 'http://x'}, agent: {agentRef: {name: a}}}",
    "spec holds exactly one of mcp, http and agent"
)]
#[case(
    "Tool",
    "{agent: {agentRef: {name: a}}, callTimeoutSeconds: 5}",
    "spec.callTimeoutSeconds is for mcp and http: a run of spec.agent ends by its limits"
)]
#[case("Tool", "{http: {baseURL: 'http://x'}}", "spec.http holds exactly one of openAPI and operations")]
#[case(
    "Tool",
    "{http: {baseURL: 'http://x', operations: [{name: o, method: GET, path: /}], openAPI: {configMapKeyRef: {name: c, key: k}}}}",
    "spec.http holds exactly one of openAPI and operations"
)]
#[case(
    "Tool",
    "{http: {baseURL: 'http://x', operations: [{name: o, method: GET, path: /, body: b}]}}",
    "a GET or HEAD request has no body"
)]
#[case(
    "Tool",
    "{http: {baseURL: 'http://x', operations: [{name: o, method: GET, path: /, headers: [{name: HOST, argument: a}]}]}}",
    "this header frames, routes or authenticates the request: an argument goes into another"
)]
#[case(
    "Tool",
    "{http: {baseURL: 'http://x', operations: [{name: o, method: GET, path: /, headers: [{name: X-Forwarded-Host, argument: a}]}]}}",
    "this header frames, routes or authenticates the request: an argument goes into another"
)]
#[case(
    "Agent",
    "{modelRef: {name: m}, tools: [{name: t, operations: ['*', a]}]}",
    "'*' stands alone: it means every operation"
)]
#[case("Agent", "{modelRef: {name: m}, pod: {resources: {limits: {gpu: '1'}}}}", "only cpu and memory can be set")]
#[case("Agent", "{modelRef: {name: m}, pod: {resources: {limits: {memory: '0'}}}}", "a quantity is more than zero")]
#[case(
    "Agent",
    "{modelRef: {name: m}, pod: {resources: {requests: {memory: 1Gi}, limits: {memory: 512Mi}}}}",
    "spec.pod.resources.requests may not exceed the limits"
)]
#[case("ApprovalPolicy", "{rules: [{name: r, action: Allow, ask: {quorum: 2}}]}", "ask is for action Ask")]
#[case("ApprovalPolicy", "{rules: [{name: r, action: Deny, ask: {}}]}", "ask is for action Ask")]
#[case("ApprovalPolicy", "{rules: [{name: r, action: Allow, reason: x}]}", "reason is for action Deny")]
#[case("ApprovalPolicy", "{rules: [{name: r, action: Ask, reason: x}]}", "reason is for action Deny")]
fn what_is_wrong_is_refused_in_these_words(#[case] kind: &str, #[case] spec: &str, #[case] words: &str) {
    assert_eq!(refusals(kind, spec, None), vec![words.to_owned()]);
}

#[test]
fn the_name_of_the_built_in_policy_is_reserved() {
    let named = |name: &str| {
        let object = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "ApprovalPolicy", "metadata": {"name": name}, "spec": {}});
        Validator::new().validate(&schema_of("ApprovalPolicy"), &object, None)
    };
    assert!(named("careful").is_ok());
    let refused = named("default").unwrap_err().into_vec();
    assert_eq!(refused[0].message, "the name default belongs to the built-in policy: choose another");
}

const RUN: &str = "{agentRef: {name: a}, input: go, limits: {steps: 3}, requestedBy: ada}";

#[rstest]
#[case("{agentRef: {name: b}, input: go, limits: {steps: 3}, requestedBy: ada}", "spec.agentRef cannot change")]
#[case("{agentRef: {name: a}, input: no, limits: {steps: 3}, requestedBy: ada}", "spec.input cannot change")]
#[case("{agentRef: {name: a}, input: go, limits: {steps: 4}, requestedBy: ada}", "spec.limits cannot change")]
#[case("{agentRef: {name: a}, input: go, limits: {}, requestedBy: ada}", "spec.limits cannot change")]
#[case("{agentRef: {name: a}, input: go, requestedBy: ada}", "spec.limits cannot change")]
#[case("{agentRef: {name: a}, input: go, limits: {steps: 3}, requestedBy: bob}", "spec.requestedBy cannot change")]
#[case("{agentRef: {name: a}, input: go, limits: {steps: 3}}", "spec.requestedBy cannot change")]
fn a_run_is_fixed_once_it_is_created(#[case] changed: &str, #[case] words: &str) {
    let refused = refusals("AgentRun", changed, Some(RUN));
    assert!(refused.len() == 1 && refused[0].starts_with(words), "{refused:?}");
}

#[test]
fn what_a_run_did_not_say_at_its_creation_it_cannot_say_later() {
    let bare = "{agentRef: {name: a}, input: go}";
    let with = |field: &str| format!("{{agentRef: {{name: a}}, input: go, {field}}}");
    assert_eq!(refusals("AgentRun", &with("requestedBy: root"), Some(bare)), ["spec.requestedBy cannot change"]);
    assert_eq!(refusals("AgentRun", &with("limits: {steps: 9}"), Some(bare)).len(), 1);
}

#[test]
fn a_run_can_be_cancelled_once_and_its_time_to_live_changes_freely() {
    let with = |field: &str| format!("{{agentRef: {{name: a}}, input: go, {field}}}");
    let plain = "{agentRef: {name: a}, input: go}";
    let (cancelled, kept) = (with("cancel: true"), with("cancel: false"));
    for (old, new) in [(plain, cancelled.as_str()), (&kept, &cancelled), (&kept, plain), (&cancelled, &cancelled)] {
        assert_eq!(refusals("AgentRun", new, Some(old)), Vec::<String>::new(), "{old} to {new}");
    }
    for new in [plain, &kept] {
        assert_eq!(refusals("AgentRun", new, Some(&cancelled)), ["spec.cancel stays true once it is"]);
    }
    let (soon, later) = (with("ttlSecondsAfterFinished: 1"), with("ttlSecondsAfterFinished: 9"));
    for (old, new) in [(plain, soon.as_str()), (&soon, &later), (&later, plain)] {
        assert_eq!(refusals("AgentRun", new, Some(old)), Vec::<String>::new(), "{old} to {new}");
    }
}

const DRIFT: &str = "{purpose: Drift, tool: github, definition: d, arguments: '{}', destination: 'http://x/mcp', message: m, \
    requirements: [{policy: github, quorum: 1}], requestedBy: '', expiresAt: '2026-11-30T00:00:00Z', nonce: n, digest: e}";
const CALL: &str = "{purpose: Call, run: {name: r, uid: u}, callId: c1, attempt: 1, tool: t, operation: o, callDigest: c, \
    definition: d, arguments: '{}', destination: 'http://x/mcp', message: m, requirements: [{policy: p, quorum: 1}], \
    requestedBy: '', expiresAt: '2026-11-30T00:00:00Z', nonce: n, digest: e}";

/// The words that refuse an Approval with this request, changed.
fn asked(request: &str, change: &str) -> Vec<String> {
    let mut request: Value = serde_saphyr::from_str(request).unwrap();
    let change: Value = serde_saphyr::from_str(change).unwrap();
    for (field, value) in change.as_object().unwrap() {
        request[field] = value.clone();
        if value.is_null() {
            request.as_object_mut().unwrap().remove(field);
        }
    }
    refusals("Approval", &json!({"request": request}).to_string(), None)
}

#[rstest]
#[case(CALL, "{}", "")]
#[case(DRIFT, "{}", "")]
#[case(CALL, "{run: null}", "a question about a call names run, callId, attempt, operation and callDigest")]
#[case(CALL, "{callId: null}", "a question about a call names run, callId, attempt, operation and callDigest")]
#[case(CALL, "{attempt: null}", "a question about a call names run, callId, attempt, operation and callDigest")]
#[case(CALL, "{operation: null}", "a question about a call names run, callId, attempt, operation and callDigest")]
#[case(CALL, "{callDigest: null}", "a question about a call names run, callId, attempt, operation and callDigest")]
#[case(DRIFT, "{callId: c1}", "a Drift is about a Tool: it names no run, callId, attempt, operation or callDigest")]
#[case(DRIFT, "{operation: o}", "a Drift is about a Tool: it names no run, callId, attempt, operation or callDigest")]
#[case(DRIFT, "{requirements: [{policy: default, quorum: 1}]}", "on a Drift the one requirement names the Tool")]
fn an_approval_is_about_a_call_or_about_a_tool(#[case] request: &str, #[case] change: &str, #[case] words: &str) {
    let expected = Some(words.to_owned()).filter(|words| !words.is_empty());
    assert_eq!(asked(request, change), Vec::from_iter(expected), "{change}");
}

/// The request of an Approval that asks `purpose` for `careful`, which lets people give five calls in a minute, and `owners`,
/// which lets them give none; with one decision.
fn decided(purpose: &str, decision: &str) -> Vec<String> {
    let spec = format!(
        "{{request: {{purpose: {purpose}, run: {{name: r, uid: u}}, callId: c1, attempt: 1, tool: t, operation: o, \
         definition: d, arguments: '{{}}', destination: x, callDigest: c, message: m, requestedBy: eve, \
         expiresAt: '2026-11-30T10:00:00Z', nonce: n, digest: q, requirements: [{{policy: careful, quorum: 1, \
         grants: {{maxCount: 5, maxSeconds: 60}}}}, {{policy: owners, quorum: 1}}]}}, \
         decisions: [{{by: ada, digest: q, {decision}}}]}}"
    );
    refusals("Approval", &spec, None)
}

const BEYOND: &str = "answer.grant needs a policy that lets people give it (spec.request.requirements[].grants), and stays \
                      within its maxCount and maxSeconds";
const NO_ANSWER: &str =
    "on a Call a decision carries no answer, or an Allow answer.grant: Allow lets it be made, Deny does not";

#[rstest]
#[case("Call", "policy: careful, verdict: Allow")]
#[case("Call", "policy: careful, verdict: Deny")]
#[case("Call", "policy: careful, verdict: Allow, answer: {grant: {when: a, count: 5, seconds: 60}}")]
#[case("Call", "policy: careful, verdict: Allow, answer: {grant: {when: a, count: 1, seconds: 1}}")]
#[case("Unknown", "policy: careful, verdict: Allow, answer: {retry: {}}")]
fn a_decision_may_carry_what_its_question_and_its_policy_let_it(#[case] purpose: &str, #[case] decision: &str) {
    assert_eq!(decided(purpose, decision), Vec::<String>::new());
}

#[rstest]
#[case("Call", "policy: careful, verdict: Allow, answer: {grant: {when: a, count: 6, seconds: 60}}", &[BEYOND])]
#[case("Call", "policy: careful, verdict: Allow, answer: {grant: {when: a, count: 5, seconds: 61}}", &[BEYOND])]
#[case("Call", "policy: owners, verdict: Allow, answer: {grant: {when: a, count: 1, seconds: 1}}", &[BEYOND])]
#[case("Call", "policy: nobodys, verdict: Allow, answer: {grant: {when: a, count: 1, seconds: 1}}", &[BEYOND])]
#[case("Unknown", "policy: careful, verdict: Allow, answer: {grant: {when: a, count: 1, seconds: 1}}", &[BEYOND])]
#[case("Call", "policy: careful, verdict: Deny, answer: {grant: {when: a, count: 1, seconds: 1}}", &[NO_ANSWER])]
#[case("Call", "policy: careful, verdict: Allow, answer: {retry: {}}", &[NO_ANSWER])]
#[case(
    "Call",
    "policy: careful, verdict: Allow, answer: {grant: {when: a, count: 1, seconds: 1}, retry: {}}",
    &["an answer is one of happened, retry, grant and input"]
)]
#[case("Call", "policy: careful, verdict: Allow, answer: {}", &["an answer is one of happened, retry, grant and input", NO_ANSWER])]
fn a_decision_carries_nothing_else(#[case] purpose: &str, #[case] decision: &str, #[case] words: &[&str]) {
    let mut refused = decided(purpose, decision);
    refused.sort();
    let mut words = words.to_vec();
    words.sort_unstable();
    assert_eq!(refused, words);
}

#[test]
fn a_grant_is_fixed_once_it_is_made() {
    let grant = "{run: {name: r, uid: u}, approval: a, by: [ada], policy: careful, tool: t, operation: o, definition: d, \
                 when: w, count: 5, seconds: 60, expiresAt: '2026-11-30T10:00:00Z', digest: g}";
    assert_eq!(refusals("ApprovalGrant", grant, Some(grant)), Vec::<String>::new());
    for (from, to) in
        [("count: 5", "count: 9"), ("when: w", "when: 'true'"), ("name: r", "name: s"), ("digest: g", "digest: h")]
    {
        let refused = refusals("ApprovalGrant", &grant.replace(from, to), Some(grant));
        assert_eq!(refused, ["spec cannot change: delete it to take back what is left"]);
    }
}

#[test]
fn a_tool_is_an_agent_or_a_server_for_good_and_a_run_keeps_its_parent() {
    let (server, agent) = ("{mcp: {url: 'http://x'}}", "{agent: {agentRef: {name: a}}}");
    let words = ["spec.agent can be neither added nor taken away: create another Tool"];
    assert_eq!(refusals("Tool", agent, Some(server)), words);
    assert_eq!(refusals("Tool", server, Some(agent)), words);
    assert_eq!(refusals("Tool", "{agent: {agentRef: {name: b}}}", Some(agent)), Vec::<String>::new());
    let child =
        |uid: &str| format!("{{agentRef: {{name: a}}, input: go, parent: {{name: r, uid: {uid}, callId: c1}}}}");
    let root = "{agentRef: {name: a}, input: go}";
    assert_eq!(refusals("AgentRun", &child("u"), Some(&child("u"))), Vec::<String>::new());
    for (new, old) in [(child("v"), child("u")), (root.to_owned(), child("u")), (child("u"), root.to_owned())] {
        assert_eq!(refusals("AgentRun", &new, Some(&old)), ["spec.parent cannot change"]);
    }
}
