//! What the operator may do, asked of the API server by name.
#![allow(clippy::unwrap_used, clippy::panic)]

use belay_e2e::{Kubectl, TempNamespace};

const OPERATOR: &str = "system:serviceaccount:belay-system:belay-operator";

fn may(namespace: &str, verb: &str, resource: &str) -> bool {
    // `pods/exec` would mean the pod named exec: a subresource is asked for apart.
    let (resource, subresource) = match resource.split_once('/') {
        Some((kind @ ("pods" | "serviceaccounts"), sub)) => (kind, Some(sub)),
        Some(_) | None => (resource, None),
    };
    let mut arguments = vec!["auth", "can-i", verb, resource, "--namespace", namespace, "--as", OPERATOR];
    if let Some(sub) = subresource {
        arguments.extend(["--subresource", sub]);
    }
    Kubectl::new().output(&arguments, None).unwrap().success
}

/// A fresh RoleBinding reaches the authorizer a moment later.
fn soon(namespace: &str, verb: &str, resource: &str) -> bool {
    (0..50).any(|_| {
        let granted = may(namespace, verb, resource);
        if !granted {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        granted
    })
}

#[test]
fn the_operator_holds_no_verb_on_secrets_but_on_its_own_certificate() {
    let namespace = TempNamespace::enabled("rights-secrets").unwrap();
    for verb in ["get", "list", "watch", "create", "update", "patch", "delete"] {
        for place in [namespace.name.as_str(), "belay-system", "kube-system"] {
            assert!(!may(place, verb, "secrets"), "{verb} on secrets in {place}");
        }
    }
    assert!(may("belay-system", "get", "secrets/belay-operator-tls"));
    assert!(!may("belay-system", "delete", "secrets/belay-operator-tls"));
}

#[test]
fn the_operator_writes_one_lease_and_no_other() {
    let namespace = TempNamespace::enabled("rights-lease").unwrap();
    let lease = "leases.coordination.k8s.io/belay-operator";
    for (verb, granted) in
        [("get", true), ("update", true), ("patch", false), ("delete", false), ("list", false), ("watch", false)]
    {
        assert_eq!(may("belay-system", verb, lease), granted, "{verb} its own");
        assert!(!may("belay-system", verb, "leases.coordination.k8s.io/other"), "{verb} another");
        assert!(!may("belay-system", verb, "leases.coordination.k8s.io"), "{verb} all");
    }
    assert!(may("belay-system", "create", "leases.coordination.k8s.io"));
    for place in [namespace.name.as_str(), "kube-system", "kube-node-lease"] {
        for verb in ["get", "list", "watch", "create", "update", "patch", "delete"] {
            assert!(!may(place, verb, "leases.coordination.k8s.io"), "{verb} in {place}");
        }
    }
}

#[test]
fn the_operator_has_pod_rights_only_where_a_namespace_opted_in() {
    let enabled = TempNamespace::enabled("rights-in").unwrap();
    let plain = TempNamespace::plain("rights-out").unwrap();
    for verb in ["create", "delete", "get", "list", "watch"] {
        assert!(soon(&enabled.name, verb, "pods"), "{verb} pods where enabled");
        assert!(!may(&plain.name, verb, "pods"), "{verb} pods where not enabled");
        assert!(!may("kube-system", verb, "pods"), "{verb} pods in kube-system");
    }
    for verb in ["create", "patch", "delete", "list", "watch"] {
        assert!(soon(&enabled.name, verb, "networkpolicies.networking.k8s.io"), "{verb} policies where enabled");
        assert!(!may(&plain.name, verb, "networkpolicies.networking.k8s.io"), "{verb} policies where not enabled");
    }
    for (verb, granted) in [("list", true), ("watch", true), ("get", false), ("create", false), ("patch", false)] {
        assert_eq!(may(&enabled.name, verb, "services"), granted, "{verb} services where enabled");
        assert!(!may(&plain.name, verb, "services"), "{verb} services where not enabled");
    }
    for resource in ["pods/exec", "pods/attach", "pods/ephemeralcontainers", "serviceaccounts/token"] {
        assert!(!may(&enabled.name, "create", resource), "create {resource}");
    }
}

#[test]
fn the_operator_looks_at_admission_rules_and_changes_none() {
    let namespace = TempNamespace::enabled("rights-guard").unwrap();
    for kind in ["validatingadmissionpolicies", "validatingadmissionpolicybindings"] {
        let kind = format!("{kind}.admissionregistration.k8s.io");
        for verb in ["get", "list", "watch"] {
            assert!(may(&namespace.name, verb, &kind), "{verb} {kind}");
        }
        for verb in ["create", "update", "patch", "delete", "deletecollection"] {
            assert!(!may(&namespace.name, verb, &kind), "{verb} {kind}");
        }
    }
    // patch is for dry runs; what is more than one, admission refuses.
    for (verb, granted) in [("create", true), ("patch", true), ("update", false), ("delete", false)] {
        assert_eq!(may(&namespace.name, verb, "approvals.belay.dev"), granted, "{verb} approvals");
    }
    // Whoever gave a grant takes it back: the operator neither changes nor deletes any.
    for (verb, granted) in [("create", true), ("watch", true), ("patch", false), ("update", false), ("delete", false)] {
        assert_eq!(may(&namespace.name, verb, "approvalgrants.belay.dev"), granted, "{verb} approvalgrants");
    }
    for (verb, granted) in [("get", true), ("list", true), ("delete", true), ("create", false), ("patch", false)] {
        assert_eq!(may(&namespace.name, verb, "readgrants.belay.dev"), granted, "{verb} readgrants");
    }
}

#[test]
fn the_operator_writes_status_and_changes_no_spec() {
    let namespace = TempNamespace::enabled("rights-spec").unwrap();
    for kind in ["models", "credentials", "tools", "approvalpolicies", "agents", "agentruns"] {
        assert!(!may(&namespace.name, "update", &format!("{kind}.belay.dev")), "update {kind}");
        // Of runs, those that carry out a call of another one: admission refuses any other.
        let creates = kind == "agentruns";
        assert_eq!(may(&namespace.name, "create", &format!("{kind}.belay.dev")), creates, "create {kind}");
        assert!(!may(&namespace.name, "patch", &format!("{kind}.belay.dev")), "patch {kind}");
        assert!(may(&namespace.name, "list", &format!("{kind}.belay.dev")), "list {kind}");
    }
    assert!(!may(&namespace.name, "*", "*"));
}
