//! Approval: one question of a run to people, and their decisions.

mod counting;
mod question;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::counting::{is_person, wants_one_more};
pub use self::question::{ApprovalQuestion, DecisionInput, EarlierAnswer};
use crate::approval_grant::{GrantAnswer, GrantTerms};

/// What the schema takes in `decisions` of an Approval.
pub const DECISIONS_MAX: usize = 32;
/// How many of them may be Allow: the rest of the list is kept for Denies.
pub const ALLOWS_MAX: usize = 24;

/// A question to people: about one call of a run, may it be made, did it happen, or what does its
/// server want to know; or about a Tool, is what its
/// server offers now accepted. The operator alone creates it; whoever holds the verb `approve` on a policy that asks
/// (approvalpolicies.decide.belay.dev), or on the Tool (tools.decide.belay.dev), adds a decision to `decisions`.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "belay.dev",
    version = "v1alpha1",
    kind = "Approval",
    plural = "approvals",
    singular = "approval",
    shortname = "apv",
    category = "belay",
    namespaced,
    status = "ApprovalStatus",
    derive = "PartialEq",
    printcolumn(name = "RUN", type_ = "string", json_path = ".spec.request.run.name"),
    printcolumn(name = "PURPOSE", type_ = "string", json_path = ".spec.request.purpose"),
    printcolumn(name = "TOOL", type_ = "string", json_path = ".spec.request.tool"),
    printcolumn(name = "OPERATION", type_ = "string", json_path = ".spec.request.operation"),
    printcolumn(name = "NEEDS", type_ = "string", json_path = ".spec.request.requirements[*].policy"),
    printcolumn(name = "GIVEN", type_ = "string", json_path = ".status.given"),
    printcolumn(name = "EXPIRES", type_ = "string", json_path = ".spec.request.expiresAt"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "OUTCOME", type_ = "string", json_path = ".status.outcome", priority = 1)
)]
#[x_kube(
    validation = ("!has(oldSelf.decisions) || has(self.decisions)", "decisions cannot be removed"),
    validation = ("self.request.purpose != 'Call' || !has(self.decisions) || self.decisions.all(d, !has(d.answer) || (d.verdict == 'Allow' && has(d.answer.grant)))", "on a Call a decision carries no answer, or an Allow answer.grant: Allow lets it be made, Deny does not"),
    validation = ("!has(self.decisions) || self.decisions.all(d, !has(d.answer) || !has(d.answer.grant) || (self.request.purpose == 'Call' && self.request.requirements.exists(q, q.policy == d.policy && has(q.grants) && d.answer.grant.count <= q.grants.maxCount && d.answer.grant.seconds <= q.grants.maxSeconds)))", "answer.grant needs a policy that lets people give it (spec.request.requirements[].grants), and stays within its maxCount and maxSeconds"),
    validation = ("self.request.purpose != 'Drift' || !has(self.decisions) || self.decisions.all(d, !has(d.answer))", "on a Drift a decision carries no answer: Allow accepts what the server offers, Deny does not"),
    validation = ("self.request.purpose == 'Drift' || (has(self.request.run) && has(self.request.callId) && has(self.request.attempt) && has(self.request.operation) && has(self.request.callDigest))", "a question about a call names run, callId, attempt, operation and callDigest"),
    validation = ("self.request.purpose != 'Drift' || !(has(self.request.run) || has(self.request.callId) || has(self.request.attempt) || has(self.request.operation) || has(self.request.callDigest))", "a Drift is about a Tool: it names no run, callId, attempt, operation or callDigest"),
    validation = ("self.request.purpose != 'Drift' || (self.request.requirements.size() == 1 && self.request.requirements[0].policy == self.request.tool && !has(self.request.requirements[0].separationOfDuty))", "on a Drift the one requirement names the Tool"),
    validation = ("!has(self.decisions) || self.decisions.filter(d, d.verdict == 'Allow').size() <= 24", "at most 24 decisions may be Allow, so that a Deny always finds room"),
    validation = ("self.request.purpose != 'Unknown' || !has(self.decisions) || self.decisions.all(d, (d.verdict == 'Allow') == has(d.answer))", "on an Unknown an Allow carries answer.happened or answer.retry; a Deny ends the run and carries none"),
    validation = ("!has(self.decisions) || self.decisions.all(d, !has(d.answer) || !has(d.answer.input) || self.request.purpose == 'Question')", "answer.input belongs to a Question"),
    validation = ("self.request.purpose != 'Question' || !has(self.decisions) || self.decisions.all(d, (d.verdict == 'Allow') == (has(d.answer) && has(d.answer.input)))", "on a Question an Allow carries answer.input; a Deny declines and carries no answer"),
    validation = ("self.request.purpose != 'Question' || !has(self.decisions) || self.decisions.all(d, !has(d.answer) || !has(d.answer.input) || has(d.answer.input.content) == has(self.request.question.schema))", "a form is answered with answer.input.content, a url with an empty answer.input")
)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalSpec {
    /// What is asked. Cannot change.
    pub request: ApprovalRequest,
    /// What people decided, each entry for good. One for each policy, approver and verdict; a Deny beats any
    /// Allow. At most 32. None can be added once the Approval is sealed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = DECISIONS_MAX), extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["by", "policy", "verdict"],
        "x-kubernetes-validations" = [{"rule": "oldSelf.all(o, self.exists(n, n == o))", "message": "a decision, once written, stays"}]
    ))]
    pub decisions: Vec<Decision>,
}

impl Approval {
    /// Whether its decisions were taken, or will never be: none is added any more.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.sealed == Some(true))
    }
}

/// The question, whole: `digest` is taken over all the rest of it, and a decision repeats that digest.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self == oldSelf", "message": "spec.request cannot change"},
    {"rule": "(self.purpose == 'Question') == has(self.question)", "message": "a Question, and nothing else, has request.question"}
]))]
#[serde(rename_all = "camelCase")]
pub struct ApprovalRequest {
    /// What kind of question it is.
    pub purpose: ApprovalPurpose,
    /// The run that asks. Absent on a Drift.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<ApprovalRun>,
    /// The call within the run, such as `c3`. Absent on a Drift.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub call_id: Option<String>,
    /// Which attempt of the call. Absent on a Drift.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub attempt: Option<i32>,
    /// The Tool that the call goes to, or that drifted.
    #[schemars(length(min = 1, max = 253))]
    pub tool: String,
    /// The operation, as its server spells it. Absent on a Drift.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub operation: Option<String>,
    /// Digest of the operation's definition. On a Drift the one over all that differs: `status.drift.digest` of the Tool.
    #[schemars(length(min = 1, max = 128))]
    pub definition: String,
    /// The arguments: the very bytes, as canonical JSON (RFC 8785). Written by a model. On a Drift what was accepted and
    /// what is offered, operation by operation; written by a server.
    #[schemars(length(max = 262_144))]
    pub arguments: String,
    /// Present and true where the arguments are longer than `arguments` can hold; the journal has all of them, and
    /// `callDigest` is over all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments_truncated: Option<bool>,
    /// The URL that the call goes to, or where the Tool's server is.
    #[schemars(length(max = 2048))]
    pub destination: String,
    /// The Credential that goes with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub credential: Option<String>,
    /// Digest over tool, definition, operation, arguments, credential and destination. Absent on a Drift.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub call_digest: Option<String>,
    /// On a Question: what the call's server wants to know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub question: Option<ApprovalQuestion>,
    /// What people answered to this call's server before, in the order in which it asked: all of it goes with the call. On a
    /// Call and on a Question; absent where nothing was answered. At most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub answered: Vec<EarlierAnswer>,
    /// On an Unknown: when the call was permitted, shortly before it was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<Time>,
    /// What is known, in words.
    #[schemars(length(max = 4096))]
    pub message: String,
    /// Whose yes it needs: every one of these policies. On a Drift the one entry is the Tool.
    #[schemars(length(min = 1, max = 24), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["policy"]))]
    pub requirements: Vec<Requirement>,
    /// Who created the run; empty where nobody vouched for it, and on a Drift.
    #[schemars(length(max = 512))]
    pub requested_by: String,
    /// From then on no decision counts.
    pub expires_at: Time,
    /// Random: no two questions are alike.
    #[schemars(length(min = 1, max = 64))]
    pub nonce: String,
    /// SHA-256 over the canonical bytes of everything above.
    #[schemars(length(min = 1, max = 128))]
    pub digest: String,
}

/// What a question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum ApprovalPurpose {
    /// May the call be made? It has not been. Allow with no answer, or with `answer.grant`; Deny is told to the model.
    Call,
    /// Is what the Tool's server offers now accepted? Until it is, calls to what changed are held. Allow with no answer;
    /// after a Deny it stays held.
    Drift,
    /// Nobody knows whether the call took effect. Allow with `answer.happened` or `answer.retry`; Deny ends the run.
    Unknown,
    /// The call was permitted and sent, and its server wants to know something first. Allow with `answer.input` sends the
    /// call again with that answer; Deny declines, and is told to the model.
    Question,
}

/// A run, for good: a name may be given again, a uid never is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct ApprovalRun {
    /// The AgentRun's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The AgentRun's uid.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
}

/// What one policy wants.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Requirement {
    /// The policy's name; `default` is the built-in one. On a Drift the Tool's name.
    #[schemars(length(min = 1, max = 253))]
    pub policy: String,
    /// Of the policy that asks; absent for the built-in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9_007_199_254_740_991_i64))]
    pub generation: Option<i64>,
    /// How many different people. One more where whoever created the run may not be one of them and is not known to
    /// be a person.
    #[schemars(range(min = 1, max = 8))]
    pub quorum: i32,
    /// Whether whoever created the run may not be one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separation_of_duty: Option<bool>,
    /// How far a yes may allow more such calls for the rest of the run (`answer.grant`). Absent: it may not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grants: Option<GrantTerms>,
}

/// What one person decided, for good.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// For which policy; on a Drift the Tool's name.
    #[schemars(length(min = 1, max = 253))]
    pub policy: String,
    /// The user who decides; admission refuses any other name.
    #[schemars(length(min = 1, max = 512))]
    pub by: String,
    /// `spec.request.digest`, repeated: what was read is what is decided.
    #[schemars(length(min = 1, max = 128))]
    pub digest: String,
    /// Yes or no.
    pub verdict: DecisionVerdict,
    /// What goes with the yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<DecisionAnswer>,
    /// Why, for the record. At most 1024 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
}

/// Yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum DecisionVerdict {
    Allow,
    Deny,
}

/// Exactly one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "[has(self.happened), has(self.retry), has(self.grant), has(self.input)].filter(x, x).size() == 1", "message": "an answer is one of happened, retry, grant and input"}]))]
pub struct DecisionAnswer {
    /// The call took effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub happened: Option<Happened>,
    /// It did not, or doing it twice does no harm: it is sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// On a Call: more such calls may be made in this run. Counts once as many people as the policy wants gave the
    /// very same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<GrantAnswer>,
    /// On a Question: what the call's server is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<DecisionInput>,
}

/// What the call came to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct Happened {
    /// What the model is told as the call's result. At most 65536 characters.
    #[schemars(length(max = 65536))]
    pub result: String,
}

/// Send it again. Has no fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct Retry {}

/// Where the question stands. Only the operator writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalStatus {
    /// True once its decisions were taken: no other is added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<bool>,
    /// How many of the needed people said yes, such as `1/2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub given: Option<String>,
    /// What became of the question when it was sealed. Absent: it is open. The journal has who said so, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<ApprovalOutcome>,
}

/// What becomes of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum ApprovalOutcome {
    /// Everyone said yes whose yes it needs.
    Allowed,
    /// Somebody said no.
    Denied,
    /// People said what became of a call, or what its server wanted to know.
    Answered,
    /// Not enough people decided in time.
    Expired,
    /// It was closed undecided: its run ended, it is asked anew, or what was said does not count. The journal says why.
    Withdrawn,
}
