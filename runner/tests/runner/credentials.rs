//! How credentials reach requests, where they do not go, and what happens when they change.

use belay_protocol::event::FailureReason;
use belay_protocol::plan::{ClientAuthentication, ClientCredentials, Inject, PlanCredential, PlanModel};
use belay_runner::credential::Credentials;
use belay_runner::credential::inject::{InjectError, Injection, inject};
use belay_runner::redact::Redactor;
use belay_runner::tools::mcp::McpServer;
use belay_runner::tools::{Definition, LeftOut, ListError, ToolServer as _};
use futures::future::join_all;
use http::{HeaderValue, Method};
use rstest::rstest;

use crate::answers::Format;
use crate::asking::{ask_as, ask_by};
use crate::fake_mcp::{Era, FakeMcp};
use crate::http::{Answer, Server, reply};
use crate::mcp::plan_for;
use crate::plans::{chat, credential, mounted, plan};
use crate::token_server::{Asked, TokenServer};

const SECRET: &str = "cl13nt/s3cret";
const URL: &str = "https://api.example/v1";
const TOKEN: &str = r#"{"access_token":"t","token_type":"bearer"}"#;

pub fn client(token_url: String) -> ClientCredentials {
    ClientCredentials {
        token_url,
        ca: None,
        client_id: "belay".into(),
        scopes: Vec::new(),
        audience: None,
        resource: None,
        authentication: ClientAuthentication::Header,
    }
}

fn by(client: ClientCredentials) -> PlanCredential {
    PlanCredential { inject: Inject::ClientCredentials(client), ..credential(&["api.example"]) }
}

async fn authorization(credentials: &Credentials, credential: &PlanCredential) -> Result<String, InjectError> {
    match inject(credentials, credential, &Method::GET, URL, None).await? {
        Injection::Header(name, value) => {
            assert_eq!(name, "authorization");
            assert!(value.is_sensitive());
            Ok(value.to_str().unwrap().to_owned())
        }
        Injection::Query { .. } => panic!("a token goes into a header"),
    }
}

#[tokio::test]
async fn many_callers_share_one_request_for_a_token() {
    let server = TokenServer::start(3600).await;
    let (_folder, credentials) = mounted(&[("key", SECRET)]);
    let credential = by(client(server.url()));
    let given = join_all((0..20).map(|_| authorization(&credentials, &credential))).await;
    assert!(given.into_iter().all(|given| given.unwrap() == "Bearer token-1"));
    let expected = Asked {
        // `belay:cl13nt%2Fs3cret`
        authorization: Some("Basic YmVsYXk6Y2wxM250JTJGczNjcmV0".into()),
        form: "grant_type=client_credentials".into(),
    };
    assert_eq!(server.asked(), [expected]);
}

#[tokio::test]
async fn a_request_for_a_token_says_what_the_credential_says() {
    let server = TokenServer::start(3600).await;
    let (_folder, credentials) = mounted(&[("key", SECRET)]);
    let credential = by(ClientCredentials {
        scopes: vec!["read".into(), "repo:write".into()],
        audience: Some("https://api.example".into()),
        resource: Some("https://api.example/mcp".into()),
        authentication: ClientAuthentication::Body,
        ..client(server.url())
    });
    assert_eq!(authorization(&credentials, &credential).await.unwrap(), "Bearer token-1");
    let form = "grant_type=client_credentials&client_id=belay&client_secret=cl13nt%2Fs3cret&scope=read+repo%3Awrite\
                &audience=https%3A%2F%2Fapi.example&resource=https%3A%2F%2Fapi.example%2Fmcp";
    assert_eq!(server.asked(), [Asked { authorization: None, form: form.into() }]);
}

#[tokio::test]
async fn a_token_is_asked_for_again_when_its_time_is_up_and_when_the_clients_secret_was_rotated() {
    let server = TokenServer::start(0).await;
    let (folder, credentials) = mounted(&[("key", SECRET)]);
    let credential = by(client(server.url()));
    assert_eq!(authorization(&credentials, &credential).await.unwrap(), "Bearer token-1");
    assert_eq!(authorization(&credentials, &credential).await.unwrap(), "Bearer token-2");

    let server = TokenServer::start(3600).await;
    let credential = by(client(server.url()));
    assert_eq!(authorization(&credentials, &credential).await.unwrap(), "Bearer token-1");
    std::fs::write(folder.path().join("key/value"), "an0ther-s3cret").unwrap();
    assert_eq!(authorization(&credentials, &credential).await.unwrap(), "Bearer token-2");
    assert_eq!(authorization(&credentials, &credential).await.unwrap(), "Bearer token-2");
    let redactor = Redactor::new(credentials, &[credential]);
    assert_eq!(
        redactor.redact("token-1 token-2 cl13nt/s3cret an0ther-s3cret YmVsYXk6Y2wxM250JTJGczNjcmV0"),
        ["[credential key redacted]"; 5].join(" "),
        "everything that was ever sent is known"
    );
}

#[tokio::test]
async fn a_token_goes_only_where_its_credential_may_and_is_not_asked_for_otherwise() {
    let server = TokenServer::start(3600).await;
    let (_folder, credentials) = mounted(&[("key", SECRET)]);
    let credential = by(client(server.url()));
    let error = inject(&credentials, &credential, &Method::GET, "https://evil.example/", None).await.unwrap_err();
    assert_eq!(error.reason(), FailureReason::HostNotAllowed);
    assert_eq!(server.asked(), []);
}

#[rstest]
#[case::wrong_client(
    reply(401, "application/json", r#"{"error":"invalid_client","secret":"cl13nt/s3cret"}"#),
    FailureReason::Unauthorized,
    "check clientID, scopes and the client's secret (Secret keys, key token)"
)]
#[case::broken(reply(503, "text/plain", "cl13nt%2Fs3cret"), FailureReason::ServerError, "see its own logs")]
#[case::limited(reply(429, "text/plain", "later"), FailureReason::RateLimited, "it limits requests")]
#[case::moved(reply(307, "text/plain", ""), FailureReason::BadRequest, "redirects are not followed")]
#[case::wrong_place(reply(404, "text/plain", ""), FailureReason::BadRequest, "is it a token endpoint?")]
#[case::no_json(reply(200, "text/html", "<p>cl13nt/s3cret"), FailureReason::Malformed, "something that is no token")]
#[case::no_token(
    reply(200, "application/json", r#"{"access_token":"","token_type":"bearer"}"#),
    FailureReason::Malformed,
    "only Bearer tokens"
)]
#[case::another_type(
    reply(200, "application/json", r#"{"access_token":"t","token_type":"mac"}"#),
    FailureReason::Malformed,
    "of the type mac"
)]
#[case::compressed(
    Answer::Reply { status: 200, headers: vec![("content-encoding", "gzip".into())], body: TOKEN.into() },
    FailureReason::Malformed,
    "in the content encoding gzip, which it was not asked for"
)]
#[case::compressed_refusal(
    Answer::Reply { status: 400, headers: vec![("content-encoding", "gzip".into())], body: "\u{1f}\u{8b}\u{8}cl13nt/".into() },
    FailureReason::Unauthorized,
    "It says: [11 bytes that are no text]"
)]
#[case::endless(reply(200, "application/json", "x".repeat(70_000)), FailureReason::TooLarge, "more than 65536 bytes")]
#[case::gone(Answer::Break { content_type: "application/json", body: String::new() }, FailureReason::Unreachable, "cannot be asked")]
#[tokio::test]
async fn a_token_endpoint_that_fails_is_named_with_its_credential(
    #[case] answer: Answer,
    #[case] reason: FailureReason,
    #[case] words: &str,
) {
    let server = Server::start(vec![answer]).await;
    let (_folder, credentials) = mounted(&[("key", SECRET)]);
    let credential = by(client(server.url("/oauth/token")));
    let error = authorization(&credentials, &credential).await.unwrap_err();
    assert_eq!(error.reason(), reason, "{error}");
    let begin = format!(
        "Credential key: the token endpoint {} (spec.inject.oauth2ClientCredentials",
        server.url("/oauth/token")
    );
    assert!(error.to_string().starts_with(&begin) && error.to_string().contains(words), "{error}");
    assert!(!error.to_string().contains("s3cret"), "{error}");
    assert_eq!(server.received().len(), 1, "asked once, and no redirect followed");
    assert_eq!(server.received()[0].headers["accept-encoding"], "identity");
}

#[tokio::test]
async fn a_clients_secret_does_not_leave_in_plain_text() {
    let (_folder, credentials) = mounted(&[("key", SECRET)]);
    let error = authorization(&credentials, &by(client("http://login.example/token".into()))).await.unwrap_err();
    assert_eq!(error.reason(), FailureReason::HostNotAllowed);
    assert!(error.to_string().contains("in plain text: use https"), "{error}");
}

/// A server that is asked with this credential.
fn server_of(url: &str, credential: Option<PlanCredential>, credentials: &Credentials) -> McpServer {
    let mut plan = plan_for(url, &[]);
    plan.tools[0].credential = credential.as_ref().map(|credential| credential.name.clone());
    plan.credentials = credential.into_iter().collect();
    let redactor = Redactor::new(credentials.clone(), &plan.credentials);
    McpServer::of_plan(&plan, &plan.tools[0], credentials.clone(), redactor).unwrap()
}

async fn list(
    url: &str,
    credential: Option<PlanCredential>,
    credentials: &Credentials,
) -> Result<Vec<Definition>, ListError> {
    server_of(url, credential, credentials).list().await
}

#[rstest]
#[case::bearer(Inject::Bearer {}, "Bearer cl13nt/s3cret")]
#[case::basic(Inject::Basic { username: "ada".into() }, "Basic YWRhOmNsMTNudC9zM2NyZXQ=")]
#[case::client_credentials(Inject::Bearer {}, "Bearer token-1")]
#[tokio::test]
async fn a_credential_goes_along_with_every_request_to_an_mcp_server(
    #[values(Era::Sessions, Era::Stateless)] era: Era,
    #[case] inject: Inject,
    #[case] expected: &str,
) {
    let tokens = TokenServer::start(3600).await;
    let inject = if expected == "Bearer token-1" { by(client(tokens.url())).inject } else { inject };
    let mcp = FakeMcp::start(era, &["a", "b", "c"]).await;
    let (_folder, credentials) = mounted(&[("key", SECRET)]);
    let credential = PlanCredential { inject, ..credential(&["127.0.0.1"]) };
    assert_eq!(list(&mcp.url(), Some(credential), &credentials).await.unwrap().len(), 3);
    let sent = mcp.authorizations.lock().unwrap().clone();
    assert!(sent.len() > 2 && sent.iter().all(|sent| sent.as_deref() == Some(expected)), "{sent:?}");
    assert!(tokens.asked().len() <= 1);
}

/// With another token in each pod it would drift for ever, and its digest would be one of a secret.
#[rstest]
#[tokio::test]
async fn an_operation_that_repeats_the_token_in_its_definition_is_left_out_and_says_why(
    #[values(Era::Sessions, Era::Stateless)] era: Era,
) {
    let tokens = TokenServer::start(3600).await;
    let mcp = FakeMcp::start(era, &["echo", "tells-key"]).await;
    let (_folder, credentials) = mounted(&[("key", SECRET)]);
    let key = PlanCredential { hosts: vec!["127.0.0.1".into()], ..by(client(tokens.url())) };
    let mut server = server_of(&mcp.url(), Some(key), &credentials);
    let names: Vec<String> = server.list().await.unwrap().into_iter().map(|definition| definition.name).collect();
    assert_eq!(names, ["echo"]);
    let why = "its definition holds a value of Credential key, which nobody may see and which changes: let what defines it \
               not repeat that";
    assert_eq!(server.left_out(), [LeftOut::new("tells-key", why)]);
}

#[tokio::test]
async fn a_key_in_the_query_reaches_the_server_and_shows_in_no_error() {
    let server = Server::start(vec![reply(500, "text/plain", "no: /v1?key=cl13nt%2Fs3cret cl13nt%2fs3cret")]).await;
    let inject = Inject::Query { name: "key".into() };
    let credential = PlanCredential { inject, ..credential(&["127.0.0.1"]) };
    let (folder, credentials) = mounted(&[("key", SECRET)]);
    let model = PlanModel { credential: Some("key".into()), ..chat(&server.url("/v1")) };
    let of_model = ask_as(model, &[("key", SECRET)], credential.clone()).await.unwrap_err();
    let of_tool = list(&server.url("/mcp"), Some(credential.clone()), &credentials).await.unwrap_err();
    assert!(server.received().iter().all(|request| request.query.as_deref() == Some("key=cl13nt%2Fs3cret")));
    assert!(of_model.message.contains("no: /v1?key=[credential key redacted] [credential key redacted]"), "{of_model}");
    // Nobody listens there any more, and the client's own words hold the URL.
    let closed = Server::start(vec![Answer::Break { content_type: "text/plain", body: String::new() }]).await;
    let of_client = list(&closed.url("/mcp"), Some(credential.clone()), &credentials).await.unwrap_err();
    let of_nobody = list("http://127.0.0.1:1/mcp", Some(credential), &credentials).await.unwrap_err();
    for error in [of_tool, of_client, of_nobody] {
        assert!(!error.message.contains("s3cret"), "{error}");
    }
    drop(folder);
}

#[rstest]
#[case::method(|key: PlanCredential| PlanCredential { methods: vec!["GET".into()], ..key }, "may not be sent with POST: its spec.methods are GET")]
#[case::path(|key: PlanCredential| PlanCredential { path_prefixes: vec!["/v2".into()], ..key }, "its spec.pathPrefixes are /v2")]
#[case::host(|key: PlanCredential| PlanCredential { hosts: vec!["other.example".into()], ..key }, "its spec.hosts are other.example")]
#[tokio::test]
async fn nothing_is_sent_to_where_a_credential_may_not_go(
    #[case] narrowed: fn(PlanCredential) -> PlanCredential,
    #[case] words: &str,
) {
    let server = Server::start(vec![reply(200, "text/plain", "")]).await;
    let key = || narrowed(credential(&["127.0.0.1"]));
    let (_folder, credentials) = mounted(&[("key", SECRET)]);
    let model = PlanModel { credential: Some("key".into()), ..chat(&server.url("/v1")) };
    let of_model = ask_as(model, &[("key", SECRET)], key()).await.unwrap_err();
    let of_tool = list(&server.url("/v1/mcp"), Some(key()), &credentials).await.unwrap_err();
    assert_eq!((of_model.reason, of_tool.reason), (FailureReason::HostNotAllowed, FailureReason::HostNotAllowed));
    for message in [of_model.message, of_tool.message] {
        assert!(message.contains(words), "{message}");
    }
    assert!(server.received().is_empty());
}

#[rstest]
#[case::without_a_credential(
    None,
    "it asks for authorization, and says: scheme Bearer, scopes read, its metadata (RFC 9728, not fetched) at https://a.example/.well-known/oauth-protected-resource/cl13nt. Make a Credential for 127.0.0.1"
)]
#[case::with_one(Some(()), "it refuses Credential key (Secret keys, key token), and says: scheme Bearer, scopes read, its metadata (RFC 9728, not fetched) at https://a.example/.well-known/oauth-protected-resource/cl13nt. Check the key")]
#[tokio::test]
async fn a_server_that_asks_for_authorization_is_quoted_and_its_metadata_not_fetched(
    #[case] with: Option<()>,
    #[case] words: &str,
) {
    let elsewhere = Server::start(vec![reply(200, "application/json", "{}")]).await;
    let challenge = format!(
        "Bearer resource_metadata=\"https://a.example/.well-known/oauth-protected-resource/cl13nt\", scope=\"read\", \
         authorization_uri=\"{}\"",
        elsewhere.url("/")
    );
    let headers = vec![("www-authenticate", challenge), ("content-type", "text/plain".into())];
    let server = Server::start(vec![Answer::Reply { status: 401, headers, body: "no".into() }]).await;
    let (_folder, credentials) = mounted(&[("key", SECRET)]);
    let error = list(&server.url("/mcp"), with.map(|()| credential(&["127.0.0.1"])), &credentials).await.unwrap_err();
    assert_eq!(error.reason, FailureReason::Unauthorized);
    assert!(error.message.contains(words), "{error}");
    assert!(elsewhere.received().is_empty());
}

/// A token that was revoked before its time: the next request carries another one, and what is refused again is not asked
/// for with every request.
#[tokio::test]
async fn a_token_that_a_server_refuses_is_dropped_once() {
    let tokens = TokenServer::start(3600).await;
    let refused = || reply(401, "text/plain", "no");
    let server = Server::start(vec![refused(), Format::Chat.says("hi"), refused()]).await;
    let (_folder, credentials) = mounted(&[("key", SECRET)]);
    let key = PlanCredential { hosts: vec!["127.0.0.1".into()], ..by(client(tokens.url())) };
    let mut plan = plan(PlanModel { credential: Some("key".into()), ..chat(&server.url("/v1")) }, Vec::new());
    plan.credentials.push(key.clone());
    let error = ask_by(&plan, &credentials).await.unwrap_err();
    assert_eq!((error.reason, error.is_transient()), (FailureReason::Unauthorized, true), "asked again with another");
    ask_by(&plan, &credentials).await.unwrap();
    let error = ask_by(&plan, &credentials).await.unwrap_err();
    assert_eq!((error.reason, error.is_transient()), (FailureReason::Unauthorized, false));
    ask_by(&plan, &credentials).await.unwrap_err();
    let sent: Vec<_> = server.received().into_iter().map(|request| request.authorization.unwrap()).collect();
    assert_eq!(sent, ["Bearer token-1", "Bearer token-2", "Bearer token-2", "Bearer token-2"]);
    assert_eq!(tokens.asked().len(), 2);
    let (_fixed_folder, fixed) = mounted(&[("key", SECRET)]);
    let sent = HeaderValue::from_static("Bearer cl13nt/s3cret");
    assert!(!fixed.refused(&credential(&["127.0.0.1"]), URL, Some(&sent)), "there is nothing to drop of a key");
}

/// A slow answer refuses what was replaced meanwhile.
#[tokio::test]
async fn a_token_that_another_has_replaced_takes_nothing_along_when_it_is_refused() {
    let tokens = TokenServer::start(3600).await;
    let (folder, credentials) = mounted(&[("key", SECRET)]);
    let key = by(client(tokens.url()));
    let first = authorization(&credentials, &key).await.unwrap();
    std::fs::write(folder.path().join("key/value"), "an0ther-s3cret").unwrap();
    let second = authorization(&credentials, &key).await.unwrap();
    assert_ne!(first, second);
    assert!(credentials.refused(&key, URL, Some(&first.parse().unwrap())), "another goes along next time");
    assert_eq!(authorization(&credentials, &key).await.unwrap(), second);
}

/// One that wants more than a token refuses whatever it is given.
#[tokio::test]
async fn a_server_that_refuses_every_token_keeps_no_other_server_from_being_heard() {
    const OTHER: &str = "https://other.example/v1";
    let tokens = TokenServer::start(3600).await;
    let (_folder, credentials) = mounted(&[("key", SECRET)]);
    let key = by(client(tokens.url()));
    let first = authorization(&credentials, &key).await.unwrap().parse().unwrap();
    assert!(credentials.refused(&key, OTHER, Some(&first)));
    let second = authorization(&credentials, &key).await.unwrap().parse().unwrap();
    assert!(!credentials.refused(&key, OTHER, Some(&second)));
    assert_eq!(authorization(&credentials, &key).await.unwrap(), "Bearer token-2", "it has to rest");
    assert!(credentials.refused(&key, URL, Some(&second)));
    assert_eq!(authorization(&credentials, &key).await.unwrap(), "Bearer token-3");
}

#[tokio::test]
async fn tools_drop_a_token_that_their_server_refuses_too() {
    let server = Server::start(vec![reply(401, "text/plain", "no")]).await;
    let tokens = TokenServer::start(3600).await;
    let (_folder, credentials) = mounted(&[("key", SECRET)]);
    let key = PlanCredential { hosts: vec!["127.0.0.1".into()], ..by(client(tokens.url())) };
    for _time in 0..2 {
        list(&server.url("/mcp"), Some(key.clone()), &credentials).await.unwrap_err();
    }
    let first_of_each: Vec<_> = server.received().into_iter().filter_map(|request| request.authorization).collect();
    assert!(first_of_each.contains(&"Bearer token-1".into()) && first_of_each.contains(&"Bearer token-2".into()));
    assert_eq!(tokens.asked().len(), 2, "{first_of_each:?}");
}
