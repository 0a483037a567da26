//! The last hands a tool call passes through before it leaves: adds the credential, recomputes the call's
//! digest over what is about to be sent, spends the permit, and notes how far the call came.

mod beside;
mod bounds;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use belay_protocol::Digest;
use belay_protocol::call::{CallBinding, CredentialBinding};
use belay_protocol::event::NotSentReason;
use belay_protocol::plan::{CaBundle, PlanCredential};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION};
use http::{HeaderName, HeaderValue, Method};
use rmcp::model::{ClientJsonRpcMessage, ClientNotification, ClientRequest, ServerJsonRpcMessage};
use rmcp::transport::streamable_http_client::{
    SseError, StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse, StreamableHttpResponseLimits,
};
use serde::Deserialize;
use serde_json::Value;
use sse_stream::Sse;
use tokio::sync::watch;

pub use self::beside::Beside;
use self::beside::Session;
use self::bounds::Bounds;
use super::changes::Changes;
use super::required;
use super::trouble::Trouble;
use crate::credential::Credentials;
use crate::credential::inject::inject;
use crate::egress;
use crate::permit::{BootTime, Permit, Refusal};

/// How long a connection may take to open; a permit must outlive that.
pub const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

type Posted = Result<StreamableHttpPostResponse, StreamableHttpError<reqwest::Error>>;

/// A tool's server as calls are bound to it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub tool: String,
    pub url: String,
    /// Who may vouch for it, if not the public authorities.
    pub ca: Option<CaBundle>,
    pub credential: Option<PlanCredential>,
}

/// An HTTP client that sends a `tools/call` only against a permit.
#[derive(Clone)]
pub struct Wire {
    http: egress::Client,
    endpoint: Arc<Endpoint>,
    credentials: Credentials,
    departure: Arc<Mutex<Departure>>,
    trouble: Arc<Mutex<Option<Trouble>>>,
    /// The result by which the call's server says that it needs input, as it came.
    input_required: Arc<Mutex<Option<Value>>>,
    changes: Changes,
    beside: Arc<watch::Sender<Beside>>,
    /// Whether this session's stream beside the calls is asked for already.
    listening: Arc<AtomicBool>,
    /// How often the server was told that nobody waits for an answer any more.
    told: Arc<watch::Sender<u64>>,
}

/// How far the call under way has come.
#[derive(Debug, Default)]
pub enum Departure {
    /// No call may leave.
    #[default]
    None,
    /// One call may leave.
    Cleared {
        permit: Permit,
        definition: Digest,
        inputs: Option<Digest>,
    },
    Expired,
    NotSent {
        reason: NotSentReason,
        message: String,
    },
    /// Bytes may have left.
    Sent,
    /// A JSON-RPC response to the call arrived.
    Answered,
    /// The exchange ended in trouble after the bytes may have left.
    Troubled(Trouble),
}

/// What a request leaves with.
struct Outfit {
    http: reqwest::Client,
    url: Arc<str>,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Departure {
    /// Whether the server and this client still agree on their session; a new one loses the server's state.
    #[must_use]
    pub fn keeps_session(&self) -> bool {
        match self {
            Self::Answered | Self::Expired | Self::Troubled(Trouble::Challenged { .. }) => true,
            Self::Troubled(Trouble::Status { code, .. }) => *code != 404,
            Self::None | Self::Cleared { .. } | Self::NotSent { .. } | Self::Sent | Self::Troubled(_) => false,
        }
    }
}

impl Wire {
    #[must_use]
    pub fn new(http: egress::Client, endpoint: Endpoint, credentials: Credentials, changes: Changes) -> Self {
        let endpoint = Arc::new(endpoint);
        let (departure, trouble, input_required) = (Arc::default(), Arc::default(), Arc::default());
        let (beside, listening, told) = (Arc::default(), Arc::default(), Arc::default());
        Self { http, endpoint, credentials, departure, trouble, input_required, changes, beside, listening, told }
    }

    /// Changes each time that the server was told that nobody waits for an answer any more, as far as it listened.
    #[must_use]
    pub fn told(&self) -> watch::Receiver<u64> {
        self.told.subscribe()
    }

    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Lets one call leave, with what people answered of that digest.
    pub fn clear(&self, permit: Permit, definition: Digest, inputs: Option<Digest>) {
        self.input_required.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.set(Departure::Cleared { permit, definition, inputs });
    }

    /// The call's answer, where it says that input is needed. rmcp reads no more of it than it knows.
    #[must_use]
    pub fn input_required(&self) -> Option<Value> {
        self.input_required.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// How far the call came; from now on none may leave.
    #[must_use]
    pub fn settle(&self) -> Departure {
        self.set(Departure::None)
    }

    /// The newest trouble of any exchange.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set(&self, next: Departure) -> Departure {
        std::mem::replace(&mut *self.departure.lock().unwrap_or_else(PoisonError::into_inner), next)
    }

    /// What to send with, to which URL, and the header that carries the credential, if a header does.
    async fn outfit(&self, method: &Method) -> Result<Outfit, Trouble> {
        let not_sent = |reason, message| Trouble::NotSent { reason, message };
        let url = self.endpoint.url.as_str();
        let http = self.http.open(url).map_err(|error| not_sent(error.reason(), error.to_string()))?;
        let Some(credential) = &self.endpoint.credential else {
            return Ok(Outfit { http, url: url.into(), header: None });
        };
        let injection = inject(&self.credentials, credential, method, url, self.endpoint.ca.as_ref()).await;
        let (url, header) = injection.map_err(|error| not_sent(error.reason(), error.to_string()))?.split(url);
        Ok(Outfit { http, url: url.into(), header })
    }

    /// Spends the permit on the call that `request` holds. What comes back is why nothing may be sent.
    fn depart(&self, request: &ClientRequest) -> Result<(), Departure> {
        let ClientRequest::CallToolRequest(request) = request else { return Ok(()) };
        let Departure::Cleared { permit, definition, inputs } = self.set(Departure::None) else {
            let message = "no permit was given for this call".to_owned();
            return Err(Departure::NotSent { reason: NotSentReason::DigestMismatch, message });
        };
        let args = Value::Object(request.params.arguments.clone().unwrap_or_default());
        let binding = CallBinding {
            tool: &self.endpoint.tool,
            definition,
            operation: &request.params.name,
            args: &args,
            credential: self
                .endpoint
                .credential
                .as_ref()
                .map(|credential| CredentialBinding { name: &credential.name, uid: &credential.uid }),
            destination: &self.endpoint.url,
            inputs,
        };
        let mismatch = |message: String| Departure::NotSent { reason: NotSentReason::DigestMismatch, message };
        let digest = binding.digest().map_err(|error| mismatch(error.to_string()))?;
        match permit.spend(digest, BootTime::now(), CONNECT_TIMEOUT) {
            Ok(()) => Ok(()),
            Err(Refusal::Expired) => Err(Departure::Expired),
            Err(refusal @ Refusal::OtherBytes) => Err(mismatch(refusal.to_string())),
        }
    }

    async fn post(
        &self,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        mut headers: HashMap<HeaderName, HeaderValue>,
        limits: StreamableHttpResponseLimits,
    ) -> Posted {
        let (is_call, is_farewell) = (is_call(&message), is_farewell(&message));
        let Outfit { http, url, header } = match self.outfit(&Method::POST).await {
            Ok(outfit) => outfit,
            Err(trouble) => return Err(self.refuse(is_call, trouble)),
        };
        headers.extend(header);
        let authorization = headers.get(&AUTHORIZATION).cloned();
        // What is compressed can neither be read nor redacted here.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let ClientJsonRpcMessage::Request(request) = &message
            && let Err(refused) = self.depart(&request.request)
        {
            let error = refusal_error(&format!("{refused:?}"));
            self.set(refused);
            return Err(error);
        }
        if is_call {
            self.set(Departure::Sent);
        }
        let posted = http.post_message_with_response_limits(url, message, session_id, None, headers, limits).await;
        if is_farewell {
            self.told.send_modify(|told| *told += 1);
        }
        self.note(is_call, authorization.as_ref(), posted)
    }

    fn refuse(&self, is_call: bool, trouble: Trouble) -> StreamableHttpError<reqwest::Error> {
        if is_call && let Trouble::NotSent { reason, message } = &trouble {
            self.set(Departure::NotSent { reason: egress::not_sent(*reason), message: message.clone() });
        }
        let error = refusal_error(&format!("{trouble:?}"));
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(trouble);
        error
    }

    /// Notes what became of an exchange, and watches what is still to come: the answer, and that the list changed.
    fn note(&self, is_call: bool, authorization: Option<&HeaderValue>, posted: Posted) -> Posted {
        match posted {
            Ok(StreamableHttpPostResponse::Sse(stream, session)) => {
                let call = is_call.then(|| (Arc::clone(&self.departure), Arc::clone(&self.input_required)));
                let changes = self.changes.clone();
                let mut bounds = Bounds::default();
                let watched = stream.map(move |event| {
                    let Some(data) = event.as_ref().ok().and_then(|event| event.data.as_deref()) else { return event };
                    if let Err(excess) = bounds.admit(data) {
                        if let Some((departure, _)) = &call {
                            broken(departure, excess.to_string());
                        }
                        return Err(SseError::Body(Box::new(excess)));
                    }
                    if beside::is_list_changed(data) {
                        changes.note();
                    }
                    if let Some((departure, input_required)) = call.as_ref().filter(|_| is_response(data)) {
                        required::note(input_required, required::streamed(data));
                        answered(departure);
                    }
                    event
                });
                // Nothing is read behind what broke it.
                let watched = watched.scan(false, |over, event| {
                    let heard = (!*over).then_some(event);
                    *over = heard.as_ref().is_none_or(Result::is_err);
                    futures::future::ready(heard)
                });
                Ok(StreamableHttpPostResponse::Sse(watched.boxed(), session))
            }
            Ok(StreamableHttpPostResponse::Json(message, session)) => {
                let is_response = matches!(message, ServerJsonRpcMessage::Response(_) | ServerJsonRpcMessage::Error(_));
                if is_call && is_response {
                    required::note(&self.input_required, required::whole(&message));
                    answered(&self.departure);
                }
                Ok(StreamableHttpPostResponse::Json(message, session))
            }
            Ok(other) => Ok(other),
            Err(error) => {
                let trouble = Trouble::from_error(&error);
                let Endpoint { url, credential, .. } = &*self.endpoint;
                if let Some(credential) = credential.as_ref().filter(|_| trouble.is_unauthorized()) {
                    self.credentials.refused(credential, url, authorization);
                }
                if is_call {
                    self.set(match &trouble {
                        Trouble::NoConnection(why) => {
                            Departure::NotSent { reason: NotSentReason::Unreachable, message: why.clone() }
                        }
                        Trouble::NotSent { reason, message } => {
                            Departure::NotSent { reason: egress::not_sent(*reason), message: message.clone() }
                        }
                        other => Departure::Troubled(other.clone()),
                    });
                }
                *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(trouble);
                Err(error)
            }
        }
    }
}

fn answered(departure: &Mutex<Departure>) {
    let mut departure = departure.lock().unwrap_or_else(PoisonError::into_inner);
    if matches!(*departure, Departure::Sent) {
        *departure = Departure::Answered;
    }
}

fn broken(departure: &Mutex<Departure>, why: String) {
    let mut departure = departure.lock().unwrap_or_else(PoisonError::into_inner);
    if matches!(*departure, Departure::Sent) {
        *departure = Departure::Troubled(Trouble::Broken(why));
    }
}

fn is_call(message: &ClientJsonRpcMessage) -> bool {
    matches!(
        message,
        ClientJsonRpcMessage::Request(request) if matches!(request.request, ClientRequest::CallToolRequest(_))
    )
}

fn is_farewell(message: &ClientJsonRpcMessage) -> bool {
    matches!(
        message,
        ClientJsonRpcMessage::Notification(notification)
            if matches!(notification.notification, ClientNotification::CancelledNotification(_))
    )
}

/// Whether these are a JSON-RPC response's words; one request is out at a time, so it is the call's.
fn is_response(data: &str) -> bool {
    #[derive(Deserialize)]
    struct Shape {
        result: Option<serde::de::IgnoredAny>,
        error: Option<serde::de::IgnoredAny>,
    }
    serde_json::from_str::<Shape>(data).is_ok_and(|shape| shape.result.is_some() || shape.error.is_some())
}

fn refusal_error(why: &str) -> StreamableHttpError<reqwest::Error> {
    StreamableHttpError::UnexpectedServerResponse(format!("not sent: {why}").into())
}

impl StreamableHttpClient for Wire {
    type Error = reqwest::Error;

    async fn post_message(
        &self,
        _uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Posted {
        self.post(message, session_id, custom_headers, StreamableHttpResponseLimits::default()).await
    }

    async fn post_message_with_response_limits(
        &self,
        _uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
        limits: StreamableHttpResponseLimits,
    ) -> Posted {
        self.post(message, session_id, custom_headers, limits).await
    }

    async fn delete_session(
        &self,
        _uri: Arc<str>,
        session_id: Arc<str>,
        _auth_header: Option<String>,
        mut custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), StreamableHttpError<reqwest::Error>> {
        let outfit = self.outfit(&Method::DELETE).await;
        let Outfit { http, url, header } = outfit.map_err(|trouble| refusal_error(&format!("{trouble:?}")))?;
        custom_headers.extend(header);
        http.delete_session(url, session_id, None, custom_headers).await
    }

    /// Answers come with the POST that asked; to resume one would hide that an answer was lost. What else there is to
    /// hear is noted here: nothing of it goes on to rmcp.
    async fn get_stream(
        &self,
        _uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, StreamableHttpError<reqwest::Error>> {
        // The first of a session is the one beside the calls; whatever comes later would resume an answer.
        let first = session_id.filter(|_| last_event_id.is_none() && !self.listening.swap(true, Ordering::AcqRel));
        let Some(id) = first else { return Err(StreamableHttpError::ServerDoesNotSupportSse) };
        let session = Session { id, headers: custom_headers };
        let heard = futures::stream::once(self.clone().listen(session));
        Ok(heard.filter_map(|()| futures::future::ready(None)).boxed())
    }
}
