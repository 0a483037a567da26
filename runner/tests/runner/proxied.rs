//! Public hosts through the installation's egress proxy: TLS from end to end, no address looked up here, and clear words
//! for whatever a proxy does instead of opening a way.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use belay_protocol::event::FailureReason;
use belay_protocol::plan::{PlanModel, PlanTool, Timeouts};
use belay_runner::egress::Destinations;
use belay_runner::models::ModelError;
use belay_runner::redact::Redactor;
use belay_runner::tools::ToolServer as _;
use belay_runner::tools::mcp::McpServer;
use rstest::rstest;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::answers::Format;
use crate::asking::ask_by;
use crate::fake_mcp::{Era, FakeMcp};
use crate::http::Server;
use crate::plans::{chat, credential, mounted, plan, says, scripted, tool};
use crate::private_ca::ca;
use crate::tls::{Authority, Front};

/// Resolves nowhere: only the proxy knows where it is.
pub const HOST: &str = "api.example";

/// What the proxy does once it was asked.
#[derive(Clone)]
enum Does {
    /// Opens a way to that address, whatever it was asked for.
    Open(SocketAddr),
    /// Says this and hangs up.
    Says(String),
    Nothing,
}

struct Proxy {
    address: SocketAddr,
    /// The heads of requests, and all that went through towards the server.
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Proxy {
    async fn start(does: Does) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self { address: listener.local_addr().unwrap(), heard: Arc::default() };
        let heard = Arc::clone(&proxy.heard);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, does.clone(), Arc::clone(&heard)));
            }
        });
        proxy
    }

    fn heard(&self) -> String {
        String::from_utf8_lossy(&self.heard.lock().unwrap()).into_owned()
    }
}

async fn serve(mut stream: TcpStream, does: Does, heard: Arc<Mutex<Vec<u8>>>) {
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        asked.push(byte);
    }
    heard.lock().unwrap().extend_from_slice(&asked);
    match does {
        Does::Open(address) => {
            let mut server = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
            let mut seen = vec![0; 64 * 1024];
            let read = stream.read(&mut seen).await.unwrap();
            heard.lock().unwrap().extend_from_slice(&seen[..read]);
            server.write_all(&seen[..read]).await.unwrap();
            let _ = copy_bidirectional(&mut stream, &mut server).await;
        }
        Does::Says(words) => {
            let _ = stream.write_all(words.as_bytes()).await;
        }
        Does::Nothing => std::future::pending().await,
    }
}

/// A way out through the proxy, trusting `authority` under the ConfigMap `corp`.
pub fn behind(proxy: SocketAddr, authority: &Authority) -> (TempDir, belay_runner::credential::Credentials) {
    let (folder, credentials) = mounted(&[("key", "s3cr3t-value")]);
    std::fs::create_dir(folder.path().join("corp")).unwrap();
    std::fs::write(folder.path().join("corp/ca.crt"), &authority.pem).unwrap();
    let destinations = Destinations::new("team", &["127.0.0.1".into()]).with_authorities(folder.path().to_owned());
    let proxy = format!("http://{proxy}").parse().unwrap();
    (folder, credentials.reaching(destinations.through(Some(proxy))))
}

fn model(url: &str) -> PlanModel {
    let ca = url.starts_with("https").then(|| ca("corp"));
    let chat = chat(url);
    // Less than for the first byte, so that it is clear which of them runs out.
    let timeouts = Timeouts { connect_seconds: 1, ..chat.timeouts };
    PlanModel { ca, credential: Some("key".into()), timeouts, ..chat }
}

/// Asks a model at `url`, through the proxy if it is public, with `s3cr3t-value`.
pub async fn ask(proxy: SocketAddr, authority: &Authority, url: &str) -> Result<(), ModelError> {
    let (_folder, credentials) = behind(proxy, authority);
    let mut plan = plan(model(url), Vec::new());
    plan.credentials.push(credential(&[HOST, "127.0.0.1"]));
    ask_by(&plan, &credentials).await.map(drop)
}

#[tokio::test]
async fn a_public_host_is_asked_through_the_proxy_which_sees_its_name_and_nothing_else() {
    let authority = Authority::new();
    let server = Server::start(vec![Format::Chat.says("hi")]).await;
    let front = Front::start(authority.vouch_for(HOST), server.address).await;
    let proxy = Proxy::start(Does::Open(front.address)).await;
    ask(proxy.address, &authority, "https://api.example/v1").await.unwrap();
    assert_eq!(server.received()[0].authorization.as_deref(), Some("Bearer s3cr3t-value"));
    let heard = proxy.heard();
    assert!(heard.starts_with("CONNECT api.example:443 HTTP/1.1\r\n"), "{heard}");
    assert!(!heard.contains("s3cr3t") && !heard.to_lowercase().contains("authorization"), "{heard}");

    let mcp = FakeMcp::start(Era::Stateless, &["echo"]).await;
    let front = Front::start(authority.vouch_for(HOST), mcp.address).await;
    let proxy = Proxy::start(Does::Open(front.address)).await;
    let (_folder, credentials) = behind(proxy.address, &authority);
    let tool = PlanTool { ca: Some(ca("corp")), ..tool("https://api.example:8443/mcp", &["echo"]) };
    let plan = plan(scripted(vec![says("")]), vec![tool]);
    let redactor = Redactor::new(credentials.clone(), &[]);
    let mut server = McpServer::of_plan(&plan, &plan.tools[0], credentials, redactor).unwrap();
    assert_eq!(server.list().await.unwrap().len(), 1);
    assert!(proxy.heard().starts_with("CONNECT api.example:8443 HTTP/1.1\r\n"));
}

/// A proxy that leads to another server gets no further than a name server that does.
#[tokio::test]
async fn who_answers_behind_a_proxy_still_has_to_be_the_host_that_was_meant() {
    let authority = Authority::new();
    let server = Server::start(vec![Format::Chat.says("hi")]).await;
    let front = Front::start(authority.vouch_for("evil.example"), server.address).await;
    let proxy = Proxy::start(Does::Open(front.address)).await;
    let error = ask(proxy.address, &authority, "https://api.example/v1").await.unwrap_err();
    assert_eq!(error.reason, FailureReason::Unreachable);
    assert!(error.message.contains("certificate not valid for name"), "{error}");
    assert!(server.received().is_empty());
}

#[tokio::test]
async fn what_the_installation_lists_is_asked_without_the_proxy() {
    let authority = Authority::new();
    let server = Server::start(vec![Format::Chat.says("hi")]).await;
    let front = Front::start(authority.vouch_for("127.0.0.1"), server.address).await;
    let proxy = Proxy::start(Does::Nothing).await;
    for url in [server.url("/v1"), front.url("/v1")] {
        ask(proxy.address, &authority, &url).await.unwrap();
    }
    assert_eq!(server.received().len(), 2);
    assert_eq!(proxy.heard(), "");
}

#[rstest]
#[case("http://api.example/v1", "in plain text")]
#[case("https://metadata.google.internal/v1", "no name of the public internet")]
#[case("https://printer.local/v1", "no name of the public internet")]
#[case("https://a.localhost/v1", "no name of the public internet")]
#[case("https://10.1.2.3/v1", "a private or cluster address")]
#[case("https://169.254.169.254/v1", "a cloud's metadata address")]
#[case("https://llm.models.svc/v1", "a Service of another namespace")]
#[tokio::test]
async fn a_proxy_is_not_asked_for_what_no_run_may_reach(#[case] url: &str, #[case] words: &str) {
    let proxy = Proxy::start(Does::Nothing).await;
    let error = ask(proxy.address, &Authority::new(), url).await.unwrap_err();
    assert_eq!(error.reason, FailureReason::DestinationNotAllowed, "{error}");
    assert!(error.message.contains(words), "{error}");
    assert_eq!(proxy.heard(), "");
}

#[rstest]
#[case::forbidden("HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nno!!!", "did not open a way there")]
#[case::who_is_it("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "wants to know who asks")]
#[case::broken("HTTP/1.1 502 Bad Gateway\r\n\r\n", "did not open a way there")]
#[case::redirected("HTTP/1.1 302 Found\r\nLocation: https://login.example/\r\n\r\n", "did not open a way there")]
#[case::garbage("SSH-2.0-OpenSSH_9.6\r\n\r\n", "did not open a way there")]
#[case::hangs_up("", "hung up before it opened a way there")]
#[case::huge("HTTP/1.1 200 OK\r\nX: MUCH", "answered with more than it may")]
#[tokio::test]
async fn a_proxy_that_opens_no_way_is_said_in_words(#[case] says: &str, #[case] words: &str) {
    let proxy = Proxy::start(Does::Says(says.replace("MUCH", &"x".repeat(100_000)))).await;
    let error = ask(proxy.address, &Authority::new(), "https://api.example/v1").await.unwrap_err();
    assert_eq!(error.reason, FailureReason::Unreachable, "{error}");
    let expected = format!("the installation's egress proxy {words}");
    assert!(error.message.contains(&expected), "{error}");
    assert!(error.message.len() < 1000, "{error}");
}

#[tokio::test]
async fn a_proxy_that_hangs_or_is_away_ends_in_time() {
    let proxy = Proxy::start(Does::Nothing).await;
    let error = ask(proxy.address, &Authority::new(), "https://api.example/v1").await.unwrap_err();
    assert_eq!(error.reason, FailureReason::Unreachable, "{error}");
    assert!(error.message.contains("operation timed out"), "{error}");
    let error = ask("127.0.0.1:1".parse().unwrap(), &Authority::new(), "https://api.example/v1").await.unwrap_err();
    assert_eq!(error.reason, FailureReason::Unreachable, "{error}");
    assert!(error.message.contains("the installation's egress proxy cannot be reached"), "{error}");
}
