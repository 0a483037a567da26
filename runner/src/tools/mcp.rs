//! MCP over streamable HTTP, both eras, through rmcp. The only module that knows rmcp's service types.

mod asking;
mod following;
mod listing;
mod outcome;
mod questions;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use belay_protocol::elicitation::Round;
use belay_protocol::event::FailureReason;
use belay_protocol::plan::{Plan, PlanTool, Timeouts};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, ClientCapabilities, ClientConfig, ElicitationCapability,
    FormElicitationCapability, Implementation, PaginatedRequestParams, ProtocolVersion, Tool, UrlElicitationCapability,
};
use rmcp::service::{
    ClientCacheConfig, ClientLifecycleMode, ClientServiceExt as _, RoleClient, RunningService, ServiceError,
};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use serde_json::{Value, json};
use tokio::sync::watch;

use self::asking::Respondent;
use self::following::{Conversation, Follows, Telling};
use super::changes::Changes;
use super::wire::{Beside, CONNECT_TIMEOUT, Departure, Endpoint, Wire};
use super::{
    Attachment, Call, Definition, FAREWELL, LISTING_BYTES_MAX, LeftOut, ListError, OPERATIONS_MAX, Outcome, Progress,
    ToolServer, unnameable,
};
use crate::credential::Credentials;
use crate::egress::{Destinations, EgressError, Trust, piece};
use crate::permit::Permit;
use crate::redact::{Redactor, legible};

/// The most bytes of one JSON-RPC response.
const RESPONSE_BYTES_MAX: usize = 8 * 1024 * 1024;
const ERROR_BYTES_READ: usize = 16 * 1024;
const PAGES_MAX: usize = 256;
/// A server that has not listed its operations by then does not answer.
const LISTING_TIMEOUT: Duration = Duration::from_secs(30);
const SHOWN_BYTES: usize = 500;
const LISTED_TWICE: &str = "the server lists this name more than once: the first definition counts, this one does not";
/// Where a call that may be sent twice carries its key: MCP has no name of its own for it.
const KEY_META: &str = "belay.dev/idempotency-key";

/// One MCP server, connected when it is first needed.
pub struct McpServer {
    wire: Wire,
    redactor: Redactor,
    listing_timeout: Duration,
    respondent: Respondent,
    left_out: Vec<LeftOut>,
    follows: Follows,
    changes: Changes,
    /// As many changes were told when the list was last asked for.
    listed_at: u64,
    conversation: Option<Conversation>,
    /// Of the newest result.
    attached: Vec<Attachment>,
    /// A call whose answer nobody waits for any more, until its server was told so.
    under_way: Option<UnderWay>,
}

type Service = RunningService<RoleClient, Respondent>;
/// Dropped, it has rmcp tell the server.
type UnderWay = BoxFuture<'static, Result<CallToolResponse, ServiceError>>;

impl McpServer {
    /// The server of a plan's tool.
    pub fn of_plan(
        plan: &Plan,
        tool: &PlanTool,
        credentials: Credentials,
        redactor: Redactor,
    ) -> Result<Self, EgressError> {
        let credential = tool.credential.as_deref().and_then(|name| plan.credential(name)).cloned();
        let endpoint = Endpoint { tool: tool.name.clone(), url: tool.url.clone(), ca: tool.ca.clone(), credential };
        Self::new(endpoint, &credentials.destinations().for_plan(plan), LISTING_TIMEOUT, credentials, redactor)
    }

    /// A server that a probe is to list.
    pub fn of_probe(
        endpoint: Endpoint,
        destinations: &Destinations,
        timeouts: &Timeouts,
        credentials: Credentials,
    ) -> Result<Self, EgressError> {
        let redactor = Redactor::new(credentials.clone(), endpoint.credential.as_slice());
        let listing_timeout = LISTING_TIMEOUT.min(Duration::from_secs(u64::from(timeouts.total_seconds)));
        let server = Self::new(endpoint, destinations, listing_timeout, credentials, redactor)?;
        Ok(Self { follows: Follows::Nothing, ..server })
    }

    fn new(
        endpoint: Endpoint,
        destinations: &Destinations,
        listing_timeout: Duration,
        credentials: Credentials,
        redactor: Redactor,
    ) -> Result<Self, EgressError> {
        let changes = Changes::default();
        let trust = endpoint.ca.clone().map(|ca| Trust { field: "spec.mcp.tls.caConfigMapKeyRef", ca });
        let client = destinations.client(&endpoint.url, CONNECT_TIMEOUT, trust)?;
        let wire = Wire::new(client, endpoint, credentials, changes.clone());
        let respondent = Respondent::new(client_info(), redactor.clone());
        Ok(Self {
            wire,
            redactor,
            listing_timeout,
            respondent,
            follows: Follows::Changes,
            changes,
            listed_at: 0,
            left_out: Vec::new(),
            conversation: None,
            attached: Vec::new(),
            under_way: None,
        })
    }

    /// Waits this long for a server to list its operations.
    #[must_use]
    pub fn with_listing_timeout(self, listing_timeout: Duration) -> Self {
        Self { listing_timeout, ..self }
    }

    #[must_use]
    pub fn url(&self) -> &str {
        &self.wire.endpoint().url
    }

    async fn connect(&mut self) -> Result<&Service, ListError> {
        // A call that was left takes its conversation with it.
        if self.under_way.take().is_some() || self.conversation.as_ref().is_some_and(Conversation::is_over) {
            self.conversation = None;
        }
        if self.conversation.is_none() {
            self.conversation = Some(self.converse().await?);
        }
        let conversation = self.conversation.as_ref();
        let service = conversation.map(|conversation| &conversation.service);
        service.ok_or_else(|| self.error(FailureReason::Unreachable, "is not connected"))
    }

    async fn converse(&mut self) -> Result<Conversation, ListError> {
        self.wire.begin();
        let service = self.initialize().await?;
        // A list from before is none to judge calls by.
        service.peer().set_response_cache_config(ClientCacheConfig::disabled()).await;
        let telling = match self.follows {
            Follows::Changes => service.peer().peer_info().map_or(Telling::Not, |info| Telling::of(&info)),
            Follows::Nothing => Telling::Not,
        };
        self.wire.set_beside(if telling == Telling::Beside { Beside::Open } else { Beside::Closed });
        Ok(Conversation::new(service, telling, self.changes.clone()))
    }

    async fn initialize(&mut self) -> Result<Service, ListError> {
        let config = StreamableHttpClientTransportConfig::with_uri(self.wire.endpoint().url.as_str())
            // A call sent again by the transport would be an effect that nobody permitted.
            .reinit_on_expired_session(false)
            // A call, and a subscription whose server keeps it waiting.
            .max_concurrent_requests(2)
            .max_sse_event_size(RESPONSE_BYTES_MAX)
            .max_json_response_size(RESPONSE_BYTES_MAX)
            .max_error_response_size(ERROR_BYTES_READ);
        let transport = StreamableHttpClientTransport::with_client(self.wire.clone(), config);
        let lifecycle = ClientLifecycleMode::Auto {
            preferred_versions: vec![ProtocolVersion::V_2026_07_28],
            legacy_version: Some(ProtocolVersion::V_2025_11_25),
        };
        let respondent = self.respondent.clone();
        let started = tokio::time::timeout(self.listing_timeout, respondent.serve_with_lifecycle(transport, lifecycle));
        match started.await {
            Ok(Ok(service)) => Ok(service),
            Ok(Err(error)) => Err(self.list_error(&error.to_string())),
            Err(_) => Err(self.silent()),
        }
    }

    async fn list_pages(&mut self) -> Result<Vec<Definition>, ListError> {
        // Of earlier exchanges: it would explain what goes wrong now.
        drop(self.wire.trouble());
        let peer = self.connect().await?.peer().clone();
        let told = self.changes.count();
        let (mut definitions, mut left_out) = (Vec::new(), Vec::new());
        let mut names = BTreeSet::new();
        let mut bytes = 0;
        let mut cursor = None;
        for _page in 0..PAGES_MAX {
            let params = PaginatedRequestParams::default().with_cursor(cursor);
            let page = peer.list_tools(Some(params)).await.map_err(|error| error.to_string());
            let page = match page {
                Ok(page) => page,
                Err(error) => return Err(self.list_error(&error)),
            };
            for tool in page.tools {
                bytes += size_of_definition(&tool);
                if definitions.len() + left_out.len() >= OPERATIONS_MAX || bytes > LISTING_BYTES_MAX {
                    return Err(self.error(
                        FailureReason::TooLarge,
                        &format!(
                            "lists more than {OPERATIONS_MAX} operations or {LISTING_BYTES_MAX} bytes: \
                             put a server with fewer operations in front of it"
                        ),
                    ));
                }
                match definition(tool) {
                    // Which one a call would mean nobody could say: the first counts, as people are shown it.
                    Ok(again) if names.contains(&again.name) => left_out.push(LeftOut::new(&again.name, LISTED_TWICE)),
                    Ok(definition) => {
                        names.insert(definition.name.clone());
                        match definition.told_value(self.wire.endpoint().credential.as_ref(), &self.redactor) {
                            None => definitions.push(definition),
                            Some(why) => left_out.push(why),
                        }
                    }
                    Err(why) => left_out.push(why),
                }
            }
            cursor = page.next_cursor;
            if cursor.is_none() {
                self.left_out = left_out;
                self.listed_at = told;
                return Ok(definitions);
            }
        }
        Err(self.error(FailureReason::TooLarge, &format!("lists its operations on more than {PAGES_MAX} pages")))
    }

    /// A server's words as they may be reported: redacted before they are cut.
    pub(super) fn shown(&self, text: &str) -> String {
        piece(&self.redactor.redact_kept(&legible(text), ERROR_BYTES_READ), SHOWN_BYTES)
    }
}

#[async_trait]
impl ToolServer for McpServer {
    async fn list(&mut self) -> Result<Vec<Definition>, ListError> {
        let listed = tokio::time::timeout(self.listing_timeout, self.list_pages()).await;
        listed.unwrap_or_else(|_| Err(self.silent()))
    }

    fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    fn has_changed(&self) -> bool {
        self.changes.count() != self.listed_at
    }

    fn take_attachments(&mut self) -> Vec<Attachment> {
        std::mem::take(&mut self.attached)
    }

    fn progress(&self) -> Option<watch::Receiver<Progress>> {
        Some(self.respondent.progress())
    }

    async fn prepare(&mut self) -> Result<(), ListError> {
        self.connect().await.map(|_| ())
    }

    async fn call(&mut self, call: &Call, permit: Permit, timeout: Duration) -> Outcome {
        let peer = match &self.conversation {
            Some(conversation) if self.under_way.is_none() => conversation.service.peer().clone(),
            Some(_) | None => return Outcome::PermitExpired,
        };
        // Inputs without a canonical form are none that a permit could be for.
        let Ok(inputs) = call.inputs.digest() else { return Outcome::PermitExpired };
        self.attached.clear();
        self.wire.clear(permit, call.definition, inputs);
        self.respondent.begin(call.inputs.clone());
        let mut params = CallToolRequestParams::new(call.operation.clone()).with_arguments(call.arguments.clone());
        if let Some(round) = call.inputs.resent() {
            params.input_responses = Some(responses(round));
            params.request_state.clone_from(&round.required.state);
        }
        if let Some(key) = &call.key {
            let meta = serde_json::Map::from_iter([(KEY_META.to_owned(), Value::from(key.as_str()))]);
            params.meta = Some(meta.into());
        }
        let under_way = self.under_way.insert(async move { peer.call_tool_once(params).await }.boxed());
        let answered = tokio::time::timeout(timeout, under_way).await;
        let departure = self.wire.settle();
        let keeps_session = departure.keeps_session();
        match answered {
            Ok(result) => {
                self.under_way = None;
                if !keeps_session {
                    self.conversation = None;
                }
                self.outcome(departure, result, &call.inputs)
            }
            Err(_) => match departure {
                // A complete answer that rmcp could not hand over in time is no answer to us either.
                Departure::Sent | Departure::Answered | Departure::Troubled(_) => Outcome::Unknown {
                    message: format!("no answer within {} s (spec.callTimeoutSeconds)", timeout.as_secs()),
                },
                not_sent => self.outcome(not_sent, Err(ServiceError::TransportClosed), &call.inputs),
            },
        }
    }

    fn owes_answer(&self) -> bool {
        self.under_way.is_some()
    }

    /// An older server is sent `notifications/cancelled`; of a newer one the stream is closed.
    async fn abandon(&mut self) {
        let Some(under_way) = self.under_way.take() else { return };
        let mut told = self.wire.told();
        drop(under_way);
        let newer = self.conversation.as_ref().is_none_or(Conversation::is_newer);
        if !newer {
            // Whether it heard or not, the conversation is over.
            let _ = tokio::time::timeout(FAREWELL, told.changed()).await;
        }
        self.conversation = None;
    }
}

/// Servers ask only what a client says it can pass on to people.
fn client_info() -> ClientConfig {
    let elicitation = ElicitationCapability::new()
        .with_form(FormElicitationCapability::new())
        .with_url(UrlElicitationCapability::new());
    let mut capabilities = ClientCapabilities::default();
    capabilities.elicitation = Some(elicitation);
    ClientConfig::new(capabilities, Implementation::new("belay-runner", env!("CARGO_PKG_VERSION")))
}

/// What people answered, under the names that the server gave its questions.
fn responses(round: &Round) -> BTreeMap<String, Value> {
    let answers = round.required.questions.iter().zip(&round.answers).map(|(asked, answer)| {
        let content: Option<Value> = answer.as_deref().and_then(|content| serde_json::from_str(content).ok());
        let response = match content {
            Some(content) => json!({"action": "accept", "content": content}),
            None => json!({"action": "accept"}),
        };
        (asked.key.clone(), response)
    });
    answers.collect()
}

fn size_of_definition(tool: &Tool) -> usize {
    let schema = serde_json::to_vec(&*tool.input_schema).map_or(0, |bytes| bytes.len());
    tool.name.len() + tool.description.as_deref().map_or(0, str::len) + schema
}

/// What a server lists, or why nobody may call it.
fn definition(tool: Tool) -> Result<Definition, LeftOut> {
    let name = tool.name.into_owned();
    if let Some(why) = unnameable(&name) {
        return Err(LeftOut::new(if name.is_empty() { "(no name)" } else { &name }, &why));
    }
    let description = tool.description.unwrap_or_default().into_owned();
    let schema = Value::Object((*tool.input_schema).clone());
    let why =
        "its definition has no canonical form (RFC 8785): it is nested too deep, or holds numbers that no double is";
    Definition::new(name.clone(), description, schema).ok_or_else(|| LeftOut::new(&name, why))
}
