//! Ranges of addresses that an installation says are its own, though their numbers are public: of pods, Services, nodes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use thiserror::Error;

use super::class::{AddressClass, arrives};

/// Addresses that begin alike, written `ADDRESS/BITS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    /// Every bit after the first `bits` is zero.
    network: IpAddr,
    bits: u8,
}

/// What is no range that an installation can call its own.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotARange {
    #[error(
        "{0} is no range of addresses: write ADDRESS/BITS, such as 203.0.112.0/20 or 2600:1f18::/36, with zeros after the \
         first BITS bits, and IPv4 as IPv4"
    )]
    Spelling(String),
    #[error("{0} holds every public address there is: name the ranges of pods, Services and nodes")]
    Everything(String),
}

/// What is private in one installation beside what is private everywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterRanges(Vec<AddressRange>);

impl AddressRange {
    /// All of IPv4.
    pub const V4: Self = Self { network: IpAddr::V4(Ipv4Addr::UNSPECIFIED), bits: 0 };
    /// All of IPv6 that is routed in public.
    pub const PUBLIC_V6: Self = Self { network: IpAddr::V6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0)), bits: 3 };

    #[must_use]
    pub fn holds(&self, address: IpAddr) -> bool {
        match (self.network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let differ = u32::from(network) ^ u32::from(address);
                differ.leading_zeros() >= u32::from(self.bits)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differ = u128::from(network) ^ u128::from(address);
                differ.leading_zeros() >= u32::from(self.bits)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    /// Whether that range lies within this one, or is it.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.bits <= other.bits && self.holds(other.network)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.bits)
    }
}

impl FromStr for AddressRange {
    type Err = NotARange;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let spelling = || NotARange::Spelling(text.to_owned());
        let (network, bits) = text.split_once('/').ok_or_else(spelling)?;
        let (network, bits): (IpAddr, u8) =
            (network.parse().map_err(|_| spelling())?, bits.parse().map_err(|_| spelling())?);
        // What stands for IPv4 is judged as IPv4, so that no such range would ever match.
        let (used, width) = match network {
            IpAddr::V4(network) => (32 - u32::from(network).trailing_zeros(), 32),
            IpAddr::V6(network) => (128 - u128::from(network).trailing_zeros(), 128),
        };
        if bits > width || used > u32::from(bits) || arrives(network) != network {
            return Err(spelling());
        }
        let range = Self { network, bits };
        if range.covers(&Self::V4) || range.covers(&Self::PUBLIC_V6) {
            return Err(NotARange::Everything(text.to_owned()));
        }
        Ok(range)
    }
}

impl ClusterRanges {
    pub fn iter(&self) -> impl Iterator<Item = &AddressRange> {
        self.0.iter()
    }

    /// What kind of address one is here.
    #[must_use]
    pub fn class_of(&self, address: IpAddr) -> AddressClass {
        match AddressClass::of(address) {
            AddressClass::Public if self.0.iter().any(|range| range.holds(arrives(address))) => AddressClass::Private,
            class => class,
        }
    }
}

impl FromIterator<AddressRange> for ClusterRanges {
    fn from_iter<I: IntoIterator<Item = AddressRange>>(ranges: I) -> Self {
        Self(ranges.into_iter().collect())
    }
}

/// With commas between them.
impl fmt::Display for ClusterRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<String> = self.0.iter().map(AddressRange::to_string).collect();
        f.write_str(&ranges.join(","))
    }
}

impl FromStr for ClusterRanges {
    type Err = NotARange;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split(',').filter(|range| !range.is_empty()).map(str::parse).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("203.0.112.0/20")]
    #[case("2600:1f18:4::/48")]
    #[case("128.0.0.0/1")]
    #[case("8.8.8.8/32")]
    #[case("fd00::/8")]
    fn a_range_is_read_as_it_is_written(#[case] text: &str) {
        assert_eq!(text.parse::<AddressRange>().unwrap().to_string(), text);
    }

    #[rstest]
    #[case("203.0.112.1/20")]
    #[case("203.0.112.0")]
    #[case("203.0.112.0/33")]
    #[case("203.0.112.0/-1")]
    #[case("203.0.112/20")]
    #[case("2600::/129")]
    #[case("2600::1/64")]
    #[case("::ffff:8.8.8.0/120")]
    #[case("64:ff9b::/96")]
    #[case("cluster")]
    fn what_is_no_range_is_refused(#[case] text: &str) {
        assert_eq!(text.parse::<AddressRange>(), Err(NotARange::Spelling(text.into())));
    }

    #[rstest]
    #[case("0.0.0.0/0")]
    #[case("::/0")]
    #[case("2000::/3")]
    fn not_all_public_addresses_are_anybodys_own(#[case] text: &str) {
        assert_eq!(text.parse::<AddressRange>(), Err(NotARange::Everything(text.into())));
    }

    #[test]
    fn a_public_number_of_the_clusters_own_is_private_in_every_form_and_no_other_class_changes() {
        let ranges: ClusterRanges = "8.8.0.0/16,2600:1f18::/32,127.0.0.0/8".parse().unwrap();
        for own in ["8.8.8.8", "8.8.255.255", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1", "2600:1f18::1"] {
            assert_eq!(ranges.class_of(own.parse().unwrap()), AddressClass::Private, "{own}");
        }
        for other in ["8.7.255.255", "8.9.0.0", "2600:1f19::", "2600:1f17:ffff::"] {
            assert_eq!(ranges.class_of(other.parse().unwrap()), AddressClass::Public, "{other}");
        }
        assert_eq!(ranges.class_of("127.0.0.1".parse().unwrap()), AddressClass::Loopback);
        assert_eq!(ranges.to_string().parse(), Ok(ranges), "as pods are told of it");
        assert_eq!("".parse(), Ok(ClusterRanges::default()));
    }
}
