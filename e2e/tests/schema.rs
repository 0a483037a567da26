//! What the API server takes and refuses of each kind, in the words that a person reads.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use belay_e2e::{Kubectl, TempNamespace};

fn model(spec: &str) -> String {
    format!("apiVersion: belay.dev/v1alpha1\nkind: Model\nmetadata: {{name: m}}\nspec: {spec}\n")
}

fn agent(spec: &str) -> String {
    format!("apiVersion: belay.dev/v1alpha1\nkind: Agent\nmetadata: {{name: a}}\nspec: {spec}\n")
}

fn credential(spec: &str) -> String {
    format!("apiVersion: belay.dev/v1alpha1\nkind: Credential\nmetadata: {{name: c}}\nspec: {spec}\n")
}

fn tool(spec: &str) -> String {
    format!("apiVersion: belay.dev/v1alpha1\nkind: Tool\nmetadata: {{name: t}}\nspec: {spec}\n")
}

fn http_operation(operation: &str) -> String {
    tool(&format!("{{http: {{baseURL: 'http://x', operations: [{operation}]}}}}"))
}

fn policy(spec: &str) -> String {
    format!("apiVersion: belay.dev/v1alpha1\nkind: ApprovalPolicy\nmetadata: {{name: p}}\nspec: {spec}\n")
}

fn run(name: &str, spec: &str) -> String {
    format!("apiVersion: belay.dev/v1alpha1\nkind: AgentRun\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

#[test]
fn what_is_right_is_accepted_and_the_samples_are() {
    let namespace = TempNamespace::plain("schema-right").unwrap();
    for yaml in [
        model("{api: ChatCompletions, model: gpt, baseURL: 'https://gateway.example/v1', temperature: 0.2}"),
        model("{api: Responses, model: gpt, maxOutputTokens: 100, temperature: 2}"),
        model(
            "{api: Messages, model: claude, maxOutputTokens: 100, temperature: 1, pricesUSD: {input: '3', cacheWrite: '3.75', output: '15'}}",
        ),
        agent("{modelRef: {name: m}, tools: [{name: t, operations: ['*']}], limits: {costUSD: '2.00'}}"),
        agent("{modelRef: {name: m}, pod: {resources: {limits: {memory: 256Mi}}}}"),
        credential("{secretKeyRef: {name: s, key: k}, inject: {bearer: {}}, hosts: ['*.example.com']}"),
        credential("{secretKeyRef: {name: s, key: k}, inject: {header: {name: x-api-key}}, hosts: [a.example]}"),
        credential(
            "{secretKeyRef: {name: s, key: k}, hosts: [a.example], methods: [GET], pathPrefixes: [/, /v1/.well-known/a.b/], inject: {basic: {username: ada}}}",
        ),
        tool("{mcp: {url: 'http://server:3001/mcp'}}"),
        tool("{mcp: {url: 'https://server.corp/mcp', tls: {caConfigMapKeyRef: {name: corp, key: ca.crt}}}}"),
        tool(
            "{http: {baseURL: 'http://api:8080/v1', openAPI: {configMapKeyRef: {name: api, key: openapi.yaml}, operations: [a, b]}}}",
        ),
        tool(
            "{http: {baseURL: 'https://api.example', credentialRef: {name: c}, operations: [{name: put, method: PUT, path: '/a/{id}', query: [q], headers: [{name: If-Match, argument: etag}], body: b, schema: {type: object, properties: {id: {type: string}, q: {}, etag: {}, b: {}}}}]}}",
        ),
        policy("{}"),
        policy("{mode: Audit, otherwise: Deny, rules: [{name: r, effects: [None], when: 'true', action: Allow}]}"),
        policy("{rules: [{name: r, action: Ask, ask: {quorum: 8, separationOfDuty: true, expiresAfterSeconds: 30}}]}"),
        policy("{tests: [{call: {tool: t, operation: o, args: {any: [1, {x: null}]}, effects: None}, expect: Ask}]}"),
        agent("{modelRef: {name: m}, policyRefs: [{name: p}]}"),
        tool("{mcp: {url: 'http://server:3001/mcp'}, policyRefs: [{name: p}, {name: q}]}"),
        credential(
            "{secretKeyRef: {name: s, key: k}, inject: {bearer: {}}, hosts: [a.example], policyRefs: [{name: p}]}",
        ),
        // Another one: an Agent is not made of a server.
        tool(
            "{agent: {agentRef: {name: a}, description: Finds it., limits: {tokens: 20000}}, effects: {default: None}}",
        )
        .replace("{name: t}", "{name: finder}"),
        run("r", "{agentRef: {name: a}, input: go}"),
    ] {
        namespace.kubectl.apply(&yaml).unwrap();
    }
    for sample in [
        "quickstart.yaml",
        "run.yaml",
        "real-model.yaml",
        "real-model-anthropic.yaml",
        "scheduled.yaml",
        "approval.yaml",
        "http-api.yaml",
        "subagent.yaml",
    ] {
        namespace.apply_manifest(&format!("samples/{sample}")).unwrap();
    }
}

/// The column has one path for both kinds of Tool.
#[test]
fn the_url_column_shows_whichever_kind_a_tool_is() {
    let namespace = TempNamespace::plain("schema-url").unwrap();
    for (spec, url) in [
        ("{mcp: {url: 'http://server:3001/mcp'}}", "http://server:3001/mcp"),
        (
            "{http: {baseURL: 'http://api:8080/v1', operations: [{name: a, method: GET, path: /a}]}}",
            "http://api:8080/v1",
        ),
        ("{agent: {agentRef: {name: helper}}}", "helper"),
    ] {
        namespace.kubectl.run(&["delete", "tool", "t", "--ignore-not-found"]).unwrap();
        namespace.kubectl.apply(&tool(spec)).unwrap();
        let table = namespace.kubectl.run(&["get", "tool", "t", "--no-headers"]).unwrap();
        assert_eq!(table.split_whitespace().nth(1), Some(url), "{table}");
    }
}

/// Every whole object in the pages about tools, models, HTTP APIs and credentials, as a reader would copy it.
#[test]
fn what_the_docs_show_is_accepted() {
    let namespace = TempNamespace::plain("schema-docs").unwrap();
    for (page, least) in [
        ("tools-and-models.md", 5),
        ("models.md", 5),
        ("http-apis.md", 3),
        ("credentials.md", 6),
        ("network.md", 1),
        ("subagents.md", 3),
    ] {
        let text = std::fs::read_to_string(format!("{}/../docs/{page}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let blocks: Vec<&str> = text
            .split("```yaml\n")
            .skip(1)
            .filter_map(|rest| rest.split("```").next())
            .filter(|yaml| yaml.starts_with("apiVersion"))
            .collect();
        assert!(blocks.len() >= least, "{page}: {} blocks", blocks.len());
        for yaml in blocks {
            namespace.kubectl.apply(yaml).unwrap_or_else(|error| panic!("{error:#}: {yaml}"));
        }
    }
}

/// Each of these objects is refused in these words.
fn all_refused(name: &str, table: &[(String, &str)]) {
    let namespace = TempNamespace::plain(name).unwrap();
    for (yaml, words) in table {
        let refusal = namespace.kubectl.refusal(yaml).unwrap();
        assert!(refusal.contains(words), "expected '{words}' in: {refusal}\nfor: {}", &yaml[..yaml.len().min(300)]);
    }
}

#[test]
fn what_is_wrong_of_a_model_or_a_credential_is_refused_in_words_that_name_the_field() {
    let table = [
        (model("{api: Scripted, model: s}"), "spec.scripted is for api Scripted"),
        (
            model("{api: Scripted, model: s, baseURL: 'http://x/v1', scripted: {turns: [{text: a}]}}"),
            "neither spec.baseURL nor spec.credentialRef",
        ),
        (model("{api: Telepathy, model: s}"), "spec.api: Unsupported value"),
        (model("{api: ChatCompletions, model: gpt, baseURL: 'file:///etc/passwd'}"), "spec.baseURL"),
        (model("{api: ChatCompletions, model: gpt, baseURL: 'http://user:key@x/v1'}"), "spec.baseURL"),
        (model("{api: ChatCompletions, model: gpt, maxOutputTokens: -1}"), "spec.maxOutputTokens"),
        (model("{api: ChatCompletions, model: gpt, pricesUSD: {input: '1e3', output: '1'}}"), "spec.pricesUSD.input"),
        (model("{api: Messages, model: claude}"), "set spec.maxOutputTokens"),
        (
            model("{api: Responses, model: gpt, rateLimits: {requestsPerMinute: 0}}"),
            "spec.rateLimits.requestsPerMinute",
        ),
        (model("{api: Responses, model: gpt, rateLimits: {tokensPerMinute: 0}}"), "spec.rateLimits.tokensPerMinute"),
        (
            model("{api: Responses, model: gpt, rateLimits: {concurrentRequests: 0}}"),
            "spec.rateLimits.concurrentRequests",
        ),
        (model("{api: Responses, model: gpt, reasoning: {effort: Some}}"), "spec.reasoning.effort"),
        (
            model("{api: Responses, model: gpt, headers: [{name: Authorization, value: x}]}"),
            "put a key into a Secret, and name its Credential",
        ),
        (model("{api: Responses, model: gpt, headers: [{name: 'a b', value: x}]}"), "spec.headers[0].name"),
        (model("{api: Responses, model: gpt, headers: [{name: a, value: \"x\\ny\"}]}"), "spec.headers[0].value"),
        (
            model("{api: Messages, model: claude, maxOutputTokens: 9, temperature: 1.2}"),
            "spec.temperature is at most 1",
        ),
        (model("{api: ChatCompletions, model: gpt, apiKey: sk-123}"), "apiKey: field not declared in schema"),
        (
            credential("{secretKeyRef: {name: s, key: k}, inject: {}, hosts: [a]}"),
            "exactly one of bearer, header, basic",
        ),
        (
            credential("{secretKeyRef: {name: s, key: k}, inject: {bearer: {}}, hosts: [a], methods: [BREW]}"),
            "spec.methods",
        ),
        (
            credential("{secretKeyRef: {name: s, key: k}, inject: {bearer: {}}, hosts: [a], pathPrefixes: [/a/../b]}"),
            "spec.pathPrefixes",
        ),
        (
            credential("{secretKeyRef: {name: s, key: k}, inject: {bearer: {}}, hosts: [a], pathPrefixes: ['/a%2fb']}"),
            "spec.pathPrefixes",
        ),
        (
            credential("{secretKeyRef: {name: s, key: k}, inject: {basic: {username: 'a:b'}}, hosts: [a]}"),
            "spec.inject.basic.username",
        ),
        (
            credential("{secretKeyRef: {name: s, key: k}, inject: {query: {name: 'a=b'}}, hosts: [a]}"),
            "spec.inject.query.name",
        ),
        (
            credential(
                "{secretKeyRef: {name: s, key: k}, hosts: [a], inject: {oauth2ClientCredentials: {tokenURL: 'http://a.example/t', clientID: c}}}",
            ),
            "tokenURL is https, or http to a Service",
        ),
        (credential("{secretKeyRef: {name: s, key: k}, inject: {bearer: {}}, hosts: []}"), "spec.hosts"),
        (credential("{secretKeyRef: {name: s, key: k}, inject: {bearer: {}}, hosts: ['*']}"), "spec.hosts"),
        (
            credential("{secretKeyRef: {name: s, key: k}, inject: {header: {name: x, format: none}}, hosts: [a]}"),
            "spec.inject.header.format",
        ),
    ];
    all_refused("schema-wrong-keys", &table);
}

#[test]
fn what_is_wrong_of_a_policy_is_refused_in_words_that_name_the_field() {
    let long = "x".repeat(1025);
    let table = [
        (policy("{mode: Dream}"), "spec.mode: Unsupported value"),
        (policy("{otherwise: Allow}"), "spec.otherwise: Unsupported value"),
        (policy("{rules: [{name: r}]}"), "spec.rules[0].action: Required value"),
        (policy("{rules: [{name: r, action: Refuse}]}"), "spec.rules[0].action: Unsupported value"),
        (policy("{rules: [{name: R, action: Deny}]}"), "spec.rules[0].name"),
        (policy("{rules: [{name: r, action: Deny, effects: [Some]}]}"), "spec.rules[0].effects[0]: Unsupported value"),
        (
            policy("{rules: [{name: r, action: Allow}, {name: r, action: Deny}]}"),
            "duplicate entries for key [name=\"r\"]",
        ),
        (policy("{rules: [{name: r, action: Allow, ask: {}}]}"), "ask is for action Ask"),
        (policy("{rules: [{name: r, action: Ask, reason: x}]}"), "reason is for action Deny"),
        (policy("{rules: [{name: r, action: Ask, ask: {quorum: 0}}]}"), "spec.rules[0].ask.quorum"),
        (policy("{rules: [{name: r, action: Ask, ask: {quorum: 9}}]}"), "spec.rules[0].ask.quorum"),
        (policy("{rules: [{name: r, action: Ask, ask: {expiresAfterSeconds: 29}}]}"), "expiresAfterSeconds"),
        (policy("{rules: [{name: r, action: Ask, ask: {expiresAfterSeconds: 2592001}}]}"), "expiresAfterSeconds"),
        (policy(&format!("{{rules: [{{name: r, action: Deny, when: '{long}'}}]}}")), "spec.rules[0].when"),
        (policy(&format!("{{rules: [{{name: r, action: Deny, reason: '{long}'}}]}}")), "spec.rules[0].reason"),
        (policy("{tests: [{call: {tool: t, operation: o}}]}"), "spec.tests[0].expect: Required value"),
        (
            policy("{tests: [{call: {tool: t, operation: o}, expect: Maybe}]}"),
            "spec.tests[0].expect: Unsupported value",
        ),
        (policy("{tests: [{call: {tool: t, operation: o, args: text}, expect: Ask}]}"), "spec.tests[0].call.args"),
        (policy("{}").replace("name: p", "name: default"), "the name default belongs to the built-in policy"),
    ];
    all_refused("schema-wrong-rules", &table);
}

#[test]
fn what_is_wrong_of_an_agent_a_tool_or_a_run_is_refused_in_words_that_name_the_field() {
    let long = "x".repeat(70_000);
    let table = [
        (agent("{}"), "spec.modelRef: Required value"),
        (agent("{modelRef: {name: m}, limits: {steps: -1}}"), "spec.limits.steps"),
        (agent("{modelRef: {name: m}, limits: {costUSD: free}}"), "spec.limits.costUSD"),
        (agent("{modelRef: {name: m}, tools: [{name: t, operations: []}]}"), "spec.tools[0].operations"),
        (agent("{modelRef: {name: m}, tools: [{name: t, operations: ['*', x]}]}"), "'*' stands alone"),
        (agent("{modelRef: {name: m}, pod: {resources: {limits: {gpu: '1'}}}}"), "only cpu and memory"),
        (agent(&format!("{{modelRef: {{name: m}}, instructions: {long}}}")), "spec.instructions"),
        (
            agent(
                "{modelRef: {name: m}, policyRefs: [{name: a}, {name: b}, {name: c}, {name: d}, {name: e}, {name: f}, {name: g}, {name: h}, {name: i}]}",
            ),
            "spec.policyRefs: Too many",
        ),
        (
            tool("{mcp: {url: 'http://x/mcp'}, policyRefs: [{name: p}, {name: p}]}"),
            "duplicate entries for key [name=\"p\"]",
        ),
        (tool("{}"), "spec holds exactly one of mcp, http and agent"),
        (tool("{http: {baseURL: 'http://x'}}"), "spec.http holds exactly one of openAPI and operations"),
        (http_operation("{name: o, method: TRACE, path: /}"), "Unsupported value: \"TRACE\""),
        (http_operation("{name: o, method: GET, path: '/a?b'}"), "spec.http.operations[0].path"),
        (http_operation("{name: o, method: GET, path: /, body: b}"), "a GET or HEAD request has no body"),
        (
            http_operation("{name: o, method: GET, path: /, headers: [{name: Host, argument: a}]}"),
            "this header frames, routes or authenticates the request",
        ),
        (http_operation("{name: o, method: GET, path: /, query: [a, a]}"), "query: duplicate entries for key"),
        (tool("{mcp: {url: server}}"), "spec.mcp.url"),
        (tool("{mcp: {url: 'https://x/mcp', tls: {}}}"), "spec.mcp.tls.caConfigMapKeyRef: Required value"),
        (tool("{mcp: {url: 'http://x/mcp', tls: {caConfigMapKeyRef: {name: c, key: k}}}}"), "is for an https url"),
        (tool("{mcp: {url: 'http://x/mcp'}, callTimeoutSeconds: 0}"), "spec.callTimeoutSeconds"),
        (run("r", "{agentRef: {name: a}, input: ''}"), "spec.input"),
        (run("r", &format!("{{agentRef: {{name: a}}, input: {long}}}")), "spec.input"),
        (run("r", "{agentRef: {name: '../x'}, input: go}"), "spec.agentRef.name"),
    ];
    all_refused("schema-wrong", &table);
}

#[test]
fn a_run_is_immutable_apart_from_cancel_and_its_time_to_live() {
    let namespace = TempNamespace::plain("schema-fixed").unwrap();
    let kubectl = &namespace.kubectl;
    kubectl.apply(&run("r", "{agentRef: {name: a}, input: go}")).unwrap();
    let patch = |patch: &str| kubectl.output(&["patch", "agentrun", "r", "--type=merge", "-p", patch], None).unwrap();
    for (change, words) in [
        (r#"{"spec":{"input":"stop"}}"#, "spec.input cannot change"),
        (r#"{"spec":{"agentRef":{"name":"b"}}}"#, "spec.agentRef cannot change"),
        (r#"{"spec":{"limits":{"steps":99}}}"#, "spec.limits cannot change"),
        (r#"{"spec":{"requestedBy":"mallory"}}"#, "spec.requestedBy cannot change"),
    ] {
        let output = patch(change);
        assert!(!output.success && output.stderr.contains(words), "{change}: {}", output.stderr);
    }
    assert!(patch(r#"{"spec":{"ttlSecondsAfterFinished":60}}"#).success);
    assert!(patch(r#"{"spec":{"cancel":true}}"#).success);
    let back = patch(r#"{"spec":{"cancel":false}}"#);
    assert!(!back.success && back.stderr.contains("spec.cancel stays true"), "{}", back.stderr);
}

#[test]
fn nulls_zeros_and_credentials_for_everyone_are_refused() {
    let namespace = TempNamespace::plain("schema-null").unwrap();
    for (yaml, words) in [
        (run("r", "{agentRef: {name: a}, input: go, requestedBy: null}"), "spec.requestedBy"),
        (agent("{modelRef: {name: m}, suspend: null}"), "spec.suspend"),
        (agent("{modelRef: {name: m}, pod: {resources: {limits: {memory: '0'}}}}"), "a quantity is more than zero"),
        (
            agent("{modelRef: {name: m}, pod: {resources: {requests: {memory: 1Gi}, limits: {memory: 1Mi}}}}"),
            "requests may not exceed the limits",
        ),
        (
            agent("{modelRef: {name: m}, tools: [{name: t, operations: [a]}, {name: t, operations: [b]}]}"),
            "duplicate entries for key [name=\"t\"]",
        ),
        (credential("{secretKeyRef: {name: s, key: k}, inject: {bearer: {}}, hosts: ['*.com']}"), "spec.hosts[0]"),
        (
            credential("{secretKeyRef: {name: s, key: k}, inject: {header: {name: Host}}, hosts: [a]}"),
            "frames or routes the request",
        ),
    ] {
        let refusal = namespace.kubectl.refusal(&yaml).unwrap();
        assert!(refusal.contains(words), "expected '{words}' in: {refusal}");
    }
}

/// What a person sees, cell by cell: nothing where nothing is known, never a 0.
#[test]
fn the_columns_of_a_run_print_what_is_known_and_nothing_else() {
    let namespace = TempNamespace::plain("schema-columns").unwrap();
    namespace.kubectl.apply(&run("r", "{agentRef: {name: a}, input: go}")).unwrap();
    let table = |wide: &[&str]| {
        let text = namespace.kubectl.run(&[&["get", "ar", "r"][..], wide].concat()).unwrap();
        text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect::<Vec<Vec<String>>>()
    };
    namespace.wait_ready("agentrun", "r", "False", "NamespaceNotEnabled").unwrap();
    let fresh = table(&[]);
    assert_eq!(fresh[0].join(" "), "NAME AGENT PHASE REASON WAITING-ON STEPS TOKENS COST-USD AGE");
    let waiting_on = format!("namespace/{}", namespace.name);
    assert_eq!(fresh[1][..5], ["r", "a", "Pending", "NamespaceNotEnabled", &waiting_on]);
    assert_eq!(fresh[1].len(), 6, "of the rest only the age is known: {:?}", fresh[1]);

    // A run that is over is left alone by the operator, whoever wrote its end.
    let status = r#"{"status":{"phase":"Failed","model":"m","waitingOn":null,
        "podRef":{"name":"p"},"usage":{"steps":3,"totalTokens":9214,"costUSD":"0.041"},
        "conditions":[{"type":"Ready","status":"False","reason":"PodLost","message":"gone",
        "lastTransitionTime":"2026-01-01T00:00:00Z"}]}}"#;
    let operator = namespace.kubectl.with(&["--as", "system:serviceaccount:belay-system:belay-operator"]);
    operator.run(&["patch", "ar", "r", "--subresource=status", "--type=merge", "-p", status]).unwrap();
    let wide = table(&["-o", "wide"]);
    assert_eq!(
        wide[0].join(" "),
        "NAME AGENT PHASE REASON WAITING-ON STEPS TOKENS COST-USD AGE MODEL POD REQUESTED-BY PARENT"
    );
    assert_eq!(wide[1][..7], ["r", "a", "Failed", "PodLost", "3", "9214", "0.041"]);
    assert_eq!(wide[1][8..], ["m", "p"]);
}

#[test]
fn kubectl_explain_reads_like_a_manual() {
    let text = Kubectl::new().run(&["explain", "agentrun.spec"]).unwrap();
    for words in ["Cannot be taken back", "At most 65536 characters", "the tighter one of these"] {
        assert!(text.contains(words), "{text}");
    }
}
