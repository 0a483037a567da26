//! How a credential reaches a request: the one place that decides whether it may go along and what it adds. Models, MCP
//! servers and HTTP APIs come through here.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use belay_protocol::event::FailureReason;
use belay_protocol::plan::{CaBundle, Inject, PlanCredential};
use http::{HeaderName, HeaderValue, Method};
use reqwest::Url;
use zeroize::Zeroizing;

use super::scope::{self, OutOfScope};
use super::token::{self, TokenError};
use super::{CredentialError, CredentialProblem, Credentials, Secret};

/// What a credential adds to one request. Its `Debug` does not say the value.
pub enum Injection {
    /// Marked as sensitive, so that no client prints it.
    Header(HeaderName, HeaderValue),
    Query {
        name: String,
        value: Zeroizing<String>,
    },
}

impl fmt::Debug for Injection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name, _) => write!(f, "Header({name}, [secret])"),
            Self::Query { name, .. } => write!(f, "Query({name}, [secret])"),
        }
    }
}

/// Why a credential does not go along. Its words name the Credential and what to do.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    #[error(transparent)]
    Scope(#[from] OutOfScope),
    #[error(transparent)]
    Credential(#[from] CredentialError),
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl InjectError {
    #[must_use]
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Scope(error) => error.reason(),
            Self::Credential(error) => error.problem.reason(),
            Self::Token(error) => error.reason,
        }
    }
}

/// What `credential` adds to a request with `method` to `url`, for whose host `ca` vouches, or the public authorities do. Its
/// value is read now. Nothing is read, and no token asked
/// for, unless it may go there. With a client-credentials grant this may ask the token endpoint, and take as long.
pub async fn inject(
    credentials: &Credentials,
    credential: &PlanCredential,
    method: &Method,
    url: &str,
    ca: Option<&CaBundle>,
) -> Result<Injection, InjectError> {
    let admitted = scope::admit(credential, method, url)?;
    scope::admit_under(credential, ca, &admitted)?;
    let secret = credentials.read(credential)?;
    let text = secret.text(credential)?;
    let authorization = http::header::AUTHORIZATION;
    Ok(match &credential.inject {
        Inject::Bearer {} => header(credential, authorization, &Zeroizing::new(format!("Bearer {text}")))?,
        Inject::Header { name, format } => {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| unsendable(credential))?;
            header(credential, name, &Zeroizing::new(format.replace("{}", text)))?
        }
        Inject::Basic { username } => {
            let pair = Zeroizing::new(format!("{username}:{text}"));
            let encoded = Zeroizing::new(STANDARD.encode(pair.as_bytes()));
            // Short passwords are not looked for within base64; this one is known to be sent like that.
            credentials.known.remember(&credential.name, &Secret::new(encoded.as_bytes()));
            header(credential, authorization, &Zeroizing::new(format!("Basic {}", *encoded)))?
        }
        Inject::Query { name } => Injection::Query { name: name.clone(), value: Zeroizing::new(text.to_owned()) },
        Inject::ClientCredentials(client) => {
            let token = token::token(credentials, credential, client, &secret).await?;
            header(credential, authorization, &token::authorization(token.text(credential)?))?
        }
    })
}

fn header(credential: &PlanCredential, name: HeaderName, value: &str) -> Result<Injection, CredentialError> {
    let mut value = HeaderValue::from_str(value).map_err(|_| unsendable(credential))?;
    value.set_sensitive(true);
    Ok(Injection::Header(name, value))
}

fn unsendable(credential: &PlanCredential) -> CredentialError {
    CredentialError::new(credential, CredentialProblem::NotSendable)
}

impl Injection {
    /// Puts it into `request`, in place of whatever stands there under its name.
    pub fn put(self, request: &mut reqwest::Request) {
        match self {
            Self::Header(name, value) => {
                request.headers_mut().insert(name, value);
            }
            Self::Query { name, value } => with_pair(request.url_mut(), &name, &value),
        }
    }

    /// The same for clients that take a URL and headers: the URL with the parameter, and the header.
    #[must_use]
    pub fn split(self, url: &str) -> (String, Option<(HeaderName, HeaderValue)>) {
        match self {
            Self::Header(name, value) => (url.to_owned(), Some((name, value))),
            Self::Query { name, value } => {
                let Ok(mut parsed) = Url::parse(url) else { return (url.to_owned(), None) };
                with_pair(&mut parsed, &name, &value);
                (parsed.into(), None)
            }
        }
    }
}

/// The other pairs stay as they were written: it is these bytes that were decided on.
fn with_pair(url: &mut Url, name: &str, value: &str) {
    let mut one = url.clone();
    let mut is_other = |pair: &&str| {
        one.set_query(Some(pair));
        one.query_pairs().all(|(other, _)| other != name)
    };
    let others: Vec<&str> = url.query().unwrap_or_default().split('&').filter(&mut is_other).collect();
    let others = others.join("&");
    one.query_pairs_mut().clear().append_pair(name, value);
    let ours = Zeroizing::new(one.query().unwrap_or_default().to_owned());
    let whole = if others.is_empty() { ours } else { Zeroizing::new(format!("{others}&{}", *ours)) };
    url.set_query(Some(&whole));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::credential::tests::{credential, mounted};
    use rstest::rstest;

    const URL: &str = "https://a.example/v1";

    /// What a request to [`URL`] looks like with a credential whose file holds `value`.
    async fn injected(inject_by: Inject, value: &[u8]) -> Result<reqwest::Request, InjectError> {
        let (_folder, credentials) = mounted(&[("key", value)]);
        let credential = PlanCredential { inject: inject_by, ..credential("key", &["a.example"]) };
        let mut request = reqwest::Request::new(Method::GET, Url::parse(&format!("{URL}?q=x%20y&key=mine")).unwrap());
        let injection = inject(&credentials, &credential, &Method::GET, request.url().as_str(), None).await?;
        assert!(!format!("{injection:?}").contains("hunter2"));
        injection.put(&mut request);
        Ok(request)
    }

    #[rstest]
    #[case::bearer(Inject::Bearer {}, "authorization", "Bearer hunter2")]
    #[case::header(Inject::Header { name: "X-Api-Key".into(), format: "token={}".into() }, "x-api-key", "token=hunter2")]
    #[case::basic(Inject::Basic { username: "ada".into() }, "authorization", "Basic YWRhOmh1bnRlcjI=")]
    #[tokio::test]
    async fn a_value_is_sent_in_the_header_that_its_credential_names(
        #[case] inject_by: Inject,
        #[case] name: &str,
        #[case] value: &str,
    ) {
        // What `echo` leaves at the end is never sent.
        let request = injected(inject_by, b"hunter2\n").await.unwrap();
        assert_eq!(request.headers().get(name).unwrap(), value);
        assert!(request.headers().get(name).unwrap().is_sensitive());
        assert_eq!(request.url().as_str(), "https://a.example/v1?q=x%20y&key=mine");
    }

    #[tokio::test]
    async fn a_value_in_the_query_is_encoded_and_replaces_one_of_the_same_name() {
        let request = injected(Inject::Query { name: "key".into() }, b"h&n=t r/2+%").await.unwrap();
        assert_eq!(request.url().as_str(), "https://a.example/v1?q=x%20y&key=h%26n%3Dt+r%2F2%2B%25");
        assert!(request.headers().is_empty());
        let injection = Injection::Query { name: "key".into(), value: Zeroizing::new("v".into()) };
        assert_eq!(injection.split(URL), ("https://a.example/v1?key=v".to_owned(), None));
    }

    #[rstest]
    #[case("a=%2F+%7E&b&&c=", "a=%2F+%7E&b&&c=&key=v")]
    #[case("key=mine&a=1&k%65y=mine", "a=1&key=v")]
    #[case("key", "key=v")]
    fn the_rest_of_a_query_stays_as_it_was_written(#[case] query: &str, #[case] expected: &str) {
        let injection = Injection::Query { name: "key".into(), value: Zeroizing::new("v".into()) };
        assert_eq!(injection.split(&format!("{URL}?{query}")).0, format!("{URL}?{expected}"));
    }

    #[rstest]
    #[case::no_header_byte(Inject::Bearer {}, b"a\x01b")]
    #[case::no_text(Inject::Query { name: "key".into() }, b"a\xffb")]
    #[tokio::test]
    async fn a_value_that_cannot_be_sent_is_named_by_its_place(#[case] inject_by: Inject, #[case] value: &[u8]) {
        let error = injected(inject_by, value).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "Credential key: key token of Secret keys holds bytes that no request can carry: is it the right key?"
        );
    }

    #[tokio::test]
    async fn a_request_out_of_scope_does_not_even_read_the_value() {
        let (_folder, credentials) = mounted(&[]);
        let credential = credential("key", &["b.example"]);
        let error = inject(&credentials, &credential, &Method::GET, URL, None).await.unwrap_err();
        assert_eq!(error.reason(), FailureReason::HostNotAllowed, "rather than that the file is missing");
    }

    #[tokio::test]
    async fn a_short_password_is_redacted_as_it_is_sent() {
        let (_folder, credentials) = mounted(&[("key", b"pin")]);
        let credential =
            PlanCredential { inject: Inject::Basic { username: "ada".into() }, ..credential("key", &["a.example"]) };
        inject(&credentials, &credential, &Method::GET, URL, None).await.unwrap();
        assert_eq!(credentials.finder().replaced("Basic YWRhOnBpbg=="), "Basic [credential key redacted]");
    }
}
