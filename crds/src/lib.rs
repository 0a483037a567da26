//! Every kind that kubectl sees: group `belay.dev`, version `v1alpha1`. Field docs here are the user manual that
//! `kubectl explain` prints. Knows no client and no runtime.

pub mod admission;
mod agent;
mod agent_run;
mod approval;
mod approval_grant;
mod approval_policy;
pub mod conditions;
mod credential;
mod definitions;
pub mod drift;
mod http_api;
mod model;
mod money;
mod read_grant;
pub mod reason;
mod refs;
mod schema;
mod tls;
mod tool;
mod visible;

pub use agent::{Agent, AgentPod, AgentSpec, AgentStatus, AgentTool, Limits, OnDrift, PodResources};
pub use agent_run::{
    AgentRun, AgentRunSpec, AgentRunStatus, JournalRef, ParentRun, Phase, PodRef, RunUsage, WaitingOn,
};
pub use approval::{
    ALLOWS_MAX, Approval, ApprovalOutcome, ApprovalPurpose, ApprovalQuestion, ApprovalRequest, ApprovalRun,
    ApprovalSpec, ApprovalStatus, DECISIONS_MAX, Decision, DecisionAnswer, DecisionInput, DecisionVerdict,
    EarlierAnswer, Happened, Requirement, Retry, is_person, wants_one_more,
};
pub use approval_grant::{ApprovalGrant, ApprovalGrantSpec, ApprovalGrantStatus, GrantAnswer, GrantOver, GrantTerms};
pub use approval_policy::{
    ApprovalPolicy, ApprovalPolicySpec, ApprovalPolicyStatus, Expectation, LastGood, Otherwise, PolicyAsk, PolicyMode,
    PolicyRule, PolicyTest, RuleAction, TestCall,
};
pub use credential::{
    Bearer, ClientAuthentication, ClientCredentials, Credential, CredentialSpec, CredentialStatus, Inject, InjectBasic,
    InjectHeader, InjectQuery, SecretKeyRef,
};
pub use definitions::definitions;
pub use http_api::{ConfigMapKeyRef, Http, HttpHeader, HttpMethod, HttpOperation, HttpSource, OpenApi};
pub use model::{
    Model, ModelApi, ModelHeader, ModelRateLimits, ModelReasoning, ModelSpec, ModelStatus, ModelTimeouts, PricesUsd,
    ReasoningEffort, Script, ScriptCall, ScriptTurn,
};
pub use money::{Usd, UsdError};
pub use read_grant::{ReadGrant, ReadGrantSpec, ReadPurpose};
pub use refs::NameRef;
pub use tls::Tls;
pub use tool::{
    Acceptance, CHANGES_MAX, Change, DriftQuestion, DriftRefusal, DriftedOperation, Effects, LEFT_OUT_MAX,
    LeftOutOperation, Mcp, QuestionGuard, Tool, ToolAgent, ToolDrift, ToolEffects, ToolOperation, ToolSpec, ToolStatus,
    Unrest,
};
pub use visible::{visible, visible_json};

/// API group of every kind.
pub const GROUP: &str = "belay.dev";
/// Virtual API group of the verbs that admission checks: `use` and `approve`.
pub const DECIDE_GROUP: &str = "decide.belay.dev";
/// On a namespace, `"true"`: the operator may run pods there.
pub const ENABLED_LABEL: &str = "belay.dev/enabled";
/// On runner pods: uid of the AgentRun.
pub const RUN_UID_LABEL: &str = "belay.dev/run-uid";
/// On runner and probe pods: which NetworkPolicy lets them out.
pub const NETWORK_LABEL: &str = "belay.dev/network";
/// On runner pods: name of the AgentRun, cut to 63 characters.
pub const RUN_LABEL: &str = "belay.dev/run";
/// On AgentRuns that carry out a call of another one: name of that AgentRun, cut to 63 characters.
pub const PARENT_LABEL: &str = "belay.dev/parent";
/// On runner pods: name of the Agent, cut to 63 characters.
pub const AGENT_LABEL: &str = "belay.dev/agent";
/// On probe pods: what is probed, `credential`, `tool` or `network`.
pub const PROBE_LABEL: &str = "belay.dev/probe";
/// Runner and probe pods are named with this prefix, which admission protects.
pub const POD_PREFIX: &str = "belay-run-";
