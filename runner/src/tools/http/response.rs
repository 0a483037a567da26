//! What an HTTP API's answer comes to: the text that journal and model see. Pure.

use belay_protocol::RESULT_BYTES_MAX;
use http::{HeaderMap, Method, StatusCode};
use reqwest::Url;

use super::operation::essence;
use crate::egress::piece;
use crate::tools::Outcome;
use crate::tools::attachment::Attachments;
use crate::tools::result::bounded;

/// What is shown of the body of an error.
const ERROR_BYTES_MAX: usize = 16 * 1024;
const NAME_BYTES_SHOWN: usize = 100;

/// A complete answer.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// None: it was longer than what is read.
    pub body: Option<Vec<u8>>,
}

/// What was answered.
pub struct Asked {
    pub method: Method,
    pub url: Url,
}

/// Whether the answer says that something in between lost the server, which may have done the work.
pub fn may_have_happened(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 502 | 503 | 504 | 520..=527)
}

pub fn outcome(answer: &Answer, asked: &Asked, attachments: &mut Attachments<'_>) -> Outcome {
    let status = answer.status;
    if may_have_happened(status) {
        return Outcome::Unknown { message: format!("the server or a gateway before it answered {}", status.as_u16()) };
    }
    if status.is_success() {
        let text = text_of(answer, attachments);
        let text = if text.is_empty() { format!("HTTP {}, without content", status.as_u16()) } else { text };
        return Outcome::Observed(bounded(false, &text, RESULT_BYTES_MAX, attachments));
    }
    let head = format!("the server answered HTTP {}", status.as_u16());
    if status.is_redirection() {
        let to = redirected_to(answer, &asked.url, attachments).map_or_else(String::new, |host| format!(" to {host}"));
        // Many servers answer like this to say where to see what they have done.
        let only_reads = matches!(asked.method, Method::GET | Method::HEAD);
        let perhaps = if only_reads { "" } else { "; the call may have been carried out" };
        let words = format!("{head}, a redirect{to}: redirects are not followed{perhaps}");
        return Outcome::Observed(bounded(true, &words, ERROR_BYTES_MAX, attachments));
    }
    let words = format!("{head}\n{}", text_of(answer, attachments));
    Outcome::Observed(bounded(true, words.trim_end(), ERROR_BYTES_MAX, attachments))
}

fn redirected_to(answer: &Answer, url: &Url, attachments: &Attachments<'_>) -> Option<String> {
    let location = answer.headers.get(http::header::LOCATION)?.to_str().ok()?;
    let target = url.join(location).ok()?;
    Some(piece(&attachments.redacted(target.host_str()?), NAME_BYTES_SHOWN))
}

/// Text is shown; anything else is kept and named: the model cannot read it from here.
fn text_of(answer: &Answer, attachments: &mut Attachments<'_>) -> String {
    let header = |name| answer.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = header(http::header::CONTENT_TYPE);
    let encoding = header(http::header::CONTENT_ENCODING);
    let Some(body) = &answer.body else {
        return format!("[{}, longer than what is read]", named(media_type, attachments));
    };
    if body.is_empty() {
        return String::new();
    }
    // What is compressed cannot be looked through for values of credentials, and was asked for otherwise.
    if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") {
        let (what, how) = (named(media_type, attachments), named(encoding, attachments));
        return format!("[{what}, {} bytes encoded as {how}, not shown]", body.len());
    }
    match str::from_utf8(body) {
        Ok(text) if is_text(media_type) => text.to_owned(),
        Err(_) if is_text(media_type) && !media_type.is_empty() => String::from_utf8_lossy(body).into_owned(),
        Ok(_) | Err(_) => attachments.take_body(or_unknown(media_type), body),
    }
}

/// A server's word for what it sent: redacted before it is cut.
fn named(words: &str, attachments: &Attachments<'_>) -> String {
    piece(&attachments.redacted(or_unknown(words)), NAME_BYTES_SHOWN)
}

fn or_unknown(media_type: &str) -> &str {
    if media_type.is_empty() { "content of unknown type" } else { media_type }
}

/// An answer without a type is shown if it is text.
fn is_text(media_type: &str) -> bool {
    let essence = essence(media_type);
    let (kind, subtype) = essence.split_once('/').unwrap_or((&essence, ""));
    let structured = ["json", "xml", "yaml", "x-yaml", "x-ndjson", "ndjson", "javascript", "graphql", "toml"];
    match kind {
        "" | "text" => true,
        "application" => structured.contains(&subtype) || subtype.ends_with("+json") || subtype.ends_with("+xml"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
    use belay_protocol::Digest;
    use belay_protocol::event::Artifact;
    use rstest::rstest;

    use super::*;
    use crate::credential::tests::{credential, mounted};
    use crate::redact::Redactor;
    use crate::tools::attachment::Attachment;

    fn told(status: u16, headers: &[(&'static str, &str)], body: &[u8]) -> Outcome {
        told_of(Method::GET, status, headers, body).0
    }

    fn told_of(
        method: Method,
        status: u16,
        headers: &[(&'static str, &str)],
        body: &[u8],
    ) -> (Outcome, Vec<Attachment>) {
        let (_folder, credentials) = mounted(&[("key", b"hunter2")]);
        let redactor = Redactor::new(credentials, &[credential("key", &[])]);
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let answer = Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: headers.collect(),
            body: Some(body.to_vec()),
        };
        let asked = Asked { method, url: Url::parse("https://api.example.com/v1/a").unwrap() };
        let mut attachments = Attachments::new(&redactor);
        let outcome = outcome(&answer, &asked, &mut attachments);
        (outcome, attachments.into_found())
    }

    fn observed(outcome: Outcome) -> (bool, String) {
        match outcome {
            Outcome::Observed(result) => (result.is_error, result.content),
            other => panic!("{other:?}"),
        }
    }

    #[rstest]
    #[case("application/json", b"{\"a\":1}", "{\"a\":1}")]
    #[case("application/problem+json; charset=utf-8", b"{}", "{}")]
    #[case("text/csv", b"a,b", "a,b")]
    #[case("", b"plain", "plain")]
    #[case("text/plain", b"\xffa", "\u{fffd}a")]
    #[case("image/png", b"\x89hunter2", "[image/png, 8 bytes, withheld: it holds the value of a credential]")]
    #[case("application/json", b"hunter2", "[credential key redacted]")]
    #[case("text/plain", b"", "HTTP 200, without content")]
    fn an_answer_is_shown_by_its_type(#[case] media_type: &str, #[case] body: &[u8], #[case] shown: &str) {
        assert_eq!(observed(told(200, &[("content-type", media_type)], body)), (false, shown.to_owned()));
    }

    #[rstest]
    #[case("image/png", b"\x89PNG", "image/png")]
    #[case("", b"\xff\xfe", "content of unknown type")]
    fn what_is_no_text_is_kept_and_named(#[case] media_type: &str, #[case] body: &[u8], #[case] named: &str) {
        let (outcome, attached) = told_of(Method::GET, 200, &[("content-type", media_type)], body);
        let (digest, bytes) = (Digest::of(body), body.len());
        let shown = format!("[{named}, {bytes} bytes, not shown: artifact {digest}]");
        assert_eq!(observed(outcome), (false, shown));
        let artifact = Artifact { digest, bytes: bytes as u64, media_type: named.into(), name: String::new() };
        assert_eq!(attached, [Attachment { artifact, bytes: body.to_vec() }]);
    }

    #[test]
    fn what_is_compressed_is_named() {
        let headers = [("content-type", "text/plain"), ("content-encoding", "gzip")];
        assert_eq!(observed(told(200, &headers, b"abc")).1, "[text/plain, 3 bytes encoded as gzip, not shown]");
    }

    #[test]
    fn a_value_in_a_media_type_is_redacted_before_it_is_cut() {
        let media_type = format!("image/{}hunter2", "x".repeat(NAME_BYTES_SHOWN - 9));
        let shown = observed(told(200, &[("content-type", &media_type)], b"abc")).1;
        assert!(!shown.contains("hun"), "{shown}");
    }

    #[rstest]
    #[case(400, &[], "no such pet", "the server answered HTTP 400\nno such pet")]
    #[case(404, &[], "", "the server answered HTTP 404")]
    #[case(500, &[], "key hunter2", "the server answered HTTP 500\nkey [credential key redacted]")]
    #[case(302, &[("location", "https://evil.example/?k=hunter2")], "x", "the server answered HTTP 302, a redirect to evil.example: redirects are not followed")]
    #[case(307, &[("location", "/elsewhere")], "", "the server answered HTTP 307, a redirect to api.example.com: redirects are not followed")]
    #[case(304, &[], "", "the server answered HTTP 304, a redirect: redirects are not followed")]
    fn other_statuses_are_errors_of_the_tool(
        #[case] status: u16,
        #[case] headers: &[(&'static str, &str)],
        #[case] body: &str,
        #[case] shown: &str,
    ) {
        assert_eq!(observed(told(status, headers, body.as_bytes())), (true, shown.to_owned()));
    }

    #[rstest]
    fn a_redirect_may_be_the_answer_to_what_was_done(
        #[values(301, 302, 303, 307)] status: u16,
        #[values(Method::GET, Method::HEAD, Method::POST, Method::DELETE)] method: Method,
    ) {
        let only_reads = [Method::GET, Method::HEAD].contains(&method);
        let (is_error, shown) = observed(told_of(method, status, &[("location", "/elsewhere")], b"").0);
        assert!(is_error);
        assert_eq!(shown.ends_with("not followed; the call may have been carried out"), !only_reads, "{shown}");
    }

    #[test]
    fn the_useful_part_of_an_error_is_its_beginning_and_all_of_it_is_kept() {
        let body = format!("{}hunter2{}", "x".repeat(ERROR_BYTES_MAX - 40), "y".repeat(1000));
        let (outcome, attached) = told_of(Method::GET, 422, &[], body.as_bytes());
        let whole = format!("the server answered HTTP 422\n{}", body.replace("hunter2", "[credential key redacted]"));
        assert_eq!(attached[0].bytes, whole.as_bytes());
        let (_, shown) = observed(outcome);
        assert!(shown.len() < ERROR_BYTES_MAX + 200 && !shown.contains("hun"), "{}", shown.len());
        let says = format!("all of it is artifact {}]", Digest::of(whole.as_bytes()));
        assert!(shown.starts_with("the server answered HTTP 422\nxx") && shown.ends_with(&says), "{shown}");
    }

    #[rstest]
    fn lost_upstreams_may_have_done_the_work(#[values(408, 502, 503, 504, 522)] status: u16) {
        assert!(matches!(told(status, &[], b"x"), Outcome::Unknown { .. }));
    }
}
