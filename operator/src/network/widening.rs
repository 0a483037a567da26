//! Which NetworkPolicies of others let runner or probe pods reach, or be reached by, more than those of Belay: policies are a
//! union, so that one of somebody else's undoes ours. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use belay_crds::{AGENT_LABEL, NETWORK_LABEL, PROBE_LABEL, RUN_LABEL, RUN_UID_LABEL};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyPort, NetworkPolicySpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::ResourceExt;

use super::policy::NO_DESTINATIONS;
use crate::pod_template::{base_labels, label_value};

/// Labels of runner pods that each have another value: a selector may go by any.
const OF_EACH_RUN: [&str; 2] = [RUN_UID_LABEL, RUN_LABEL];

/// A pod's labels, as far as they are known before it is there.
type Labels = BTreeMap<String, String>;

/// Names of those that select pods of an Agent whose NetworkPolicy has that key, or probe pods of its namespace, and
/// allow what `ours` do not. A policy is one of ours by its name and nothing else: whose content that is, the operator
/// sees to.
#[must_use]
pub fn widening(policies: &[Arc<NetworkPolicy>], agent: &str, key: &str, ours: &[NetworkPolicy]) -> Vec<String> {
    let pods = [runner(agent, key), probe()];
    let allowed: Vec<_> = ours.iter().filter_map(|policy| policy.spec.as_ref()?.egress.as_deref()).flatten().collect();
    let is_ours = |policy: &NetworkPolicy| ours.iter().any(|one| one.metadata.name == policy.metadata.name);
    let widens = |policy: &&Arc<NetworkPolicy>| {
        let Some(spec) = policy.spec.as_ref().filter(|_| !is_ours(policy)) else { return false };
        let selects = |pod| spec.pod_selector.as_ref().is_none_or(|selector| may_select(selector, pod));
        pods.iter().any(selects) && allows_more(spec, &allowed)
    };
    let mut names: Vec<String> = policies.iter().filter(widens).map(|policy| policy.name_any()).collect();
    names.sort_unstable();
    names
}

fn runner(agent: &str, key: &str) -> Labels {
    let own = [(AGENT_LABEL.to_owned(), label_value(agent)), (NETWORK_LABEL.to_owned(), key.to_owned())];
    base_labels("runner").into_iter().chain(own).collect()
}

/// The one that finds out whether policies are enforced.
fn probe() -> Labels {
    let own = [(PROBE_LABEL, "network"), (NETWORK_LABEL, NO_DESTINATIONS)];
    base_labels("probe").into_iter().chain(own.map(|(name, value)| (name.to_owned(), value.to_owned()))).collect()
}

fn may_select(selector: &LabelSelector, pod: &Labels) -> bool {
    let varies = |key: &str| OF_EACH_RUN.contains(&key);
    let fits = |requirement: &LabelSelectorRequirement| {
        let (held, values) = (pod.get(&requirement.key), requirement.values.as_deref().unwrap_or_default());
        match requirement.operator.as_str() {
            "DoesNotExist" => held.is_none() && !varies(&requirement.key),
            _ if varies(&requirement.key) => true,
            "In" => held.is_some_and(|value| values.contains(value)),
            "NotIn" => held.is_none_or(|value| !values.contains(value)),
            "Exists" => held.is_some(),
            // Kubernetes knows no other; one that it learns is not taken for harmless.
            _ => true,
        }
    };
    let has = |(key, value): (&String, &String)| varies(key) || pod.get(key) == Some(value);
    selector.match_labels.iter().flatten().all(has) && selector.match_expressions.iter().flatten().all(fits)
}

/// Ours let nothing in, so that whatever a policy lets in is more.
fn allows_more(spec: &NetworkPolicySpec, ours: &[&NetworkPolicyEgressRule]) -> bool {
    let is_about = |what: &str| spec.policy_types.iter().flatten().any(|about| about == what);
    let lets_in = is_about("Ingress") && spec.ingress.iter().flatten().next().is_some();
    lets_in || (is_about("Egress") && spec.egress.iter().flatten().any(|rule| !is_within(rule, ours)))
}

/// Whether each of its peers is one that a rule of ours allows by the same words, at those ports at least.
fn is_within(rule: &NetworkPolicyEgressRule, ours: &[&NetworkPolicyEgressRule]) -> bool {
    let peers = rule.to.as_deref().unwrap_or_default();
    let at_ports = |our: &NetworkPolicyEgressRule| {
        let (theirs, ours) = (ports(rule), ports(our));
        ours.is_empty() || (!theirs.is_empty() && theirs.iter().all(|port| ours.contains(port)))
    };
    let allowed = |peer| ours.iter().any(|our| our.to.iter().flatten().any(|one| one == peer) && at_ports(our));
    // Without a peer it is everybody.
    !peers.is_empty() && peers.iter().all(allowed)
}

fn ports(rule: &NetworkPolicyEgressRule) -> &[NetworkPolicyPort] {
    rule.ports.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::super::NetworkSettings;
    use super::super::policy::{base, usual_dns};
    use super::*;

    /// Whether a policy of that content widens the way out of the pods of Agent `triage` with the key `k3y`.
    fn widens(name: &str, spec: &Value) -> bool {
        let policy = json!({"metadata": {"name": name, "namespace": "team"}, "spec": spec});
        let policy: NetworkPolicy = serde_json::from_value(policy).unwrap();
        let ours = base("team", &NetworkSettings { dns: usual_dns(), ..NetworkSettings::default() });
        let found = widening(&[Arc::new(policy), Arc::new(ours.clone())], "triage", "k3y", &[ours]);
        assert!(found.is_empty() || found == [name], "{found:?}");
        !found.is_empty()
    }

    fn open(selector: &Value) -> Value {
        json!({"podSelector": selector, "policyTypes": ["Egress"], "egress": [{}]})
    }

    #[rstest]
    #[case(json!({}), true)]
    #[case(json!({"matchLabels": {"app.kubernetes.io/name": "belay-runner"}}), true)]
    #[case(json!({"matchLabels": {"belay.dev/agent": "triage", "belay.dev/network": "k3y"}}), true)]
    #[case(json!({"matchLabels": {"belay.dev/run": "nightly"}}), true)]
    #[case(json!({"matchLabels": {"belay.dev/probe": "network"}}), true)]
    #[case(json!({"matchExpressions": [{"key": "belay.dev/network", "operator": "Exists"}]}), true)]
    #[case(json!({"matchExpressions": [{"key": "belay.dev/agent", "operator": "In", "values": ["a", "triage"]}]}), true)]
    #[case(json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["db"]}]}), true)]
    #[case(json!({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}), true)]
    #[case(json!({"matchExpressions": [{"key": "belay.dev/run", "operator": "NotIn", "values": ["nightly"]}]}), true)]
    #[case(json!({"matchLabels": {"app": "db"}}), false)]
    #[case(json!({"matchLabels": {"belay.dev/network": "another"}}), false)]
    #[case(json!({"matchLabels": {"belay.dev/agent": "another", "belay.dev/run": "nightly"}}), false)]
    #[case(json!({"matchExpressions": [{"key": "belay.dev/network", "operator": "DoesNotExist"}]}), false)]
    #[case(json!({"matchExpressions": [{"key": "belay.dev/run", "operator": "DoesNotExist"}, {"key": "belay.dev/probe", "operator": "DoesNotExist"}]}), false)]
    #[case(json!({"matchExpressions": [{"key": "app.kubernetes.io/part-of", "operator": "NotIn", "values": ["belay"]}]}), false)]
    fn a_policy_counts_where_it_selects_runner_or_probe_pods(#[case] selector: Value, #[case] counts: bool) {
        assert_eq!(widens("open", &open(&selector)), counts);
    }

    #[rstest]
    #[case(json!({"policyTypes": ["Ingress", "Egress"]}), false)]
    #[case(json!({"policyTypes": ["Ingress"], "egress": [{}]}), false)]
    #[case(json!({"policyTypes": ["Egress"], "ingress": [{}]}), false)]
    #[case(json!({"policyTypes": ["Ingress"], "ingress": [{}]}), true)]
    #[case(json!({"policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {}}]}]}), true)]
    #[case(json!({"policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {}}]}]}), true)]
    #[case(json!({"policyTypes": ["Egress"], "egress": [{"ports": [{"protocol": "UDP", "port": 53}]}]}), true)]
    fn a_policy_counts_where_it_adds_a_way_in_or_out(#[case] spec: Value, #[case] counts: bool) {
        assert_eq!(widens("some", &spec), counts);
    }

    #[test]
    fn what_ours_allow_anyway_widens_nothing() {
        let dns = |ports: Value| {
            let peer = serde_json::to_value(usual_dns().remove(0).to.unwrap().remove(0)).unwrap();
            widens("dns", &json!({"policyTypes": ["Egress"], "egress": [{"to": [peer], "ports": ports}]}))
        };
        assert!(!dns(json!([{"protocol": "UDP", "port": 53}])));
        assert!(!dns(json!([{"protocol": "TCP", "port": 53}, {"protocol": "UDP", "port": 53}])));
        assert!(dns(json!([{"protocol": "TCP", "port": 80}])));
        assert!(dns(Value::Null), "every port");
    }

    /// Anybody may choose a name or label like ours.
    #[test]
    fn only_the_policies_that_the_operator_keeps_are_ours() {
        assert!(widens("belay-net-0123456789abcdef", &open(&json!({}))));
        assert!(!widens("belay-runners", &open(&json!({}))), "it is mended");
    }
}
