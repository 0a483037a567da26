//! Access tokens by the client-credentials grant (RFC 6749, section 4.4): asked for once for all who need one, kept in
//! memory, and asked for again early. Neither the client's secret nor a token shows anywhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use belay_protocol::event::FailureReason;
use belay_protocol::plan::{ClientAuthentication, ClientCredentials, PlanCredential};
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use reqwest::{Request, Response, Url};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::scope::stays_inside;
use super::{Credentials, Secret};
use crate::egress::{self, EgressError, Trust, piece};
use crate::redact::{Redactor, legible};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Token endpoints answer at once, and a call's permit does not wait for long.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(10);
const RESPONSE_BYTES_MAX: usize = 64 * 1024;
const SHOWN_BYTES: usize = 500;
/// Of a token whose endpoint does not say how long it is good for.
const GOOD_FOR_UNSAID: Duration = Duration::from_mins(5);
const GOOD_FOR_MAX: Duration = Duration::from_hours(24);
/// A token is not used in the last part of its time: a quarter of it, at most this.
const EARLY_MAX: Duration = Duration::from_mins(1);
const SCHEME: &str = "Bearer ";

/// Why there is no token. Its words name the Credential, the token endpoint and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "Credential {credential}: the token endpoint {token_url} (spec.inject.oauth2ClientCredentials.tokenURL) {problem}"
)]
pub struct TokenError {
    pub credential: String,
    pub token_url: String,
    pub reason: FailureReason,
    pub problem: String,
}

/// The newest token of each credential, by name.
#[derive(Default)]
pub(super) struct Tokens(Mutex<HashMap<String, Arc<tokio::sync::Mutex<Slot>>>>);

#[derive(Default)]
struct Slot {
    token: Option<Token>,
    /// When each server last refused one that was dropped for it. There are no more of them than a plan names.
    refused_at: HashMap<String, Instant>,
}

/// How often at most a token is dropped since one server refused it: one that wants more than a token is not to cost a new
/// one with each request, nor to keep others from being heard.
const REFUSED_AGAIN: Duration = Duration::from_mins(1);

struct Token {
    value: Secret,
    /// What it was given for: another one is asked for when that was rotated.
    client_secret: Secret,
    good_until: Instant,
}

impl Token {
    fn is_in(&self, authorization: &HeaderValue) -> bool {
        authorization.as_bytes().strip_prefix(SCHEME.as_bytes()) == Some(self.value.bytes())
    }
}

#[derive(Deserialize)]
struct Granted {
    #[serde(deserialize_with = "wiped")]
    access_token: Zeroizing<String>,
    token_type: String,
    #[serde(default)]
    expires_in: Option<Value>,
}

fn wiped<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Zeroizing<String>, D::Error> {
    String::deserialize(deserializer).map(Zeroizing::new)
}

/// A token that is still good for a while.
pub(super) async fn token(
    credentials: &Credentials,
    credential: &PlanCredential,
    client: &ClientCredentials,
    client_secret: &Secret,
) -> Result<Secret, TokenError> {
    let slot = {
        let mut tokens = credentials.tokens.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(tokens.entry(credential.name.clone()).or_default())
    };
    // Held while one is asked for: that is what makes one request of those of many callers.
    let mut slot = slot.lock().await;
    if let Some(token) = slot.token.as_ref()
        && token.client_secret == *client_secret
        && Instant::now() < token.good_until
    {
        return Ok(token.value.clone());
    }
    slot.token = None;
    let endpoint = Endpoint { credentials, credential, client };
    let asked = Instant::now();
    let granted = tokio::time::timeout(TOTAL_TIMEOUT, endpoint.ask(client_secret)).await;
    let granted = granted.unwrap_or_else(|_| {
        let problem = format!("did not answer within {} s: is it running?", TOTAL_TIMEOUT.as_secs());
        Err(endpoint.error(FailureReason::TimedOut, problem))
    })?;
    let value = Secret::new(granted.access_token.as_bytes());
    credentials.known.remember_token(&credential.name, &value, asked);
    let good_until = asked + good_for(granted.expires_in.as_ref());
    slot.token = Some(Token { value: value.clone(), client_secret: client_secret.clone(), good_until });
    Ok(value)
}

/// The header's value that carries a token.
pub(super) fn authorization(token: &str) -> Zeroizing<String> {
    Zeroizing::new(format!("{SCHEME}{token}"))
}

/// The server at `url` refused the token that was `sent`, which may have been revoked: it is not used again. True: the next
/// request carries another one. False: there are no tokens of this credential, or this server had one dropped just now, and
/// would refuse another as well.
pub(super) fn drop_refused(
    credentials: &Credentials,
    credential: &PlanCredential,
    url: &str,
    sent: &HeaderValue,
) -> bool {
    let slot = {
        let tokens = credentials.tokens.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get(&credential.name).cloned()
    };
    let Some(slot) = slot else { return false };
    // Where it is held another token is being asked for.
    let Ok(mut slot) = slot.try_lock() else { return true };
    if slot.token.as_ref().is_none_or(|newest| !newest.is_in(sent)) {
        return true;
    }
    if slot.refused_at.get(url).is_some_and(|at| at.elapsed() < REFUSED_AGAIN) {
        return false;
    }
    slot.token = None;
    slot.refused_at.insert(url.to_owned(), Instant::now());
    true
}

/// How long a token is used. Some endpoints write the number as a string.
fn good_for(expires_in: Option<&Value>) -> Duration {
    let seconds = expires_in.and_then(|value| value.as_u64().or_else(|| value.as_str()?.parse().ok()));
    let whole = seconds.map_or(GOOD_FOR_UNSAID, Duration::from_secs).min(GOOD_FOR_MAX);
    whole.saturating_sub((whole / 4).min(EARLY_MAX))
}

struct Endpoint<'a> {
    credentials: &'a Credentials,
    credential: &'a PlanCredential,
    client: &'a ClientCredentials,
}

impl Endpoint<'_> {
    async fn ask(&self, client_secret: &Secret) -> Result<Granted, TokenError> {
        let request = self.request(client_secret)?;
        let refused = |error: &EgressError| self.error(error.reason(), format!("may not be asked: {error}"));
        let field = "spec.inject.oauth2ClientCredentials.tls.caConfigMapKeyRef";
        let trust = self.client.ca.clone().map(|ca| Trust { field, ca });
        let client = self.credentials.destinations.client(&self.client.token_url, CONNECT_TIMEOUT, trust);
        let client = client.map_err(|error| refused(&error))?;
        let response = client
            .open(request.url().as_str())
            .map_err(|error| refused(&error))?
            .execute(request)
            .await
            .map_err(|error| self.unreachable(&error))?;
        let (status, encoding) = (response.status(), response.headers().get(CONTENT_ENCODING).cloned());
        let body = self.body(response).await?;
        if !status.is_success() {
            return Err(self.refusal(status, &body));
        }
        if let Some(encoding) = encoding.filter(|encoding| encoding != "identity") {
            let shown = self.shown(encoding.as_bytes());
            let problem = format!("answered in the content encoding {shown}, which it was not asked for");
            return Err(self.error(FailureReason::Malformed, problem));
        }
        let granted: Granted = serde_json::from_slice(&body).map_err(|_| {
            let problem = "answered with something that is no token (access_token and token_type in JSON)".to_owned();
            self.error(FailureReason::Malformed, problem)
        })?;
        if !granted.token_type.eq_ignore_ascii_case("bearer") || granted.access_token.is_empty() {
            let shown = self.shown(granted.token_type.as_bytes());
            let problem = format!("gave a token of the type {shown}: only Bearer tokens can be sent");
            return Err(self.error(FailureReason::Malformed, problem));
        }
        Ok(granted)
    }

    fn request(&self, client_secret: &Secret) -> Result<Request, TokenError> {
        let wrong = |problem: &str| self.error(FailureReason::BadRequest, problem.to_owned());
        let url = Url::parse(&self.client.token_url).map_err(|_| wrong("is not a URL"))?;
        if url.scheme() != "https" && !stays_inside(url.host_str().unwrap_or_default()) {
            let problem = "would get the client's secret in plain text: use https, or a Service of this cluster";
            return Err(self.error(FailureReason::HostNotAllowed, problem.to_owned()));
        }
        let text = client_secret.text(self.credential).map_err(|error| wrong(&format!("was not asked: {error}")))?;
        let mut request = Request::new(http::Method::POST, url);
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        // What is compressed can neither be read nor redacted here.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let mut form = vec![("grant_type", "client_credentials")];
        match self.client.authentication {
            ClientAuthentication::Header => {
                let pair = Zeroizing::new(format!("{}:{}", *encoded(&self.client.client_id), *encoded(text)));
                let encoded = Zeroizing::new(STANDARD.encode(pair.as_bytes()));
                self.credentials.known.remember(&self.credential.name, &Secret::new(encoded.as_bytes()));
                let value = Zeroizing::new(format!("Basic {}", *encoded));
                let mut value = HeaderValue::from_str(&value).map_err(|_| wrong("was not asked"))?;
                value.set_sensitive(true);
                headers.insert(AUTHORIZATION, value);
            }
            ClientAuthentication::Body => {
                form.extend([("client_id", self.client.client_id.as_str()), ("client_secret", text)]);
            }
        }
        let scope = self.client.scopes.join(" ");
        form.extend((!scope.is_empty()).then_some(("scope", scope.as_str())));
        form.extend(self.client.audience.as_deref().map(|audience| ("audience", audience)));
        form.extend(self.client.resource.as_deref().map(|resource| ("resource", resource)));
        *request.body_mut() = Some(form_of(&form).into());
        Ok(request)
    }

    async fn body(&self, mut response: Response) -> Result<Zeroizing<Vec<u8>>, TokenError> {
        let mut body = Zeroizing::new(Vec::with_capacity(RESPONSE_BYTES_MAX));
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreachable(&error))? {
            if body.len() + chunk.len() > RESPONSE_BYTES_MAX {
                let problem = format!("answered with more than {RESPONSE_BYTES_MAX} bytes: is it a token endpoint?");
                return Err(self.error(FailureReason::TooLarge, problem));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> TokenError {
        let PlanCredential { secret_name, secret_key, .. } = self.credential;
        let (reason, advice) = match status.as_u16() {
            // RFC 6749 answers a wrong client with 400 or 401.
            400..=403 => (
                FailureReason::Unauthorized,
                format!("check clientID, scopes and the client's secret (Secret {secret_name}, key {secret_key})"),
            ),
            429 => (FailureReason::RateLimited, "it limits requests: wait".to_owned()),
            500.. => (FailureReason::ServerError, "see its own logs".to_owned()),
            300..=399 => (FailureReason::BadRequest, "redirects are not followed: name the final URL".to_owned()),
            _ => (FailureReason::BadRequest, "is it a token endpoint?".to_owned()),
        };
        self.error(reason, format!("answered {status}: {advice}. It says: {}", self.shown(body)))
    }

    fn unreachable(&self, error: &reqwest::Error) -> TokenError {
        if let Some(refused) = egress::refused(error) {
            return self.error(FailureReason::DestinationNotAllowed, format!("may not be asked: {refused}"));
        }
        let causes = self.shown(egress::causes(error).as_bytes());
        self.error(FailureReason::Unreachable, format!("cannot be asked ({causes}): is it running and reachable?"))
    }

    /// Its words as they may be reported: redacted before they are cut.
    fn shown(&self, said: &[u8]) -> String {
        let redactor = Redactor::new(self.credentials.clone(), std::slice::from_ref(self.credential));
        piece(&redactor.redact(&legible(&String::from_utf8_lossy(said))), SHOWN_BYTES)
    }

    fn error(&self, reason: FailureReason, problem: String) -> TokenError {
        let token_url = self.client.token_url.clone();
        TokenError { credential: self.credential.name.clone(), token_url, reason, problem }
    }
}

/// One value of a form, which is also how RFC 6749 writes id and secret in the header.
fn encoded(text: &str) -> Zeroizing<String> {
    let form = form_of(&[("", text)]);
    Zeroizing::new(form.strip_prefix('=').unwrap_or(&form).to_owned())
}

fn form_of(pairs: &[(&str, &str)]) -> String {
    let Ok(mut url) = Url::parse("form:") else { return String::new() };
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    #[rstest]
    #[case::an_hour(Some(json!(3600)), 3540)]
    #[case::written_as_text(Some(json!("3600")), 3540)]
    #[case::a_short_one(Some(json!(40)), 30)]
    #[case::none(None, 240)]
    #[case::nonsense(Some(json!({})), 240)]
    #[case::for_ever(Some(json!(u64::MAX)), 86_340)]
    #[case::used_once(Some(json!(0)), 0)]
    fn a_token_is_asked_for_again_before_it_expires(#[case] expires_in: Option<Value>, #[case] seconds: u64) {
        assert_eq!(good_for(expires_in.as_ref()), Duration::from_secs(seconds));
    }

    #[test]
    fn id_and_secret_are_form_encoded_before_they_go_into_the_header() {
        assert_eq!(*encoded("a b:c%/+ä"), "a+b%3Ac%25%2F%2B%C3%A4");
    }
}
