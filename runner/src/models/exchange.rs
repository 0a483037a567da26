//! A model over HTTP: sends one prepared request, with the plan's time-outs, and says what became of it. The
//! JSON of either direction is a [`Codec`]'s.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use belay_protocol::digest::{Digest, INTEGER_MAX};
use belay_protocol::event::FailureReason;
use belay_protocol::plan::{Plan, PlanCredential, PlanModel};
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER,
};
use reqwest::{Response, StatusCode};
use tokio::time::{Instant, timeout_at};

use super::codec::{Assembly as _, Codec, Destination, KEPT_BYTES, Progress, Reader, ResponseError, Spelling};
use super::{Context, Model, ModelAnswer, ModelError, Prepared};
use crate::credential::Credentials;
use crate::credential::inject::inject;
use crate::egress::{self, EgressError, Trust, piece};
use crate::permit::ModelPermit;
use crate::redact::{Redactor, Rest, legible};
use crate::retry_after;

/// The most bytes of one answer, streaming overhead included.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The most of an error's body that is looked at, and reported.
const ERROR_BYTES_READ: usize = 16 * 1024;
const SHOWN_BYTES: usize = 500;
/// What OpenAI, llama.cpp and Anthropic say of a conversation that outgrew the model.
const OUTGROWN: [&str; 4] =
    ["context_length_exceeded", "exceed_context_size_error", "prompt is too long", "exceed context limit"];

/// One Model that speaks the wire format `C`.
pub struct HttpModel<C> {
    client: egress::Client,
    url: String,
    model: PlanModel,
    credential: Option<PlanCredential>,
    credentials: Credentials,
    redactor: Redactor,
    /// The server refused the expected spelling of a field. It is believed once, for as long as this process lives.
    is_respelled: AtomicBool,
    codec: PhantomData<fn() -> C>,
}

impl<C: Codec> HttpModel<C> {
    /// `model` is one of the plan's.
    pub fn new(
        plan: &Plan,
        model: &PlanModel,
        credentials: Credentials,
        redactor: Redactor,
    ) -> Result<Self, EgressError> {
        let url = format!("{}{}", model.base_url.as_deref().unwrap_or_default(), C::PATH);
        let connect_timeout = Duration::from_secs(u64::from(model.timeouts.connect_seconds));
        let trust = model.ca.clone().map(|ca| Trust { field: "spec.tls.caConfigMapKeyRef", ca });
        Ok(Self {
            client: credentials.destinations().for_plan(plan).client(&url, connect_timeout, trust)?,
            url,
            credential: model.credential.as_deref().and_then(|name| plan.credential(name)).cloned(),
            credentials,
            redactor,
            is_respelled: AtomicBool::new(false),
            model: model.clone(),
            codec: PhantomData,
        })
    }

    fn error(&self, reason: FailureReason, what: &str) -> ModelError {
        ModelError::new(reason, format!("Model {}: POST {} {what}", self.model.name, self.url))
    }

    /// A server's words as they may be reported: redacted before they are cut, since half a value is a leak too.
    fn shown(&self, said: &str) -> String {
        piece(&self.redactor.redact_kept(&legible(said), KEPT_BYTES), SHOWN_BYTES)
    }

    fn not_sent(&self, reason: FailureReason, why: &dyn std::fmt::Display) -> ModelError {
        self.error(reason, &format!("was not sent: {why}"))
    }

    async fn request(&self, client: &reqwest::Client, body: Vec<u8>) -> Result<reqwest::Request, ModelError> {
        let mut request = client.post(&self.url);
        for header in &self.model.headers {
            request = request.header(&header.name, &header.value);
        }
        let mut request = request
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "text/event-stream, application/json")
            // What is compressed can neither be read nor redacted here.
            .header(ACCEPT_ENCODING, "identity")
            .body(body);
        for (name, value) in C::HEADERS {
            request = request.header(*name, *value);
        }
        let mut request =
            request.build().map_err(|error| self.not_sent(FailureReason::BadRequest, &egress::causes(&error)))?;
        if let Some(credential) = &self.credential {
            let (url, ca) = (request.url().as_str(), self.model.ca.as_ref());
            let injection = inject(&self.credentials, credential, request.method(), url, ca).await;
            injection.map_err(|error| self.not_sent(error.reason(), &error))?.put(&mut request);
        }
        Ok(request)
    }

    /// The answer to a request whose bytes are on their way.
    async fn exchange(&self, body: Vec<u8>) -> Result<ModelAnswer, ModelError> {
        let timeouts = self.model.timeouts;
        let client = self.client.open(&self.url).map_err(|error| self.not_sent(error.reason(), &error))?;
        let request = self.request(&client, body).await?;
        let authorization = request.headers().get(AUTHORIZATION).cloned();
        let at = Instant::now();
        let first_byte = at + Duration::from_secs(u64::from(timeouts.first_byte_seconds));
        let sent = timeout_at(first_byte, client.execute(request)).await;
        let response =
            sent.map_err(|_| self.too_late("sent nothing", "firstByteSeconds", timeouts.first_byte_seconds))?;
        let response = response.map_err(|error| self.transport_error(&error))?;
        if !response.status().is_success() {
            return Err(self.refusal(response, authorization.as_ref()).await);
        }
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let encoding = header(CONTENT_ENCODING);
        if !matches!(encoding, "" | "identity") {
            let encoding = self.shown(encoding);
            let what = format!("answered in the content encoding {encoding}, which it was not asked for");
            return Err(self.error(FailureReason::Malformed, &what));
        }
        let said = header(CONTENT_TYPE);
        let content_type = said.to_ascii_lowercase();
        if content_type.starts_with("text/event-stream") {
            self.streamed(response, Asked { at, first_byte_by: first_byte }).await
        } else if content_type.starts_with("application/json") {
            let body = self.whole_body(response, first_byte).await?;
            let mut assembly = C::Assembly::default();
            let taken = assembly.take_whole(&body);
            let reported = assembly.reported().map(Box::new);
            let answer = taken.and_then(|()| assembly.finish());
            answer.map_err(|error| ModelError { reported, ..self.unusable(&error) })
        } else {
            let seen = if said.is_empty() { "no content type".to_owned() } else { self.shown(said) };
            Err(self.error(
                FailureReason::Malformed,
                &format!("answered with {seen}, which is no {} API: check spec.api and spec.baseURL", C::API),
            ))
        }
    }

    async fn streamed(&self, response: Response, asked: Asked) -> Result<ModelAnswer, ModelError> {
        let mut reader = Reader::<C::Assembly>::new(ANSWER_BYTES_MAX);
        let first_chunk = match self.read(response, asked, &mut reader).await {
            Ok(first_chunk) => first_chunk,
            Err(error) => return Err(ModelError { reported: reader.reported().map(Box::new), ..error }),
        };
        let reported = reader.reported().map(Box::new);
        let answer = reader.finish().map_err(|error| ModelError { reported, ..self.broken(&error) })?;
        Ok(ModelAnswer { first_chunk, ..answer })
    }

    /// Reads the stream to its end; when the first piece of what the model says or thinks came.
    async fn read(
        &self,
        response: Response,
        asked: Asked,
        reader: &mut Reader<C::Assembly>,
    ) -> Result<Option<Duration>, ModelError> {
        let mut first_chunk = None;
        let mut body = Body { response, next_by: asked.first_byte_by, read: 0 };
        loop {
            let chunk = match self.next_chunk(&mut body).await {
                // Everything but perhaps the usage has arrived: a broken end changes nothing.
                Err(_) if reader.is_finished() => None,
                chunk => chunk?,
            };
            let Some(chunk) = chunk else { return Ok(first_chunk) };
            let progress = reader.push(chunk.as_ref()).map_err(|error| self.broken(&error))?;
            if first_chunk.is_none() && reader.has_begun() {
                first_chunk = Some(asked.at.elapsed());
            }
            match progress {
                Progress::More => {}
                Progress::Done => return Ok(first_chunk),
            }
        }
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
    async fn next_chunk(&self, body: &mut Body) -> Result<Option<impl AsRef<[u8]> + use<C>>, ModelError> {
        let timeouts = self.model.timeouts;
        let chunk = timeout_at(body.next_by, body.response.chunk()).await.map_err(|_| {
            if body.read == 0 {
                self.too_late("sent nothing", "firstByteSeconds", timeouts.first_byte_seconds)
            } else {
                self.too_late("stopped sending", "idleSeconds", timeouts.idle_seconds)
            }
        })?;
        let chunk = chunk.map_err(|error| {
            self.error(
                FailureReason::Truncated,
                &format!("broke off in its answer: {}", self.shown(&egress::causes(&error))),
            )
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
        if let Some(refused) = egress::refused(error) {
            return self.not_sent(FailureReason::DestinationNotAllowed, refused);
        }
        let causes = self.shown(&egress::causes(error));
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
        let words = error.in_words(C::API, |said| self.shown(said));
        self.error(error.reason(), &words)
    }

    /// Likewise, in a stream.
    fn broken(&self, error: &ResponseError) -> ModelError {
        ModelError { in_stream: true, ..self.unusable(error) }
    }

    /// What an error status means and what to do about it.
    async fn refusal(&self, mut response: Response, authorization: Option<&HeaderValue>) -> ModelError {
        let status = response.status();
        let sent = self.credential.as_ref().filter(|_| status == StatusCode::UNAUTHORIZED);
        let renewed = sent.is_some_and(|credential| self.credentials.refused(credential, &self.url, authorization));
        let retry_after = retry_after::read(response.headers().get(RETRY_AFTER), std::time::SystemTime::now());
        let mut stream = self.redactor.stream();
        let mut body = Vec::new();
        let mut read = 0;
        let mut rest = Rest::WasCut;
        let idle = Instant::now() + Duration::from_secs(u64::from(self.model.timeouts.idle_seconds.min(10)));
        while read <= ERROR_BYTES_READ
            && let Ok(Ok(chunk)) = timeout_at(idle, response.chunk()).await
        {
            let Some(chunk) = chunk else {
                rest = Rest::IsAll;
                break;
            };
            read += chunk.len();
            body.extend(stream.push(&chunk));
        }
        body.extend(stream.finish(rest));
        let text = String::from_utf8_lossy(&body);
        let reason = refusal_reason(status, &text);
        let misspelled = reason == FailureReason::BadRequest && C::is_misspelled(&self.model, &text);
        let renewed = renewed || (misspelled && !self.is_respelled.swap(true, Ordering::Relaxed));
        let advice = self.advice(reason);
        let what = format!("answered {status}: {advice}. The server says: {}", piece(&legible(&text), SHOWN_BYTES));
        ModelError { renewed, retry_after, ..self.error(reason, &what) }
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

/// When a request left, and when its answer has to begin.
#[derive(Clone, Copy)]
struct Asked {
    at: Instant,
    first_byte_by: Instant,
}

struct Body {
    response: Response,
    next_by: Instant,
    read: usize,
}

#[async_trait]
impl<C: Codec> Model for HttpModel<C> {
    fn prepare(&self, context: &Context<'_>) -> Result<Prepared, ModelError> {
        let spelling = if self.is_respelled.load(Ordering::Relaxed) { Spelling::Other } else { Spelling::Expected };
        let to = Destination { url: &self.url, spelling };
        let body = C::body(context, &self.model, to).map_err(|error| {
            self.error(
                FailureReason::Malformed,
                &format!("was not sent: the request cannot be written as JSON: {error}"),
            )
        })?;
        let input = context.input_tokens(&self.model, body.len());
        let output = self.model.max_output_tokens.unwrap_or(0);
        let both = input.saturating_add(output).min(INTEGER_MAX);
        if let Some(window) = self.model.context_window_tokens.filter(|window| both > *window) {
            return Err(self.error(
                FailureReason::ContextExceeded,
                &format!(
                    "was not sent: about {input} tokens of input and spec.maxOutputTokens {output} \
                     exceed spec.contextWindowTokens {window}"
                ),
            ));
        }
        Ok(Prepared { digest: Digest::of(&body), reserved_tokens: both, body })
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
        // 409 is a lock that another request holds.
        408 | 409 | 500.. => FailureReason::ServerError,
        _ if OUTGROWN.iter().any(|words| body.contains(words)) => FailureReason::ContextExceeded,
        // Redirects included: none is followed, since the credential would travel along.
        _ => FailureReason::BadRequest,
    }
}
