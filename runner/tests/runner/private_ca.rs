//! Servers whom an authority of the cluster's own vouches for: trusted where an object says so, and nowhere else.

use std::path::Path;

use belay_protocol::Plan;
use belay_protocol::event::FailureReason;
use belay_protocol::plan::{CaBundle, ClientCredentials, Inject, PlanCredential, PlanModel, PlanTool};
use belay_protocol::{CA_BUNDLE_BYTES_MAX, plan::ClientAuthentication};
use belay_runner::credential::Credentials;
use belay_runner::credential::inject::inject;
use belay_runner::egress::Destinations;
use belay_runner::models::{ModelAnswer, ModelError};
use belay_runner::redact::Redactor;
use belay_runner::tools::http::Documents;
use belay_runner::tools::{self, ListError};
use http::Method;
use rstest::rstest;
use tempfile::TempDir;

use crate::answers::Format;
use crate::asking::ask_by;
use crate::fake_mcp::{Era, FakeMcp};
use crate::http::Server;
use crate::http_api::{http_tool, inline};
use crate::plans::{chat, credential, mounted, plan, says, scripted, tool};
use crate::tls::{Authority, Front};
use crate::token_server::TokenServer;

/// Where servers of tests listen.
const HOST: &str = "127.0.0.1";

/// What the kubelet mounts.
struct Mounts {
    folder: TempDir,
    credentials: Credentials,
}

impl Mounts {
    /// Each of these ConfigMaps holds that much under the key `ca.crt`.
    fn of(bundles: &[(&str, &str)]) -> Self {
        let (folder, credentials) = mounted(&[("key", "s3cr3t-value")]);
        let destinations = Destinations::new("team", &[HOST.into()]).with_authorities(folder.path().to_owned());
        for (config_map, held) in bundles {
            put(folder.path(), config_map, held);
        }
        Self { folder, credentials: credentials.reaching(destinations) }
    }

    async fn ask(&self, model: PlanModel) -> Result<ModelAnswer, ModelError> {
        let mut plan = plan(PlanModel { credential: Some("key".into()), ..model }, Vec::new());
        plan.credentials.push(credential(&[HOST]));
        ask_by(&plan, &self.credentials).await
    }

    async fn list(&self, tool: PlanTool) -> Result<usize, ListError> {
        let plan: Plan = plan(scripted(vec![says("")]), vec![tool]);
        let redactor = Redactor::new(self.credentials.clone(), &[]);
        let documents = Documents::new("/nowhere".into());
        let mut server = tools::of_plan(&plan, &plan.tools[0], &self.credentials, &documents, &redactor).unwrap();
        server.list().await.map(|listed| listed.len())
    }

    /// Asks for a token of the endpoint at `token_url`; the words of the failure.
    async fn token(&self, token_url: String, ca: Option<CaBundle>) -> Result<(), String> {
        let client = ClientCredentials {
            token_url,
            ca,
            client_id: "belay".into(),
            scopes: Vec::new(),
            audience: None,
            resource: None,
            authentication: ClientAuthentication::Header,
        };
        let credential = PlanCredential { inject: Inject::ClientCredentials(client), ..credential(&["api.example"]) };
        let injected = inject(&self.credentials, &credential, &Method::GET, "https://api.example/", None).await;
        injected.map(drop).map_err(|error| error.to_string())
    }
}

fn put(folder: &Path, config_map: &str, held: &str) {
    std::fs::create_dir_all(folder.join(config_map)).unwrap();
    std::fs::write(folder.join(config_map).join("ca.crt"), held).unwrap();
}

pub fn ca(config_map: &str) -> CaBundle {
    CaBundle { config_map: config_map.into(), key: "ca.crt".into() }
}

fn by(ca: Option<CaBundle>, url: &str) -> PlanModel {
    PlanModel { ca, ..chat(url) }
}

#[tokio::test]
async fn a_model_a_tool_and_a_token_endpoint_are_verified_by_the_authority_that_they_name() {
    let (ours, other) = (Authority::new(), Authority::new());
    // A bundle may hold more than one.
    let mounts = Mounts::of(&[("corp", &format!("{}{}", other.pem, ours.pem))]);
    let server = Server::start(vec![Format::Chat.says("hi")]).await;
    let front = Front::start(ours.vouch_for(HOST), server.address).await;
    mounts.ask(by(Some(ca("corp")), &front.url("/v1"))).await.unwrap();
    assert_eq!(server.received()[0].authorization.as_deref(), Some("Bearer s3cr3t-value"));

    let mcp = FakeMcp::start(Era::Stateless, &["echo"]).await;
    let front = Front::start(ours.vouch_for(HOST), mcp.address).await;
    assert_eq!(mounts.list(PlanTool { ca: Some(ca("corp")), ..tool(&front.url("/mcp"), &["echo"]) }).await, Ok(1));

    let tokens = TokenServer::start(3600).await;
    let front = Front::start(ours.vouch_for(HOST), tokens.address).await;
    mounts.token(front.url("/token"), Some(ca("corp"))).await.unwrap();
}

/// In one plan, one destination trusts the authority; the others go by what they name themselves.
#[tokio::test]
async fn an_authority_counts_for_the_destination_that_names_it_and_for_no_other() {
    let (ours, other) = (Authority::new(), Authority::new());
    let mounts = Mounts::of(&[("corp", &ours.pem), ("other", &other.pem)]);
    let server = Server::start(vec![Format::Chat.says("hi")]).await;
    let front = Front::start(ours.vouch_for(HOST), server.address).await;
    mounts.ask(by(Some(ca("corp")), &front.url("/v1"))).await.unwrap();
    for another in [None, Some(ca("other"))] {
        let error = mounts.ask(by(another.clone(), &front.url("/v1"))).await.unwrap_err();
        assert_eq!(error.reason, FailureReason::Unreachable, "{error}");
        assert!(
            error.message.contains("UnknownIssuer") && error.message.contains("name those who vouch for it"),
            "{error}"
        );
        let error = mounts.list(PlanTool { ca: another.clone(), ..tool(&front.url("/mcp"), &[]) }).await.unwrap_err();
        assert_eq!(error.reason, FailureReason::Unreachable, "{error}");
        let words = mounts.token(front.url("/token"), another).await.unwrap_err();
        assert!(words.contains("UnknownIssuer"), "{words}");
    }
    assert_eq!(server.received().len(), 1, "nothing was sent but to whom was trusted");
}

#[tokio::test]
async fn a_certificate_still_has_to_name_the_host_and_the_public_authorities_do_not_count_beside_it() {
    let ours = Authority::new();
    let mounts = Mounts::of(&[("corp", &ours.pem)]);
    let server = Server::start(vec![Format::Chat.says("hi")]).await;
    let front = Front::start(ours.vouch_for("elsewhere.example"), server.address).await;
    let error = mounts.ask(by(Some(ca("corp")), &front.url("/v1"))).await.unwrap_err();
    assert_eq!(error.reason, FailureReason::Unreachable, "{error}");
    assert!(error.message.contains("certificate not valid for name"), "{error}");
    assert!(server.received().is_empty());
}

#[tokio::test]
async fn authorities_are_read_anew_when_they_were_rotated() {
    let (first, second) = (Authority::new(), Authority::new());
    let mounts = Mounts::of(&[("corp", &first.pem)]);
    let server = Server::start(vec![Format::Chat.says("hi")]).await;
    let front = Front::start(first.vouch_for(HOST), server.address).await;
    let mut plan = plan(by(Some(ca("corp")), &front.url("/v1")), Vec::new());
    plan.model.credential = None;
    // One client all along, as a run has one.
    let redactor = Redactor::new(mounts.credentials.clone(), &[]);
    let model = belay_runner::models::client(&plan, &plan.model, &mounts.credentials, &redactor).unwrap();
    let ask = || async { crate::asking::ask_client(&plan, &*model).await };
    ask().await.unwrap();
    front.show(second.vouch_for(HOST));
    put(mounts.folder.path(), "corp", &second.pem);
    ask().await.unwrap();
    put(mounts.folder.path(), "corp", "");
    let error = ask().await.unwrap_err();
    assert_eq!(error.reason, FailureReason::CaBundleUnusable, "a connection that stands does not outlive its trust");
}

#[rstest]
#[case::missing(None, "ConfigMap corp has no key ca.crt, or is not there: create it")]
#[case::empty(Some(String::new()), "key ca.crt of ConfigMap corp holds no certificate: ")]
#[case::words(Some("trust me".into()), "key ca.crt of ConfigMap corp holds no certificate: ")]
#[case::no_base64(Some("-----BEGIN CERTIFICATE-----\n%%\n-----END CERTIFICATE-----\n".into()), "holds what is no certificate in PEM")]
#[case::no_certificate(Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into()), "holds what is no certificate in PEM")]
#[case::too_large(Some("x".repeat(CA_BUNDLE_BYTES_MAX + 1)), "holds more than 524288 bytes: is it the right key?")]
#[tokio::test]
async fn what_is_no_authority_is_said_by_object_and_field(#[case] held: Option<String>, #[case] words: &str) {
    let held: Vec<(&str, &str)> = held.as_deref().map(|held| ("corp", held)).into_iter().collect();
    let mounts = Mounts::of(&held);
    let server = Server::start(vec![Format::Chat.says("hi")]).await;
    let url = Front::start(Authority::new().vouch_for(HOST), server.address).await.url("/v1");
    let error = mounts.ask(by(Some(ca("corp")), &url)).await.unwrap_err();
    assert_eq!((error.reason, error.is_transient()), (FailureReason::CaBundleUnusable, false));
    let begin = format!("Model writer: POST {url}/chat/completions was not sent: spec.tls.caConfigMapKeyRef: ");
    assert!(error.message.starts_with(&begin) && error.message.contains(words), "{error}");

    let tools = [(tool(&url, &[]), "spec.mcp.tls"), (http_tool(&url, inline(), None), "spec.http.tls")];
    for (tool, field) in tools {
        let error = mounts.list(PlanTool { ca: Some(ca("corp")), ..tool }).await.unwrap_err();
        assert_eq!(error.reason, FailureReason::CaBundleUnusable, "{error}");
        let named = format!("{field}.caConfigMapKeyRef: ");
        assert!(error.message.starts_with("Tool server: "), "{error}");
        assert!(error.message.contains(&named) && error.message.contains(words), "{error}");
    }
    let said = mounts.token(url, Some(ca("corp"))).await.unwrap_err();
    assert!(said.starts_with("Credential key: ") && said.contains(words), "{said}");
    assert!(said.contains("spec.inject.oauth2ClientCredentials.tls.caConfigMapKeyRef: "), "{said}");
    assert!(server.received().is_empty());
}

#[rstest]
#[case("..", "key")]
#[case("corp", "../credentials")]
#[case("corp", "..")]
#[case("/etc", "ssl")]
#[tokio::test]
async fn a_name_cannot_lead_out_of_the_folder(#[case] config_map: &str, #[case] key: &str) {
    let mounts = Mounts::of(&[("corp", &Authority::new().pem)]);
    let ca = Some(CaBundle { config_map: config_map.into(), key: key.into() });
    let error = mounts.ask(by(ca, "https://127.0.0.1:1/v1")).await.unwrap_err();
    assert!(error.message.ends_with("or is not there: create it"), "{error}");
}

/// Whoever names the authority may only use the Credential: they do not choose among the hosts of its wildcard.
#[tokio::test]
async fn a_credential_with_a_wildcard_goes_nowhere_under_a_private_authority() {
    let ours = Authority::new();
    let mounts = Mounts::of(&[("corp", &ours.pem)]);
    let url = "https://evil.team.svc/v1";
    let mut plan = plan(PlanModel { credential: Some("key".into()), ..by(Some(ca("corp")), url) }, Vec::new());
    plan.credentials.push(credential(&["*.team.svc"]));
    let error = ask_by(&plan, &mounts.credentials).await.unwrap_err();
    assert_eq!(error.reason, FailureReason::HostNotAllowed, "{error}");
    assert!(error.message.contains("the ConfigMap corp vouches"), "{error}");

    plan.tools = vec![PlanTool { ca: Some(ca("corp")), credential: Some("key".into()), ..tool(url, &["echo"]) }];
    let redactor = Redactor::new(mounts.credentials.clone(), &[]);
    let documents = Documents::new("/nowhere".into());
    let mut server = tools::of_plan(&plan, &plan.tools[0], &mounts.credentials, &documents, &redactor).unwrap();
    let error = server.list().await.unwrap_err();
    assert_eq!(error.reason, FailureReason::HostNotAllowed, "{error}");
}
