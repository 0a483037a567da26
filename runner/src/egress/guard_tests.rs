#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use belay_protocol::event::FailureReason;
use belay_protocol::network::AddressClass;
use belay_protocol::plan::Timeouts;
use futures::future::BoxFuture;
use reqwest::dns::Resolve;
use rstest::rstest;

use super::guard::Guard;
use super::names::Names;
use super::{Destinations, Refused, refused};
use crate::credential::Credentials;
use crate::tools::Endpoint;
use crate::tools::ToolServer as _;
use crate::tools::mcp::McpServer;

/// Gives these answers in turn, the last one again and again, and remembers what it was asked.
#[derive(Clone, Default)]
struct Played {
    answers: Arc<Mutex<VecDeque<Vec<&'static str>>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

fn played(answers: &[&[&'static str]]) -> Played {
    let answers = answers.iter().map(|answer| answer.to_vec()).collect();
    Played { answers: Arc::new(Mutex::new(answers)), asked: Arc::default() }
}

impl Names for Played {
    fn cluster_domain(&self) -> &'static str {
        "corp.example"
    }

    fn look_up(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        self.asked.lock().unwrap().push(name);
        let mut answers = self.answers.lock().unwrap();
        let answer = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
        let addresses = answer.unwrap().iter().map(|address| address.parse().unwrap()).collect();
        Box::pin(async move { Ok(addresses) })
    }
}

fn destinations(allowed: &[&str], names: &Played) -> Destinations {
    let allowed: Vec<String> = allowed.iter().map(|host| (*host).to_owned()).collect();
    Destinations::new("team", &allowed).with_names(names.clone())
}

/// What a connection to the host of `url` would be made to.
async fn resolved(destinations: &Destinations, url: &str) -> Result<Vec<String>, Refused> {
    let (host, route) = destinations.route(url).unwrap();
    let ranges = destinations.allowed.ranges().clone();
    let guard = Guard { host: host.clone(), route, ranges, names: Arc::clone(&destinations.names) };
    match guard.resolve(host.parse().unwrap()).await {
        Ok(addresses) => Ok(addresses.map(|address| address.to_string()).collect()),
        Err(error) => Err(error.downcast_ref::<Refused>().unwrap().clone()),
    }
}

#[tokio::test]
async fn what_was_checked_is_what_is_connected_to_at_the_port_of_the_url() {
    let names = played(&[&["1.1.1.1", "2606:4700::1"]]);
    let found = resolved(&destinations(&[], &names), "https://api.example.com:8443/v1").await;
    assert_eq!(found.unwrap(), ["1.1.1.1:0", "[2606:4700::1]:0"]);
    assert_eq!(*names.asked.lock().unwrap(), ["api.example.com."]);
}

#[rstest]
#[case("10.0.0.1", AddressClass::Private)]
#[case("100.64.0.1", AddressClass::Private)]
#[case("fd12::1", AddressClass::Private)]
#[case("127.0.0.1", AddressClass::Loopback)]
#[case("::1", AddressClass::Loopback)]
#[case("169.254.0.1", AddressClass::LinkLocal)]
#[case("169.254.169.254", AddressClass::Metadata)]
#[case("100.100.100.200", AddressClass::Metadata)]
#[case("::ffff:169.254.169.254", AddressClass::Metadata)]
#[case("64:ff9b::a9fe:a9fe", AddressClass::Metadata)]
#[case("64:ff9b::7f00:1", AddressClass::Loopback)]
#[case("0.0.0.0", AddressClass::Unspecified)]
#[case("224.0.0.1", AddressClass::Multicast)]
#[case("255.255.255.255", AddressClass::Broadcast)]
#[case("2001:0:4136:e378::1", AddressClass::Reserved)]
#[tokio::test]
async fn a_public_name_is_not_followed_to_an_address_that_is_not(
    #[case] bad: &'static str,
    #[case] class: AddressClass,
) {
    // One bad address among good ones is enough.
    let names = played(&[&["1.1.1.1", bad]]);
    let error = resolved(&destinations(&[], &names), "https://api.example.com/").await.unwrap_err();
    let (host, address) = ("api.example.com".to_owned(), bad.parse().unwrap());
    let refused = match class {
        AddressClass::Private => Refused::Unlisted { host, address, class },
        _ => Refused::Never { host, address, class },
    };
    assert_eq!(error, refused);
}

#[rstest]
#[case("http://tool:3000/mcp", &[])]
#[case("http://tool.team/mcp", &[])]
#[case("http://tool.team.svc.cluster.local./mcp", &[])]
#[case("http://tool.team.svc/mcp", &[])]
#[tokio::test]
async fn a_service_is_looked_up_by_its_whole_name_and_may_be_private(#[case] url: &str, #[case] allowed: &[&str]) {
    let names = played(&[&["10.96.0.7"]]);
    assert_eq!(resolved(&destinations(allowed, &names), url).await.unwrap(), ["10.96.0.7:0"]);
    assert_eq!(*names.asked.lock().unwrap(), ["tool.team.svc.corp.example."]);
    let names = played(&[&["169.254.169.254"]]);
    let error = resolved(&destinations(allowed, &names), url).await.unwrap_err();
    assert!(matches!(error, Refused::Never { class: AddressClass::Metadata, .. }), "{error}");
}

#[tokio::test]
async fn an_answer_is_checked_again_for_every_connection() {
    let names = played(&[&["1.1.1.1"], &["10.0.0.1"]]);
    let destinations = destinations(&[], &names);
    assert!(resolved(&destinations, "https://rebinds.example/").await.is_ok());
    let error = resolved(&destinations, "https://rebinds.example/").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "rebinds.example resolves to 10.0.0.1, which is a private or cluster address: name a public host or a Service \
         of the own namespace, or have an administrator add rebinds.example to the installation's allowedPrivateHosts"
    );
}

#[tokio::test]
async fn an_address_of_the_clusters_own_ranges_is_private_whatever_its_number() {
    let own = |allowed: &[&str]| {
        let ranges = "2600:1f18::/32,8.8.0.0/16".parse().unwrap();
        destinations(allowed, &played(&[&["1.1.1.1", "8.8.8.8"]])).in_cluster(ranges)
    };
    let host = "api.example.com".to_owned();
    let (address, class) = ("8.8.8.8".parse().unwrap(), AddressClass::Private);
    let planned = own(&[]).within("team", &[]);
    assert_eq!(
        resolved(&planned, "https://api.example.com/").await.unwrap_err(),
        Refused::Unlisted { host, address, class }
    );
    assert!(resolved(&own(&["api.example.com"]), "https://api.example.com/").await.is_ok());
}

#[tokio::test]
async fn a_listed_name_may_be_private_and_never_anything_else() {
    let listed = |answer| destinations(&["proxy.corp.example"], &played(&[&[answer]]));
    assert!(resolved(&listed("10.1.2.3"), "https://proxy.corp.example/").await.is_ok());
    for never in ["127.0.0.1", "169.254.169.254", "fe80::1"] {
        assert!(resolved(&listed(never), "https://proxy.corp.example/").await.is_err(), "{never}");
    }
}

#[tokio::test]
async fn a_client_resolves_the_host_it_was_made_for_and_no_other() {
    let names = played(&[&["1.1.1.1"]]);
    let client = destinations(&[], &names).client("http://api.example.com/", Duration::from_secs(1), None).unwrap();
    let opened = client.open("http://api.example.com/v1").unwrap();
    let error = opened.get("http://other.example/").send().await.unwrap_err();
    assert!(matches!(refused(&error), Some(Refused::OtherHost { .. })), "{error:?}");
    assert!(names.asked.lock().unwrap().is_empty());
}

#[test]
fn a_client_sends_to_the_scheme_host_and_port_it_was_made_for_and_to_nobody_else() {
    let listed = destinations(&["10.1.2.3"], &Played::default());
    let client = listed.client("https://10.1.2.3:8443/v1", Duration::from_secs(1), None).unwrap();
    assert!(client.open("https://10.1.2.3:8443/v1/chat?key=s3cr3t").is_ok());
    for elsewhere in [
        "https://10.1.2.4:8443/v1",
        "https://169.254.169.254:8443/v1",
        "https://10.1.2.3/v1",
        "http://10.1.2.3:8443/v1",
        "https://api.example.com:8443/v1",
        "https://10.1.2.3:8443@10.1.2.4:8443/v1",
        "10.1.2.3:8443",
    ] {
        let error = client.open(elsewhere).unwrap_err();
        assert_eq!(error.reason(), FailureReason::DestinationNotAllowed, "{elsewhere}");
    }
    let error = client.open("https://10.1.2.4/?key=s3cr3t").unwrap_err().to_string();
    assert_eq!(error, "https://10.1.2.4 is not https://10.1.2.3:8443, for which this client was made");
}

#[rstest]
#[case("http://127.0.0.1:1/")]
#[case("http://127.0.0.1.:1/")]
#[case("http://2130706433:1/")]
#[case("http://0x7f.1:1/")]
#[case("http://0177.0.0.1:1/")]
#[case("http://[::ffff:127.0.0.1]:1/")]
#[case("http://[64:ff9b::10.0.0.1]:1/")]
#[case("http://169.254.169.254/latest/meta-data")]
#[case("http://loc%61lhost:1/")]
#[case("http://①②⑦.0.0.1:1/")]
#[case("http://llm.other.svc:1/")]
#[case("ftp://api.example.com/")]
#[case("http://good.example@127.0.0.1:1/")]
fn nothing_is_sent_to_a_url_that_leads_where_the_plan_may_not_go(#[case] url: &str) {
    let client = Destinations::new("team", &[]).client(url, Duration::from_secs(1), None).unwrap();
    assert_eq!(client.open(url).unwrap_err().reason(), FailureReason::DestinationNotAllowed);
}

#[tokio::test]
async fn a_server_that_resolves_to_metadata_is_not_asked_for_its_operations() {
    let destinations = destinations(&[], &played(&[&["169.254.169.254"]]));
    let url = "http://mcp.example/mcp".to_owned();
    let endpoint = Endpoint { tool: "github".into(), url, ca: None, credential: None };
    let credentials = Credentials::new("/nowhere".into());
    let mut server = McpServer::of_probe(endpoint, &destinations, &Timeouts::default(), credentials).unwrap();
    let error = server.list().await.unwrap_err();
    assert_eq!(error.reason, FailureReason::DestinationNotAllowed);
    assert_eq!(
        error.message,
        "Tool github: the MCP server at http://mcp.example/mcp was not asked: mcp.example resolves to \
         169.254.169.254, which is a cloud's metadata address: nothing may be sent there"
    );
}
