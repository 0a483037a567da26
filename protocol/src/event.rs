//! What a journal records. Each event is one fact; a run's state is the fold of them ([`crate::fold`]).

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cost::Usage;
use crate::digest::Digest;
use crate::elicitation::InputRequired;
use crate::grant::Grant;
use crate::guard::GuardStamp;
use crate::judgement::{Judged, PolicyRequirement};
use crate::plan::{Limits, Plan};

/// One journaled event: its place in the run, when the operator took it, and what happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Counts from 1 in each run, without gaps.
    pub seq: u64,
    /// Milliseconds since the Unix epoch by the operator's clock, never before an earlier record's.
    pub at: i64,
    pub event: Event,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all_fields = "camelCase")]
pub enum Event {
    /// Operator: every reference resolved; the plan is frozen.
    RunAccepted { plan_digest: Digest, plan: Box<Plan> },
    /// Operator: a pod of this name may be created for this epoch.
    EpochOpened { epoch: u64, pod_name: String },
    /// Operator: the first Hello of the epoch's pod; any other instance is refused from now on.
    InstanceClaimed { epoch: u64, instance: String, pod_uid: String },
    /// Runner: what a tool's server offers now, or why it could not be asked.
    ToolsListed { tool: String, listing: Listing },
    /// Runner: about to ask the model. The answer to the batch is the permission to do so.
    ModelRequested { step: u32, attempt: u32, request: Digest, reserved_tokens: u64 },
    /// Runner: the model's complete answer.
    ModelResponded { step: u32, attempt: u32, response: ModelResponse },
    /// Runner: a request ended without a complete answer. `reported`: an answer had begun, and this was counted of it until
    /// then.
    ModelFailed {
        step: u32,
        attempt: u32,
        failure: Failure,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reported: Option<Usage>,
    },
    /// Runner: the model that failed is given up for the rest of the run, and the plan's next one is asked.
    ModelReplaced { model: String, by: String, because: FailureReason },
    /// Runner: a call that the model asked for, bound to the exact bytes that would be sent.
    CallProposed { call_id: String, attempt: u32, call: ProposedCall },
    /// Operator: the gate's verdict, journaled together with the proposal, and what the policies said where they
    /// were asked. A denial settles the call; it may also follow what people answered.
    CallDecided {
        call_id: String,
        attempt: u32,
        verdict: Verdict,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        judged: Option<Box<Judged>>,
    },
    /// Runner: a permit that was not used: it ran out, or the runner is leaving.
    PermitReturned { call_id: String, attempt: u32 },
    /// Runner: the complete answer to a call, errors of the tool included.
    CallObserved { call_id: String, attempt: u32, result: ToolResult, milliseconds: u64 },
    /// Runner: nothing left this pod; the model is told why.
    CallNotSent { call_id: String, attempt: u32, reason: NotSentReason, message: String },
    /// Runner or operator: it may have happened or not, and nobody here can tell.
    CallUnknown { call_id: String, attempt: u32, message: String },
    /// Runner or operator: no answer came to a call that may be sent again, with the same key.
    CallInterrupted { call_id: String, attempt: u32, message: String },
    /// Runner: the server answered that it needs input of people first. The call has no result yet.
    CallInputRequired { call_id: String, attempt: u32, required: Box<InputRequired>, milliseconds: u64 },
    /// Operator: a call of an Agent was permitted; the run that carries it out may be created now. Journaled with the
    /// verdict: its runner is handed no permit.
    ChildOpened { call_id: String, attempt: u32, child: Child },
    /// Operator: the child's AgentRun exists. What that very run comes to counts, and nothing else.
    ChildPosted { name: String, uid: String },
    /// Operator: the child has ended, or will never come to an end. That is the call's result.
    ChildEnded { call_id: String, attempt: u32, name: String, end: Box<ChildEnd> },
    /// Operator: people are asked; the Approval may be created now.
    AskOpened { ask: Ask },
    /// Operator: the Approval exists. A decision counts on this uid alone.
    AskPosted { name: String, uid: String },
    /// Operator: what people decided on the sealed Approval, or that it will never be decided.
    AskSettled { name: String, answer: Answer },
    /// Operator: what people accepted of a tool's server since the plan was made. The run goes by these definitions from
    /// its next epoch on; `approval`: the Approval on which they said so, where that is known.
    DefinitionsAccepted {
        tool: String,
        operations: Vec<AcceptedDefinition>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        approval: Option<String>,
    },
    /// Operator: people allowed more than the call that they were asked about; its ApprovalGrant may be created now.
    GrantOpened { grant: Grant },
    /// Operator: somebody wanted to allow more, and it does not count. What they said of the call does.
    GrantRefused { approval: String, policy: String, by: Vec<String>, why: String },
    /// Operator: the ApprovalGrant exists. While it does, by this uid, the grant counts.
    GrantPosted { name: String, uid: String },
    /// Operator: the grant counts no more.
    GrantRevoked { name: String, why: String },
    /// Operator: a limit of the plan is used up.
    LimitReached { limit: Limit },
    /// Operator: someone set `spec.cancel`.
    CancelRequested {},
    /// Operator: nothing that the epoch's runner says counts any more. It may still act on permits that it
    /// holds. `active_milliseconds`: since the claim, by a clock that nobody sets.
    EpochEnded {
        epoch: u64,
        cause: EpochEnd,
        #[serde(default)]
        active_milliseconds: u64,
    },
    /// Operator: nothing of an ended epoch can act any more.
    EpochDead { epoch: u64, proof: DeathProof },
    /// Operator: the end of the run, for good.
    RunEnded { end: RunEnd },
}

impl Event {
    /// Whether a runner may append this; everything else only the operator writes.
    #[must_use]
    pub fn is_runners(&self) -> bool {
        match self {
            Self::ToolsListed { .. }
            | Self::ModelRequested { .. }
            | Self::ModelResponded { .. }
            | Self::ModelFailed { .. }
            | Self::ModelReplaced { .. }
            | Self::CallProposed { .. }
            | Self::PermitReturned { .. }
            | Self::CallObserved { .. }
            | Self::CallNotSent { .. }
            | Self::CallUnknown { .. }
            | Self::CallInterrupted { .. }
            | Self::CallInputRequired { .. } => true,
            Self::RunAccepted { .. }
            | Self::EpochOpened { .. }
            | Self::InstanceClaimed { .. }
            | Self::CallDecided { .. }
            | Self::LimitReached { .. }
            | Self::CancelRequested {}
            | Self::ChildOpened { .. }
            | Self::ChildPosted { .. }
            | Self::ChildEnded { .. }
            | Self::AskOpened { .. }
            | Self::AskPosted { .. }
            | Self::AskSettled { .. }
            | Self::DefinitionsAccepted { .. }
            | Self::GrantOpened { .. }
            | Self::GrantRefused { .. }
            | Self::GrantPosted { .. }
            | Self::GrantRevoked { .. }
            | Self::EpochEnded { .. }
            | Self::EpochDead { .. }
            | Self::RunEnded { .. } => false,
        }
    }

    /// The event's name as journals, logs and docs spell it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::RunAccepted { .. } => "RunAccepted",
            Self::EpochOpened { .. } => "EpochOpened",
            Self::InstanceClaimed { .. } => "InstanceClaimed",
            Self::ToolsListed { .. } => "ToolsListed",
            Self::ModelRequested { .. } => "ModelRequested",
            Self::ModelResponded { .. } => "ModelResponded",
            Self::ModelFailed { .. } => "ModelFailed",
            Self::ModelReplaced { .. } => "ModelReplaced",
            Self::CallProposed { .. } => "CallProposed",
            Self::CallDecided { .. } => "CallDecided",
            Self::PermitReturned { .. } => "PermitReturned",
            Self::CallObserved { .. } => "CallObserved",
            Self::CallNotSent { .. } => "CallNotSent",
            Self::CallUnknown { .. } => "CallUnknown",
            Self::CallInterrupted { .. } => "CallInterrupted",
            Self::CallInputRequired { .. } => "CallInputRequired",
            Self::ChildOpened { .. } => "ChildOpened",
            Self::ChildPosted { .. } => "ChildPosted",
            Self::ChildEnded { .. } => "ChildEnded",
            Self::AskOpened { .. } => "AskOpened",
            Self::AskPosted { .. } => "AskPosted",
            Self::AskSettled { .. } => "AskSettled",
            Self::DefinitionsAccepted { .. } => "DefinitionsAccepted",
            Self::GrantOpened { .. } => "GrantOpened",
            Self::GrantRefused { .. } => "GrantRefused",
            Self::GrantPosted { .. } => "GrantPosted",
            Self::GrantRevoked { .. } => "GrantRevoked",
            Self::LimitReached { .. } => "LimitReached",
            Self::CancelRequested {} => "CancelRequested",
            Self::EpochEnded { .. } => "EpochEnded",
            Self::EpochDead { .. } => "EpochDead",
            Self::RunEnded { .. } => "RunEnded",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Listing {
    Listed(Vec<ListedOperation>),
    Failed(Failure),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedOperation {
    pub name: String,
    pub definition: Digest,
}

/// What an operation of the plan is accepted as from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AcceptedDefinition {
    pub name: String,
    /// Absent: that the operation is gone is what was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<Digest>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelResponse {
    pub items: Vec<Item>,
    pub finish: Finish,
    #[serde(default)]
    pub usage: Usage,
    /// The provider's id of the response and the model that really answered, where it says them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    pub milliseconds: u64,
    /// Until the first piece of what the model says or thinks arrived. Absent: the answer did not come in pieces, or it was
    /// not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_chunk_milliseconds: Option<u64>,
    /// What of a last answer does not fit the plan's `output_schema`, in words for the model: it is asked again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub misfit: Option<String>,
}

impl ModelResponse {
    /// An answer of which nothing is known but what every provider says.
    #[must_use]
    pub fn new(items: Vec<Item>, finish: Finish, usage: Usage, milliseconds: u64) -> Self {
        let (response_id, model, first_chunk_milliseconds, misfit) = (None, None, None, None);
        Self { items, finish, usage, response_id, model, milliseconds, first_chunk_milliseconds, misfit }
    }

    /// Everything that the model said, if it said anything.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        let text = |item: &Item| match item {
            Item::Text { text } => Some(text.clone()),
            Item::Reasoning { .. } | Item::Block { .. } | Item::ToolCall { .. } => None,
        };
        let texts: Vec<String> = self.items.iter().filter_map(text).collect();
        (!texts.is_empty()).then(|| texts.join("\n"))
    }
}

/// One piece of a model's answer, in its order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all_fields = "camelCase")]
pub enum Item {
    Text {
        text: String,
    },
    /// What the model thought, as far as it is told. `field`: the name under which it goes back to the model that said it,
    /// and to no other. Absent: it is not sent again.
    Reasoning {
        text: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        field: Option<String>,
    },
    /// A block that only its provider understands, such as signed or encrypted reasoning: its JSON byte for byte,
    /// to be sent back in its place to the model that made it, and to no other. Of a call it stands before that call.
    Block {
        json: String,
    },
    /// `arguments` are the model's own characters, valid JSON or not.
    ToolCall {
        call_id: String,
        provider_id: String,
        name: String,
        arguments: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finish {
    Stop,
    ToolCalls,
    /// The answer was cut at the output limit.
    Length,
    ContentFilter,
}

/// Why a model or a tool server could not be used. `message` is for people and holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    pub reason: FailureReason,
    pub message: String,
    /// Whether the runner is going to ask again; otherwise the run ends with this failure.
    #[serde(default)]
    pub retrying: bool,
    /// How long the server asked to wait before anybody asks again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureReason {
    /// No connection: name not found, refused, TLS not verified, or connect time-out.
    Unreachable,
    /// 401 or 403.
    Unauthorized,
    /// 429 after all retries.
    RateLimited,
    /// Another error status of the server.
    ServerError,
    /// The server refused the request (400, 404, 422 ..).
    BadRequest,
    TimedOut,
    /// The stream ended without a finish reason.
    Truncated,
    /// Not what the protocol allows.
    Malformed,
    /// The answer was larger than the runner takes.
    TooLarge,
    CredentialMissing,
    CredentialEmpty,
    CredentialTooLarge,
    /// The credential's `hosts`, `methods` or `pathPrefixes` do not hold those of the request, or it is in plain text.
    HostNotAllowed,
    /// The URL leads, or its name resolves, to an address that the run may not connect to.
    DestinationNotAllowed,
    /// The script of a scripted model has no turn left.
    ScriptExhausted,
    /// A turn of a scripted model says to fail.
    Scripted,
    /// The context does not fit the model's window any more.
    ContextExceeded,
    /// The runner that asked is gone: whether the provider answered, and charged for it, is not known.
    Interrupted,
    /// Leave to ask was never given: nobody was asked.
    Withheld,
    /// The ConfigMap with a tool's OpenAPI document is absent or lacks the key: from inside a pod both look the same.
    DocumentMissing,
    /// What describes a tool's operations cannot be used.
    DefinitionsInvalid,
    /// The ConfigMap with the authorities that a destination is verified by is absent, lacks the key, or holds no
    /// certificates: nobody was asked.
    CaBundleUnusable,
}

impl FailureReason {
    /// Whether the cause may be gone when the same is asked again.
    #[must_use]
    pub fn is_transient(self) -> bool {
        match self {
            Self::Unreachable
            | Self::RateLimited
            | Self::ServerError
            | Self::TimedOut
            | Self::Truncated
            | Self::Interrupted
            | Self::Withheld => true,
            Self::Unauthorized
            | Self::BadRequest
            | Self::Malformed
            | Self::TooLarge
            | Self::CredentialMissing
            | Self::CredentialEmpty
            | Self::CredentialTooLarge
            | Self::HostNotAllowed
            | Self::DestinationNotAllowed
            | Self::ScriptExhausted
            | Self::Scripted
            | Self::DocumentMissing
            | Self::DefinitionsInvalid
            | Self::CaBundleUnusable
            | Self::ContextExceeded => false,
        }
    }
}

/// A call as the gate sees it and as it would be sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProposedCall {
    pub tool: String,
    pub operation: String,
    pub args: Value,
    /// Digest of the definition that the server listed to this runner.
    pub definition: Digest,
    /// [`crate::call::CallBinding::digest`] over what the runner is about to send.
    pub digest: Digest,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    Allowed {
        digest: Digest,
    },
    Denied {
        reason: DenyReason,
        message: String,
    },
    /// Policies want people's yes first.
    Asked {
        requirements: Vec<PolicyRequirement>,
    },
    /// Not now: the runner proposes it again when it is woken, or when one of its calls has ended.
    Later {
        reason: LaterReason,
    },
}

/// What holds a call up for a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LaterReason {
    /// `Agent.spec.suspend`.
    Suspended,
    /// An earlier epoch may still act on a permit.
    EarlierEpoch,
    /// People are asked what became of another call.
    UnknownCall,
    /// Calls that are under way, or come first, must end before.
    CallsUnderWay,
    /// A policy that has a say could not be evaluated in time.
    PolicyStalled,
    /// A tool's server offers an operation otherwise than it was accepted, and the run waits for people or for the server.
    DefinitionDrifted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DenyReason {
    /// The Agent does not list the tool or the operation.
    NotListed,
    /// The server's definition is not the accepted one.
    DefinitionChanged,
    /// The digest does not match tool, definition, operation, arguments, credential and destination.
    DigestMismatch,
    /// The run was cancelled or has ended.
    RunEnding,
    /// A policy says no.
    Policy,
    /// Policies want people's yes, and people cannot be shown the call, or so many cannot say yes.
    CannotBeAsked,
    /// People were asked, and one of them said no.
    Refused,
    /// People were asked, and not enough of them said yes, or answered, in time.
    Expired,
    /// The run may start no further run: it is too deep, has started too many, or has nothing left to give.
    NoChild,
}

/// What a tool answered, cut to [`crate::RESULT_BYTES_MAX`]. Where it was cut, the whole text is an artifact, if it could be
/// kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolResult {
    pub is_error: bool,
    pub content: String,
    /// Bytes of the whole text, where it is more than `content` holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncated_from_bytes: Option<u64>,
    /// What the result holds besides the text that is shown. The operator keeps it, and kept it before this was journaled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<Artifact>,
}

/// Bytes beside the journal. What is said of them is the server's word, redacted; of a text that was cut it is ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Artifact {
    pub digest: Digest,
    pub bytes: u64,
    pub media_type: String,
    /// Of a resource, its URI.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotSentReason {
    /// No tool of the plan has the name that the model used.
    UnknownTool,
    /// The model's arguments are not a JSON object, or have no canonical form.
    MalformedArguments,
    /// More calls in one response than the runner takes.
    TooManyCalls,
    /// The connection could not be made.
    Unreachable,
    CredentialMissing,
    HostNotAllowed,
    /// The URL leads, or its name resolves, to an address that the run may not connect to.
    DestinationNotAllowed,
    /// The run is ending.
    RunEnding,
    /// What is about to be sent is not what the permit was given for.
    DigestMismatch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Limit {
    Steps,
    Tokens,
    CostUSD,
    ActiveSeconds,
    WaitSeconds,
    /// What the installation lets one run write.
    JournalBytes,
}

/// A run that carries out a call of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Child {
    /// Of its AgentRun.
    pub name: String,
    /// Whose run it is.
    pub agent: String,
    /// Its tokens and its cost are set aside from what the run that called it may use, until it has ended.
    pub limits: Limits,
}

/// What became of a child.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChildEnd {
    /// Absent: there never was such a run, or it was deleted before anything became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// For the model that called it.
    pub result: ToolResult,
    /// What counts against the limits of the run that called it: what the child and those below it used or may have used.
    pub tokens: u64,
    pub cost_micro_usd: u64,
}

/// One question to people, carried by an Approval of this name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ask {
    pub name: String,
    pub purpose: AskPurpose,
    pub call_id: String,
    pub attempt: u32,
    pub nonce: String,
    /// Milliseconds since the Unix epoch.
    pub expires_at: i64,
    /// Over the Approval's whole request: what people sign (protocol section 1).
    pub digest: Digest,
    /// Before a call: the digest of that call, and whose yes it needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<Digest>,
    /// On a Question: which of the attempt's questions, counted from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub question: Option<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requirements: Vec<PolicyRequirement>,
    /// The admission rules that were in force when it was put. Decisions count under those alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<GuardStamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AskPurpose {
    /// Did the call happen?
    Unknown,
    /// May the call be made?
    Call,
    /// What does the call's server want to know?
    Question,
}

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all_fields = "camelCase")]
pub enum Answer {
    /// The call took effect, with this result for the model.
    Happened { result: String, by: String },
    /// It is sent again, as a new attempt.
    Retry { by: String },
    /// The run ends.
    End { by: String, reason: String },
    /// The Approval was deleted, its decisions disagree, or the call is another one now: it is asked anew.
    Withdrawn { why: String },
    /// The call may be made, as everyone says whose yes it needs.
    Allowed { by: Vec<Approver> },
    /// The call may not be made.
    Denied { by: String, reason: String },
    /// Not enough people said yes, or answered, in time.
    Expired {},
    /// What people answered the call's server: canonical JSON, or nothing where a page was to be opened.
    Answered {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        content: Option<String>,
        by: Vec<Approver>,
    },
    /// What people answered the call's server cannot be sent: it does not fit, or they differ. They are asked anew, but not
    /// for ever: the call may be denied with it.
    Misfit { why: String },
}

/// Who said yes, for which policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Approver {
    pub policy: String,
    pub by: String,
}

/// Why nothing of an epoch acts any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeathProof {
    /// The kubelet reported that its containers ended.
    Reported,
    /// Every permit ran out and every call timed out, by the operator's monotonic clock.
    Quarantine,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EpochEnd {
    /// The runner said all it had to say.
    Completed,
    /// The kubelet reports the containers ended by themselves.
    Exited,
    /// The pod object vanished or its node did.
    PodLost,
    /// No Hello in time.
    NoHello,
    /// The run waits for a person or for its Agent: it needs no pod meanwhile.
    Released,
    Cancelled,
    DeadlineExceeded,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunEnd {
    pub outcome: Outcome,
    pub reason: EndReason,
    /// Names the object, the field and what to do.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Succeeded,
    Failed,
    Cancelled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndReason {
    Completed,
    Cancelled,
    StepsExceeded,
    TokensExceeded,
    CostExceeded,
    /// The run wrote as much as the installation lets one run write, or went on listing its tools.
    JournalExceeded,
    DeadlineExceeded,
    WaitExceeded,
    ModelFailed,
    /// The model's answer was cut or filtered and holds no call to go on with.
    ModelIncomplete,
    /// The model's last answers did not fit the Agent's `outputSchema`.
    OutputInvalid,
    ToolUnavailable,
    CredentialUnavailable,
    PodLost,
    RunnerCrashed,
    RunnerSilent,
    JournalLost,
    /// A person ended the run, since nobody could say what became of a call.
    UnknownEffect,
}
