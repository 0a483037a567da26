#![allow(clippy::unwrap_used)]

use jiff::{Timestamp, ToSpan};

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
