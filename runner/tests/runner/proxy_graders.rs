//! A forward proxy that others wrote stands between a run and public hosts: proxy.py. `make graders` runs this; it wants
//! Python packages and, where TLS is opened, openssl.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use belay_protocol::event::FailureReason;
use belay_protocol::plan::PlanTool;
use belay_runner::redact::Redactor;
use belay_runner::tools::ToolServer as _;
use belay_runner::tools::mcp::McpServer;
use rstest::rstest;
use tempfile::TempDir;

use crate::answers::Format;
use crate::fake_mcp::{Era, FakeMcp};
use crate::graders::graders;
use crate::http::Server;
use crate::plans::{plan, says, scripted, tool};
use crate::private_ca::ca;
use crate::proxied::{HOST, ask, behind};
use crate::tls::{Authority, Front};

/// proxy.py on loopback. It ends with the test, however that ends.
struct Forward {
    process: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl Forward {
    fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/graders/forward.py");
        let mut command = Command::new(graders().join("bin/python"));
        command.arg(script).args(arguments).arg("--log-file").arg(folder.path().join("log"));
        command.arg("--data-dir").arg(folder.path().join("data")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut port = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let address = format!("127.0.0.1:{}", port.trim()).parse().unwrap();
        Self { process, address, folder }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// All that it logged, once these words are among it.
    async fn logs(&self, words: &str) -> String {
        let logged = async {
            while !self.log().contains(words) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), logged).await.unwrap_or_else(|_| panic!("{}", self.log()));
        self.log()
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // Whoever it started ends with it, which is not so where it is killed.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

#[tokio::test]
#[ignore = "wants Python packages: make graders"]
async fn a_proxy_of_others_opens_a_way_and_logs_where_to_and_nothing_else() {
    let forward = Forward::start(&[]);
    let authority = Authority::new();
    let server = Server::start(vec![Format::Chat.says("hi"), Format::Chat.says("hi")]).await;
    // In plain text a listed host is asked without the proxy, and no other one at all.
    ask(forward.address, &authority, &server.url("/v1")).await.unwrap();
    let port = server.address.port();
    let error = ask(forward.address, &authority, &format!("http://{HOST}:{port}/v1")).await.unwrap_err();
    assert_eq!(error.reason, FailureReason::DestinationNotAllowed, "{error}");

    let front = Front::start(authority.vouch_for(HOST), server.address).await;
    let way = format!("{HOST}:{}", front.address.port());
    ask(forward.address, &authority, &format!("https://{way}/v1")).await.unwrap();
    let authorizations: Vec<_> = server.received().into_iter().map(|received| received.authorization).collect();
    assert_eq!(authorizations, vec![Some("Bearer s3cr3t-value".to_owned()); 2]);
    let log = forward.logs(&format!("CONNECT {way} - ")).await;
    assert!(log.contains(&format!("Host: {way}")) && log.matches("CONNECT").count() == 2, "{log}");
    let (plain, listed) = (format!("{HOST}:{port}"), format!("127.0.0.1:{port}"));
    for hidden in ["s3cr3t", "uthorization", "/v1", "completions", &plain, &listed] {
        assert!(!log.contains(hidden), "{hidden} is in {log}");
    }
}

#[tokio::test]
#[ignore = "wants Python packages: make graders"]
async fn a_tool_is_listed_and_called_through_a_proxy_of_others() {
    let forward = Forward::start(&[]);
    let authority = Authority::new();
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let front = Front::start(authority.vouch_for(HOST), mcp.address).await;
    let (_folder, credentials) = behind(forward.address, &authority);
    let url = format!("https://{HOST}:{}/mcp", front.address.port());
    let tool = PlanTool { ca: Some(ca("corp")), ..tool(&url, &["echo"]) };
    let plan = plan(scripted(vec![says("")]), vec![tool]);
    let redactor = Redactor::new(credentials.clone(), &[]);
    let mut server = McpServer::of_plan(&plan, &plan.tools[0], credentials, redactor).unwrap();
    assert_eq!(server.list().await.unwrap().len(), 1);
    drop(server);
    forward.logs(&format!("CONNECT {HOST}:{} - ", front.address.port())).await;
}

#[rstest]
#[case::who_is_it(&["--basic-auth", "ada:lovelace"], "wants to know who asks (407)")]
#[case::forbidden(&["--filtered-upstream-hosts", HOST], "did not open a way there")]
#[case::nobody_there(&[], "did not open a way there")]
#[ignore = "wants Python packages: make graders"]
#[tokio::test]
async fn a_proxy_of_others_that_opens_no_way_is_said_in_words(#[case] arguments: &[&str], #[case] words: &str) {
    let forward = Forward::start(arguments);
    // Nobody listens at the port of `discard`.
    let error = ask(forward.address, &Authority::new(), &format!("https://{HOST}:9/v1")).await.unwrap_err();
    assert_eq!(error.reason, FailureReason::Unreachable, "{error}");
    assert!(error.message.contains(&format!("the installation's egress proxy {words}")), "{error}");
    let log = forward.logs(" - CONNECT ").await;
    assert!(!log.contains("s3cr3t"), "{log}");
}

/// As docs/network.md says of it: whoever trusts its authority lets it read everything, and nobody else does.
#[tokio::test]
#[ignore = "wants Python packages: make graders"]
async fn a_proxy_that_opens_tls_is_believed_by_whoever_names_its_authority_alone() {
    let (servers, proxys) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (key, certificate, above, signed) = (path("ca.key"), path("ca.pem"), path("above.pem"), path("signed"));
    let written = [(&key, proxys.key_pem()), (&certificate, proxys.pem.clone()), (&above, servers.pem.clone())];
    for (file, pem) in written {
        std::fs::write(file, pem).unwrap();
    }
    std::fs::create_dir(&signed).unwrap();
    let keys = ["--ca-key-file", &key, "--ca-signing-key-file", &key, "--ca-cert-file", &certificate];
    let forward = Forward::start(&[&keys[..], &["--ca-cert-dir", &signed, "--ca-file", &above]].concat());
    let server = Server::start(vec![Format::Chat.says("hi")]).await;
    let front = Front::start(servers.vouch_for(HOST), server.address).await;
    let url = format!("https://{HOST}:{}/v1", front.address.port());
    let error = ask(forward.address, &servers, &url).await.unwrap_err();
    assert_eq!(error.reason, FailureReason::Unreachable, "{error}");
    assert!(error.message.contains("UnknownIssuer") && server.received().is_empty(), "{error}");
    ask(forward.address, &proxys, &url).await.unwrap();
    assert!(forward.logs("/v1/chat/completions").await.contains("Bearer s3cr3t-value"), "it reads keys, too");
}
