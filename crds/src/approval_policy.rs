//! ApprovalPolicy: rules that allow, ask or deny calls.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::approval_grant::GrantTerms;
use crate::tool::Effects;

/// What calls are allowed, asked or denied. An Agent, a Tool or a Credential names policies in `spec.policyRefs`;
/// each is evaluated alone and the strictest verdict wins. People who hold the verb `approve` on a policy
/// (approvalpolicies.decide.belay.dev) answer what it asks.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "belay.dev",
    version = "v1alpha1",
    kind = "ApprovalPolicy",
    plural = "approvalpolicies",
    singular = "approvalpolicy",
    shortname = "apol",
    category = "belay",
    namespaced,
    status = "ApprovalPolicyStatus",
    derive = "PartialEq",
    validation = ("self.metadata.name != 'default'", "the name default belongs to the built-in policy: choose another"),
    printcolumn(name = "MODE", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "RULES", type_ = "integer", json_path = ".status.rules"),
    printcolumn(name = "TESTS", type_ = "string", json_path = ".status.tests"),
    printcolumn(name = "READY", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalPolicySpec {
    /// `Enforce`: the policy decides. `Audit`: what it would have decided is recorded, and it counts as absent.
    /// Default: `Enforce`. May change; runs under way keep theirs.
    #[serde(default)]
    pub mode: PolicyMode,
    /// What becomes of a call that no rule matches: `Ask` people, `Deny` it, or `Abstain`, which leaves it to other
    /// policies, and where none has a say to the built-in one. Default: `Ask`.
    #[serde(default)]
    pub otherwise: Otherwise,
    /// At most 64, each named once. Their order never matters: a rule that denies beats one that asks, and that
    /// beats one that allows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub rules: Vec<PolicyRule>,
    /// Calls and what the policy has to say of them, tried at every change. While one fails the policy is not Ready,
    /// and Agents keep its last good generation. At most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub tests: Vec<PolicyTest>,
}

/// Whether a policy decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum PolicyMode {
    /// It decides.
    #[default]
    Enforce,
    /// What it would have decided is recorded; it counts as absent.
    Audit,
}

/// What becomes of a call that no rule matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Otherwise {
    /// One person is asked, for a day.
    #[default]
    Ask,
    Deny,
    /// The policy has no say.
    Abstain,
}

/// Matches a call where all of its conditions hold; what is absent is no condition.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[x_kube(
    validation = ("!has(self.ask) || self.action == 'Ask'", "ask is for action Ask"),
    validation = ("!has(self.reason) || self.action == 'Deny'", "reason is for action Deny")
)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRule {
    /// What messages, journal and people call it. 1 to 63 characters: lower case letters, digits and `-`.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Names of Tools. At most 32. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 253)), extend("x-kubernetes-list-type" = "set"))]
    pub tools: Vec<String>,
    /// Operations, as their servers spell them. At most 128. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(min = 1, max = 128)), extend("x-kubernetes-list-type" = "set"))]
    pub operations: Vec<String>,
    /// What the Tool's author says that calls do (`Tool.spec.effects`). Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3), extend("x-kubernetes-list-type" = "set"))]
    pub effects: Vec<Effects>,
    /// A condition in CEL over `tool`, `operation`, `args`, `agent`, `run`, `effects` and `spend`, 1 to 1024
    /// characters. Where it cannot be evaluated, such as over an argument that is not there, the call is not
    /// allowed: ask with `has(args.x)` first. See docs/policies.md. Default: always true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub when: Option<String>,
    /// What becomes of a call that matches.
    pub action: RuleAction,
    /// How people are asked: for action `Ask` alone. Default: one person, who may be whoever created the run, for a
    /// day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<PolicyAsk>,
    /// What the model is told: for action `Deny` alone. 1 to 1024 characters. Default: that the rule denies it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub reason: Option<String>,
}

/// What a rule does with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum RuleAction {
    /// It is sent, where no other rule or policy asks or denies.
    Allow,
    /// It waits for people.
    Ask,
    /// It is not sent, and the model is told why.
    Deny,
}

/// How people are asked. Where several rules of a policy ask, the strictest of each counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyAsk {
    /// How many different people have to say yes. Default 1, 1 to 8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 8))]
    pub quorum: Option<i32>,
    /// Whether whoever created the run may not be one of them. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separation_of_duty: Option<bool>,
    /// How long the question stands, in seconds; then the answer is no. Default 86400 (a day), 30 to 2592000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 30, max = 2_592_000))]
    pub expires_after_seconds: Option<i32>,
    /// How far people may, with their yes to a call, allow more such calls for the rest of the run. Where one of
    /// several rules that ask has none, nobody may. Default: nobody may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grants: Option<GrantTerms>,
}

/// A call, and what the policy has to say of it, alone and as if in `Enforce`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct PolicyTest {
    /// The call that is tried.
    pub call: TestCall,
    /// What the policy has to say.
    pub expect: Expectation,
}

/// A call to try a policy with. It comes from run `test` of Agent `test`, created by nobody, which has used nothing.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct TestCall {
    /// Name of a Tool, which need not exist. At most 253 characters.
    #[schemars(length(min = 1, max = 253))]
    pub tool: String,
    /// The operation. At most 128 characters.
    #[schemars(length(min = 1, max = 128))]
    pub operation: String,
    /// The arguments, any object. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::any_object")]
    pub args: Option<Value>,
    /// What the call does. Default: `NonIdempotent`, whatever the Tool says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effects: Option<Effects>,
}

/// What a policy may say of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Expectation {
    Allow,
    Ask,
    Deny,
    /// No rule matches, and `otherwise` is `Abstain`.
    Abstain,
}

/// What became of the rules. Only the operator writes it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalPolicyStatus {
    /// How many rules there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<i32>,
    /// How many of the tests passed, such as `3/3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub tests: Option<String>,
    /// The newest generation whose rules could be used and whose tests passed: what new runs go by while a later
    /// one is not Ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_good: Option<LastGood>,
    /// Ready, Reconciling and Stalled as kstatus reads them, `NamesKnown`: whether there are the Tools and operations
    /// that its rules name, and `ArgumentsFit`: whether its rules can be evaluated on the arguments that those describe.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The `metadata.generation` that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// A generation that was good.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct LastGood {
    /// Its `metadata.generation`.
    pub generation: i64,
    /// The whole spec of that generation.
    pub spec: ApprovalPolicySpec,
}
