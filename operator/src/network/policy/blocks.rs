//! Blocks of addresses, as policies name them. They agree with the classes by which runners go, but for forms of IPv4 in
//! IPv6 that nobody routes any more (mapped, 6to4): those stay closed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use belay_protocol::network::{AddressRange, ClusterRanges};
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicyPeer};

const NOT_PUBLIC_V4: [&str; 15] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
];
/// What no list of the installation opens.
const NEVER_V4: [&str; 11] = [
    "0.0.0.0/8",
    "100.100.100.200/32",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
];
const NOT_PUBLIC_V6: [&str; 4] = ["2001::/32", "2001:db8::/32", "2002::/16", "3fff::/20"];
/// The well-known prefix (RFC 6052); a network's own counts as private.
const NAT64: &str = "64:ff9b::/96";
const PRIVATE_V6: &str = "fc00::/7";
const METADATA_V6: [&str; 5] =
    ["fd00:42::42/128", "fd00:c1::a9fe:a9fe/128", "fd00:ec2::23/128", "fd00:ec2::254/128", "fd20:ce::254/128"];

/// Public addresses that are not the cluster's own.
pub(super) fn public(ranges: &ClusterRanges) -> Vec<NetworkPolicyPeer> {
    let v4 = with_own(&NOT_PUBLIC_V4, ranges, AddressRange::V4);
    let v6 = with_own(&NOT_PUBLIC_V6, ranges, AddressRange::PUBLIC_V6);
    ipv4(v4).into_iter().chain([block(&AddressRange::PUBLIC_V6.to_string(), v6)]).collect()
}

/// Wherever a host may be that the installation names: nobody but DNS knows at which private addresses it is.
pub(super) fn named() -> Vec<NetworkPolicyPeer> {
    let v6 = [
        block(&AddressRange::PUBLIC_V6.to_string(), strings(&NOT_PUBLIC_V6)),
        block(PRIVATE_V6, strings(&METADATA_V6)),
    ];
    ipv4(strings(&NEVER_V4)).into_iter().chain(v6).collect()
}

pub(super) fn one(address: IpAddr) -> NetworkPolicyPeer {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    block(&format!("{address}/{bits}"), Vec::new())
}

/// IPv4 but these, and the same by NAT64: to pods without an IPv4 address of their own, DNS64 gives those.
fn ipv4(except: Vec<String>) -> [NetworkPolicyPeer; 2] {
    let translated = except.iter().filter_map(|cidr| by_nat64(cidr)).collect();
    [block(&AddressRange::V4.to_string(), except), block(NAT64, translated)]
}

/// What stands for a block of IPv4 under [`NAT64`].
fn by_nat64(cidr: &str) -> Option<String> {
    let (network, bits) = cidr.split_once('/')?;
    let [a, b, c, d] = network.parse::<Ipv4Addr>().ok()?.octets();
    let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    let network = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low);
    Some(format!("{network}/{}", 96 + bits.parse::<u8>().ok()?))
}

fn block(cidr: &str, except: Vec<String>) -> NetworkPolicyPeer {
    let ip_block = IPBlock { cidr: cidr.to_owned(), except: (!except.is_empty()).then_some(except) };
    NetworkPolicyPeer { ip_block: Some(ip_block), ..NetworkPolicyPeer::default() }
}

/// Exceptions of a block, which have to lie within it, with those ranges that are not among them already.
fn with_own(never: &[&str], ranges: &ClusterRanges, within: AddressRange) -> Vec<String> {
    let named: Vec<AddressRange> = never.iter().filter_map(|cidr| cidr.parse().ok()).collect();
    let own = ranges.iter().filter(|range| within.covers(range) && !named.iter().any(|named| named.covers(range)));
    strings(never).into_iter().chain(own.map(AddressRange::to_string)).collect()
}

fn strings(cidrs: &[&str]) -> Vec<String> {
    cidrs.iter().map(|cidr| (*cidr).to_owned()).collect()
}
