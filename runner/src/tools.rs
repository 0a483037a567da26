//! Tool servers: listing what they offer, and sending one permitted call. The protocol behind it is an
//! implementation's own business.

mod attachment;
mod challenge;
mod changes;
pub mod http;
pub mod mcp;
mod required;
mod result;
pub mod schema;
mod subagent;
mod trouble;
mod wire;

pub use self::attachment::Attachment;
pub(crate) use self::result::noted;
pub use self::wire::Endpoint;

use std::time::Duration;

use async_trait::async_trait;
use belay_protocol::Digest;
use belay_protocol::call::definition_digest;
use belay_protocol::elicitation::{InputRequired, Inputs};
use belay_protocol::event::{Failure, FailureReason, NotSentReason, ToolResult};
use belay_protocol::plan::{Plan, PlanCredential, PlanTool};
use serde_json::{Map, Value};
use tokio::sync::watch;

use self::http::{Documents, HttpApi};
use self::mcp::McpServer;
use self::subagent::Subagent;
use crate::credential::Credentials;
use crate::egress::{EgressError, piece};
use crate::permit::Permit;
use crate::redact::Redactor;

/// The most operations, and bytes of their definitions, that one server may list.
pub const OPERATIONS_MAX: usize = 1024;
pub const LISTING_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longer names cannot be listed in an Agent, characters.
const OPERATION_NAME_MAX: usize = 128;
/// How long a server is given to hear that nobody waits for a call any more.
pub const FAREWELL: Duration = Duration::from_secs(1);
/// What is told of an operation that cannot be offered.
const LEFT_OUT_NAME_BYTES_MAX: usize = 128;
const LEFT_OUT_BYTES_MAX: usize = 400;

/// One operation as its server defines it.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    pub name: String,
    pub description: String,
    pub input_schema: Value,
    pub digest: Digest,
}

impl Definition {
    /// Digests the definition; one without canonical form has none and cannot be accepted by anyone.
    #[must_use]
    pub fn new(name: String, description: String, input_schema: Value) -> Option<Self> {
        let digest = definition_digest(&name, &description, &input_schema).ok()?;
        Some(Self { name, description, input_schema, digest })
    }

    /// Why nobody is offered it, if it holds a value of the Credential that goes to its server: with another value, which
    /// may be another token in each pod, it would be another definition than the accepted one.
    #[must_use]
    pub fn told_value(&self, credential: Option<&PlanCredential>, redactor: &Redactor) -> Option<LeftOut> {
        let of = &credential?.name;
        let whole = serde_json::json!([self.name, self.description, self.input_schema]);
        let why = format!(
            "its definition holds a value of Credential {of}, which nobody may see and which changes: let what defines it not \
             repeat that"
        );
        redactor.holds(of, &whole).then(|| LeftOut::new(&self.name, &why))
    }
}

/// Why nobody may call an operation of that name: no Agent could list it, or nobody could read it.
#[must_use]
pub fn unnameable(name: &str) -> Option<String> {
    if name.is_empty() || name.chars().count() > OPERATION_NAME_MAX {
        return Some(format!("its name has to be 1 to {OPERATION_NAME_MAX} characters long"));
    }
    name.contains(char::is_control).then(|| "its name holds control characters".to_owned())
}

/// Something that is there and cannot be offered to anyone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    pub name: String,
    pub why: String,
}

impl LeftOut {
    #[must_use]
    pub fn new(name: &str, why: &str) -> Self {
        Self { name: name.to_owned(), why: why.to_owned() }
    }

    /// Untrusted words as status holds them: redacted, and only then cut.
    #[must_use]
    pub fn told(&self, redactor: &Redactor) -> Self {
        let shown = |text: &str, most: usize| piece(&redactor.redact(text), most);
        Self { name: shown(&self.name, LEFT_OUT_NAME_BYTES_MAX), why: shown(&self.why, LEFT_OUT_BYTES_MAX) }
    }
}

/// A call as it will be sent, apart from its permit.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    pub operation: String,
    pub arguments: Map<String, Value>,
    /// Digest of the definition that this runner was shown.
    pub definition: Digest,
    /// By which the server recognises a call that it was sent before. Only where sending it again is safe.
    pub key: Option<String>,
    /// What people answered to the questions of earlier attempts.
    pub inputs: Inputs,
}

/// What became of a call. Everything that is not known for sure is [`Outcome::Unknown`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A complete answer, errors of the tool included.
    Observed(ToolResult),
    /// A complete answer that is no result: the server asks people something first.
    InputRequired(InputRequired),
    /// No byte left; the permit had run out, and a new one may be asked for.
    PermitExpired,
    /// No byte left.
    NotSent {
        reason: NotSentReason,
        message: String,
    },
    Unknown {
        message: String,
    },
}

/// How far a call is, in its server's own words: whoever shows them redacts and cuts them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    pub done: f64,
    pub total: Option<f64>,
    /// No more than [`PROGRESS_BYTES_KEPT`] of it.
    pub message: String,
}

/// The most that is kept of what a server says of a call's progress.
pub const PROGRESS_BYTES_KEPT: usize = 4 * 1024;

/// Why a server could not be listed. Its words name the Tool, its URL and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ListError {
    pub reason: FailureReason,
    pub message: String,
}

impl ListError {
    /// Whether asking again may help: listing has no effect, so that asking is always safe.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.reason.is_transient()
    }

    #[must_use]
    pub fn into_failure(self) -> Failure {
        Failure { reason: self.reason, message: self.message, retrying: false, retry_after_seconds: None }
    }
}

/// The server of a plan's tool, of whichever kind it is.
pub fn of_plan(
    plan: &Plan,
    tool: &PlanTool,
    credentials: &Credentials,
    documents: &Documents,
    redactor: &Redactor,
) -> Result<Box<dyn ToolServer>, EgressError> {
    if let Some(agent) = tool.agent.clone() {
        return Ok(Box::new(Subagent::new(agent)));
    }
    let (credentials, redactor) = (credentials.clone(), redactor.clone());
    let Some(described) = tool.http.clone() else {
        return Ok(Box::new(McpServer::of_plan(plan, tool, credentials, redactor)?));
    };
    let credential = tool.credential.as_deref().and_then(|name| plan.credential(name)).cloned();
    let endpoint = Endpoint { tool: tool.name.clone(), url: tool.url.clone(), ca: tool.ca.clone(), credential };
    let destinations = credentials.destinations().for_plan(plan);
    Ok(Box::new(HttpApi::new(endpoint, &destinations, described, documents.clone(), credentials, redactor)?))
}

/// One tool's server.
#[async_trait]
pub trait ToolServer: Send {
    /// What the server offers now.
    async fn list(&mut self) -> Result<Vec<Definition>, ListError>;

    /// Whether the server may offer something else by now: it said so after it was last listed, or was not heard.
    fn has_changed(&self) -> bool {
        false
    }

    /// The newest word on how far its calls are, where it says that at all.
    fn progress(&self) -> Option<watch::Receiver<Progress>> {
        None
    }

    /// What the newest result holds besides the text that is shown. Nothing of it is kept yet.
    fn take_attachments(&mut self) -> Vec<Attachment> {
        Vec::new()
    }

    /// What the newest listing did not offer, and why.
    fn left_out(&self) -> &[LeftOut] {
        &[]
    }

    /// Makes sure of a conversation with the server, so that a permit is not spent on waiting for one.
    async fn prepare(&mut self) -> Result<(), ListError>;

    /// What of a call's arguments, though they fit its schema, no request of a prepared server could carry: nobody is to be
    /// asked about a call that cannot be made.
    fn misfit(&self, _call: &Call) -> Option<String> {
        None
    }

    /// Sends the call, once, if the permit is for these very bytes; waits at most `timeout` for the answer.
    async fn call(&mut self, call: &Call, permit: Permit, timeout: Duration) -> Outcome;
    /// Whether a call ended without an answer, its future dropped perhaps, and the server does not know that nobody waits.
    fn owes_answer(&self) -> bool {
        false
    }

    /// Tells it so. Best effort, within [`FAREWELL`].
    async fn abandon(&mut self) {}
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::credential::tests::{credential, mounted};

    #[rstest]
    #[case::name("get-hunter2", "", json!({}), true)]
    #[case::description("o", "You sent Bearer hunter2.", json!({}), true)]
    #[case::encoded("o", "You sent Basic dXNlcjpodW50ZXIy", json!({}), true)]
    #[case::key("o", "", json!({"properties": {"hunter2": {}}}), true)]
    #[case::pattern("o", "", json!({"properties": {"a": {"pattern": "hunter2("}}}), true)]
    #[case::nothing("o", "hunter", json!({}), false)]
    #[case::the_marker_alone("o", "[credential a redacted]", json!({}), false)]
    #[case::anothers("o", "swordfish", json!({}), false)]
    fn a_definition_that_holds_a_value_of_its_servers_credential_is_left_out(
        #[case] name: &str,
        #[case] description: &str,
        #[case] schema: Value,
        #[case] holds: bool,
    ) {
        let (_folder, credentials) = mounted(&[("a", b"hunter2"), ("b", b"swordfish")]);
        let (own, other) = (credential("a", &[]), credential("b", &[]));
        let redactor = Redactor::new(credentials, &[own.clone(), other]);
        let definition = Definition::new(name.into(), description.into(), schema).unwrap();
        let told = definition.told_value(Some(&own), &redactor).map(|left_out| left_out.told(&redactor));
        assert_eq!(told.is_some(), holds, "{told:?}");
        if let Some(LeftOut { name, why }) = told {
            assert!(
                why.starts_with("its definition holds a value of Credential a,") && !why.contains("hunter2"),
                "{why}"
            );
            assert!(!name.contains("hunter2"), "{name}");
        }
        assert_eq!(definition.told_value(None, &redactor), None, "its server is sent none");
    }
}
