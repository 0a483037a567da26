#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use jiff::{Timestamp, ToSpan};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

use super::{Material, Reloadable, Renewal, trust_bundle};

fn names() -> Vec<String> {
    vec!["belay-operator.belay-system.svc".into(), "10.88.0.1".into()]
}

fn start() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().unwrap()
}

fn days_later(days: i64) -> Timestamp {
    start() + (days * 24).hours()
}

#[test]
fn a_certificate_is_renewed_at_a_third_and_the_authority_a_year_before_its_end() {
    let material = Material::fresh(&names(), start()).unwrap();
    for (days, due) in [(0, Renewal::None), (55, Renewal::None), (62, Renewal::Certificate), (3400, Renewal::Authority)]
    {
        assert_eq!(material.due(&names(), days_later(days)), due, "after {days} days");
    }
}

#[test]
fn another_name_and_unreadable_material_are_due_at_once() {
    let material = Material::fresh(&names(), start()).unwrap();
    assert_eq!(material.due(&["elsewhere.svc".into()], start()), Renewal::Certificate);
    let broken = Material { ca_cert_pem: "nonsense".into(), ..material };
    assert_eq!(broken.due(&names(), start()), Renewal::Authority);
}

#[test]
fn a_renewed_certificate_keeps_the_authority_and_a_renewed_authority_keeps_the_old_one_trusted() {
    let material = Material::fresh(&names(), start()).unwrap();
    let leaf = material.renewed(Renewal::Certificate, &names(), days_later(62)).unwrap();
    assert_eq!(leaf.ca_cert_pem, material.ca_cert_pem);
    assert_ne!(leaf.cert_pem, material.cert_pem);
    assert_eq!(leaf.due(&names(), days_later(62)), Renewal::None);
    let authority = material.renewed(Renewal::Authority, &names(), days_later(3400)).unwrap();
    assert!(trust_bundle(&authority).contains(&material.ca_cert_pem));
    assert!(trust_bundle(&authority).starts_with(&authority.ca_cert_pem));
}

/// Whether a client that trusts `bundle` takes the certificate that is served.
fn verifies(bundle: &str, material: &Material, now: Timestamp) -> bool {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(authority.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let leaf = CertificateDer::from_pem_slice(material.cert_pem.as_bytes()).unwrap();
    let name = ServerName::try_from("belay-operator.belay-system.svc").unwrap();
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.as_second().unsigned_abs()));
    verifier.verify_server_cert(&leaf, &[], &name, &[], now).is_ok()
}

#[test]
fn a_runner_verifies_the_certificate_with_the_bundle_and_no_other() {
    let material = Material::fresh(&names(), start()).unwrap();
    assert!(verifies(&trust_bundle(&material), &material, start()));
    assert!(!verifies(&trust_bundle(&material), &material, days_later(91)), "expired");
    let other = Material::fresh(&names(), start()).unwrap();
    assert!(!verifies(&trust_bundle(&other), &material, start()));
}

#[test]
fn pods_made_before_the_authority_changed_can_still_verify_the_certificate_for_a_week() {
    let years = Material::fresh(&names(), start()).unwrap();
    let before = years.renewed(Renewal::Certificate, &names(), days_later(3250)).unwrap();
    let changed = before.renewed(Renewal::Authority, &names(), days_later(3290)).unwrap();
    assert_eq!(changed.cert_pem, before.cert_pem, "the old authority's certificate is served on");
    assert_ne!(changed.ca_cert_pem, before.ca_cert_pem);
    assert!(trust_bundle(&changed).contains(&before.ca_cert_pem));
    for bundle in [trust_bundle(&before), trust_bundle(&changed)] {
        assert!(verifies(&bundle, &changed, days_later(3290)), "old and new pods trust it");
    }
    let next = changed.renewed(Renewal::Certificate, &names(), days_later(3311)).unwrap();
    assert!(verifies(&trust_bundle(&changed), &next, days_later(3311)), "pods of the handover trust the new authority");
    // 90 days from day 3250: 44 are left on day 3296, and 29 on day 3311, past the handover.
    assert_eq!(changed.due(&names(), days_later(3296)), Renewal::None);
    assert_eq!(changed.due(&names(), days_later(3311)), Renewal::Certificate);
    let late = before.renewed(Renewal::Authority, &names(), days_later(3315)).unwrap();
    assert_eq!(late.due(&names(), days_later(3316)), Renewal::None, "24 days are left: the handover comes first");
    assert_eq!(late.due(&names(), days_later(3324)), Renewal::Certificate);
}

#[test]
fn no_key_shows_when_material_is_printed() {
    let material = Material::fresh(&names(), start()).unwrap();
    assert!(!format!("{material:?}").contains("PRIVATE"));
}

#[test]
fn a_certificate_can_be_changed_while_serving() {
    let first = Material::fresh(&names(), start()).unwrap();
    let reloadable = Reloadable::new(&first).unwrap();
    reloadable.set(&Material::fresh(&names(), start()).unwrap()).unwrap();
    assert!(reloadable.set(&Material { key_pem: String::new(), ..first }).is_err());
}
