//! `GET /v1/runs/{uid}/journal` and `../artifacts/{digest}`: what the journal holds of a run, and what results hold besides
//! text, for whoever a ReadGrant lets read it.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use belay_protocol::reading::{GRANT_HEADER, NONCE_HEADER, SIGNATURE_HEADER, TIME_HEADER};

use super::Page;
use crate::read_grant::{GrantName, Presented, ReadError, Refusal, Wanted};

pub(super) async fn export(
    State(page): State<Page>,
    Path(run_uid): Path<String>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    answer(&page, &run_uid, Wanted::Journal, &Asked { method, uri, headers }).await
}

pub(super) async fn artifact(
    State(page): State<Page>,
    Path((run_uid, digits)): Path<(String, String)>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    match format!("sha256:{digits}").parse() {
        Ok(digest) => answer(&page, &run_uid, Wanted::Artifact(digest), &Asked { method, uri, headers }).await,
        Err(_) => words(StatusCode::BAD_REQUEST, "an artifact is named by 64 hexadecimal digits\n".to_owned()),
    }
}

struct Asked {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

async fn answer(page: &Page, run_uid: &str, wanted: Wanted, asked: &Asked) -> Response {
    let Some(readers) = page.readers.get() else {
        return words(StatusCode::SERVICE_UNAVAILABLE, "this operator does not lead: it has no journal\n".to_owned());
    };
    let Some(sent) = Sent::parse(&asked.headers) else {
        let headers = format!("{GRANT_HEADER}, {TIME_HEADER}, {NONCE_HEADER} and {SIGNATURE_HEADER}");
        let commands = "`belay journal export` or `belay artifacts`";
        return words(StatusCode::BAD_REQUEST, format!("wants the headers {headers}: use {commands}\n"));
    };
    let presented = Presented {
        method: asked.method.as_str(),
        path: asked.uri.path(),
        at: sent.at,
        nonce: sent.nonce,
        signature: &sent.signature,
    };
    // Whatever a tool's server said it is: nothing that shows it takes it for a page.
    let kind = match wanted {
        Wanted::Journal => "application/x-ndjson",
        Wanted::Artifact(_) => "application/octet-stream",
    };
    match readers.read(run_uid, wanted, sent.grant, &presented).await {
        Ok(bytes) => {
            let headers = [(header::CONTENT_TYPE, kind), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
            (StatusCode::OK, headers, bytes).into_response()
        }
        Err(error) => words(status(&error), format!("{error}\n")),
    }
}

/// What the headers say.
struct Sent<'a> {
    grant: GrantName<'a>,
    at: i64,
    nonce: &'a str,
    signature: Vec<u8>,
}

impl<'a> Sent<'a> {
    fn parse(headers: &'a HeaderMap) -> Option<Self> {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        let (namespace, name) = text(GRANT_HEADER)?.split_once('/').filter(|(a, b)| is_name(a) && is_name(b))?;
        Some(Self {
            grant: GrantName { namespace, name },
            at: text(TIME_HEADER)?.parse().ok()?,
            nonce: text(NONCE_HEADER)?,
            signature: STANDARD.decode(text(SIGNATURE_HEADER)?).ok()?,
        })
    }
}

/// It becomes part of a path on the API server.
fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    (1..=253).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('.')
}

fn status(error: &ReadError) -> StatusCode {
    match error {
        ReadError::Refused(Refusal::Unguarded) | ReadError::Busy | ReadError::Grants(_) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        ReadError::NoGrant(_) | ReadError::Refused(_) | ReadError::Replayed => StatusCode::FORBIDDEN,
        ReadError::NoRun(_) | ReadError::NoArtifact(_) => StatusCode::NOT_FOUND,
        ReadError::Journal(_) | ReadError::Artifact(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn words(status: StatusCode, words: String) -> Response {
    (status, words).into_response()
}
