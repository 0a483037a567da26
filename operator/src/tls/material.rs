//! CA, certificate and keys as values: made fresh, judged by age, renewed. Time comes in as an argument.

use jiff::{Span, Timestamp, ToSpan, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use x509_parser::pem::parse_x509_pem;

use super::TlsError;

const AUTHORITY_DAYS: i64 = 3650;
const CERTIFICATE_DAYS: i64 = 90;
/// A certificate is renewed when a third of its time is left, the authority a year before its end.
const CERTIFICATE_LEFT_DAYS: i64 = 30;
const AUTHORITY_LEFT_DAYS: i64 = 365;
/// Pods that were made before the authority changed trust the old one alone: until the last of them is gone the
/// old authority's certificate is served, as long as it holds.
const HANDOVER_DAYS: i64 = 8;
const CERTIFICATE_LAST_DAYS: i64 = 2;
const DAY_SECONDS: i64 = 86_400;

/// What the operator's Secret holds. All PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Material {
    pub ca_cert_pem: String,
    pub ca_key_pem: String,
    pub cert_pem: String,
    pub key_pem: String,
    /// The authority before this one: pods that were made before it changed still trust it.
    pub previous_ca_pem: Option<String>,
}

/// Keys never reach a log.
impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material").finish_non_exhaustive()
    }
}

/// What has to be made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    None,
    Certificate,
    Authority,
}

impl Material {
    /// A new authority and a certificate of it for these names (DNS names or addresses).
    pub fn fresh(names: &[String], now: Timestamp) -> Result<Self, TlsError> {
        let ca_key = KeyPair::generate()?;
        let ca = authority(now)?.self_signed(&ca_key)?;
        let (ca_cert_pem, ca_key_pem) = (ca.pem(), ca_key.serialize_pem());
        let (cert_pem, key_pem) = certificate(&ca_cert_pem, ca_key, names, now)?;
        Ok(Self { ca_cert_pem, ca_key_pem, cert_pem, key_pem, previous_ca_pem: None })
    }

    /// What is due. Material that cannot be read is due whole, as is a certificate without one of the names.
    #[must_use]
    pub fn due(&self, names: &[String], now: Timestamp) -> Renewal {
        let (Ok(ca), Ok(leaf)) = (days_left(&self.ca_cert_pem, now), days_left(&self.cert_pem, now)) else {
            return Renewal::Authority;
        };
        let handing_over = self.previous_ca_pem.is_some() && AUTHORITY_DAYS - ca < HANDOVER_DAYS;
        let leaf_due = if handing_over { CERTIFICATE_LAST_DAYS } else { CERTIFICATE_LEFT_DAYS };
        if ca < AUTHORITY_LEFT_DAYS {
            Renewal::Authority
        } else if leaf < leaf_due || !covers(&self.cert_pem, names) {
            Renewal::Certificate
        } else {
            Renewal::None
        }
    }

    /// The same with what is due made anew.
    pub fn renewed(&self, renewal: Renewal, names: &[String], now: Timestamp) -> Result<Self, TlsError> {
        match renewal {
            Renewal::None => Ok(self.clone()),
            Renewal::Certificate => {
                let key = KeyPair::from_pem(&self.ca_key_pem)?;
                let (cert_pem, key_pem) = certificate(&self.ca_cert_pem, key, names, now)?;
                Ok(Self { cert_pem, key_pem, ..self.clone() })
            }
            Renewal::Authority => {
                let fresh = Self::fresh(names, now)?;
                if days_left(&self.ca_cert_pem, now).is_err() {
                    return Ok(fresh);
                }
                let previous_ca_pem = Some(self.ca_cert_pem.clone());
                if days_left(&self.cert_pem, now).is_ok_and(|left| left >= CERTIFICATE_LAST_DAYS) {
                    let (cert_pem, key_pem) = (self.cert_pem.clone(), self.key_pem.clone());
                    return Ok(Self { cert_pem, key_pem, previous_ca_pem, ..fresh });
                }
                Ok(Self { previous_ca_pem, ..fresh })
            }
        }
    }
}

/// The authorities that a runner trusts: this one and the one before it.
#[must_use]
pub fn trust_bundle(material: &Material) -> String {
    format!("{}{}", material.ca_cert_pem, material.previous_ca_pem.as_deref().unwrap_or_default())
}

fn authority(now: Timestamp) -> Result<CertificateParams, TlsError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "belay-operator authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, now, AUTHORITY_DAYS.days());
    Ok(params)
}

fn certificate(ca_pem: &str, ca_key: KeyPair, names: &[String], now: Timestamp) -> Result<(String, String), TlsError> {
    let issuer = Issuer::from_ca_cert_pem(ca_pem, ca_key)?;
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name.push(DnType::CommonName, "belay-operator");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, now, CERTIFICATE_DAYS.days());
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// From a day before `now`, for clocks that differ, to `length` after it.
fn validity(params: &mut CertificateParams, now: Timestamp, length: Span) {
    let today = now.to_zoned(TimeZone::UTC).date();
    let day = |date: jiff::civil::Date| {
        rcgen::date_time_ymd(i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    params.not_before = day(today.saturating_sub(1.day()));
    params.not_after = day(today.saturating_add(length));
}

fn days_left(pem: &str, now: Timestamp) -> Result<i64, TlsError> {
    Ok((expires(pem)? - now.as_second()) / DAY_SECONDS)
}

/// Seconds since the Unix epoch at which the certificate ends.
fn expires(pem: &str) -> Result<i64, TlsError> {
    let unreadable = |message: String| TlsError::Unreadable { part: "certificate", message };
    let (_, pem) = parse_x509_pem(pem.as_bytes()).map_err(|e| unreadable(e.to_string()))?;
    let certificate = pem.parse_x509().map_err(|e| unreadable(e.to_string()))?;
    Ok(certificate.validity().not_after.timestamp())
}

fn covers(pem: &str, names: &[String]) -> bool {
    let Ok((_, pem)) = parse_x509_pem(pem.as_bytes()) else { return false };
    let Ok(certificate) = pem.parse_x509() else { return false };
    let Ok(Some(alternatives)) = certificate.subject_alternative_name() else { return false };
    let held: Vec<String> = alternatives.value.general_names.iter().filter_map(name_text).collect();
    names.iter().all(|name| held.contains(name))
}

fn name_text(name: &x509_parser::extensions::GeneralName<'_>) -> Option<String> {
    use x509_parser::extensions::GeneralName;
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match *bytes {
            [a, b, c, d] => Some(std::net::Ipv4Addr::new(*a, *b, *c, *d).to_string()),
            longer => <[u8; 16]>::try_from(longer).ok().map(|bytes| std::net::Ipv6Addr::from(bytes).to_string()),
        },
        _ => None,
    }
}
