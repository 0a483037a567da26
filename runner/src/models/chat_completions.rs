//! Chat Completions over HTTP: sends one prepared request, with the plan's time-outs, and says what became
//! of it. The JSON of either direction is in `request` and `response`.

mod request;
mod response;

use std::time::Duration;

use async_trait::async_trait;
use belay_protocol::digest::Digest;
use belay_protocol::event::FailureReason;
use belay_protocol::plan::{Plan, PlanCredential, PlanModel};
use reqwest::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use tokio::time::{Instant, timeout_at};

use self::response::{Assembly, Progress, ResponseError};
use super::sse::SseParser;
use super::{Context, Model, ModelAnswer, ModelError, Prepared};
use crate::credential::Credentials;
use crate::egress::{self, EgressError, piece};
use crate::permit::ModelPermit;
use crate::redact::Redactor;
use crate::retry_after;

/// The most bytes of one answer, streaming overhead included.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The most of an error's body that is looked at, and reported.
const ERROR_BYTES_READ: usize = 16 * 1024;
const ERROR_BYTES_SHOWN: usize = 500;

/// One Model of this wire format.
pub struct ChatCompletions {
    client: reqwest::Client,
    url: String,
    model: PlanModel,
    credential: Option<PlanCredential>,
    credentials: Credentials,
    redactor: Redactor,
}

impl ChatCompletions {
    pub fn new(plan: &Plan, credentials: Credentials, redactor: Redactor) -> Result<Self, EgressError> {
        let model = plan.model.clone();
        let timeouts = model.timeouts;
        let base_url = model.base_url.as_deref().unwrap_or_default();
        Ok(Self {
            client: egress::client(Duration::from_secs(u64::from(timeouts.connect_seconds)))?,
            url: format!("{base_url}/chat/completions"),
            credential: model.credential.as_deref().and_then(|name| plan.credential(name)).cloned(),
            credentials,
            redactor,
            model,
        })
    }

    fn error(&self, reason: FailureReason, what: &str) -> ModelError {
        ModelError::new(reason, format!("Model {}: POST {} {what}", self.model.name, self.url))
    }

    fn request(&self, body: Vec<u8>) -> Result<reqwest::RequestBuilder, ModelError> {
        let mut request = self
            .client
            .post(&self.url)
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "text/event-stream, application/json")
            .body(body);
        if let Some(credential) = &self.credential {
            let header = egress::credential_header(&self.credentials, credential, &self.url)
                .map_err(|error| self.error(error.reason(), &format!("was not sent: {error}")))?;
            request = request.header(header.0, header.1);
        }
        Ok(request)
    }

    /// The answer to a request whose bytes are on their way.
    async fn exchange(&self, body: Vec<u8>) -> Result<ModelAnswer, ModelError> {
        let timeouts = self.model.timeouts;
        let first_byte = Instant::now() + Duration::from_secs(u64::from(timeouts.first_byte_seconds));
        let sent = timeout_at(first_byte, self.request(body)?.send()).await;
        let response =
            sent.map_err(|_| self.too_late("sent nothing", "firstByteSeconds", timeouts.first_byte_seconds))?;
        let response = response.map_err(|error| self.transport_error(&error))?;
        if !response.status().is_success() {
            return Err(self.refusal(response).await);
        }
        let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default().to_ascii_lowercase();
        if content_type.starts_with("text/event-stream") {
            self.streamed(response, first_byte).await
        } else if content_type.starts_with("application/json") {
            let body = self.whole_body(response, first_byte).await?;
            response::read_whole(&body).map_err(|error| self.unusable(&error))
        } else {
            let seen = if content_type.is_empty() { "no content type".to_owned() } else { piece(&content_type, 100) };
            Err(self.error(
                FailureReason::Malformed,
                &format!("answered with {seen}, which is no Chat Completions API: check spec.baseURL"),
            ))
        }
    }

    async fn streamed(&self, response: Response, first_byte: Instant) -> Result<ModelAnswer, ModelError> {
        let mut parser = SseParser::new(ANSWER_BYTES_MAX);
        let mut assembly = Assembly::default();
        let mut body = Body { response, next_by: first_byte, read: 0 };
        loop {
            let chunk = match self.next_chunk(&mut body).await {
                // Everything but perhaps the usage has arrived: a broken end changes nothing.
                Err(_) if assembly.is_finished() => None,
                chunk => chunk?,
            };
            let Some(chunk) = chunk else { break };
            let events = parser.push(chunk.as_ref()).map_err(|error| {
                self.error(FailureReason::TooLarge, &format!("answered with a stream in which {error}"))
            })?;
            for event in events {
                match assembly.take(&event).map_err(|error| self.unusable(&error))? {
                    Progress::More => {}
                    Progress::Done => return assembly.finish().map_err(|error| self.unusable(&error)),
                }
            }
        }
        assembly.finish().map_err(|error| self.unusable(&error))
    }

    async fn whole_body(&self, response: Response, first_byte: Instant) -> Result<Vec<u8>, ModelError> {
        let mut body = Body { response, next_by: first_byte, read: 0 };
        let mut whole = Vec::new();
        while let Some(chunk) = self.next_chunk(&mut body).await? {
            whole.extend_from_slice(chunk.as_ref());
        }
        Ok(whole)
    }

    /// The next bytes: the first ones by the first-byte deadline, later ones within the idle time.
    async fn next_chunk(&self, body: &mut Body) -> Result<Option<impl AsRef<[u8]> + use<>>, ModelError> {
        let timeouts = self.model.timeouts;
        let chunk = timeout_at(body.next_by, body.response.chunk()).await.map_err(|_| {
            if body.read == 0 {
                self.too_late("sent nothing", "firstByteSeconds", timeouts.first_byte_seconds)
            } else {
                self.too_late("stopped sending", "idleSeconds", timeouts.idle_seconds)
            }
        })?;
        let chunk = chunk.map_err(|error| {
            self.error(FailureReason::Truncated, &format!("broke off in its answer: {}", egress::causes(&error)))
        })?;
        body.next_by = Instant::now() + Duration::from_secs(u64::from(timeouts.idle_seconds));
        body.read += chunk.as_deref().map_or(0, <[u8]>::len);
        if body.read > ANSWER_BYTES_MAX {
            let what = format!("answered with more than {ANSWER_BYTES_MAX} bytes: lower spec.maxOutputTokens");
            return Err(self.error(FailureReason::TooLarge, &what));
        }
        Ok(chunk)
    }

    fn too_late(&self, what: &str, field: &str, seconds: u32) -> ModelError {
        let what =
            format!("{what} for {seconds} s: is the server overloaded? Raise spec.timeouts.{field} if it is slow");
        self.error(FailureReason::TimedOut, &what)
    }

    fn transport_error(&self, error: &reqwest::Error) -> ModelError {
        let causes = egress::causes(error);
        if error.is_connect() {
            let what = format!(
                "could not connect ({causes}): check spec.baseURL, that the server runs and that a NetworkPolicy lets this pod reach it"
            );
            self.error(FailureReason::Unreachable, &what)
        } else {
            self.error(FailureReason::Truncated, &format!("broke off before its answer: {causes}"))
        }
    }

    fn unusable(&self, error: &ResponseError) -> ModelError {
        let shown = self.redactor.redact(&error.to_string()).into_owned();
        let mut failed = self.error(error.reason(), &shown);
        failed.retry_after = None;
        failed
    }

    /// What an error status means and what to do about it.
    async fn refusal(&self, mut response: Response) -> ModelError {
        let status = response.status();
        let retry_after = retry_after::read(response.headers().get(RETRY_AFTER), std::time::SystemTime::now());
        let mut body = Vec::new();
        let idle = Instant::now() + Duration::from_secs(u64::from(self.model.timeouts.idle_seconds.min(10)));
        while let Ok(Ok(Some(chunk))) = timeout_at(idle, response.chunk()).await {
            body.extend_from_slice(&chunk);
            if body.len() > ERROR_BYTES_READ {
                break;
            }
        }
        // Redacted before it is cut: half a value is a leak too.
        let text = String::from_utf8_lossy(&body);
        let text = self.redactor.redact(&text);
        let reason = refusal_reason(status, &text);
        let advice = self.advice(reason);
        let what = format!("answered {status}: {advice}. The server says: {}", piece(&text, ERROR_BYTES_SHOWN));
        ModelError { retry_after, ..self.error(reason, &what) }
    }

    fn advice(&self, reason: FailureReason) -> String {
        match (reason, &self.credential) {
            (FailureReason::Unauthorized, Some(credential)) => format!(
                "check Credential {} (Secret {}, key {})",
                credential.name, credential.secret_name, credential.secret_key
            ),
            (FailureReason::Unauthorized, None) => "set spec.credentialRef".to_owned(),
            (FailureReason::ContextExceeded, _) => {
                "the conversation no longer fits the model: use a larger one, or let tools return less".to_owned()
            }
            (FailureReason::RateLimited, _) => "the provider limits requests: wait, or raise the quota".to_owned(),
            (FailureReason::ServerError, _) => "the server failed: see its own logs or status page".to_owned(),
            (_, _) => format!("check spec.baseURL and spec.model ({})", self.model.model),
        }
    }
}

struct Body {
    response: Response,
    next_by: Instant,
    read: usize,
}

#[async_trait]
impl Model for ChatCompletions {
    fn prepare(&self, context: &Context<'_>) -> Result<Prepared, ModelError> {
        let body = request::body(context, &self.url).map_err(|error| {
            self.error(
                FailureReason::Malformed,
                &format!("was not sent: the request cannot be written as JSON: {error}"),
            )
        })?;
        // No tokenizer is exact for every model; four bytes a token is what English text comes to.
        let input = body.len() as u64 / 4;
        let output = self.model.max_output_tokens.unwrap_or(0);
        if let Some(window) = self.model.context_window_tokens.filter(|window| input + output > *window) {
            return Err(self.error(
                FailureReason::ContextExceeded,
                &format!(
                    "was not sent: about {input} tokens of input and spec.maxOutputTokens {output} \
                     exceed spec.contextWindowTokens {window}"
                ),
            ));
        }
        Ok(Prepared { digest: Digest::of(&body), reserved_tokens: input + output, body })
    }

    async fn ask(&self, prepared: Prepared, permit: ModelPermit) -> Result<ModelAnswer, ModelError> {
        permit.spend();
        let seconds = self.model.timeouts.total_seconds;
        let total = Duration::from_secs(u64::from(seconds));
        tokio::time::timeout(total, self.exchange(prepared.body))
            .await
            .map_err(|_| self.too_late("did not finish", "totalSeconds", seconds))?
    }
}

fn refusal_reason(status: StatusCode, body: &str) -> FailureReason {
    match status.as_u16() {
        401 | 403 => FailureReason::Unauthorized,
        429 => FailureReason::RateLimited,
        408 | 500.. => FailureReason::ServerError,
        _ if body.contains("context_length_exceeded") || body.contains("exceed_context_size_error") => {
            FailureReason::ContextExceeded
        }
        // Redirects included: none is followed, since the credential would travel along.
        _ => FailureReason::BadRequest,
    }
}
