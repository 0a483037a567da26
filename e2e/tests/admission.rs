//! Who may name what, asked of a real API server: `use` and `get`. Each test is one attack or one right that must keep
//! working. What concerns Approvals, runner pods and identities is in attacks/.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use belay_e2e::{Kubectl, TempNamespace, stage};

const AUTHOR: &str = "ada";
const APPLY: [&str; 4] = ["apply", "--server-side", "-f", "-"];

/// A namespace in which AUTHOR may write every kind but holds no `use` and reads no Secret.
fn with_author(prefix: &str) -> (TempNamespace, Kubectl) {
    let namespace = TempNamespace::plain(prefix).unwrap();
    namespace
        .kubectl
        .apply(
            "{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: author}, \
             rules: [{apiGroups: [belay.dev], resources: ['*'], verbs: ['*']}]}",
        )
        .unwrap();
    bind(&namespace, "author");
    let author = namespace.kubectl.as_user(AUTHOR);
    (namespace, author)
}

fn bind(namespace: &TempNamespace, role: &str) {
    let yaml = format!(
        "{{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {{name: {role}}}, \
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: {role}}}, \
         subjects: [{{kind: User, name: {AUTHOR}, apiGroup: rbac.authorization.k8s.io}}]}}"
    );
    namespace.kubectl.apply(&yaml).unwrap();
}

/// Grants AUTHOR one verb on one named object.
fn grant(namespace: &TempNamespace, group: &str, resource: &str, name: &str, verb: &str) {
    let role = format!("{verb}-{resource}-{name}");
    let yaml = format!(
        "{{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {{name: {role}}}, \
         rules: [{{apiGroups: ['{group}'], resources: [{resource}], resourceNames: [{name}], verbs: [{verb}]}}]}}"
    );
    namespace.kubectl.apply(&yaml).unwrap();
    bind(namespace, &role);
}

/// Grants AUTHOR `use` on each of these.
fn grant_all(namespace: &TempNamespace, resource: &str, names: &[String]) {
    let role = format!("use-{resource}");
    let names = names.join(", ");
    let yaml = format!(
        "{{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {{name: {role}}}, \
         rules: [{{apiGroups: [decide.belay.dev], resources: [{resource}], resourceNames: [{names}], verbs: [use]}}]}}"
    );
    namespace.kubectl.apply(&yaml).unwrap();
    bind(namespace, &role);
}

/// Refused with `words` before, accepted once `verb` on the object is granted.
fn needs(prefix: &str, yaml: &str, words: &str, group: &str, resource: &str, name: &str, verb: &str) {
    let (namespace, author) = with_author(prefix);
    refused(&author, yaml, words);
    refused(&author, yaml, AUTHOR);
    grant(&namespace, group, resource, name, verb);
    accepted(&author, yaml);
}

fn accepted(author: &Kubectl, yaml: &str) {
    stage::accepted(|| author.output(&APPLY, Some(yaml)).unwrap());
}

fn refused(author: &Kubectl, yaml: &str, words: &str) {
    stage::refused(words, || author.output(&APPLY, Some(yaml)).unwrap());
}

#[test]
fn a_credential_needs_get_on_its_secret() {
    needs(
        "adm-secret",
        "{apiVersion: belay.dev/v1alpha1, kind: Credential, metadata: {name: c}, spec: {secretKeyRef: {name: prod, key: k}, inject: {bearer: {}}, hosts: [a.example]}}",
        "spec.secretKeyRef names the Secret prod",
        "",
        "secrets",
        "prod",
        "get",
    );
}

#[test]
fn a_model_needs_use_on_its_credential() {
    needs(
        "adm-model",
        "{apiVersion: belay.dev/v1alpha1, kind: Model, metadata: {name: m}, spec: {api: ChatCompletions, model: x, credentialRef: {name: key}}}",
        "needs the verb use on credentials.decide.belay.dev key",
        "decide.belay.dev",
        "credentials",
        "key",
        "use",
    );
}

#[test]
fn a_model_needs_use_on_its_fallbacks() {
    needs(
        "adm-fallback",
        "{apiVersion: belay.dev/v1alpha1, kind: Model, metadata: {name: m}, spec: {api: ChatCompletions, model: x, fallbackRefs: [{name: dear}]}}",
        "spec.fallbackRefs[0] names the Model dear",
        "decide.belay.dev",
        "models",
        "dear",
        "use",
    );
}

#[test]
fn a_tool_needs_use_on_its_credential() {
    needs(
        "adm-tool",
        "{apiVersion: belay.dev/v1alpha1, kind: Tool, metadata: {name: t}, spec: {mcp: {url: 'http://x/mcp', credentialRef: {name: key}}}}",
        "needs the verb use on credentials.decide.belay.dev key",
        "decide.belay.dev",
        "credentials",
        "key",
        "use",
    );
}

#[test]
fn a_tool_of_an_http_api_needs_use_on_its_credential() {
    needs(
        "adm-http",
        "{apiVersion: belay.dev/v1alpha1, kind: Tool, metadata: {name: t}, spec: {http: {baseURL: 'http://x', credentialRef: {name: key}, openAPI: {configMapKeyRef: {name: c, key: k}}}}}",
        "needs the verb use on credentials.decide.belay.dev key",
        "decide.belay.dev",
        "credentials",
        "key",
        "use",
    );
}

#[test]
fn a_tool_that_is_an_agent_needs_use_on_that_agent() {
    needs(
        "adm-subagent",
        "{apiVersion: belay.dev/v1alpha1, kind: Tool, metadata: {name: t}, spec: {agent: {agentRef: {name: helper}}}}",
        "spec.agent.agentRef names the Agent helper",
        "decide.belay.dev",
        "agents",
        "helper",
        "use",
    );
}

#[test]
fn nobody_but_the_operator_starts_a_run_for_a_call_and_the_operator_no_other() {
    let (namespace, author) = with_author("adm-child");
    grant(&namespace, "decide.belay.dev", "agents", "a", "use");
    let run = |more: &str| {
        format!(
            "{{apiVersion: belay.dev/v1alpha1, kind: AgentRun, metadata: {{name: r}}, spec: {{agentRef: {{name: a}}, input: go{more}}}}}"
        )
    };
    let parent = ", parent: {name: up, uid: u, callId: c1}";
    refused(&author, &run(parent), "spec.parent: only the operator starts runs for calls of other runs");
    let operator = namespace.kubectl.as_user("system:serviceaccount:belay-system:belay-operator");
    let create = |yaml: &str| operator.output(&["create", "-f", "-"], Some(yaml)).unwrap();
    stage::refused("needs the verb use on agents.decide.belay.dev a", || create(&run("")));
    stage::accepted(|| create(&run(&format!("{parent}, requestedBy: eve"))));
}

#[test]
fn an_agent_needs_use_on_its_model_and_on_every_tool() {
    let (namespace, author) = with_author("adm-agent");
    let yaml = "{apiVersion: belay.dev/v1alpha1, kind: Agent, metadata: {name: a}, spec: {modelRef: {name: m}, tools: [{name: t, operations: [x]}, {name: u, operations: [x]}]}}";
    // Model and Tools are checked by policies of their own: which one speaks first is not said.
    refused(&author, yaml, "needs the verb use on");
    grant(&namespace, "decide.belay.dev", "tools", "t", "use");
    grant(&namespace, "decide.belay.dev", "tools", "u", "use");
    refused(&author, yaml, "ada needs the verb use on models.decide.belay.dev m");
    grant(&namespace, "decide.belay.dev", "models", "m", "use");
    accepted(&author, yaml);
    let another = yaml.replace("{name: u,", "{name: v,");
    refused(&author, &another, "spec.tools[1] names the Tool v: ada needs the verb use on tools.decide.belay.dev v");
}

#[test]
fn an_agent_is_asked_about_each_of_as_many_tools_as_the_schema_takes() {
    let (namespace, author) = with_author("adm-tools");
    let agent = |count: usize| {
        let tools: Vec<String> = (0..count).map(|n| format!("{{name: t{n}, operations: [x]}}")).collect();
        format!(
            "{{apiVersion: belay.dev/v1alpha1, kind: Agent, metadata: {{name: a}}, spec: {{modelRef: {{name: m}}, tools: [{}]}}}}",
            tools.join(", ")
        )
    };
    let named: Vec<String> = (0..31).map(|n| format!("t{n}")).collect();
    grant(&namespace, "decide.belay.dev", "models", "m", "use");
    grant_all(&namespace, "tools", &named);
    accepted(&author, &agent(31));
    refused(&author, &agent(32), "spec.tools[31] names the Tool t31: ada needs the verb use");
    grant(&namespace, "decide.belay.dev", "tools", "t31", "use");
    accepted(&author, &agent(32));
    refused(&author, &agent(33), "spec.tools: Too many: 33");
}

#[test]
fn use_is_asked_for_when_a_spec_changes_and_not_for_labels() {
    let (namespace, author) = with_author("adm-label");
    namespace
        .kubectl
        .apply("{apiVersion: belay.dev/v1alpha1, kind: Agent, metadata: {name: a}, spec: {modelRef: {name: m}}}")
        .unwrap();
    author.run(&["label", "agent.belay.dev", "a", "team=a"]).unwrap();
    let patch = r#"{"spec":{"instructions":"anything else"}}"#;
    let output = author.output(&["patch", "agent.belay.dev", "a", "--type=merge", "-p", patch], None).unwrap();
    assert!(!output.success && output.stderr.contains("needs the verb use on models.decide.belay.dev m"), "{output:?}");
}

#[test]
fn a_run_needs_use_on_its_agent_but_cancelling_needs_update_alone() {
    let (namespace, author) = with_author("adm-run");
    let yaml =
        "{apiVersion: belay.dev/v1alpha1, kind: AgentRun, metadata: {name: r}, spec: {agentRef: {name: a}, input: go}}";
    assert!(author.refusal(yaml).unwrap().contains("needs the verb use on agents.decide.belay.dev a"));
    namespace.kubectl.apply(yaml).unwrap();
    author.run(&["patch", "agentrun", "r", "--type=merge", "-p", r#"{"spec":{"cancel":true}}"#]).unwrap();
    author.run(&["label", "agentrun", "r", "team=a"]).unwrap();
    author.run(&["delete", "agentrun", "r", "--cascade=foreground", "--timeout=30s"]).unwrap();
}

#[test]
fn requested_by_is_the_author_or_absent() {
    let (namespace, author) = with_author("adm-by");
    grant(&namespace, "decide.belay.dev", "agents", "a", "use");
    let run = |name: &str, by: &str| {
        format!(
            "{{apiVersion: belay.dev/v1alpha1, kind: AgentRun, metadata: {{name: {name}}}, spec: {{agentRef: {{name: a}}, input: go, requestedBy: {by}}}}}"
        )
    };
    refused(&author, &run("forged", "root"), "spec.requestedBy is root, but you are ada");
    accepted(&author, &run("mine", AUTHOR));
}

#[test]
fn a_role_with_everything_on_belay_dev_grants_no_use() {
    let (_namespace, author) = with_author("adm-star");
    let yaml =
        "{apiVersion: belay.dev/v1alpha1, kind: AgentRun, metadata: {name: r}, spec: {agentRef: {name: a}, input: go}}";
    assert!(author.refusal(yaml).unwrap().contains("needs the verb use"));
}
