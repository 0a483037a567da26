//! Where a credential may go: whether host, scheme, method and path of a request are among those that it names. Pure.

use std::net::IpAddr;

use belay_protocol::event::FailureReason;
use belay_protocol::plan::{CaBundle, PlanCredential};
use http::Method;
use reqwest::Url;

use crate::egress::piece;
use crate::percent::percent_decoded;

/// What names of Services end in; another cluster domain needs https or the short name.
const IN_CLUSTER: [&str; 2] = [".svc", ".svc.cluster.local"];
const PATH_BYTES_SHOWN: usize = 200;
/// A path that is still encoded after so many times is meant to deceive.
const DECODED_TIMES_MAX: usize = 4;

/// Why a credential may not go along. Words name the Credential, its field and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfScope {
    #[error("Credential {credential} may not be sent: the destination is not a URL: {message}")]
    NotAUrl { credential: String, message: String },
    #[error(
        "Credential {credential} may not be sent to {host}: its spec.hosts are {hosts}; add the host there or use another Credential"
    )]
    Host { credential: String, host: String, hosts: String },
    #[error(
        "Credential {credential} may not be sent to {host} in plain text: use https, or a Service of this cluster whose name stands in spec.hosts without a wildcard"
    )]
    Plaintext { credential: String, host: String },
    #[error(
        "Credential {credential} may not be sent to {host}, for whose certificate the ConfigMap {config_map} vouches: whoever writes that would choose among all hosts of a wildcard; name the host in spec.hosts without one"
    )]
    PrivateAuthority { credential: String, host: String, config_map: String },
    #[error(
        "Credential {credential} may not be sent with {method}: its spec.methods are {methods}; add the method there or use another Credential"
    )]
    Method { credential: String, method: Method, methods: String },
    #[error(
        "Credential {credential} may not be sent to the path {path}: its spec.pathPrefixes are {prefixes}; add one there or use another Credential"
    )]
    Path { credential: String, path: String, prefixes: String },
    #[error(
        "Credential {credential} may not be sent to the path {path}: written like that, it may be another one to the server; its spec.pathPrefixes are {prefixes}"
    )]
    AmbiguousPath { credential: String, path: String, prefixes: String },
}

impl OutOfScope {
    #[must_use]
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::NotAUrl { .. } => FailureReason::BadRequest,
            Self::Host { .. }
            | Self::Plaintext { .. }
            | Self::PrivateAuthority { .. }
            | Self::Method { .. }
            | Self::Path { .. }
            | Self::AmbiguousPath { .. } => FailureReason::HostNotAllowed,
        }
    }
}

/// Whether `credential` may go along with such a request; the parsed URL if so.
pub fn admit(credential: &PlanCredential, method: &Method, url: &str) -> Result<Url, OutOfScope> {
    let name = || credential.name.clone();
    let url =
        Url::parse(url).map_err(|error| OutOfScope::NotAUrl { credential: name(), message: error.to_string() })?;
    let host = url.host_str().unwrap_or_default();
    if !credential.hosts.iter().any(|pattern| host_matches(pattern, host)) {
        let hosts = credential.hosts.join(", ");
        return Err(OutOfScope::Host { credential: name(), host: host.to_owned(), hosts });
    }
    if url.scheme() != "https" && !(stays_inside(host) && is_named(credential, host)) {
        return Err(OutOfScope::Plaintext { credential: name(), host: host.to_owned() });
    }
    if !credential.methods.is_empty() && !credential.methods.iter().any(|allowed| allowed == method.as_str()) {
        let methods = credential.methods.join(", ");
        return Err(OutOfScope::Method { credential: name(), method: method.clone(), methods });
    }
    if !credential.path_prefixes.is_empty() {
        let (path, prefixes) = (piece(url.path(), PATH_BYTES_SHOWN), credential.path_prefixes.join(", "));
        let Some(meant) = unambiguous(url.path()) else {
            return Err(OutOfScope::AmbiguousPath { credential: name(), path, prefixes });
        };
        if !credential.path_prefixes.iter().any(|prefix| lies_below(prefix, &meant)) {
            return Err(OutOfScope::Path { credential: name(), path, prefixes });
        }
    }
    Ok(url)
}

/// Whether it may go there where the certificates of `ca` vouch for the host and no public authority does. A wildcard is as
/// good as the public's word on who has which name; a host that is named, who may use the Credential does not choose.
pub fn admit_under(credential: &PlanCredential, ca: Option<&CaBundle>, url: &Url) -> Result<(), OutOfScope> {
    let host = url.host_str().unwrap_or_default();
    let Some(ca) = ca.filter(|_| !is_named(credential, host)) else { return Ok(()) };
    let (credential, config_map) = (credential.name.clone(), ca.config_map.clone());
    Err(OutOfScope::PrivateAuthority { credential, host: host.to_owned(), config_map })
}

/// Hosts to which plain text does not leave the cluster: a Service's name. Loopback is this pod itself.
pub(super) fn stays_inside(host: &str) -> bool {
    let loopback = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    loopback || !host.contains(['.', ':']) || IN_CLUSTER.iter().any(|suffix| host.ends_with(suffix))
}

/// Whether it is among the hosts without a wildcard.
fn is_named(credential: &PlanCredential, host: &str) -> bool {
    credential.hosts.iter().any(|named| named == host)
}

/// Exact names, or one leading wildcard label that stands for exactly one label.
fn host_matches(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(parent) => {
            host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(parent))
        }
        None => pattern.eq_ignore_ascii_case(host),
    }
}

/// The path as any server understands it; none where one might decode or normalise it to another: dot segments,
/// slashes or backslashes that were encoded, however often.
fn unambiguous(path: &str) -> Option<Vec<u8>> {
    let slashes = |path: &[u8]| path.split(|byte| *byte == b'/').count();
    let once = percent_decoded(path.as_bytes());
    let is_strange = |decoded: &[u8]| {
        let strange = decoded.contains(&b'\\') || decoded.contains(&0) || slashes(decoded) != slashes(path.as_bytes());
        strange || decoded.split(|byte| *byte == b'/').any(is_dots)
    };
    (!however_decoded(once.clone(), is_strange)).then_some(once)
}

/// Whether `found` is true of a text or of what it is decoded to, however often; it counts as true of one that never ends.
pub(crate) fn however_decoded(text: Vec<u8>, found: impl Fn(&[u8]) -> bool) -> bool {
    let mut decoded = text;
    for _time in 0..DECODED_TIMES_MAX {
        if found(&decoded) {
            return true;
        }
        let again = percent_decoded(&decoded);
        if again == decoded {
            return false;
        }
        decoded = again;
    }
    true
}

/// `.` and `..`, also with the parameters that some servers take off first.
pub(crate) fn is_dots(segment: &[u8]) -> bool {
    matches!(segment.split(|byte| *byte == b';').next(), Some(b"." | b".."))
}

/// On borders of segments: `/v1` covers `/v1` and `/v1/x`, not `/v10`.
fn lies_below(prefix: &str, path: &[u8]) -> bool {
    path.strip_prefix(prefix.as_bytes())
        .is_some_and(|rest| rest.is_empty() || prefix.ends_with('/') || rest.starts_with(b"/"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::credential::tests::credential;
    use rstest::rstest;

    #[rstest]
    #[case("api.github.com", "api.github.com", true)]
    #[case("api.github.com", "API.GitHub.com", true)]
    #[case("api.github.com", "evil.com", false)]
    #[case("api.github.com", "api.github.com.evil.com", false)]
    #[case("api.github.com", "api.github.com.", false)]
    #[case("*.example.com", "a.example.com", true)]
    #[case("*.example.com", "example.com", false)]
    #[case("*.example.com", "a.b.example.com", false)]
    #[case("*.example.com", ".example.com", false)]
    fn a_credential_travels_only_to_its_hosts(#[case] pattern: &str, #[case] host: &str, #[case] may: bool) {
        let admitted = admit(&credential("key", &[pattern]), &Method::GET, &format!("https://{host}/v1"));
        assert_eq!(admitted.is_ok(), may && !host.starts_with('.'), "{admitted:?}");
        assert_eq!(host_matches(pattern, host), may);
    }

    #[test]
    fn user_info_and_ports_in_a_url_do_not_bend_its_host() {
        let credential = credential("key", &["good.example"]);
        assert!(admit(&credential, &Method::GET, "https://good.example:8443/mcp").is_ok());
        let error = admit(&credential, &Method::GET, "https://good.example@evil.example/mcp").unwrap_err();
        assert_eq!(error.reason(), FailureReason::HostNotAllowed);
        assert!(error.to_string().contains("evil.example"), "{error}");
        let error = admit(&credential, &Method::GET, "good.example").unwrap_err();
        assert_eq!(error.reason(), FailureReason::BadRequest);
    }

    #[rstest]
    #[case::verified("https://api.example.com/v1", "api.example.com", true)]
    #[case::public("http://api.example.com/v1", "api.example.com", false)]
    #[case::short("http://llm:8080/v1", "llm", true)]
    #[case::service("http://llm.team.svc/v1", "llm.team.svc", true)]
    #[case::whole("http://llm.team.svc.cluster.local/v1", "llm.team.svc.cluster.local", true)]
    #[case::wildcard("http://llm.team.svc/v1", "*.team.svc", false)]
    #[case::verified_wildcard("https://llm.team.svc/v1", "*.team.svc", true)]
    #[case::trailing_dot("http://llm.team.svc./v1", "llm.team.svc.", false)]
    #[case::address("http://10.1.2.3/v1", "10.1.2.3", false)]
    #[case::this_pod("http://127.0.0.1:80/v1", "127.0.0.1", true)]
    #[case::decimal_loopback("http://2130706433/v1", "2130706433", false)]
    fn plain_text_goes_only_to_a_service_that_is_named(#[case] url: &str, #[case] named: &str, #[case] may: bool) {
        let admitted = admit(&credential("key", &[named]), &Method::POST, url);
        assert_eq!(admitted.is_ok(), may, "{admitted:?}");
    }

    #[rstest]
    #[case::named(&["llm.team.svc"], true)]
    #[case::named_beside_a_wildcard(&["*.team.svc", "llm.team.svc"], true)]
    #[case::wildcard(&["*.team.svc"], false)]
    fn under_a_private_authority_only_hosts_that_are_named_count(#[case] hosts: &[&str], #[case] may: bool) {
        let (credential, ca) = (credential("key", hosts), CaBundle { config_map: "corp".into(), key: "ca.crt".into() });
        let url = admit(&credential, &Method::POST, "https://llm.team.svc/v1").unwrap();
        assert!(admit_under(&credential, None, &url).is_ok(), "under the public ones");
        let admitted = admit_under(&credential, Some(&ca), &url);
        assert_eq!(admitted.is_ok(), may, "{admitted:?}");
    }

    #[test]
    fn a_method_that_is_not_named_is_refused_in_words() {
        let methods = vec!["GET".to_owned(), "POST".to_owned()];
        let credential = PlanCredential { methods, ..credential("key", &["a.example"]) };
        assert!(admit(&credential, &Method::POST, "https://a.example/").is_ok());
        let error = admit(&credential, &Method::DELETE, "https://a.example/").unwrap_err();
        assert_eq!(error.reason(), FailureReason::HostNotAllowed);
        assert_eq!(
            error.to_string(),
            "Credential key may not be sent with DELETE: its spec.methods are GET, POST; \
             add the method there or use another Credential"
        );
    }

    #[rstest]
    #[case::itself("/v1", Ok(()))]
    #[case::below("/v1/models", Ok(()))]
    #[case::a_sibling_by_letters("/v10", Err("add one there"))]
    #[case::elsewhere("/admin", Err("add one there"))]
    #[case::an_encoded_letter("/v%31/models", Ok(()))]
    #[case::an_encoded_percent("/v1/100%25", Ok(()))]
    #[case::dots("/v1/../admin", Err("add one there"))]
    #[case::dots_back_in("/admin/../v1/models", Ok(()))]
    #[case::encoded_dots("/v1/%2e%2E/admin", Err("add one there"))]
    #[case::encoded_slash("/v1/..%2fadmin", Err("may be another one"))]
    #[case::twice_encoded_dots("/v1/%252e%252e/admin", Err("may be another one"))]
    #[case::twice_encoded_slash("/v1/..%252fadmin", Err("may be another one"))]
    #[case::many_times_encoded("/v1/%2525252525252e", Err("may be another one"))]
    #[case::backslash("/v1/..\\admin", Err("add one there"))]
    #[case::encoded_backslash("/v1/..%5cadmin", Err("may be another one"))]
    #[case::dots_with_parameters("/v1/..;a=b/admin", Err("may be another one"))]
    #[case::nothing_at_the_end("/v1/%00", Err("may be another one"))]
    #[case::below_a_prefix_with_a_slash("/files/a", Ok(()))]
    #[case::only_below_it("/files", Err("add one there"))]
    fn a_path_cannot_be_written_around_the_prefixes(#[case] path: &str, #[case] expected: Result<(), &str>) {
        let path_prefixes = vec!["/v1".to_owned(), "/files/".to_owned()];
        let credential = PlanCredential { path_prefixes, ..credential("key", &["a.example"]) };
        let admitted = admit(&credential, &Method::GET, &format!("https://a.example{path}?q=/v1#/v1"));
        match expected {
            Ok(()) => assert!(admitted.is_ok(), "{admitted:?}"),
            Err(words) => {
                let error = admitted.unwrap_err();
                assert!(error.to_string().contains(words), "{error}");
                assert!(error.to_string().contains("its spec.pathPrefixes are /v1, /files/"), "{error}");
                assert_eq!(error.reason(), FailureReason::HostNotAllowed);
            }
        }
    }
}
