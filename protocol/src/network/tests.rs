#![allow(clippy::unwrap_used)]
use super::*;
use rstest::rstest;

fn service(name: &str, namespace: &str) -> Host {
    Host::Service { name: name.into(), namespace: namespace.into() }
}

fn allowed(hosts: &[&str]) -> AllowedHosts {
    hosts.iter().map(|host| host.parse::<AllowedHost>().unwrap()).collect()
}

#[rstest]
#[case("llm", service("llm", "team"))]
#[case("LLM", service("llm", "team"))]
#[case("llm.team", service("llm", "team"))]
#[case("llm.team.svc", service("llm", "team"))]
#[case("llm.team.svc.cluster.local", service("llm", "team"))]
#[case("llm.team.svc.cluster.local.", service("llm", "team"))]
#[case("llm.other.svc", service("llm", "other"))]
#[case("localhost", service("localhost", "team"))]
#[case("api.github.com", Host::Name("api.github.com".into()))]
#[case("API.GitHub.com.", Host::Name("api.github.com".into()))]
#[case("llm.other", Host::Name("llm.other".into()))]
#[case("llm.team.svc.evil.com", Host::Name("llm.team.svc.evil.com".into()))]
#[case("a.b.c.svc", Host::Name("a.b.c.svc".into()))]
#[case("10.1.2.3", Host::Address("10.1.2.3".parse().unwrap()))]
#[case("127.0.0.1.", Host::Address("127.0.0.1".parse().unwrap()))]
#[case("[::1]", Host::Address("::1".parse().unwrap()))]
fn a_host_is_a_service_a_name_or_an_address(#[case] text: &str, #[case] host: Host) {
    assert_eq!(Host::parse(text, "team"), Ok(host));
}

#[rstest]
#[case("llm", Some("llm.team.svc.corp.example."))]
#[case("llm.team.svc.cluster.local.", Some("llm.team.svc.corp.example."))]
#[case("llm.other.svc", Some("llm.other.svc.corp.example."))]
#[case("localhost", Some("localhost.team.svc.corp.example."))]
#[case("pod-0.db.other.svc", Some("pod-0.db.other.svc.corp.example."))]
#[case("pod-0.db.other.svc.cluster.local", Some("pod-0.db.other.svc.cluster.local."))]
#[case("github.com", Some("github.com."))]
#[case("github.com.", Some("github.com."))]
#[case("llm.other", Some("llm.other."))]
#[case("10.1.2.3", None)]
#[case("[::1]", None)]
fn every_name_is_looked_up_whole_whichever_domain_the_cluster_has(#[case] text: &str, #[case] name: Option<&str>) {
    let host = Host::parse(text, "team").unwrap();
    assert_eq!(host.absolute("corp.example").as_deref(), name);
}

#[rstest]
#[case("2130706433")]
#[case("0x7f000001")]
#[case("0177.0.0.1")]
#[case("127.1")]
#[case("0x7f.1")]
#[case("evil.com.0x1")]
#[case("1.2.3.4.5")]
fn an_address_in_another_spelling_is_no_host(#[case] text: &str) {
    assert_eq!(Host::parse(text, "team"), Err(Unclear::Disguised(text.into())));
}

#[rstest]
#[case("")]
#[case("a..b")]
#[case("127.0.0.1..")]
#[case("good.example@evil.example")]
#[case("loc%61lhost")]
#[case("①②⑦.0.0.1")]
#[case("bücher.example")]
#[case("[fe80::1%25eth0]")]
#[case("[::1")]
fn a_host_that_parsers_read_each_in_their_own_way_is_none(#[case] text: &str) {
    assert_eq!(Host::parse(text, "team"), Err(Unclear::Spelling(text.into())));
}

#[test]
fn scheme_and_port_are_the_urls_own() {
    let port = |url: &str| Destination::parse(url, "team").map(|destination| destination.port);
    assert_eq!(port("https://a.example/x"), Ok(443));
    assert_eq!(port("HTTP://a.example"), Ok(80));
    assert_eq!(port("http://a.example:8080/x"), Ok(8080));
    assert_eq!(port("http://[2001:db8::1]:81/x"), Ok(81));
    assert_eq!(port("http://[2001:db8::1]/x"), Ok(80));
    for url in ["http://a.example:0/", "http://a.example:65536", "http://a.example:x"] {
        assert_eq!(port(url), Err(Unclear::Port(url.into())));
    }
    for url in ["ftp://a.example", "file:///etc/passwd", "a.example", "//a.example"] {
        assert_eq!(port(url), Err(Unclear::Scheme(url.into())));
    }
}

#[test]
fn private_addresses_are_for_services_and_for_what_the_installation_lists() {
    let list = allowed(&["llm.models.svc", "proxy.corp.example", "10.1.2.3", "127.0.0.1", "fd00::7"]);
    let reach = |url: &str| list.route(url, "team").map(|route| (route.destination.host, route.reach)).unwrap();
    assert_eq!(reach("http://tool:3000/mcp"), (service("tool", "team"), Reach::Private));
    assert_eq!(reach("http://llm.models.svc/v1"), (service("llm", "models"), Reach::Private));
    assert_eq!(reach("http://llm.models:80/v1"), (service("llm", "models"), Reach::Private));
    assert_eq!(reach("https://proxy.corp.example"), (Host::Name("proxy.corp.example".into()), Reach::Private));
    assert_eq!(reach("https://api.github.com"), (Host::Name("api.github.com".into()), Reach::Public));
    assert_eq!(reach("https://1.1.1.1").1, Reach::Public);
    for address in ["10.1.2.3", "127.0.0.1", "[fd00::7]"] {
        assert_eq!(reach(&format!("http://{address}:1/")).1, Reach::Private, "{address}");
    }
    assert_eq!(list.needed("http://llm.models/v1", "team").as_deref(), Some("llm.models.svc"));
    assert_eq!(list.needed("http://tool/mcp", "team"), None);
    assert_eq!(AllowedHosts::of(&["llm.models.svc".into(), "169.254.169.254".into()]), allowed(&["llm.models.svc"]));
}

#[test]
fn what_is_not_allowed_says_what_to_do() {
    let none = AllowedHosts::default();
    let words = |url: &str| none.route(url, "team").unwrap_err().to_string();
    assert_eq!(
        words("http://llm.other.svc/v1"),
        "llm.other.svc is a Service of another namespace: name one of namespace team, or have an administrator add \
         llm.other.svc to the installation's allowedPrivateHosts"
    );
    assert_eq!(
        words("http://10.96.0.1/"),
        "10.96.0.1 is a private or cluster address: name a public host or a Service of the own namespace, or have an \
         administrator add 10.96.0.1 to the installation's allowedPrivateHosts"
    );
    assert_eq!(
        words("http://[::ffff:169.254.169.254]/"),
        "::ffff:169.254.169.254 is a cloud's metadata address, which nothing may be sent to: name a public host or a \
         Service of the own namespace"
    );
}

#[test]
fn metadata_is_not_to_be_allowed_at_all() {
    for never in ["169.254.169.254", "fe80::1", "0.0.0.0", "224.0.0.1", "fd00:ec2::254", "100.100.100.200"] {
        assert!(matches!(never.parse::<AllowedHost>(), Err(NotAllowable::Never(..))), "{never}");
        let listed = allowed(&[]);
        let listed = AllowedHosts { hosts: vec![AllowedHost(Host::Address(never.parse().unwrap()))], ..listed };
        let url = if never.contains(':') { format!("http://[{never}]/") } else { format!("http://{never}/") };
        assert!(matches!(listed.route(&url, "team"), Err(NotAllowed::Never { .. })), "{never}");
    }
    assert_eq!("llm".parse::<AllowedHost>(), Err(NotAllowable::NoNamespace("llm".into())));
    for class in [AddressClass::Loopback, AddressClass::LinkLocal, AddressClass::Metadata] {
        assert!(!Reach::Private.takes(class), "{class}");
    }
}

#[test]
fn an_address_of_the_clusters_own_ranges_needs_the_list_whatever_its_number() {
    let list = allowed(&["8.8.8.8"]).in_cluster("8.8.0.0/16".parse().unwrap());
    assert_eq!(list.route("http://8.8.8.8/", "team").map(|route| route.reach), Ok(Reach::Private));
    let (address, class) = ("8.8.4.4".parse().unwrap(), AddressClass::Private);
    assert_eq!(list.route("http://8.8.4.4/", "team"), Err(NotAllowed::Unlisted { address, class }));
    assert_eq!(list.route("http://1.1.1.1/", "team").map(|route| route.reach), Ok(Reach::Public));
    let planned = list.listing(&[]);
    assert!(planned.route("http://8.8.8.8/", "team").is_err(), "a plan that does not name it");
}

#[test]
fn behind_a_proxy_public_hosts_are_its_to_reach_and_all_others_as_they_were() {
    let proxy: EgressProxy = "http://proxy.corp.example:3128".parse().unwrap();
    let list = allowed(&["llm.models.svc", "direct.example", "db.corp.internal", "10.1.2.3"]).behind(Some(&proxy));
    let reach = |url: &str| list.route(url, "team").map(|route| route.reach);
    for url in ["https://api.github.com/", "https://1.1.1.1/", "https://llm.other/", "HTTPS://api.github.com:8443/"] {
        assert_eq!(reach(url), Ok(Reach::Proxied), "{url}");
    }
    for url in [
        "http://tool/mcp",
        "http://llm.models.svc/v1",
        "https://direct.example",
        "http://direct.example/",
        "http://10.1.2.3/",
    ] {
        assert_eq!(reach(url), Ok(Reach::Private), "{url}");
    }
    assert_eq!(reach("https://db.corp.internal/"), Ok(Reach::Private));
    let host = || "api.github.com".to_owned();
    assert_eq!(reach("HTTP://api.github.com/"), Err(NotAllowed::InPlainText { host: host() }));
    for name in
        ["metadata.google.internal", "a.localhost", "printer.local", "a.b.c.svc", "1.0.0.127.in-addr.arpa", "x.onion"]
    {
        assert_eq!(reach(&format!("https://{name}./")), Err(NotAllowed::NotPublic { host: name.into() }));
    }
    assert!(matches!(reach("https://10.9.9.9/"), Err(NotAllowed::Unlisted { .. })));
    assert!(matches!(reach("https://169.254.169.254/"), Err(NotAllowed::Never { .. })));
    assert!(!Reach::Proxied.takes(AddressClass::Public), "nothing is connected to from here");
    let direct = list.behind(None);
    assert_eq!(direct.route("http://api.github.com/", "team").unwrap().reach, Reach::Public);
}

#[rstest]
#[case("http://proxy.corp.example:3128", "http://proxy.corp.example:3128")]
#[case("http://proxy.corp.example/", "http://proxy.corp.example:80")]
#[case("http://squid.infra.svc.cluster.local:3128", "http://squid.infra.svc:3128")]
#[case("http://10.1.2.3:3128", "http://10.1.2.3:3128")]
#[case("http://[fd00::7]:3128", "http://[fd00::7]:3128")]
fn a_proxy_is_a_plain_address_of_the_installation(#[case] text: &str, #[case] read: &str) {
    let proxy: EgressProxy = text.parse().unwrap();
    assert_eq!(proxy.to_string(), read);
    assert_eq!(proxy.route().reach, Reach::Private);
    assert_eq!(read.parse(), Ok(proxy), "as pods are told of it");
}

#[rstest]
#[case("https://proxy.corp.example:3128")]
#[case("socks5://proxy.corp.example:3128")]
#[case("proxy.corp.example:3128")]
#[case("http://ada:hunter2@proxy.corp.example:3128")]
#[case("http://proxy.corp.example:3128/path")]
#[case("http://proxy:3128")]
#[case("http://169.254.169.254:80")]
#[case("http://0x7f.1:3128")]
#[case("http://proxy.corp.example:0")]
fn what_is_no_proxy_is_refused(#[case] text: &str) {
    assert!(text.parse::<EgressProxy>().is_err());
}
